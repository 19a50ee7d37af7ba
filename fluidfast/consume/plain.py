"""Plain functions: they run in threads of the consumer, which cannot be stopped.

A thread whose run has ended goes on until its function returns: it hangs. Some may; each one more takes a slot away, so
that nothing is claimed that could not run, and a consumer without slots ends.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..brokers._leases import Claimed
from ..core.task import Task
from ..errors import HungThreadsError, NoThreadError
from ..execute.threads import Job, Threads, Work
from ..texts import printable
from ._slots import Slot, Slots, Stint
from .life import Life
from .settler import Settler

__all__ = ["PlainFunctions"]

logger = logging.getLogger("fluidfast.engine")

AGAIN_SECONDS = 1.0
"""How long a run keeps its slot before it goes back to its queue, when the system gives no thread."""
HUNG_ROOM = 32
"""Threads that may hang in plain functions beside those of the slots. Each one more takes a slot away."""
HUNG_SECONDS = 5.0
"""How long a consumer that has lost all of its slots that way waits for one of the functions to return."""


class PlainFunctions:
    """Calls plain functions for the slots of a consumer.

    ``give_up``: called with the reason when all threads hang for good.
    """

    def __init__(
        self, slots: Slots, settler: Settler, life: Life, *, give_up: Callable[[HungThreadsError], None]
    ) -> None:
        self._slots = slots
        self._settler = settler
        self._life = life
        self._give_up = give_up
        self._threads = Threads(self._freed)
        self._stuck: list[Slot] = []  # slots that wait until a hung thread is free
        self._timer: asyncio.TimerHandle | None = None

    @property
    def hung(self) -> int:
        """How many threads hang."""
        return len(self._threads.hung)

    def kept(self) -> list[tuple[str, str]]:
        """Return the slots under ``max_concurrency`` that hung threads keep, as (task, slot). From any thread."""
        return [(job.task.name, job.slot) for job in list(self._threads.hung) if job.slot]

    def is_stuck(self, slot: Slot) -> bool:
        """Whether a slot waits until a hung thread is free."""
        return slot in self._stuck

    async def join(self, seconds: float) -> int:
        """Wait for so many seconds until no function runs any more. Returns how many still do."""
        return await self._threads.join(seconds)

    def close(self) -> None:
        """End the threads: the idle ones at once, the others when their functions return."""
        self._threads.close()
        if self._timer is not None:
            self._timer.cancel()

    async def call(self, slot: Slot, task: Task[Any], argument: Any) -> Any:
        """Call the function of what runs in a slot, in a thread of this consumer."""
        job = Job(task, argument)
        await self._wait(slot, job)
        result = job.outcome()
        if hasattr(result, "__await__"):  # a plain function that returns a coroutine: partials, lambdas, wrappers
            self._slots.limit(slot, job.due)
            result = await result
        return result

    async def serve(self, slot: Slot, stint: Stint) -> None:
        """Have a thread of this consumer run plain functions in a slot."""
        await self._wait(slot, stint)
        stint.outcome()

    async def _wait(self, slot: Slot, job: Job | Stint) -> None:
        """Wait until a thread has done what a slot is for."""
        try:
            self._threads.submit(job)
        except NoThreadError:
            await asyncio.sleep(AGAIN_SECONDS)  # with its slot, or the run would come back at once
            raise
        slot.job = job
        try:
            await job.waiter
        except BaseException:
            if self._threads.leave(job):
                self._hangs(slot, job)
            raise
        finally:
            slot.job = None

    def _hangs(self, slot: Slot, job: Work) -> None:
        """The run in a slot has ended, and its function goes on in its thread."""
        held = slot.held
        if isinstance(held, Claimed) and self._settler.limited.pop(held.slot, None) is not None:
            job.slot = held.slot  # max_concurrency counts it until it has returned
        slots = self._slots
        if self.hung > HUNG_ROOM:
            self._stuck.append(slot)
            slots.concurrency -= 1
            if not slots.concurrency and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HUNG_SECONDS, self._all_hang)
        logger.warning(
            "%s: task %s has ended, but its function is still running in its thread, which cannot be stopped; hung "
            "threads: %s (%d are tolerated; %d slots are left)",
            self._life.who, printable(job.task.name), self._threads.hung_by_task(), HUNG_ROOM, slots.concurrency,
        )  # fmt: skip

    def _freed(self, job: Work) -> None:
        """A function has returned after its run had ended."""
        if job.slot:
            self._settler.free([(job.task.name, job.slot)])
        logger.info(
            "%s: task %s: its function has returned after %.1f s; hung threads: %s",
            self._life.who, printable(job.task.name), monotonic() - job.began, self._threads.hung_by_task() or "none",
        )  # fmt: skip
        if not self._stuck:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        slot = self._stuck.pop()
        self._slots.concurrency += 1
        if not self._life.ends() and slot.task is not None and slot.task.done():
            self._slots.begin(slot)

    def _all_hang(self) -> None:
        self._give_up(
            HungThreadsError(
                f"all threads hang in plain functions that go on after their timeouts ({self._threads.hung_by_task()}):"
                " give what they wait for a timeout of its own, such as that of a socket"
            )
        )
