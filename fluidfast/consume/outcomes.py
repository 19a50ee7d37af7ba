"""The outcome of a run whose function returned, raised or was cancelled: it ends, is retried, or is requeued."""

import asyncio
import logging
import traceback
from typing import Any

from ..brokers._leases import Claimed
from ..brokers.base import TaskBroker
from ..core._machine import Listeners
from ..core._run import TaskRun
from ..core.events import is_current
from ..core.states import TaskState
from ..errors import NoThreadError, TaskAbortedError, TaskError, TaskRunError
from ..execute.executor import SET_TO_FAILURE, retry_after_failure
from ..texts import describe, error_text, printable
from ._slots import Slot, Slots
from .failures import Failures, shown_line
from .host import Host
from .life import Life
from .settler import Settler
from .upkeep import Upkeep

__all__ = ["Outcomes"]

logger = logging.getLogger("fluidfast.engine")

SHOWN = 700
"""Characters of an exception's text in the reason of a dead letter; where it was raised stands behind them."""
BREAKS = "\n\r\t"
"""Characters that become a space there."""


class Outcomes:
    """Decides what becomes of runs, and has the settler say so.

    ``manager``: that of the consumer, in which runs are decoded.
    """

    def __init__(
        self,
        slots: Slots,
        settler: Settler,
        broker: TaskBroker,
        life: Life,
        upkeep: Upkeep,
        manager: Host,
        listeners: Listeners,
        failures: Failures,
    ) -> None:
        self._slots = slots
        self._failures = failures
        self._settler = settler
        self._broker = broker
        self._life = life
        self._upkeep = upkeep
        self._manager = manager
        self._listeners = listeners

    def conclude(self, held: Claimed, exc: BaseException | None) -> None:
        """Settle a run in the state that the task's function set it to, else by how the function ended."""
        run = held.run
        if run.is_failure or (exc is not None and not run.is_done):
            if isinstance(exc, TaskAbortedError):
                self._slots.end(held, TaskState.aborted)
            else:
                self.failed(held, exc or TaskRunError(SET_TO_FAILURE))
        else:
            self._slots.end(held, run.state if run.is_done else TaskState.success)

    def broke(self, slot: Slot, held: Claimed, exc: BaseException) -> None:
        """A run's function did not return. Raises GeneratorExit if the slot's coroutine is being closed."""
        if isinstance(exc, GeneratorExit) and not is_current(slot.task):
            raise exc  # the event loop is gone: the lease runs out
        if isinstance(exc, TaskAbortedError):
            held.run.logger.debug("%s - aborted - %s", held.run.shown_id, error_text(exc))
            self._slots.end(held, TaskState.aborted)
        elif isinstance(exc, NoThreadError):
            held.run.logger.error("%s - not started, it goes back to its queue: %s", held.run.shown_id, exc)
            self._interrupted(held)
        elif isinstance(exc, asyncio.CancelledError) or self._interrupts(slot):
            self._cancelled(slot, held, exc)
        else:
            self.conclude(held, exc)

    def mishandled(self, slot: Slot, held: Claimed, exc: BaseException) -> None:
        """A run was cancelled before it started, or something of ours failed, of which nothing is said to the broker:
        the run is delivered again."""
        if isinstance(exc, GeneratorExit) and not is_current(slot.task):
            raise exc
        if not isinstance(exc, asyncio.CancelledError) or not (slot.reason or self._life.ends()):
            logger.error("%s: run %s could not be handled", self._life.who, held.run.shown_name, exc_info=exc)
            self._settler.drop(held)
            return
        if held.run.task.max_concurrency:
            self._settler.limited[held.slot] = held.run.name  # it may have been granted
        if slot.reason == "lost":
            self._settler.drop(held)
        else:
            self._settler.give_back(held)

    def failed(self, held: Claimed, exc: BaseException, *, timed_out: bool = False) -> None:
        """A run has failed: it is tried again if its task says so, else it ends."""
        run = held.run
        policy = run.task.retry
        retry = None if policy is None else retry_after_failure(self.as_claimed(held), exc, self._upkeep.now())
        if retry is None:
            self._slots.end(held, TaskState.failure)
            self._failures.log(run, exc, again_in=None, ours=timed_out)
            frames = innermost_frames(exc, 3)
            where = f" (at {' < '.join(frames)})" if frames else ""
            if policy is None:
                self._settler.fail(held, f"{describe(exc, SHOWN, keep=BREAKS)}{where}")
            else:
                name, text = printable(type(exc).__name__), error_text(exc, SHOWN, keep=BREAKS)
                self._settler.bury(held, f"{name} after {run.retry_attempt} retries: {text}{where}")
            return
        run.set_state(TaskState.failure)
        self._slots.tally.retried += 1
        self._failures.log(run, exc, again_in=retry.delay, ours=timed_out)
        self.again(held, retry.delay, retry.run)

    def again(self, held: Claimed, delay: float, run: TaskRun[Any, Any]) -> None:
        """It is queued once more, as ``run``, in ``delay`` seconds."""
        try:
            payload = self._broker.codec.encode(run)
        except TaskError as exc:  # what it counts made it larger than it may be
            held.run.logger.error(
                "%s - cannot be retried and moves to the dead letters: %s", held.run.shown_id, error_text(exc)
            )
            self._slots.end(held, TaskState.failure)
            self._settler.bury(held, f"cannot be retried: {error_text(exc, SHOWN)}")
            return
        self._settler.again(held, delay, run.prio, payload)
        self._upkeep.promote_in(delay)

    def as_claimed(self, held: Claimed) -> TaskRun[Any, Any]:
        """The run as it came: what a task did to its params is not what is tried again."""
        return self._broker.codec.decode(held.payload, self._manager, self._listeners)

    def _interrupts(self, slot: Slot) -> bool:
        """Whether what runs in a slot is cancelled because the consumer or the event loop ends."""
        return slot.reason == "shutdown" or (self._life.ends() and slot.task is not None and slot.task.cancelling() > 0)

    def _cancelled(self, slot: Slot, held: Claimed, exc: BaseException) -> None:
        run = held.run
        reason = slot.reason
        if run.is_done and reason != "lost":
            self.conclude(held, None)
        elif reason == "timeout":
            self.failed(held, TimeoutError(f"it took longer than {run.task.timeout_seconds} s"), timed_out=True)
        elif reason == "lost":
            run.logger.warning("%s - cancelled - its lease was lost, another consumer has it", run.shown_id)
            self._settler.drop(held)
        elif reason == "shutdown" or self._slots.draining or self._life.ends() or not self._life.is_running():
            run.logger.warning("%s - interrupted by shutdown, it goes back to its queue", run.shown_id)
            self._interrupted(held)
        else:
            # The handler cancelled itself, or something that it awaited was cancelled.
            error = asyncio.CancelledError("the task was cancelled from within").with_traceback(exc.__traceback__)
            error.__cause__ = exc.__cause__ or exc.__context__
            self.failed(held, error)

    def _interrupted(self, held: Claimed) -> None:
        held.run.set_state(TaskState.interrupted)
        self._settler.give_back(held)


def innermost_frames(exc: BaseException, count: int) -> list[str]:
    """Where an exception was raised, innermost first: ``file.py:line function``."""
    frames = list(traceback.walk_tb(exc.__traceback__))[-count:]  # extract_tb would look each file up
    return [f"{shown_line(frame.f_code, line)} {frame.f_code.co_name}" for frame, line in reversed(frames)]
