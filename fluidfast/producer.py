"""The producer: coalesces what is queued at the same time into batches, keeps a few in flight, and sends each until it is
confirmed or refused.

Nothing waits for a timer. A payload that comes when nothing is in flight leaves in the same turn of the event loop,
together with whatever else came in that turn; what comes while a batch is in flight leaves with the next one.
"""

import asyncio
import logging
from collections import deque
from time import monotonic

from ._clock import new_id
from .broker import Batch, Channel, TaskBroker
from .errors import BrokerConnectionError, ConnectionLostError

__all__ = ["Producer"]

logger = logging.getLogger(__name__)

MAX_BATCH = 1000
"""Payloads a batch."""
MAX_BATCH_BYTES = 1 << 20
MAX_IN_FLIGHT = 4
"""Batches on their way at a time."""
SEND_SECONDS = 30.0
"""How long a batch is sent again after its connection was lost."""


class Sending:
    """A batch on its way, and who waits for it."""

    __slots__ = ("batch", "since", "waiters")

    def __init__(self, batch: Batch, waiters: list[tuple[asyncio.Future[int], int]]) -> None:
        self.batch = batch
        self.waiters = waiters
        self.since = monotonic()


class Producer:
    """The way of one manager's payloads into its broker. Belongs to the event loop that it is used in."""

    def __init__(self, broker: TaskBroker) -> None:
        self.broker = broker
        self.id = new_id()
        self.waiting_total = 0
        """Runs waiting on the broker, as the last confirmed batch saw it."""
        self._sequence = 0
        self._groups: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
        self._waiters: list[asyncio.Future[int]] = []
        self._count = 0
        self._bytes = 0
        self._in_flight: deque[Sending] = deque()
        self._channel: Channel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def pending(self) -> int:
        """Payloads that are not confirmed."""
        return self._count + sum(len(sending.batch) for sending in self._in_flight)

    def submit(self, priority: int, payload: bytes) -> "asyncio.Future[int] | None":
        """Hand over a payload. None: it is queued. A future: it is when this is done.

        The future raises BrokerConnectionError (whether it was queued is unknown), or another BrokerError (it was not).
        """
        if self.broker.push(priority, payload):
            return None
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._reset(loop)
        future: asyncio.Future[int] = loop.create_future()
        self._groups[priority].append(payload)
        self._waiters.append(future)
        self._count += 1
        self._bytes += len(payload)
        if self._count >= MAX_BATCH or self._bytes >= MAX_BATCH_BYTES:
            self._flush()
        elif not self._scheduled and not self._in_flight:
            self._scheduled = True
            loop.call_soon(self._flush_soon)
        return future

    def _reset(self, loop: asyncio.AbstractEventLoop) -> None:
        # Another event loop, after asyncio.run ended the last one: what was pending there was told so.
        self._loop = loop
        self.id = new_id()
        self._sequence = 0
        self._groups = ([], [], [])
        self._waiters = []
        self._count = self._bytes = 0
        self._in_flight.clear()
        self._channel = None
        self._opening = None
        self._scheduled = False

    def _flush_soon(self) -> None:
        self._scheduled = False
        if self._count:
            self._flush()

    def _flush(self) -> None:
        """Make a batch of what came, and send it if the way is open."""
        if len(self._in_flight) >= MAX_IN_FLIGHT and self._channel is not None and self._count < 8 * MAX_BATCH:
            return  # an answer will call again
        self._sequence += 1
        waiters = [(future, 1) for future in self._waiters]
        sending = Sending(Batch(self.id, self._sequence, self._groups), waiters)
        self._groups = ([], [], [])
        self._waiters = []
        self._count = self._bytes = 0
        self._in_flight.append(sending)
        if self._channel is not None:
            self._send(sending)
        elif self._opening is None:
            assert self._loop is not None
            self._opening = self._loop.create_task(self._open())

    def _send(self, sending: Sending) -> None:
        channel = self._channel
        assert channel is not None

        def confirm(waiting: int, exc: Exception | None) -> None:
            if self._channel is not channel:
                return  # an answer of a connection that was given up: the batch is on its way again
            if isinstance(exc, ConnectionLostError):
                # Everything behind it was lost with it. They are sent again in their order, under their numbers.
                self._channel = None
                if self._opening is None and self._loop is not None:
                    self._opening = self._loop.create_task(self._open())
                return
            first = self._in_flight.popleft()
            assert first is sending
            if exc is None:
                self.waiting_total = waiting
            self._resolve(first, exc)
            if self._count and not self._scheduled:
                self._flush()

        channel(sending.batch, confirm)

    def _resolve(self, sending: Sending, exc: BaseException | None) -> None:
        for future, result in sending.waiters:
            if future.done():
                continue
            if exc is None:
                future.set_result(result)
            else:
                future.set_exception(exc)

    async def _open(self) -> None:
        """Open a channel, anew if it was lost, and send what is in flight."""
        try:
            while True:
                try:
                    channel = await self.broker.channel()
                    break
                except ConnectionLostError:
                    await asyncio.sleep(0.05)
                    self._expire()
                    if not self._in_flight:
                        return
        except Exception as exc:
            self._fail(exc)
            return
        finally:
            self._opening = None
        self._expire()
        self._channel = channel
        for sending in list(self._in_flight):
            self._send(sending)

    def _expire(self) -> None:
        """Give up batches that were lost again and again for SEND_SECONDS."""
        now = monotonic()
        while self._in_flight and now - self._in_flight[0].since > SEND_SECONDS:
            sending = self._in_flight.popleft()
            self._resolve(
                sending,
                BrokerConnectionError(
                    f"broker {self.broker.url}: no answer within {SEND_SECONDS:.0f} s; "
                    f"whether these {len(sending.batch)} runs were queued is unknown"
                ),
            )

    def _fail(self, exc: Exception) -> None:
        in_flight, self._in_flight = self._in_flight, deque()
        for sending in in_flight:
            self._resolve(sending, exc)
        waiters, self._waiters = self._waiters, []
        self._groups = ([], [], [])
        self._count = self._bytes = 0
        for future in waiters:
            if not future.done():
                future.set_exception(exc)

    async def flush(self) -> None:
        """Wait until everything handed over so far is confirmed or refused; who handed it over hears which."""
        futures = [future for sending in self._in_flight for future, _ in sending.waiters] + self._waiters
        if futures:
            await asyncio.wait(futures)

    async def close(self) -> None:
        """Wait for what was handed over. The producer may be used again."""
        if self._loop is not asyncio.get_running_loop():
            return
        await self.flush()
        if self._sequence and self._channel is not None:
            sequence, self._sequence = self._sequence, 0
            old, self.id = self.id, new_id()
            try:
                await self.broker.forget(old)
            except Exception as exc:  # it is forgotten by itself later
                logger.debug("producer %s, %d batches: %s", old, sequence, exc)

    def __repr__(self) -> str:
        return f"<Producer of {self.broker.url}: {self.pending} pending>"

