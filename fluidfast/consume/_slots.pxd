from ..brokers._leases cimport Claimed
from ..core._machine cimport Listeners
from ._ledger cimport Ledger

cdef class Slot:
    cdef public object task
    cdef public object held             # what runs in it: Claimed, Group or None
    cdef public double deadline         # monotonic seconds
    cdef public double cancel_at        # its deadline, and once it was cancelled, when it is to be cancelled again
    cdef public str name
    cdef public bint spent              # its task has ended because a run left it changed
    cdef public object job              # what runs of it in a thread: Job or None
    cdef public str reason              # why we cancelled what it runs: "timeout", "lost", "shutdown"
    cdef bint logs
    cdef object context                 # a copy of its task's

cdef class Slots:
    cdef public object _ready           # deque: what is claimed and waits for a slot
    cdef public object _idle            # deque: futures of slots that wait for something to run
    cdef public object _room            # who waits for room
    cdef public list _slots
    cdef public dict _executors         # id of a task's function -> (the function, what is awaited with a run)
    cdef object _function               # of the last run
    cdef object _executor
    cdef public object _context         # what each slot's task starts with a copy of
    cdef public Listeners _listeners
    cdef public Ledger _settler
    cdef public Py_ssize_t concurrency
    cdef public Py_ssize_t finished
    cdef public Py_ssize_t _running
    cdef public Py_ssize_t _prefetch
    cdef public Py_ssize_t _collected  # runs in collectors, and in groups that wait or run
    cdef public Py_ssize_t _collectable  # how many more are claimed on their account
    cdef public bint _draining
    cdef public bint _alone
    cdef public double _quiet_until     # claiming nothing more until then, so as to be idle for a suspect
    cdef public double _sweep_at
    cdef public double _sure_seconds

    cdef Py_ssize_t want(self, Py_ssize_t coming) except -1
    cdef int wake(self) except -1
    cdef int vacate(self, Slot slot) except -1
    cdef object executor_of(self, object function)
    cdef object start(self, Slot slot, Claimed held, double now)
    cdef int end(self, Claimed held, int state, bint logs) except -1
