# Part of _codec.pyx: digits, texts and times as bytes, and what has to be seen before a payload is trusted.

cdef int64_t _last_second = -1
cdef char _last_digits[10]


cdef inline void put_digits(char* at, unsigned int value, int width) noexcept:
    cdef int i
    for i in range(width - 1, -1, -1):
        at[i] = 48 + value % 10
        value //= 10


cdef inline char* put_time(char* at, int64_t moment) noexcept:
    """17 bytes: seconds since the epoch, of 10 digits, a point, and 6 digits."""
    global _last_second
    cdef int64_t second = moment // 1000000
    if second != _last_second:
        put_digits(_last_digits, second % 100000, 5)
        memcpy(_last_digits + 5, _last_digits, 5)
        put_digits(_last_digits, second // 100000, 5)
        _last_second = second
    memcpy(at, _last_digits, 10)
    at[10] = 46
    put_digits(at + 11, moment - second * 1000000, 6)
    return at + 17


cdef inline int64_t take_digits(const char* at, int width) noexcept:
    """The number in ``width`` digits, or -1."""
    cdef int64_t value = 0
    cdef int i
    for i in range(width):
        if at[i] < 48 or at[i] > 57:
            return -1
        value = value * 10 + (at[i] - 48)
    return value


cdef bint too_deep(const char* text, Py_ssize_t length, int levels=MAX_DEPTH) noexcept:
    """Whether JSON nests deeper than this. Malformed text gets some answer; the decoder refuses it anyway."""
    cdef int depth = 0
    cdef int count = 0
    cdef bint in_text = False
    cdef Py_ssize_t i
    cdef char c
    if length < 2 * levels:         # every level takes two bytes
        return False
    for i in range(length):         # no branches: it is done for many bytes at a time
        count += (text[i] & 0xdf) == 91
    if count <= levels:
        return False
    i = 0
    while i < length:
        c = text[i]
        if in_text:
            if c == 92:             # backslash: the next one is taken as it is
                i += 1
            elif c == 34:
                in_text = False
        elif c == 34:
            in_text = True
        elif c == 91 or c == 123:
            depth += 1
            if depth > levels:
                return True
        elif c == 93 or c == 125:
            depth -= 1
        i += 1
    return False


cdef bint is_suspect(const unsigned char* text, Py_ssize_t length) noexcept:
    """Whether MessagePack could nest deeper than MAX_DEPTH, or hold a NaN or an infinity.

    It has as many bytes that may open an array or a map; or a double or float with all bits of its exponent set.
    """
    cdef Py_ssize_t i
    cdef int count = 0
    if length > MAX_DEPTH:
        for i in range(length):     # no branches: it is done for many bytes at a time
            count += ((text[i] & 0xe0) == 0x80) | ((text[i] & 0xfc) == 0xdc)
        if count > MAX_DEPTH:
            return True
    return holds_non_finite(text, length, 0xcb) or holds_non_finite(text, length, 0xca)


cdef bint holds_non_finite(const unsigned char* text, Py_ssize_t length, int opener) noexcept:
    cdef const unsigned char* at = text
    cdef const unsigned char* end = text + length - 2
    while at < end:
        at = <const unsigned char*>memchr(at, opener, end - at)
        if at == NULL:
            return False
        if (at[1] & 0x7f) == 0x7f and at[2] >= 0x80:
            return True
        at += 1
    return False


cdef bint nests_deeper(object value, int levels) except -1:
    cdef list layer = [value]
    for _ in range(levels):
        layer = [
            item for held in layer if isinstance(held, (dict, list))
            for item in (held.values() if isinstance(held, dict) else held)
        ]
        if not layer:
            return False
    return any([isinstance(held, (dict, list)) for held in layer])


cdef int attempts(object value) except -1:
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise ValueError(f"not a number of attempts: {value!r}")
    return value


cdef str brief(object text):
    """Foreign text, cut and escaped for a message."""
    return printable(str(text), 300)


cdef bint contains_null(const char* text, Py_ssize_t length) noexcept:
    cdef Py_ssize_t i
    cdef uint8_t found = 0
    for i in range(length - 3):     # no branches: it is done for many bytes at a time
        found |= (text[i] == 110) & (text[i + 1] == 117) & (text[i + 2] == 108) & (text[i + 3] == 108)
    return found


cdef bint is_plain(str text) noexcept:
    """ASCII with nothing in it that JSON would escape."""
    cdef const unsigned char* at
    cdef Py_ssize_t i, length
    cdef uint8_t found = 0
    if text is None or not PyUnicode_IS_COMPACT_ASCII(text):
        return False
    at = <const unsigned char*>PyUnicode_1BYTE_DATA(text)
    length = PyUnicode_GET_LENGTH(text)
    for i in range(length):         # no branches: it is done for many bytes at a time
        found |= (at[i] < 32) | (at[i] == 34) | (at[i] == 92)
    return not found


cdef bint pack_identity(str identity, uint8_t* target) noexcept:
    """The 16 bytes of 32 lower-case hex digits; False if the id is something else."""
    cdef const uint8_t* source
    cdef uint8_t values[32]
    cdef uint8_t differs = 0
    cdef int i
    if not PyUnicode_IS_COMPACT_ASCII(identity) or PyUnicode_GET_LENGTH(identity) != 32:
        return False
    source = <const uint8_t*>PyUnicode_1BYTE_DATA(identity)
    for i in range(32):             # no branches: it is done for many bytes at a time
        values[i] = (source[i] & 15) + (source[i] >> 6) * 9
        differs |= source[i] ^ (values[i] + 48 + (values[i] > 9) * 39)
    for i in range(16):
        target[i] = values[2 * i] << 4 | values[2 * i + 1]
    return not differs
