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
from ..execute.executor import SET_TO_FAILURE, call_in_thread, checked, refuse_unrun
from ..core.task import is_async

__all__ = ["YIELD_SECONDS", "Slot", "Slots", "Stint"]

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    object PyContext_Copy(object context)
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
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
cdef double QUICK_PACE = 50e-6          # a plain function that takes less is run by the runner
cdef double MOST_PACE = 200e-6          # of one run: a thread may have to wait for the GIL within one
cdef double NO_PACE = 100e-6            # of a task that has not run yet
cdef double BLOCKING_PACE = 1.0         # of a task that has kept the others of the runner waiting: some 90 runs follow
cdef double WATCH_SECONDS = 0.001       # for so long it may
cdef double START_SECONDS = 0.05        # a thread is there after that, or another is asked for
cdef Py_ssize_t MOST_COLLECTED = 1000   # ends in threads that are noted in one turn of the event loop
cdef double TURN = YIELD_SECONDS
cdef object current_run = RUN
cdef enum:
    AROUND_RUNNING = 1 << N_STATES + 1  # see core/hooks.py
    AFTER_END = 1 << N_STATES + 2
    SEEN_STARTING = 1 << RUNNING | AROUND_RUNNING
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
        self.plain = self.executor is None and not self.limited
        self.pace = NO_PACE


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
        self._aside = deque()
        self._given = deque()
        self._nowhere = Slot()

    def connect(self, *, admission, outcomes, groups, functions, timeouts, hooks, ended) -> None:
        """Give the slots whom they ask, before anything is ready.

        ``admission.may_start(slot, held)``, awaited: whether a run may start that is unsure or limited.
        ``outcomes.broke(slot, held, exc)``: a run's function raised. ``outcomes.mishandled(slot, held, exc)``:
        something else did. ``outcomes.failed(held, exc)``: a run has failed.
        ``groups.run(slot, group)``, awaited: runs what is ready and no single run.
        ``functions.call(slot, task, argument)``, awaited: calls a plain function. ``functions.serve(slot, stint)``,
        awaited: has a thread run a stint.
        ``timeouts.sweep()``: look at what time is up now.
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
        if self._runner is not None:
            room -= <Py_ssize_t>len(self._aside)
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
            if type(taken) is Claimed:
                known = self.known_of((<Claimed>taken).run.task)
                if known.plain and self._runner is not None and known.pace < QUICK_PACE:
                    if self.is_for_threads(known, (<Claimed>taken).lease, now):
                        self._aside.append(taken)
                        continue
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
            if known.plain and self.is_for_threads(known, lease, now):
                await self._lend(slot, held, known)
                held = None
                if is_context_changed(slot) or task.cancelling():
                    slot.spent = True
                    return
                now = yielded = monotonic()
                continue
            self.take(lease)
            if lease.lost:
                self._ledger.drop(held)
                continue
            self.occupy(slot, held)
            if self.follows:
                enter(slot, held.run)
            try:
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

    # -- stints

    cdef bint is_for_threads(self, Known known, Lease lease, double now) noexcept:
        """Whether a thread may start a run of this without asking anybody: else it goes the way of other runs."""
        return (
            known.plain
            and not self._listeners.mask & SEEN_STARTING
            and now - lease.claimed_at <= self._sure_seconds
        )

    async def _lend(self, Slot slot not None, Claimed held not None, Known known not None):
        """Let a thread have a slot, for this run and others."""
        cdef Stint stint = Stint(self, slot, held)
        self._loop = asyncio.get_running_loop()
        self.occupy(slot, held)
        self.limit(slot, stint.since + known.timeout)
        if self._runner is None and known.pace < QUICK_PACE:
            self._runner = stint
            if not self._watching:
                self._watching = True
                self._loop.call_later(WATCH_SECONDS, self._watch, None, 0.0)
        held = None
        try:
            try:
                await self._functions.serve(slot, stint)
                held = slot.held
                if held is not None:  # its function returned an awaitable
                    self.limit(slot, stint.due)
                    if self.follows:
                        enter(slot, held.run)
                    refuse_unrun(await stint.rest)
                    self.finish(held, SUCCESS)
            except BaseException as exc:
                held = slot.held
                if held is None or exc is stint.error:
                    raise
                if not stint.began:  # it never started
                    self.take(held.lease)
                    self.advance(held.run)
                self._outcomes.broke(slot, held, exc)
        except BaseException as exc:
            if held is not None:
                self._outcomes.mishandled(slot, held, exc)
            elif not isinstance(exc, asyncio.CancelledError):
                raise
        finally:
            self.step_down(stint)
            self._restore()
            self.vacate(slot)

    cdef Claimed next_of(self, Stint stint):
        """Return what a stint runs next. None: its slot is the event loop's again. In its thread."""
        cdef bint is_runner = stint is self._runner
        cdef double now = monotonic()
        cdef Claimed held
        cdef Known known
        cdef bint goes_on
        line = self._aside if is_runner and self._aside else self.ready
        if not (stint.left or self.draining) and line and type(line[0]) is Claimed:
            held = line[0]
            known = self.known_of(held.run.task)
            # the runner goes on with quick ones, any other with slow ones if the event loop has noted what it gave last
            goes_on = known.pace < QUICK_PACE if is_runner else (
                known.pace >= QUICK_PACE and stint.seen != self._collected
            )
            if goes_on and self.is_for_threads(known, held.lease, now):
                stint.seen = self._collected
                stint.known = known
                return line.popleft()
        self.step_down(stint)
        return None

    cdef int step_down(self, Stint stint) except -1:
        """A stint is the runner no more."""
        if self._runner is stint:
            self._runner = None
        return 0

    def _restore(self) -> None:
        """Let others have what is set aside for a runner that has stepped down."""
        if self._runner is None and self._aside:
            self.ready.extendleft(reversed(self._aside))
            self._aside.clear()
            self.wake()

    def _watch(self, Stint runner, double since) -> None:
        """Let others have what is ready if the runner is in one function for too long: it blocks, or computes."""
        if self._runner is None:
            self._watching = False
            return
        if runner is self._runner and runner.since == since and (
            runner.began or <double>monotonic() - since > START_SECONDS
        ):
            if runner.began:
                self.known_of(runner.task).pace = BLOCKING_PACE
            self._runner = None
            self._watching = False
            self._restore()
            self.wake()
            return
        self._loop.call_later(WATCH_SECONDS, self._watch, self._runner, self._runner.since)

    cdef int give(self, Claimed held, object error) except -1:
        """Note the end of a run for the event loop. In a thread."""
        self._given.append(held if error is None else (held, error))
        if not self._told:  # one wake-up for all that end before the loop has its turn
            self._told = True
            self.tell(self._collect)
        return 0

    cdef int ask_for_sweep(self) except -1:
        """Have the event loop look at the timeouts. In a thread."""
        if not self._sweeping:
            self._sweeping = True
            self.tell(self._sweep)
        return 0

    cdef int tell(self, object call) except -1:
        try:
            self._loop.call_soon_threadsafe(call, context=self.context.copy())
        except RuntimeError:  # the loop is closed: nobody waits
            pass
        return 0

    def _sweep(self) -> None:
        self._sweeping = False
        self._timeouts.sweep()

    def _collect(self) -> None:
        """Note what has ended in threads."""
        cdef Py_ssize_t count = 0
        self._told = False  # first: an end that comes from here on wakes the loop again
        self._collected += 1
        while self._given and count < MOST_COLLECTED:
            count += 1
            taken = self._given.popleft()
            if type(taken) is Claimed:
                self._end_in_context(<Claimed>taken, None)
            else:
                self._end_in_context(<Claimed>taken[0], taken[1])
            taken = None
        if self._given and not self._told:
            self._told = True
            self._loop.call_soon(self._collect)
        if self._room is not None and (self.draining or self.want(0)):
            self.make_room()

    cdef int _end_in_context(self, Claimed held, object error) except -1:
        """Note the end of a run, in a context of its own if others take part."""
        try:
            if error is LOST:
                self._ledger.drop(held)
            elif error is None and not self._listeners.mask & (ANY_END | AFTER_END):
                self.finish(held, SUCCESS)
            else:
                self.context.copy().run(self._end, held, error)
        except BaseException as exc:
            self._outcomes.mishandled(self._nowhere, held, exc)
        return 0

    def _end(self, Claimed held not None, error) -> None:
        if self.follows:
            PyContextVar_Set(current_run, held.run)
        if isinstance(error, BaseException):
            self._outcomes.broke(self._nowhere, held, error)
            return
        if error is None:  # its thread has set the state
            held.run._emit()
        self.finish(held, SUCCESS)

    cpdef list take_ready(self):
        """Take out all that waits for a slot, in its order."""
        taken = [*self._aside, *self.ready]
        self._aside.clear()
        self.ready.clear()
        return taken

    cpdef double oldest(self) except -1:
        """When the first was claimed of what waits for a slot (monotonic seconds); infinite if nothing waits."""
        cdef double when = FOREVER
        for waiting in (self._aside, self.ready):
            if waiting:
                when = min(when, (<Lease>waiting[0].lease).claimed_at)
        return when

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


include "_stints.pxi"


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
