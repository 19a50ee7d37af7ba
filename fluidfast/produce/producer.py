"""The producer: gather concurrent payloads into batches, keep a few in flight, resend each until the server answers.

No timer is involved. While nothing is in flight, payloads leave in the same iteration of the event loop as they come,
in one batch. Payloads that come while a batch is in flight leave with the next one.

A server that does not answer a batch within ``enqueue_timeout`` is away: all callers are told so, and those who come
later at once. Meanwhile the producer tries to open a channel in the background; the first that opens ends this.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Any, NoReturn, TypeVar

from ..brokers._short_way import ShortWay
from ..brokers.base import TaskBroker
from ..brokers.contract import MAX_ENQUEUED, Channel, Confirm, EnqueueBatch
from ..core._time import keep_for_good, new_id
from ..core.places import has_place, refuse_second_loop
from ..errors import BrokerAuthError, BrokerConnectionError, BufferedRunsLost, ConnectionLostError, TaskError
from ._outbox import MAX_BATCH, MAX_BATCH_BYTES, Confirmation, Outbox, settle_all

__all__ = ["MAX_BATCH", "MAX_BATCH_BYTES", "Confirmation", "Producer"]

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 4
"""The most batches in flight."""
SEND_SECONDS = 30.0
"""Time limit of buffered runs: the producer resends their batch after a lost connection for that long."""
LOOK_SECONDS = 1.0
"""Interval at which the producer looks whether a batch has waited for too long, or less with a short limit."""
AT_ONCE_SECONDS = 1.0
"""A server that was never reached, and is known to be away sooner than this, is asked again by each call."""
PROBE_SECONDS = 0.25
"""Pause between two tries to reach a server that is away."""
PROBE_LIMITS = (1.0, 15.0)
"""Time limits of such a try: of the first one, doubled each time, and the longest."""

Groups = tuple[list[bytes], list[bytes], list[bytes]]
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Sending:
    """A batch in flight, and its waiters. ``buffered``: some of its runs have no waiter."""

    __slots__ = ("batch", "buffered", "bytes", "sent", "since", "waiters")

    def __init__(
        self, batch: EnqueueBatch, size: int, waiters: list[Confirmation[Any]], buffered: bool, since: float = 0.0
    ) -> None:
        self.batch = batch
        self.bytes = size
        self.waiters = waiters
        self.buffered = buffered
        self.sent = False
        self.since = since or monotonic()


class Producer(Outbox):
    """Send one manager's payloads to its broker. It belongs to the event loop that uses it.

    ``buffer_runs``, ``buffer_bytes``: the most runs and bytes that ``accept`` may leave unconfirmed.
    """

    def __init__(self, broker: TaskBroker, *, buffer_runs: int = 50_000, buffer_bytes: int = 64 << 20) -> None:
        super().__init__(buffer_runs, buffer_bytes)
        self.broker = broker
        self.waiting_total: float = float("inf")
        """Queued runs on the broker at the last confirmed batch; infinity before the first one."""
        self._entering = threading.Lock()
        self._start_anew()
        has_place(self)

    def _start_anew(self) -> None:
        self.id = new_id()
        self._sequence = 0
        self._groups = ([], [], [])
        self._waiters = []
        self._count = self._bytes = self._buffered = 0
        self._in_flight = deque()
        self._leave_channel()
        self._opening: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._overdue = False
        self._reached = False  # whether there was a channel before
        self._away = 0.0  # since when (monotonic seconds) callers have waited for a server that is away; 0: it is not
        self._scheduled = False
        self._lone = 0
        self._since = 0.0
        self._room = None
        self.pending = self.pending_bytes = 0

    def _leave_channel(self) -> None:
        self._channel: Channel | None = None
        self._lane = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that used this last."""
        return self._loop

    def is_busy_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return True if runs that this event loop has queued are not confirmed yet."""
        return self._loop is loop and self.pending > 0

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            with self._entering:
                old = self._loop
                if self.broker.is_in_use(old):
                    refuse_second_loop(old)
                # Another event loop, after asyncio.run ended the last one: who waited there was cancelled with it.
                if self._count:
                    self._dispatch_failed()
                left = list(self._in_flight)
                exc = BrokerConnectionError("the event loop ended before they were confirmed")
                self._remember_lost((sending for sending in left if sending.buffered), exc)
                if old is not None and not old.is_closed():  # it was only left: who waits there, should it go on
                    for sending in left:
                        old.call_soon_threadsafe(settle_all, sending.waiters, exc)
                self._loop = loop
                self._start_anew()
        return loop

    def _forked(self) -> None:
        """Start anew in the child of a fork: batches in flight belong to the parent. The first send makes a new id."""
        keep_for_good(
            self._loop, self._groups, self._waiters, self._in_flight, self._channel, self._lane, self._opening,
            self._room, self._entering, self._watch,
        )  # fmt: skip
        self._watch = None
        self._away = 0.0
        self._entering = threading.Lock()
        self._loop = self._lost = None
        self._in_flight = deque()
        self._groups, self._waiters = ([], [], []), []
        self._count = self._bytes = self._buffered = self.pending = self.pending_bytes = 0
        self._leave_channel()

    # -- handing over: submit and accept, in the outbox

    def submit_batch(self, priority: int, payloads: list[bytes]) -> Confirmation[None]:
        """Send payloads of one priority as a separate batch, after earlier payloads. As ``submit``."""
        future: Confirmation[None] = Confirmation(loop=self._enter_loop())
        if payloads and self.broker.push(priority, payloads[0]):
            for payload in payloads[1:]:
                self.broker.push(priority, payload)
            future.set_result(None)
            return future
        if self._count:
            self._dispatch()
        groups: Groups = ([], [], [])
        groups[priority].extend(payloads)
        size = sum(map(len, payloads))
        self.pending += len(payloads)
        self.pending_bytes += size
        self._dispatch_batch(groups, size, [future], False)
        return future

    async def make_room(self) -> None:
        """Let the event loop send, and wait until the buffer has room."""
        self.crowded = False
        await asyncio.sleep(0)
        while self.pending >= self.buffer_runs or self.pending_bytes >= self.buffer_bytes:
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    # -- sending

    def _flush_soon(self) -> None:
        self._scheduled = False
        if self._count:
            self._flush()

    def _flush(self) -> None:
        """Send the gathered payloads as a batch. If too many are in flight, the next answer calls this again."""
        if (
            len(self._in_flight) < MAX_IN_FLIGHT
            or self._count >= MAX_ENQUEUED
            or self._bytes >= 8 * MAX_BATCH_BYTES  # one command of a gigabyte is what a server refuses
        ):
            self._dispatch()

    def _dispatch(self) -> None:
        groups, self._groups = self._groups, ([], [], [])
        waiters, self._waiters = self._waiters, []
        size, self._bytes = self._bytes, 0
        buffered, self._buffered = self._buffered > 0, 0
        since, self._since = self._since, 0.0
        if self._count > 1:
            self._lone = 0
        self._count = 0
        self._dispatch_batch(groups, size, waiters, buffered, since)

    def _sent_alone(self, sequence: int, priority: int, payload: bytes, waiter: Confirmation[Any]) -> Sending:
        groups: Groups = ([], [], [])
        groups[priority].append(payload)
        sending = Sending(EnqueueBatch(self.id, sequence, groups), len(payload), [waiter], False)
        sending.sent = True
        self._in_flight.appendleft(sending)  # nothing was on its way: what is behind it a signal's handler has queued
        return sending

    def _take_over(self, sequence: int, priority: int, payload: bytes, waiter: Confirmation[Any]) -> None:
        """Take over a batch of one that left by the short way (``Lane.alone``), and whose answer has not come yet."""
        sending = self._sent_alone(sequence, priority, payload, waiter)
        lane = self._lane
        assert lane is not None
        lane.take_over(sending.batch, self._confirm_of(sending, lane))

    def _send_again(self, sequence: int, priority: int, payload: bytes, waiter: Confirmation[Any]) -> None:
        """Resend a batch that could not be taken over, by another connection, under its number: it is queued once."""
        lane = self._lane
        if lane is not None:
            lane.abort()
            self._leave_channel()
        known = any(sending.batch.sequence == sequence for sending in self._in_flight)
        if not known and not waiter.done():  # else it was answered in there
            self._sent_alone(sequence, priority, payload, waiter)
        self.pending = self._count + sum(len(sending.batch) for sending in self._in_flight)
        self.pending_bytes = self._bytes + sum(sending.bytes for sending in self._in_flight)
        if self._in_flight:
            self._open_soon()

    def _dispatch_batch(
        self, groups: Groups, size: int, waiters: list[Confirmation[Any]], buffered: bool, since: float = 0.0
    ) -> None:
        self._sequence += 1
        sending = Sending(EnqueueBatch(self.id, self._sequence, groups), size, waiters, buffered, since)
        before = self._in_flight[-1] if self._in_flight else None
        self._in_flight.append(sending)
        if self._channel is not None:
            self._send(sending, before)
            return
        if self._away and not buffered:
            self._in_flight.pop()
            self._resolve(sending, self._unavailable(len(sending.batch)))
        self._open_soon()

    def _open_soon(self) -> None:
        if self._opening is None or self._opening.done():  # the latter: an eager task, which ended while it was made
            assert self._loop is not None
            self._opening = self._loop.create_task(self._open())

    def _send(self, sending: Sending, before: Sending | None) -> None:
        channel = self._channel
        assert channel is not None
        sending.batch.behind = before.batch.sequence if before is not None else 0
        sending.batch.fresh = not sending.sent and not self.counts
        sending.sent = True
        try:
            channel(sending.batch, self._confirm_of(sending, channel))
        except Exception as exc:  # no memory for the command, say: nothing of it is on its way
            self._in_flight.remove(sending)
            self._resolve(sending, exc)

    def _confirm_of(self, sending: Sending, channel: Channel) -> Confirm:
        """Return the callback for the outcome of a batch sent by ``channel``."""

        def confirm(waiting: int, exc: Exception | None) -> None:
            if self._channel is not channel:
                return  # an answer of a connection that was given up: the batch is on its way again
            if isinstance(exc, ConnectionLostError):
                # Everything behind it was lost with it. They are sent again in their order, under their numbers.
                self._leave_channel()
                self._open_soon()
                return
            first = self._in_flight.popleft()
            assert first is sending
            if exc is None:
                if waiting >= 0:
                    self.waiting_total = waiting
                self.confirmed += 1
            self._resolve(first, exc)
            if self._count and not self._scheduled:
                self._flush()

        return confirm

    async def _open(self) -> None:
        """Open a channel, again after a lost connection, and send the batches in flight."""
        limit, longest = PROBE_LIMITS
        self._watch_over()
        try:
            while True:
                began = monotonic()
                try:
                    async with asyncio.timeout(limit if self._away else self._left(began)):
                        channel = await self.broker.channel()
                    break
                except TimeoutError:
                    if self._away:
                        limit = min(2 * limit, longest)
                except ConnectionLostError:
                    await asyncio.sleep(0.05)
                except BrokerAuthError:
                    raise
                except BrokerConnectionError as exc:
                    if not (self._away or self._reached):
                        if monotonic() - began < AT_ONCE_SECONDS:
                            raise
                        self._fail(exc)
                        self._away = began
                    await asyncio.sleep(PROBE_SECONDS)
                self._expire()
                if not (self._in_flight or self._away):
                    if not self._count:
                        return
                    self._dispatch()  # no answer will call for what came meanwhile
        except Exception as exc:
            self._away = 0.0
            self._fail(exc)
            return
        finally:
            self._opening = None
        if self._away:
            logger.warning("broker %s: available again after %.1f s", self.broker.url, monotonic() - self._away)
        self._away = 0.0
        self._reached = True
        self._channel = channel
        self._lane = channel if isinstance(channel, ShortWay) else None
        before = None
        for sending in list(self._in_flight):
            self._send(sending, before)
            before = sending
        if self._count and not self._in_flight:
            self._flush()

    # -- a server that does not answer

    @property
    def _limit(self) -> float:
        """Seconds that a caller waits. With ``durability``, the server may take its time to answer."""
        options = self.broker.options
        return options.enqueue_timeout + (0.0 if options.durability == "none" else options.durability_seconds)

    def _limit_of(self, sending: Sending) -> float:
        return max(SEND_SECONDS, self._limit) if sending.buffered else self._limit

    def _left(self, now: float) -> float | None:
        """Seconds until the first batch in flight has waited for too long; None: none ever has."""
        end = min((sending.since + self._limit_of(sending) for sending in self._in_flight), default=now + self._limit)
        return None if end == float("inf") else max(0.01, end - now)

    def _watch_over(self) -> None:
        assert self._loop is not None
        if self._watch is None:
            seconds = 0.02 if self._overdue else min(LOOK_SECONDS, self._limit / 4)
            self._watch = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Give up batches that have waited for too long, also on a connection that is open.

        The event loop may have been blocked for that long, and the answer may be there to be read. So it is done at
        the second look, which follows in a moment.
        """
        if asyncio.get_running_loop() is not self._loop:
            return
        late = self._is_late(monotonic())
        if late and self._overdue:
            self._expire()
        self._overdue = late and not self._overdue
        self._watch = None
        self._watch_over()

    def _is_late(self, now: float) -> bool:
        return any(now - sending.since >= self._limit_of(sending) for sending in self._in_flight) or bool(
            self._away and self._count
        )

    def _expire(self) -> None:
        """Give up batches in flight that have waited for too long. The server is away if one of them has a caller."""
        now = monotonic()
        late = [sending for sending in self._in_flight if now - sending.since >= self._limit_of(sending)]
        if late:
            self._drop_channel()
            if waited := [sending.since for sending in late if not sending.buffered]:
                self._found_away(min(waited))
            for sending in late:
                if sending in self._in_flight:  # buffered, which nobody waits for
                    self._in_flight.remove(sending)
                    self._resolve(sending, self._no_answer(self._limit_of(sending), len(sending.batch)))
        if self._away and self._count:
            self._dispatch()

    def _found_away(self, since: float) -> None:
        """Tell all callers that the server is away."""
        if not self._away:
            logger.warning(
                "broker %s: no answer for %.1f s; queueing fails at once until it answers again",
                self.broker.url, monotonic() - since,
            )  # fmt: skip
        self._away = self._away or since
        for sending in [sending for sending in self._in_flight if not sending.buffered]:
            self._in_flight.remove(sending)
            count = len(sending.batch)
            self._resolve(sending, self._no_answer(self._limit, count) if sending.sent else self._unavailable(count))
        self._open_soon()
        if self._count:
            self._dispatch()

    def _drop_channel(self) -> None:
        """End the connection: a new one is made when the server answers again."""
        channel = self._channel
        self._leave_channel()
        abort = getattr(channel, "abort", None)
        if abort is not None:
            abort()

    def _no_answer(self, seconds: float, count: int) -> BrokerConnectionError:
        return BrokerConnectionError(
            f"broker {self.broker.url}: no answer within {seconds:g} s (enqueue_timeout); "
            f"whether {runs(count)} queued is unknown"
        )

    def _unavailable(self, count: int) -> BrokerConnectionError:
        return BrokerConnectionError(
            f"broker {self.broker.url}: unavailable for {monotonic() - self._away:.0f} s (enqueue_timeout is "
            f"{self._limit:g} s), so calls fail at once until it answers again; {runs(count)} not queued"
        )

    async def in_time(self, action: Callable[[], Awaitable[T]]) -> T:
        """Await what else a caller who queues needs of the server, with the same patience as for a batch.

        Raises:
            BrokerConnectionError: the server is away.
        """
        if self._away and self._loop is asyncio.get_running_loop():
            self._open_soon()
            raise self._unavailable(1)
        began = monotonic()
        limit = self._limit
        try:
            async with asyncio.timeout(None if limit == float("inf") else limit) as timeout:
                return await action()
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            self._enter_loop()
            self._drop_channel()
            self._found_away(began)
            raise self._no_answer(limit, 1) from exc

    def _fail(self, exc: Exception) -> None:
        if self._count:
            self._dispatch_failed()
        in_flight, self._in_flight = self._in_flight, deque()
        for sending in in_flight:
            self._resolve(sending, exc)

    def _dispatch_failed(self) -> None:
        groups, self._groups = self._groups, ([], [], [])
        waiters, self._waiters = self._waiters, []
        sending = Sending(EnqueueBatch(self.id, 0, groups), self._bytes, waiters, self._buffered > 0)
        self._count = self._bytes = self._buffered = 0
        self._in_flight.append(sending)

    def _resolve(self, sending: Sending, exc: Exception | None) -> None:
        self.pending -= len(sending.batch)
        self.pending_bytes -= sending.bytes
        settle_all(sending.waiters, exc)
        if exc is not None and sending.buffered:
            self._remember_lost([sending], exc)
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # -- what was buffered and lost

    def _remember_lost(self, sendings: Iterable[Sending], exc: Exception) -> None:
        ids = []
        for sending in sendings:
            for group in sending.batch.groups:
                for payload in group:
                    try:
                        ids.append(self.broker.codec.decode(payload, None).id)
                    except TaskError:  # a task that was taken out of the registry since
                        ids.append(repr(payload[:60]))
        if ids:
            before = self._lost[1] if self._lost is not None else []
            self._lost = (exc, before + ids)

    def _raise_lost(self) -> None:
        assert self._lost is not None
        (exc, ids), self._lost = self._lost, None
        raise BufferedRunsLost(f"{len(ids)} buffered runs were not confirmed: {exc}", ids) from exc

    async def flush(self) -> None:
        """Wait until all payloads so far are confirmed or refused.

        Raises:
            BufferedRunsLost: buffered payloads were not confirmed.
        """
        if self._loop is not None:
            loop = self._enter_loop()
            if self._count:
                self._dispatch()
            last = self._in_flight[-1] if self._in_flight else None
            while last is not None and last in self._in_flight:
                self._room = self._room if self._room is not None and not self._room.done() else loop.create_future()
                await asyncio.shield(self._room)
        if self._lost is not None:
            self._raise_lost()

    async def close(self) -> None:
        """Wait for pending payloads. The producer can be used again. Raises as ``flush``."""
        try:
            await self.flush()
        finally:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            if self._away and self._opening is not None and self._loop is asyncio.get_running_loop():
                self._opening.cancel()
                await asyncio.wait([self._opening])
            idle = not (self._in_flight or self._count)  # else somebody goes on queueing, under this id
            if idle and self._sequence and self._channel is not None and self._loop is asyncio.get_running_loop():
                self._sequence = 0
                old, self.id = self.id, new_id()
                try:
                    await self.broker.forget(old)
                except Exception as exc:  # the server forgets it by itself later
                    logger.debug("producer %s: %s", old, exc)

    def __repr__(self) -> str:
        return f"<Producer of {self.broker.url}: {self.pending} pending>"


def runs(count: int) -> str:
    return "the run was" if count == 1 else f"these {count:,} runs were"


def shown_as_queue(function: F) -> F:
    """Make Python's warning of a forgotten ``await`` name ``TaskManager.queue``, which the caller wrote."""
    function.__qualname__ = "TaskManager.queue"
    return function


@shown_as_queue
async def done(value: T) -> T:
    """Return ``value``, such as a run that is already queued."""
    return value


@shown_as_queue
async def refused(exc: Exception) -> NoReturn:
    """Raise ``exc``, the reason why a run was refused."""
    raise exc
