"""The innermost loop of a consumer: a slot takes what is ready, runs it, and what became of it is noted.

What happens once a batch, or when something goes wrong, is the engine's.

Each run sees the context variables that the consumer started with. A slot's task serves run after run, so a run that
leaves the context changed, or its task cancelled, is the last one of that task: another takes the slot over, in a fresh
context. Other runs pay one comparison for that.
"""

cimport cython
from ..core._time cimport now_us
from ..brokers._leases cimport Claimed, Lease
from ..core._machine cimport ABORTED, FAILURE, INTERRUPTED, RATE_LIMITED, RUNNING, SUCCESS, Listeners
from ..core._run cimport TaskRun
from ._ledger cimport Ledger

import asyncio
import contextvars
import logging
from collections import deque
from functools import partial
from time import monotonic

from ..brokers.contract import MAX_CLAIM
from ..core.context import SLOT
from ..errors import TaskRunError
from ..execute.executor import SET_TO_FAILURE, refuse_unrun
from ..core.task import is_async

__all__ = ["YIELD_SECONDS", "Slot", "Slots"]

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    int PyObject_RichCompareBool(object one, object other, int operator) noexcept
    int Py_EQ
    void PyErr_Clear()

logger = logging.getLogger("fluidfast.engine")

YIELD_SECONDS = 0.002
"""How long handlers that never wait may keep the event loop from everything else."""

cdef Py_ssize_t MOST = MAX_CLAIM        # more are claimed by the next, while these run
cdef double FOREVER = float("inf")
cdef double TURN = YIELD_SECONDS
cdef int INFO = logging.INFO
cdef enum:
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


