from ..brokers._short_way cimport ShortWay

cdef class Outbox

cdef class Confirmation:
    cdef public bint _asyncio_future_blocking
    cdef readonly object _cancel_message
    cdef object loop
    cdef object value                   # what it gives
    cdef object failure                 # or what it raises
    cdef object traceback
    cdef Outbox outbox                  # where it may be alone, until it is awaited
    cdef int turns                      # of the event loop that others are due before it goes on
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
    cdef int _forks                     # until the last time that asyncio was asked whether it runs
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
    cdef public long long _sequence     # of the last batch
    cdef public Py_ssize_t confirmed    # batches
    cdef public str id                  # of the producer
    cdef public bint counts             # who asks how many wait: it is asked for with each batch
    cdef public object _room            # a future of who waits for less to be on its way
    cdef public ShortWay _lane          # the channel, if it has a short way
    cdef public Py_ssize_t _lone        # payloads in a row that one task awaited alone, with nothing on its way
    cdef public object _task            # its id
    cdef public double _awaited         # when that was the last time
    cdef public double _since           # when the first of those came that wait behind others; 0: they do not
    cdef public double _turned          # when the event loop was asked for a turn that it has not made yet
    cdef public double _hold            # for how long it may be kept from it
    cdef double _yielded                # when it was let have it
    cdef bint _others                   # and had something else to do

    cdef object _running_loop(self)
    cdef int _flush_in_turn(self, object loop) except -1
    cdef bint hasten(self, Confirmation future) except -1
    cdef int turned(self, int left) except -1
    cdef int add(self, object loop, int priority, bytes payload) except -1
    cpdef Confirmation submit(self, object loop, int priority, bytes payload, object value)
    cpdef object accept(self, object loop, int priority, bytes payload)
