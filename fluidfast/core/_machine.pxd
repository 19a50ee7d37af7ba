from libc.stdint cimport int64_t

# The same numbers as states.STATES; a test pins them equal.
cdef enum State:
    INIT = 0
    QUEUED = 1
    RUNNING = 2
    SUCCESS = 3
    FAILURE = 4
    ABORTED = 5
    RATE_LIMITED = 6
    INTERRUPTED = 7

cdef enum:
    N_STATES = 8

cdef int state_number(object state) except -1

cdef class Listeners:
    cdef public int mask            # bit n: somebody listens to state n

cdef class Tally:
    cdef Py_ssize_t ended[N_STATES]
    cdef public Py_ssize_t retried
    cdef public Py_ssize_t limited

cdef class RunState:
    cdef int _state                 # a State
    cdef int64_t queued_us          # microseconds since the epoch, 0: not yet
    cdef int64_t start_us
    cdef int64_t end_us

    # Goes to state `to` at `now`; returns the states that were entered, one bit each (0: it was there already).
    cdef int advance(self, int to, int64_t now) except -1
