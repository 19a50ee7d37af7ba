from ..brokers._leases cimport Claimed, Lease
from ..core._machine cimport Listeners, Tally
from ..core._run cimport TaskRun
from ._ledger cimport Ledger

cdef class Slot:
    cdef public object task
    cdef public object held             # what runs in it: Claimed, Group or None
    cdef public double deadline         # monotonic seconds
    cdef public double cancel_at        # its deadline, and once it was cancelled, when it is to be cancelled again
    cdef public str name
    cdef public bint spent              # its task has ended because a run left it changed
    cdef public object job              # what runs of it in a thread: Job, Stint or None
    cdef public str reason              # why we cancelled what it runs: "timeout", "lost", "shutdown"
    cdef object context                 # a copy of its task's

cdef class Known:
    cdef object task
    cdef object executor                # what to await with a run; None: a plain function
    cdef double timeout
    cdef bint limited
    cdef bint plain                     # threads may run it in stints
    cdef double pace                    # seconds that a run takes of late

cdef class Stint:
    cdef readonly Slots slots
    cdef readonly object waiter
    cdef readonly object task
    cdef readonly double began
    cdef readonly object rest
    cdef public bint ended
    cdef public str slot                # of a limit that its thread keeps while it hangs: none
    cdef Slot held_slot
    cdef Claimed first
    cdef Known known                    # of the next run
    cdef bint left                      # nobody waits for it: its thread touches the slot no more
    cdef double since                   # when it was made, or its last run began
    cdef Py_ssize_t seen                # how often the event loop had collected when this last gave an end
    cdef object context
    cdef object error

    cdef Claimed work(self, Claimed held)
    cdef object call(self, object function, TaskRun run)

cdef class Slots:
    cdef readonly object ready          # deque: what is claimed and waits for a slot, Claimed or Group
    cdef public object context          # what each slot's task starts with a copy of
    cdef public Py_ssize_t concurrency
    cdef readonly Py_ssize_t finished
    cdef readonly Tally tally
    cdef public bint follows            # the context variable RUN is set
    cdef public object log_run          # called with each run that has ended, or None
    cdef readonly Py_ssize_t running
    cdef public Py_ssize_t prefetch
    cdef public Py_ssize_t collected    # runs in collectors, and in groups that wait or run
    cdef public Py_ssize_t collectable  # how many more are claimed on their account
    cdef public bint draining
    cdef public bint alone
    cdef public double quiet_until      # claiming nothing more until then, so as to be idle for a suspect
    cdef public double sweep_at         # when the timeouts look next
    cdef list _slots
    cdef object _idle                   # deque: futures of slots that wait for something to run
    cdef object _room                   # what who waits for room waits for, or None
    cdef dict _known                    # id of a task -> Known
    cdef Known _last                    # of the last run
    cdef object _aside                  # deque: quick plain runs for the runner
    cdef Stint _runner                  # the stint that runs those, or None
    cdef object _given                  # deque: what has ended in threads
    cdef bint _told                     # the event loop is going to collect it
    cdef Py_ssize_t _collected          # how often it has
    cdef bint _watching                 # a timer looks at the runner
    cdef bint _sweeping                 # the timeouts are going to be looked at
    cdef object _loop
    cdef Slot _nowhere                  # stands for the slot of a run that has left it
    cdef object _broker
    cdef Listeners _listeners
    cdef Ledger _ledger
    cdef double _sure_seconds
    cdef object _admission              # whom it asks: see connect
    cdef object _outcomes
    cdef object _groups
    cdef object _functions
    cdef object _timeouts
    cdef object _hooks
    cdef object _ended

    cpdef Py_ssize_t want(self, Py_ssize_t coming=*) except -1
    cpdef int make_room(self) except -1
    cpdef int take(self, Lease lease) except -1
    cdef int pace(self, Lease lease) except -1
    cdef int call_after_end(self, TaskRun run) except -1
    cpdef int wake(self) except -1
    cpdef int limit(self, Slot slot, double deadline) except -1
    cpdef int occupy(self, Slot slot, object held) except -1
    cpdef int vacate(self, Slot slot) except -1
    cdef Known known_of(self, object task)
    cdef object start(self, Slot slot, Claimed held, Known known, double now)
    cdef int advance(self, TaskRun run) except -1
    cdef int finish(self, Claimed held, int state) except -1
    cdef bint is_for_threads(self, Known known, Lease lease, double now) noexcept
    cdef Claimed next_of(self, Stint stint)
    cdef int step_down(self, Stint stint) except -1
    cdef int give(self, Claimed held, object error) except -1
    cdef int tell(self, object call) except -1
    cdef int ask_for_sweep(self) except -1
    cdef int _end_in_context(self, Claimed held, object error) except -1
    cpdef list take_ready(self)
    cpdef double oldest(self) except -1
