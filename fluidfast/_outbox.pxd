cdef class Confirmation:
    cdef public bint _asyncio_future_blocking
    cdef readonly object _cancel_message
    cdef object loop
    cdef object value                   # what it gives
    cdef object failure                 # or what it raises
    cdef object traceback
    cdef object unheard                 # tells of a failure that nobody asked for
    cdef int state
    cdef object callback                # the first one, and its context: mostly there is one
    cdef object context
    cdef list further                   # (callback, context) of the others
    cdef object __weakref__

    cdef bint settled(self, object failure)
    cdef int schedule(self) except -1
    cdef int call_back(self) except -1
    cdef int call(self, object callback, object context) except -1
    cdef int heard(self) except -1

cpdef int settle_all(list waiters, object failure) except -1

cdef class Outbox:
    cdef public object _loop
    cdef public object _in_flight
    cdef public object _lost
    cdef public tuple _groups           # payloads by priority: three lists
    cdef public list _waiters
    cdef public Py_ssize_t _count
    cdef public Py_ssize_t _bytes
    cdef public Py_ssize_t _buffered
    cdef public Py_ssize_t pending
    cdef public Py_ssize_t pending_bytes
    cdef public Py_ssize_t buffer_runs
    cdef public Py_ssize_t buffer_bytes
    cdef public bint crowded
    cdef public bint _scheduled
    cdef public Py_ssize_t _lone        # batches of one in a row, each sent when nothing was on its way
    cdef public bint _hasty             # what is on its way was sent without a look at who else comes

    cdef int _flush_in_turn(self, object loop) except -1
    cdef int add(self, object loop, int priority, bytes payload) except -1
    cpdef Confirmation submit(self, object loop, int priority, bytes payload, object value)
    cpdef object accept(self, object loop, int priority, bytes payload)
