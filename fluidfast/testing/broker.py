"""The broker of one test: ``memory://`` with a clock that the test moves."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from ..brokers.contract import Claim, Settlement
from ..brokers.memory.broker import MemoryTaskBroker
from ..core._time import now_micros
from ..core.task import Task

__all__ = ["StagedBroker"]


class StagedBroker(MemoryTaskBroker):
    """A ``memory://`` broker that tells when no run is left to execute, and whose clock a test can move forward.

    ``ahead``: microseconds by which its clock is ahead of the machine's. Only due times follow it; leases, timeouts and
    locks follow the machine's clock.
    """

    ahead = 0
    one_by_one = True
    """Whether one run executes at a time, so that a slot under ``max_concurrency`` that is taken belongs to a run that
    has ended and will be settled in a moment."""
    _idle: "asyncio.Future[None] | None" = None

    def now(self) -> int:
        return now_micros() + self.ahead

    def set_now(self, micros: int) -> None:
        """Move the clock."""
        self.ahead = micros - now_micros()

    def queued(self) -> Iterator[tuple[int | None, bytes]]:
        """Yield the payloads that wait, in the order in which they will start, each with its due time if delayed."""
        queue = self.store.queue
        for _, payload in queue.waiting():
            yield None, payload
        for due, _, payload in queue.delayed():
            yield due, payload

    def next_due(self) -> int | None:
        """When the first delayed run is due, in microseconds."""
        return self.store.queue.next_due()

    def is_idle(self) -> bool:
        """Whether no run is left that could be executed now."""
        store = self.store
        due = store.queue.next_due()
        return not (len(store.queue) or store.leases or store.suspects or (due is not None and due <= self.now()))

    async def until_idle(self) -> None:
        """Wait until no run is left that could be executed now."""
        while not self.is_idle():
            if self._idle is None or self._idle.done():
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    def _look(self) -> None:
        if self._idle is not None and not self._idle.done() and self.is_idle():
            self._idle.set_result(None)

    # -- what the engine calls

    async def claim(self, consumer: str, limit: int, **options: Any) -> Claim:
        claim = await super().claim(consumer, limit, **options)
        claim.at = self.now()
        return claim

    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        if self.one_by_one:
            self.store.slots.pop(task.name, None)
        return await super().acquire(task, slot)

    async def settle(self, settlement: Settlement) -> bool:
        settled = await super().settle(settlement)
        await self.promote()  # a retry without a delay is due at once
        self._look()
        return settled

    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> None:
        self._look()
        await super().wait(consumer, timeout, tasks)
