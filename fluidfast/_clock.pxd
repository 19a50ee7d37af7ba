from libc.stdint cimport int64_t

cdef int64_t now_us() noexcept
cdef int64_t monotonic_us() noexcept
cdef str make_id()
