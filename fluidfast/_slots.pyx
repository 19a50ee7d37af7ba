"""The innermost loop of a consumer: a slot takes what is ready, runs it, and what became of it is noted.

What happens once a batch, or when something goes wrong, is the engine's.
"""

cimport cython
from ._clock cimport now_us
from ._leases cimport Claimed, Lease, Ledger
from ._machine cimport ABORTED, FAILURE, INTERRUPTED, RATE_LIMITED, RUNNING, SUCCESS, Listeners
from ._run cimport TaskRun

import asyncio
import logging
from collections import deque
from functools import partial
from time import monotonic

from .errors import TaskRunError
from .executor import SET_TO_FAILURE, call
from .task import is_async

__all__ = ["MAX_CLAIM", "YIELD_SECONDS", "Slot", "Slots"]

logger = logging.getLogger("fluidfast.engine")

YIELD_SECONDS = 0.002
"""How long handlers that never wait may keep the event loop from everything else."""

MAX_CLAIM = 1000
"""Runs a claim: more are claimed by the next, while these run."""

cdef Py_ssize_t MOST = MAX_CLAIM
cdef double FOREVER = float("inf")
cdef double TURN = YIELD_SECONDS
cdef int INFO = logging.INFO
cdef enum:
    ANY_END = 1 << SUCCESS | 1 << FAILURE | 1 << ABORTED | 1 << RATE_LIMITED | 1 << INTERRUPTED


@cython.final
@cython.auto_pickle(False)
cdef class Slot:
    """Room for one run at a time."""

    def __init__(self):
        self.deadline = 0.0
        self.cancel_at = FOREVER
        self.reason = ""


cdef class Slots:
    """Up to ``concurrency`` slots, each an asyncio task that awaits one handler after the other. The base of the
    engine, which has the rarer ways: ``_work_group``, ``_may_start``, ``_broke``, ``_failed``, ``_pace``,
    ``_shake_off``, ``_sweep_by``.
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
        if self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
        elif len(self._slots) < self.concurrency:
            slot = Slot()
            self._slots.append(slot)
            slot.task = asyncio.create_task(self._work(slot), name=f"task-worker-{len(self._slots)}")
        return 0

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
        """A slot: runs what is ready, one after the other."""
        cdef Claimed held
        cdef Lease lease
        cdef bint asks
        cdef double now, yielded
        ready = self._ready
        loop = asyncio.get_running_loop()
        task = slot.task
        assert task is not None
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
                if task.cancelling():
                    await self._shake_off(task)
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
                        await executor(held.run)
                    except GeneratorExit:  # the event loop is gone
                        raise
                    except BaseException as exc:
                        self._broke(slot, held, exc)
                    else:
                        if slot.reason:
                            task.uncancel()  # it finished although we cancelled it
                        self.end(held, SUCCESS, slot.logs)
            except asyncio.CancelledError:
                if not slot.reason:
                    raise
                # by us, before it started
                if held.run.task.max_concurrency:
                    self._limited[held.slot] = held.run.name  # it may have been granted
                if slot.reason == "lost":
                    self._settler.drop(held)
                else:
                    self._settler.give_back(held)
            except Exception:  # ours, not the task's: nothing is said of the run, so it is delivered again
                logger.exception("%s: run %s could not be handled", self.worker_name, held.run.name_id)
                self._settler.drop(held)
            finally:
                self.vacate(slot)
            if task.cancelling():
                await self._shake_off(task)
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
            task.logger.info("%s - start", run.id)
        function = task.executor
        executor = self._executors.get(function)
        if executor is None:
            executor = self._executors[function] = function if is_async(function) else partial(call, function)
        return executor

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
            run.task.logger.info("%s - end - %s - milliseconds - %s", run.id, run.state, run.duration_ms)
        self.finished += 1
        return self._settler.end(held)
