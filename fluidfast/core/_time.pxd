from libc.stdint cimport int64_t, uint8_t

cdef int64_t now_us() noexcept
cdef int64_t monotonic_us() noexcept nogil
cdef int64_t monotonic_ns() noexcept nogil
cdef str make_id()
cdef int forks() noexcept

cdef inline void put_hex(uint8_t* target, const uint8_t* source) noexcept:
    """16 bytes as 32 lower-case hex digits."""
    cdef uint8_t digits[32]
    cdef int i
    for i in range(16):
        digits[2 * i] = source[i] >> 4
        digits[2 * i + 1] = source[i] & 15
    for i in range(32):                 # no branches: it is done for many bytes at a time
        target[i] = digits[i] + 48 + (digits[i] > 9) * 39
