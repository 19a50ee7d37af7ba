"""Clocks and run ids, cheap enough not to show in a profile.

``uuid4().hex`` costs 2-3 microseconds and ``datetime.now(utc)`` a third of one; both are taken once or more
per run. Here an id is 16 bytes out of a pool that ``os.urandom`` fills, and a time is one ``clock_gettime``.
"""

import os

from libc.stdint cimport int64_t, uint8_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_New

__all__ = ["keep_for_good", "monotonic_seconds", "new_id", "now_micros"]

cdef int POOL_SIZE = 4096
cdef bytes _pool = b""
cdef int _used = 0
cdef bint _fork_guarded = False
cdef int _forks = 0


cdef int64_t now_us() noexcept:
    cdef timespec ts
    clock_gettime(CLOCK_REALTIME, &ts)
    return <int64_t>ts.tv_sec * 1000000 + ts.tv_nsec // 1000


cdef int64_t monotonic_us() noexcept nogil:
    return monotonic_ns() // 1000


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec


cdef int forks() noexcept:
    """How many forks this process is away from the one in which the first id was made."""
    return _forks


def _forked():
    # A child would hand out the ids that its parent hands out.
    global _pool, _used, _forks
    _pool = b""
    _used = 0
    _forks += 1


cdef int _refill() except -1:
    global _pool, _used, _fork_guarded
    if not _fork_guarded:
        os.register_at_fork(after_in_child=_forked)
        _fork_guarded = True
    _pool = os.urandom(POOL_SIZE)
    _used = 0
    return 0


cdef str make_id():
    global _used
    if _used + 16 > len(_pool):
        _refill()
    cdef const uint8_t* source = <const uint8_t*>PyBytes_AS_STRING(_pool) + _used
    cdef str text = PyUnicode_New(32, 127)
    put_hex(<uint8_t*>PyUnicode_1BYTE_DATA(text), source)
    _used += 16
    return text


def new_id() -> str:
    """A new run id: 32 lower-case hex digits, 128 bits of the operating system's randomness."""
    return make_id()


def keep_for_good(*things) -> None:
    """Never free these, not even when the interpreter ends.

    For the child of a fork: to free a connection or an event loop of its parent would end it there too, by a write to
    the socket or by what both know to epoll.
    """
    Py_INCREF(things)


def now_micros() -> int:
    """Wall-clock time in microseconds since the epoch (UTC)."""
    return now_us()


def monotonic_seconds() -> float:
    """Monotonic time in seconds, the clock of ``time.monotonic``."""
    return monotonic_us() / 1e6
