from ..core._machine cimport Listeners
from ..produce._outbox cimport Outbox

cdef class QueueFront:
    cdef public object broker
    cdef public Outbox _producer
    cdef public object _backpressure
    cdef public Listeners _listeners
    cdef public bint _buffers
    cdef public bint _push_never_takes       # the broker takes nothing by ``push``

    cpdef bint hands_over(self) except -1
