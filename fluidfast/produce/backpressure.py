"""Backpressure: block or refuse callers while the queue is full (``max_queue_length``, ``max_queue_bytes``).

The answer to the last batch has the number of queued runs, so the check costs nothing. Only a caller beyond the limit
asks the broker, and repeats that until there is room.
"""

import asyncio

from ..brokers.base import TaskBroker
from ..core.config import TaskManagerConfig
from ..core.context import SLOT
from ..errors import QueueFullError
from .producer import MAX_BATCH, MAX_BATCH_BYTES, Producer

__all__ = ["LOOK_SECONDS", "Backpressure"]

LOOK_SECONDS = 0.02
"""Interval at which a blocked caller checks again."""


class Backpressure:
    """The gate in front of a producer. It belongs to the event loop that uses it.

    ``batch_runs``, ``batch_bytes``: how much ``queue_many`` sends at a time, so that the gate can block it in between.

    It estimates bytes as queued runs times their mean size: the broker's last answer, or the mean of the runs that
    passed here, whichever is larger.
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
        """Wait until ``count`` more runs, of ``size`` bytes together, are within the limits.

        Several runs that together exceed ``max_queue_bytes`` go when the queue is empty. A run of a consumer of the
        same broker does not wait: it would block the slot that has to make room for it.

        Raises:
            QueueFullError: the queue is full with ``on_full="raise"``, or was full for ``full_timeout`` seconds; or a
                single run exceeds ``max_queue_bytes``.
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
                await self._producer.in_time(self._look)
                if self._has_room(count, size):
                    return
                if self._raises or (deadline is not None and loop.time() >= deadline):
                    raise self._full()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            lock.release()

    def _is_within_a_run(self) -> bool:
        """Return whether the caller is, or was started by, a run of a consumer of this broker in this process."""
        within = SLOT.get()
        if within is None:
            return False
        broker: TaskBroker
        broker, slot = within
        return slot.held is not None and (broker is self._broker or broker.url == self._broker.url)

    def _waiting(self) -> float:
        """Return the known number of queued runs."""
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
        """Ask the broker for the size of the queue."""
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
