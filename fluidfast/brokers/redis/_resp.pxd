from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef inline Py_ssize_t put_decimal(char* target, Py_ssize_t at, long long number) noexcept:
    """A number from 0. The C library's own way goes through more code than a core keeps at hand."""
    cdef char digits[20]
    cdef int left = 20
    while True:
        left -= 1
        digits[left] = 48 + number % 10
        number //= 10
        if number == 0:
            break
    memcpy(target + at, digits + left, 20 - left)
    return at + 20 - left

cdef inline Py_ssize_t put_header(char* target, Py_ssize_t at, char kind, Py_ssize_t size) noexcept:
    """Write the line before an array (``*``) of so many, or a bulk string (``$``) of so many bytes."""
    target[at] = kind
    at = put_decimal(target, at + 1, size)
    target[at] = 13
    target[at + 1] = 10
    return at + 2

cdef inline Py_ssize_t put_string(char* target, Py_ssize_t at, const char* text, Py_ssize_t size) noexcept:
    """Text as a bulk string."""
    at = put_header(target, at, 36, size)
    memcpy(target + at, text, size)
    at += size
    target[at] = 13
    target[at + 1] = 10
    return at + 2

cdef inline Py_ssize_t put_number(char* target, Py_ssize_t at, long long number) noexcept:
    """A number from 0 as a bulk string."""
    cdef char digits[20]
    return put_string(target, at, digits, put_decimal(digits, 0, number))

cdef inline Py_ssize_t put(char* target, Py_ssize_t at, bytes piece) noexcept:
    """Bytes as they are."""
    memcpy(target + at, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
    return at + PyBytes_GET_SIZE(piece)
