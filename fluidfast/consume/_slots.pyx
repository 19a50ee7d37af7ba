"""The innermost loop of a consumer: a slot takes what is ready, runs it, and what became of it is noted.

Others do what happens once a batch, or when something goes wrong: objects that the slots are given.

Each run sees the context variables that the consumer started with. A slot's task serves run after run, so a run that
leaves the context changed, or its task cancelled, is the last one of that task: another takes the slot over, in a fresh
context. Other runs pay one comparison for that.
"""

cimport cython
from ..core._time cimport now_us
from ..brokers._leases cimport Claimed, Lease
from ..core._machine cimport (
    ABORTED, FAILURE, INTERRUPTED, N_STATES, RATE_LIMITED, RUNNING, SUCCESS, Listeners, Tally, state_number
)
from ..core._run cimport TaskRun
from ._ledger cimport Ledger

import asyncio
import contextvars
from collections import deque
from functools import partial
from time import monotonic

from ..brokers.contract import MAX_CLAIM
from ..core.context import RUN, SLOT
from ..errors import TaskRunError
from ..execute.executor import SET_TO_FAILURE, checked, refuse_unrun
from ..core.task import is_async

__all__ = ["YIELD_SECONDS", "Slot", "Slots"]

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    object PyContextVar_Set(object var, object value)
    int PyObject_RichCompareBool(object one, object other, int operator) noexcept
    int Py_EQ
    void PyErr_Clear()

YIELD_SECONDS = 0.002
"""How long handlers that never wait may keep the event loop from everything else."""

cdef Py_ssize_t MOST = MAX_CLAIM        # more are claimed by the next, while these run
cdef Py_ssize_t MOST_PREFETCH = 2000
cdef double QUICK_SECONDS = 0.02        # a batch whose runs have all started within that is followed by more at a time
cdef double SLOW_SECONDS = 0.1          # ... and one that took longer by fewer
cdef double FOREVER = float("inf")
cdef double TURN = YIELD_SECONDS
cdef object current_run = RUN
cdef enum:
    AROUND_RUNNING = 1 << N_STATES + 1  # see core/hooks.py
    AFTER_END = 1 << N_STATES + 2
    ANY_END = 1 << SUCCESS | 1 << FAILURE | 1 << ABORTED | 1 << RATE_LIMITED | 1 << INTERRUPTED


@cython.final
@cython.auto_pickle(False)
cdef class Slot:
    """Room for one run at a time."""

    def __init__(self, str name=""):
        self.name = name
        self.deadline = 0.0
        self.cancel_at = FOREVER
        self.reason = ""


@cython.final
@cython.auto_pickle(False)
cdef class Known:
    """The fields of a task that each of its runs needs: a field of a named tuple takes some 100 instructions."""

    def __init__(self, task):
        self.task = task
        self.executor = task.executor if is_async(task.executor) else None
        self.timeout = task.timeout_seconds
        self.limited = task.max_concurrency > 0


