"""Commands as they go over the wire: arrays of bulk strings.

The format: https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP). A batch is a command of a thousand
arguments, and ``hiredis.pack_command`` prints the length of each by the C library's formats: 0.1 us an argument or
more, where ``queue_many`` takes 1.1 us a run in all. Here it is 0.015 (``bench/micro/test_bench_resp.py``).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

__all__ = ["pack"]

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


def pack(tuple command not None) -> bytes:
    """A command and its arguments: str (as UTF-8), bytes, int or float (as Python writes them).

    Raises:
        TypeError: an argument is something else; a bool, too, of which Redis knows nothing.
        UnicodeEncodeError: it is a str that has no UTF-8.
        MemoryError: there is none for so long a command.
    """
    cdef Py_ssize_t length = 0, size = header_size(len(command)), at = 0, numbers = 0
    cdef const char* text
    cdef char* target
    cdef list written = []              # the numbers among them
    cdef bytes number, packed
    for argument in command:
        if isinstance(argument, bytes):
            length = PyBytes_GET_SIZE(argument)
        elif isinstance(argument, str):
            PyUnicode_AsUTF8AndSize(argument, &length)
        elif isinstance(argument, (int, float)) and not isinstance(argument, bool):
            number = (int if isinstance(argument, int) else float).__repr__(argument).encode()
            written.append(number)
            length = PyBytes_GET_SIZE(number)
        else:
            raise TypeError(f"an argument of a command is str, bytes, int or float, not {type(argument).__name__}")
        size += header_size(length) + length + 2
    packed = PyBytes_FromStringAndSize(NULL, size)
    target = PyBytes_AS_STRING(packed)
    at = put_header(target, 0, 42, len(command))
    for argument in command:
        if isinstance(argument, str):
            text = PyUnicode_AsUTF8AndSize(argument, &length)
        else:
            if not isinstance(argument, bytes):
                argument = written[numbers]
                numbers += 1
            text = PyBytes_AS_STRING(argument)
            length = PyBytes_GET_SIZE(argument)
        at = put_string(target, at, text, length)
    assert at == size
    return packed


cdef Py_ssize_t header_size(Py_ssize_t number) noexcept:
    cdef Py_ssize_t size = 4            # the kind, a digit, the end of the line
    while number >= 10:
        number //= 10
        size += 1
    return size
