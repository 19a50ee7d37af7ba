"""Backpressure: holds, or refuses, who queues more than may wait on the broker (``max_queue_length``,
``max_queue_bytes``).

The answer to the last batch tells how many runs wait, so the check costs nothing; only who is beyond the limit asks
the broker, and again until there is room.
"""

import asyncio

from ..brokers.base import TaskBroker
from ..core.config import TaskManagerConfig
from ..core.context import SLOT
from ..errors import QueueFullError
from .producer import MAX_BATCH, MAX_BATCH_BYTES, Producer

__all__ = ["LOOK_SECONDS", "Backpressure"]

LOOK_SECONDS = 0.02
"""How long a caller that is held waits before it looks again."""


class Backpressure:
    """The gate in front of a producer. Belongs to the event loop that it is used in.

    ``batch_runs``, ``batch_bytes``: how much ``queue_many`` may send at a time, so that it can be held in between.

    Bytes are runs that wait times their mean size: what the broker found when it was last asked, or that of what passed
    here, whichever is more.
    """

    def __init__(self, broker: TaskBroker, producer: Producer, config: TaskManagerConfig) -> None:
        self.max_runs = config.max_queue_length
        self.max_bytes = config.max_queue_bytes
        self.active = self.max_runs is not None or self.max_bytes is not None
        self.batch_runs = MAX_BATCH if self.max_runs is None else min(MAX_BATCH, max(1, self.max_runs // 4))
        self.batch_bytes = (
            MAX_BATCH_BYTES if self.max_bytes is None else min(MAX_BATCH_BYTES, max(1, self.max_bytes // 4))
        )
        self._broker = broker
        self._producer = producer
        producer.counts = self.active
        self._raises = config.on_full == "raise"
        self._timeout = config.full_timeout
        self._found_mean = 0.0
        self._passed_runs = 0
        self._passed_bytes = 0
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def admit(self, count: int, size: int) -> None:
        """Wait until ``count`` runs more, of ``size`` bytes together, are within the limits.

        Several that together are more bytes than may wait go when nothing else does. A run of a consumer of the same
        broker is not held: it would keep its slot from making the room that it waits for.

        Raises:
            QueueFullError: they are not, and who is beyond the limits is refused, or was held for ``full_timeout``
                seconds; or they never can be.
        """
        needed = size
        if self.max_bytes is not None and size > self.max_bytes:
            if count == 1:
                raise QueueFullError(
                    f"broker {self._broker.url}: a run of {size} bytes is more than max_queue_bytes, which is "
                    f"{self.max_bytes}; nothing was queued"
                )
            needed = self.max_bytes
        await self._wait(count, needed)
        self._passed_runs += count
        self._passed_bytes += size

    async def _wait(self, count: int, size: int) -> None:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        lock = self._lock[1]
        if not lock.locked() and self._has_room(count, size):
            return
        if not self._raises and self._is_within_a_run():
            return
        deadline = None if self._raises or self._timeout is None else loop.time() + self._timeout
        try:  # one asks, the others stand behind it in their order
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
        except TimeoutError:
            raise self._full() from None
        try:
            while not self._has_room(count, size):
                await self._look()
                if self._has_room(count, size):
                    return
                if self._raises or (deadline is not None and loop.time() >= deadline):
                    raise self._full()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            lock.release()

    def _is_within_a_run(self) -> bool:
        """Whether the caller is, or was started by, what a consumer of this broker in this process is running."""
        within = SLOT.get()
        if within is None:
            return False
        broker: TaskBroker
        broker, slot = within
        return slot.held is not None and (broker is self._broker or broker.url == self._broker.url)

    def _waiting(self) -> float:
        """Runs that wait, as far as is known here."""
        told = self._broker.waiting()
        return self._producer.waiting_total + self._producer.pending if told is None else told

    def _mean(self) -> float:
        return max(self._found_mean, self._passed_bytes / self._passed_runs if self._passed_runs else 0.0)

    def _has_room(self, count: int, size: int) -> bool:
        waiting = self._waiting()
        if self.max_runs is not None and waiting + count > self.max_runs:
            return False
        # what is not known yet is infinite: then the broker is asked
        return self.max_bytes is None or waiting * (self._mean() or 1.0) + size <= self.max_bytes

    async def _look(self) -> None:
        """Ask the broker how much waits."""
        producer = self._producer
        confirmed = producer.confirmed
        waiting: float = sum((await self._broker.queue_length()).values())
        if self.max_bytes is not None:
            found = await self._broker.queue_bytes()
            self._found_mean = found / waiting if found is not None and waiting else 0.0
        if producer.confirmed != confirmed:  # which of the two answers is the newer one cannot be told
            waiting = max(waiting, producer.waiting_total)
        producer.waiting_total = waiting

    def _full(self) -> QueueFullError:
        limits = [f"max_queue_length is {self.max_runs}"] if self.max_runs is not None else []
        bytes_too = ""
        if self.max_bytes is not None:
            limits.append(f"max_queue_bytes is {self.max_bytes}")
            bytes_too = f" (about {self._waiting() * self._mean():.0f} bytes)"
        return QueueFullError(
            f"broker {self._broker.url}: {self._waiting():.0f} runs wait{bytes_too}, {', '.join(limits)}; nothing was "
            "queued"
        )