@cython.final
@cython.auto_pickle(False)
cdef class Slots:
    """Up to ``concurrency`` slots, each an asyncio task that awaits one handler after the other.

    Here is what each run needs. For the rarer ways there are the objects that ``connect`` is given.

    ``ledger`` notes the ends of runs, ``listeners`` hear of their states, ``broker`` is that of the runs. A run whose
    lease was claimed more than ``sure_seconds`` ago is looked at before it starts.

    Attributes: ``ready``: a deque of what is claimed and waits for a slot; ``running``: how many run; ``finished``: how
    many have ended; ``tally``: how they ended; ``log_run``: called with each that has, or None; ``follows``:
    whether the context variable ``RUN`` is set; ``prefetch``: how many more than the slots are claimed; ``collected``:
    runs that are gathered, and in groups that wait or run; ``collectable``: how many more are claimed on their account;
    ``draining``: nothing starts any more; ``alone``: nothing is claimed while a suspect runs; ``quiet_until``: nor is
    it until this time, so as to be idle for a suspect; ``sweep_at``: when the timeouts look next, they set it;
    ``context``: each slot's task starts with a copy of it. Times are monotonic seconds.
    """

    def __init__(
        self, Py_ssize_t concurrency, Ledger ledger not None, Listeners listeners not None, broker, double sure_seconds
    ):
        self.concurrency = concurrency
        self._ledger = ledger
        self._listeners = listeners
        self._broker = broker
        self._sure_seconds = sure_seconds
        self.tally = Tally()
        self.ready = deque()
        self._idle = deque()
        self._slots = []
        self._known = {}
        self.context = contextvars.copy_context()
        self.sweep_at = FOREVER

    def connect(self, *, admission, outcomes, groups, functions, timeouts, hooks, ended) -> None:
        """Give the slots whom they ask, before anything is ready.

        ``admission.may_start(slot, held)``, awaited: whether a run may start that is unsure or limited.
        ``outcomes.broke(slot, held, exc)``: a run's function raised. ``outcomes.mishandled(slot, held, exc)``:
        something else did. ``outcomes.failed(held, exc)``: a run has failed.
        ``groups.run(slot, group)``, awaited: runs what is ready and no single run.
        ``functions.call(slot, task, argument)``, awaited: calls a plain function.
        ``timeouts.sweep_by(when)``: some time is up at this monotonic time, earlier than ``sweep_at``.
        ``hooks.call_running(function, run)``, awaited: calls it within the hooks around running, if there are some.
        ``hooks.ends``: called with each run that has ended. ``hooks.log_error(hook, run)``: one of them raised.
        ``ended(slot, task)``: a slot's task has ended; ``begin`` gives it another.
        """
        self._admission = admission
        self._outcomes = outcomes
        self._groups = groups
        self._functions = functions
        self._timeouts = timeouts
        self._hooks = hooks
        self._ended = ended

    def __iter__(self):
        """The slots that have been begun."""
        return iter(self._slots)

    # -- room

    cpdef Py_ssize_t want(self, Py_ssize_t coming=0) except -1:
        """How many more to claim, when so many are claimed that are not ready yet."""
        cdef Py_ssize_t room
        if self.alone:
            return 0
        if self.quiet_until:
            if self.running == 0 and not self.ready and not coming:
                return 1
            if <double>monotonic() < self.quiet_until:
                return 0
            self.quiet_until = 0.0
        room = self.concurrency + self.prefetch - self.running - <Py_ssize_t>len(self.ready) - coming
        if self.collectable:
            room += self.collectable - self.collected
        # in big steps: a claim for each freed slot would be a round trip for each run
        return min(room, MOST) if room * 2 >= self.prefetch and room > 0 else 0

    def room(self):
        """A future that is done when there is room to claim more; while draining, when a run has left its slot."""
        self._room = asyncio.get_running_loop().create_future()
        return self._room

    cpdef int make_room(self) except -1:
        """Wake up whoever waits for room."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        return 0

    @cython.nonecheck(True)
    cpdef int take(self, Lease lease) except -1:
        """Note that one more run of a lease starts, or is dropped instead."""
        lease.unstarted -= 1
        return self.pace(lease) if lease.unstarted == 0 else 0

    cdef int pace(self, Lease lease) except -1:
        # all of it has started: claim more at a time if that was quick, fewer if it was not
        cdef double age = <double>monotonic() - lease.claimed_at
        if age < QUICK_SECONDS:
            self.prefetch = min(MOST_PREFETCH, max(16, self.prefetch * 2))
        elif age > SLOW_SECONDS:
            self.prefetch //= 4
        return 0

    # -- slots

    cpdef int wake(self) except -1:
        """Let what is ready start."""
        # One is enough: each slot that takes a run wakes the next while there is more.
        cdef Slot slot
        if not self.ready or self.draining:
            return 0
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():  # else its slot's task was cancelled, and another has taken its place
                waiter.set_result(None)
                return 0
        if len(self._slots) < self.concurrency:
            slot = Slot(f"task-worker-{len(self._slots) + 1}")
            self._slots.append(slot)
            self.begin(slot)
        return 0

    def begin(self, Slot slot not None) -> None:
        """Give a slot a task, its first or another one, in the context that the consumer started with."""
        context = self.context.copy()
        context.run(SLOT.set, (self._broker, slot))
        slot.task = None
        slot.spent = False
        task = context.run(asyncio.create_task, self._work(slot), name=slot.name)
        if slot.task is None:  # an eager one has set it
            slot.task = task
        task.add_done_callback(partial(self._ended, slot))

    cpdef int limit(self, Slot slot, double deadline) except -1:
        """Let what runs in a slot have until this monotonic time."""
        slot.deadline = slot.cancel_at = deadline
        if deadline < self.sweep_at:
            self._timeouts.sweep_by(deadline)
        return 0

    cpdef int occupy(self, Slot slot, object held) except -1:
        """Put a run, or a group, into a slot, which it has not started in yet. ``vacate`` is to follow."""
        self.running += 1
        slot.deadline = FOREVER  # until it starts
        slot.held = held
        return 0

    @cython.nonecheck(True)
    cpdef int vacate(self, Slot slot) except -1:
        """Note that nothing runs in a slot any more."""
        slot.held = None
        slot.reason = ""
        slot.cancel_at = FOREVER
        self.running -= 1
        if self._room is not None and (self.draining or self.want(0)):
            self.make_room()
        return 0

    @cython.nonecheck(True)
    async def _work(self, Slot slot not None):
        """A slot: runs what is ready, one after the other, until a run leaves its task changed."""
        cdef Claimed held
        cdef Lease lease
        cdef Known known
        cdef bint asks
        cdef double now, yielded
        ready = self.ready
        loop = asyncio.get_running_loop()
        task = slot.task = asyncio.current_task()
        slot.context = PyContext_CopyCurrent()
        now = yielded = monotonic()
        while True:
            if not ready or self.draining:  # what has not started then goes back
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                now = yielded = monotonic()
                continue
            taken = ready.popleft()
            if ready and (self._idle or len(self._slots) < self.concurrency):
                self.wake()
            if type(taken) is not Claimed:
                if self.follows:
                    enter(slot, taken.runs())
                await self._groups.run(slot, taken)
                taken = None
                if is_context_changed(slot) or task.cancelling():
                    slot.spent = True
                    return
                now = yielded = monotonic()
                continue
            held = taken
            taken = None
            lease = held.lease
            self.take(lease)
            if lease.lost:
                self._ledger.drop(held)
                continue
            self.occupy(slot, held)
            if self.follows:
                enter(slot, held.run)
            try:
                known = self.known_of(held.run.task)
                asks = known.limited or now - lease.claimed_at > self._sure_seconds
                if not asks or await self._admission.may_start(slot, held):
                    if asks:
                        now = monotonic()
                    executor = self.start(slot, held, known, now)
                    try:
                        result = await executor(held.run)
                        if result is not None:
                            refuse_unrun(result)
                            result = None  # it may be large, and the slot may idle
                    except BaseException as exc:
                        self._outcomes.broke(slot, held, exc)
                    else:
                        self.finish(held, SUCCESS)
            except BaseException as exc:
                self._outcomes.mishandled(slot, held, exc)
            finally:
                self.vacate(slot)
            if is_context_changed(slot) or task.cancelling():
                slot.spent = True
                return
            now = monotonic()
            if now - yielded > TURN:
                await asyncio.sleep(0)
                now = yielded = monotonic()

    # -- runs

    @cython.nonecheck(True)
    cdef object start(self, Slot slot, Claimed held, Known known, double now):
        """A run is running from here on; gives what is to be awaited with it."""
        cdef TaskRun run = held.run
        self.limit(slot, now + known.timeout)
        self.advance(run)
        executor = known.executor
        if executor is None:
            executor = partial(self._functions.call, slot, known.task)
        if self._listeners.mask & AROUND_RUNNING:
            return partial(self._hooks.call_running, partial(checked, executor))
        return executor

    def started(self, Claimed held not None) -> None:
        """Note that a run of a group is running from here on."""
        if held.run is None:
            raise TypeError("what was claimed has no run")
        self.advance(held.run)

    cdef int advance(self, TaskRun run) except -1:
        run.advance(RUNNING, now_us())
        if self._listeners.mask & 1 << RUNNING:
            run._emit()
        return 0

    cdef Known known_of(self, object task):
        """Return the fields of a task that its runs need, kept by id: a callable in a task need not have a hash."""
        cdef Known known = self._last
        if known is None or known.task is not task:
            known = self._known.get(id(task))
            if known is None:
                known = self._known[id(task)] = Known(task)
            self._last = known
        return known

    def end(self, Claimed held not None, state) -> None:
        """A run has come to its end: in ``state``, a ``TaskState``, unless its task's function has set one."""
        if held.run is None:
            raise TypeError("what was claimed has no run")
        self.finish(held, state_number(state))

    @cython.nonecheck(True)
    cdef int finish(self, Claimed held, int state) except -1:
        cdef TaskRun run = held.run
        if run._state < SUCCESS:
            run.advance(state, now_us())
            if self._listeners.mask & ANY_END:
                run._emit()
        elif state == SUCCESS and run._state == FAILURE:  # the task's function set it
            self._outcomes.failed(held, TaskRunError(SET_TO_FAILURE))
            return 0
        self.finished += 1
        self.tally.ended[run._state] += 1
        if self.log_run is not None:
            self.log_run(run)
        if self._listeners.mask & AFTER_END:
            self.call_after_end(run)
        return self._ledger.end(held)

    cdef int call_after_end(self, TaskRun run) except -1:
        for hook in self._hooks.ends:
            try:
                hook(run)
            except Exception:
                self._hooks.log_error(hook, run)
        return 0


cdef int enter(Slot slot, object run) except -1:
    """Have what a slot does from here on belong to this run, to these runs, or to none (None)."""
    PyContextVar_Set(current_run, run)
    slot.context = PyContext_CopyCurrent()
    return 0


cdef bint is_context_changed(Slot slot) except -1:
    """Whether a variable has another value in this task's context than when it was copied to the slot.

    A copy shares its variables with what it was made of, so an unchanged one is equal at once: 230 instructions, 0.7 %
    of a run that is claimed from Redis and does nothing.
    """
    cdef int same
    now = PyContext_CopyCurrent()
    same = PyObject_RichCompareBool(now, slot.context, Py_EQ)
    if same < 0:  # a value cannot be compared
        PyErr_Clear()
    slot.context = now
    return same <= 0