cdef class Slots:
    """Up to ``concurrency`` slots, each an asyncio task that awaits one handler after the other. The base of the
    engine, which has the rarer ways: ``_work_group``, ``_may_start``, ``_in_thread``, ``_broke``, ``_mishandled``,
    ``_failed``, ``_pace``, ``_sweep_by``, ``_slot_ended``.
    """

    def __init__(self, Py_ssize_t concurrency, Ledger settler not None, Listeners listeners not None, sure_seconds):
        self.concurrency = concurrency
        self._settler = settler
        self._listeners = listeners
        self._sure_seconds = sure_seconds
        self._ready = deque()
        self._idle = deque()
        self._slots = []
        self._executors = {}
        self._context = contextvars.copy_context()
        self._sweep_at = FOREVER

    def _want(self, Py_ssize_t coming=0) -> int:
        """How many more to claim, when so many are claimed that are not in ``_ready`` yet."""
        return self.want(coming)

    cdef Py_ssize_t want(self, Py_ssize_t coming) except -1:
        cdef Py_ssize_t room
        if self._alone:
            return 0
        if self._quiet_until:
            if self._running == 0 and not self._ready and not coming:
                return 1
            if <double>monotonic() < self._quiet_until:
                return 0
            self._quiet_until = 0.0
        room = self.concurrency + self._prefetch - self._running - <Py_ssize_t>len(self._ready) - coming
        if self._collectable:
            room += self._collectable - self._collected
        # in big steps: a claim for each freed slot would be a round trip for each run
        return min(room, MOST) if room * 2 >= self._prefetch and room > 0 else 0

    def _wake_slots(self) -> None:
        """Let what is ready start."""
        self.wake()

    cdef int wake(self) except -1:
        # One is enough: each slot that takes a run wakes the next while there is more.
        cdef Slot slot
        if not self._ready or self._draining:
            return 0
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():  # else its slot's task was cancelled, and another has taken its place
                waiter.set_result(None)
                return 0
        if len(self._slots) < self.concurrency:
            slot = Slot(f"task-worker-{len(self._slots) + 1}")
            self._slots.append(slot)
            self._begin(slot)
        return 0

    def _begin(self, Slot slot not None) -> None:
        """Give a slot a task, its first or another one, in the context that the consumer started with."""
        context = self._context.copy()
        context.run(SLOT.set, (self, slot))
        slot.task = None
        slot.spent = False
        task = context.run(asyncio.create_task, self._work(slot), name=slot.name)
        if slot.task is None:  # an eager one has set it
            slot.task = task
        task.add_done_callback(partial(self._slot_ended, slot))

    def _vacate(self, Slot slot not None) -> None:
        """Nothing runs in it any more."""
        self.vacate(slot)

    @cython.nonecheck(True)
    cdef int vacate(self, Slot slot) except -1:
        slot.held = None
        slot.reason = ""
        slot.cancel_at = FOREVER
        self._running -= 1
        if self._room is not None and (self._draining or self.want(0)):
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)
        return 0

    @cython.nonecheck(True)
    async def _work(self, Slot slot not None):
        """A slot: runs what is ready, one after the other, until a run leaves its task changed."""
        cdef Claimed held
        cdef Lease lease
        cdef bint asks
        cdef double now, yielded
        ready = self._ready
        loop = asyncio.get_running_loop()
        task = slot.task = asyncio.current_task()
        slot.context = PyContext_CopyCurrent()
        now = yielded = monotonic()
        while True:
            if not ready or self._draining:  # what has not started then goes back
                waiter = loop.create_future()
                self._idle.append(waiter)
                await waiter
                now = yielded = monotonic()
                continue
            taken = ready.popleft()
            if ready and (self._idle or len(self._slots) < self.concurrency):
                self.wake()
            if type(taken) is not Claimed:
                await self._work_group(slot, taken)
                taken = None
                if is_context_changed(slot) or task.cancelling():
                    slot.spent = True
                    return
                now = yielded = monotonic()
                continue
            held = taken
            taken = None
            lease = held.lease
            lease.unstarted -= 1
            if lease.unstarted == 0:
                self._pace(lease)
            if lease.lost:
                self._settler.drop(held)
                continue
            self._running += 1
            slot.deadline = FOREVER  # until it starts
            slot.held = held
            try:
                asks = held.run.task.max_concurrency or now - lease.claimed_at > self._sure_seconds
                if not asks or await self._may_start(slot, held):
                    if asks:
                        now = monotonic()
                    executor = self.start(slot, held, now)
                    try:
                        result = await executor(held.run)
                        if result is not None:
                            refuse_unrun(result)
                            result = None  # it may be large, and the slot may idle
                    except BaseException as exc:
                        self._broke(slot, held, exc)
                    else:
                        self.end(held, SUCCESS, slot.logs)
            except BaseException as exc:
                self._mishandled(slot, held, exc)
            finally:
                self.vacate(slot)
            if is_context_changed(slot) or task.cancelling():
                slot.spent = True
                return
            now = monotonic()
            if now - yielded > TURN:
                await asyncio.sleep(0)
                now = yielded = monotonic()

    @cython.nonecheck(True)
    cdef object start(self, Slot slot, Claimed held, double now):
        """A run is running from here on; gives what is to be awaited with it."""
        cdef TaskRun run = held.run
        cdef double deadline
        task = run.task
        deadline = now + <double>task.timeout_seconds
        slot.deadline = slot.cancel_at = deadline
        if deadline < self._sweep_at:
            self._sweep_by(deadline)
        run.advance(RUNNING, now_us())
        if self._listeners.mask & 1 << RUNNING:
            run._emit()
        slot.logs = task.logger.isEnabledFor(INFO)
        if slot.logs:
            task.logger.info("%s - start", run.shown_id)
        executor = self.executor_of(task.executor)
        return partial(self._in_thread, slot, task) if executor is None else executor

    cdef object executor_of(self, object function):
        """What to await with a run of this function, None if it is a plain one. Kept by id, since a callable need not
        have a hash."""
        if function is self._function:
            return self._executor
        known = self._executors.get(id(function))
        if known is None:
            executor = function if is_async(function) else None
            known = self._executors[id(function)] = (function, executor)
        self._function, self._executor = known
        return self._executor

    def _end(self, Claimed held not None, int state) -> None:
        """A run has come to its end."""
        if held.run is None:
            raise TypeError("what was claimed has no run")
        self.end(held, state, held.run.task.logger.isEnabledFor(INFO))

    @cython.nonecheck(True)
    cdef int end(self, Claimed held, int state, bint logs) except -1:
        cdef TaskRun run = held.run
        if run._state < SUCCESS:
            run.advance(state, now_us())
            if self._listeners.mask & ANY_END:
                run._emit()
        elif state == SUCCESS and run._state == FAILURE:  # the task's function set it
            self._failed(held, TaskRunError(SET_TO_FAILURE))
            return 0
        if logs:
            run.task.logger.info("%s - end - %s - milliseconds - %s", run.shown_id, run.state, run.duration_ms)
        self.finished += 1
        return self._settler.end(held)


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
