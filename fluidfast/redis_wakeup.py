"""How a consumer with nothing to do is woken without polling, and given what woke it in the same answer."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from ._clock import new_id
from .broker import LETTERS
from .redis_link import Link, LinkLost, ServerReply, pack
from .scripts import load, milliseconds
from .states import PRIORITIES, TaskPriority

if TYPE_CHECKING:
    from .redis_broker import RedisTaskBroker

__all__ = ["GRANTED", "Grant", "WakeUp"]

logger = logging.getLogger(__name__)

GRANTED = tuple(f"{letter}1" for letter in LETTERS)
"""Fields that a grant may have: it is of one run."""
ONLY_MOVED = 4
"""Asks the claim's script for what was moved to the inbox, and for nothing else."""
REFUSED_SECONDS = 0.5
"""How long a consumer that the server does not let wait pauses before it looks again."""


class Blocked:
    """A blocking call and the claim behind it, on their way since ``at``. ``ended`` is called with it."""

    __slots__ = ("at", "batch", "done", "ended", "error", "lost", "moved", "reply", "tasks")

    def __init__(self, tasks: Sequence[str], ended: "Callable[[Blocked], None]") -> None:
        self.batch = new_id()
        self.tasks = tasks
        self.ended = ended
        self.at = monotonic()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.moved = False
        self.reply: Any = None
        self.lost = False
        self.error: Exception | None = None

    def has_moved(self, reply: Any, exc: Exception | None) -> None:
        """What the blocking call answers."""
        self.moved = reply is not None
        self.error = exc

    def has_claimed(self, reply: Any, exc: Exception | None) -> None:
        """What the claim answers."""
        self.reply = reply
        self.lost = isinstance(exc, LinkLost)
        self.error = self.error or exc
        if not self.done.done():
            self.done.set_result(None)
            self.ended(self)

    @property
    def in_vain(self) -> bool:
        """It has run out."""
        return self.done.done() and not self.moved and self.error is None and not self.reply[0]


@dataclass(slots=True)
class Grant:
    """What a claim behind a blocking call gave: one run."""

    priority: int
    batch: str
    at: float
    reply: Any
    tasks: Sequence[str]


class WakeUp:
    """Blocks for one consumer: BLMOVE from each queue to its inbox, one connection a priority.

    What is moved is safe in the inbox, and one push wakes one waiter. Behind each BLMOVE on its connection stands a
    claim of what it moves, so that both are answered at once: a run starts two round trips earlier.

    ``granted``: what was given so while the consumer waited. ``unsure``: batches of which it is not known whether they
    hold a lease; who claims under their names is told.
    """

    def __init__(self, broker: "RedisTaskBroker", consumer: str) -> None:
        self.broker = broker
        self.consumer = consumer
        self.links: dict[TaskPriority, tuple[Link, int]] = {}
        self.pending: dict[TaskPriority, Blocked] = {}
        self.granted: list[Grant] = []
        self.unsure: list[str] = []
        self.withdrawn: set[str] = set()
        self.tasks: Sequence[str] = ()
        """Whose enabled flag is wanted."""
        self.woken: asyncio.Future[None] | None = None
        self.fresh = False  # it has waited, and has not claimed since
        self.moved = False  # something may be in the inbox

    @property
    def may_hold(self) -> bool:
        """Whether something may be set aside for the consumer."""
        return bool(self.pending or self.granted or self.unsure or self.moved)

    async def wait(self, timeout: float) -> None:
        """Until something was moved, or ``timeout`` seconds. Raises BrokerConnectionError."""
        if self.granted or self.unsure:
            self.fresh = True
            return
        self.withdrawn.intersection_update(self.batches())
        for priority in self.broker.options.queues:
            if priority not in self.pending or self.pending[priority].in_vain:
                await self.block(priority)
        loop = asyncio.get_running_loop()
        woken = self.woken = loop.create_future()
        timer = loop.call_later(timeout, run_out, woken)
        if any(blocked.done.done() for blocked in self.pending.values()):
            woken.set_result(None)
        try:
            await woken
        finally:
            timer.cancel()
            self.woken = None
            refused = self.collect()
            self.fresh = True
        if refused:  # a server that is full, say: it would refuse the next one as fast
            await asyncio.sleep(min(timeout, REFUSED_SECONDS))

    def collect(self) -> bool:
        """Take in what the calls that have ended gave. True: the server refused one."""
        refused = False
        for priority, blocked in list(self.pending.items()):
            if not blocked.done.done():
                continue
            if blocked.reply is not None and blocked.reply[0]:
                number = PRIORITIES.index(priority)
                self.granted.append(Grant(number, blocked.batch, blocked.at, blocked.reply, blocked.tasks))
                self.granted.sort(key=lambda grant: grant.priority)
            elif blocked.lost:
                self.unsure.append(blocked.batch)
            if blocked.error is not None:
                self.drop(priority)
                refused = refused or isinstance(blocked.error, ServerReply)
                self.moved = True  # its answer may have been lost
                logger.debug("broker %s: a wake-up call failed: %s", self.broker.url, blocked.error)
            del self.pending[priority]
        return refused

    def take(self) -> Grant | None:
        """What was granted, if the consumer has waited just now.

        Else it may be that something else comes first by now, or that it would be held for too long.
        """
        fresh, self.fresh = self.fresh, False
        while fresh and self.granted:
            grant = self.granted.pop(0)
            # from here on the thread that withdraws leaves it alone
            if grant.batch not in self.withdrawn and monotonic() - grant.at < self.broker.options.lease_seconds / 2:
                return grant
            self.unsure.append(grant.batch)
        return None

    def withdraw(self) -> Iterator[str]:
        """For a thread, while the event loop does not get on: batches that are to be given back, if they hold a lease.
        The event loop takes none of them without asking again."""
        for batch in self.batches():
            self.withdrawn.add(batch)
            if batch in self.batches():  # else it was taken just now
                yield batch

    def batches(self) -> list[str]:
        """Those that may be granted."""
        return [blocked.batch for blocked in self.pending.values()] + [grant.batch for grant in self.granted]

    def wake(self) -> None:
        """Let who waits look again."""
        if self.woken is not None:
            run_out(self.woken)

    async def block(self, priority: TaskPriority) -> None:
        broker = self.broker
        held = self.links.get(priority)
        if held is None or held[0].closed:
            self.drop(priority)
            link = await broker.blocking_link()
            try:
                client = await link.call(pack(("CLIENT", "ID")))
                # known before anything may be moved to its inbox, to the server that this link goes to, which may have
                # come back without its data since the claim
                await broker.renew(self.consumer, ())
                held = self.links[priority] = (link, client)
            except BaseException as exc:
                broker._blocked.discard(link)
                link.abort()
                if isinstance(exc, (LinkLost, ServerReply)):
                    raise broker.error(exc) from exc
                raise
        self._call(priority, held[0])

    def _call(self, priority: TaskPriority, link: Link) -> None:
        broker = self.broker

        def ended(blocked: Blocked) -> None:
            if (
                self.pending.get(priority) is blocked
                and self.woken is not None
                and not self.woken.done()
                and blocked.in_vain
            ):
                self._call(priority, link)  # it has moved nothing: that is no reason to look
            else:
                self.wake()

        blocked = self.pending[priority] = Blocked(self.tasks, ended)
        inbox = broker.keys.inbox(self.consumer, priority)
        block = pack(
            ("BLMOVE", broker.keys.queue(priority), inbox, "RIGHT", "LEFT", f"{broker.block_seconds:.3f}"),
        )
        lease = milliseconds(broker.options.lease_seconds)
        letter = LETTERS[PRIORITIES.index(priority)]
        claim = pack(
            (
                "EVALSHA", load("claim").sha, 1, broker.prefix, self.consumer, blocked.batch, 1, 1, lease, letter,
                ONLY_MOVED, *blocked.tasks,
            )
        )  # fmt: skip

        link.send(block + claim, blocked.has_moved, blocked.has_claimed)

    async def unblock(self) -> None:
        """End the blocking calls; what they moved by then is in the inbox."""
        blocked = [(self.links[p][1], b.done) for p, b in self.pending.items() if not b.done.done() and p in self.links]
        if not blocked:
            self.collect()
            return
        link = await self.broker.link()
        end = monotonic() + self.broker.block_seconds + 1
        try:
            while blocked and monotonic() < end:
                for client, _ in blocked:
                    await link.call(pack(("CLIENT", "UNBLOCK", client)))
                # again if one was not blocking yet: its command is on another connection, on its way
                await asyncio.wait([future for _, future in blocked], timeout=0.02)
                blocked = [(client, future) for client, future in blocked if not future.done()]
        except (ServerReply, LinkLost) as exc:
            raise self.broker.error(exc) from exc
        self.collect()

    def drop(self, priority: TaskPriority) -> None:
        held = self.links.pop(priority, None)
        if held is not None:
            self.broker._blocked.discard(held[0])
            held[0].abort()

    async def close(self) -> None:
        """End the connections."""
        for priority in list(self.links):
            self.drop(priority)
        self.abandon()

    def abandon(self) -> None:
        """Nothing comes over these connections any more; what they may have given is asked for by the next claim."""
        self.unsure += [blocked.batch for blocked in self.pending.values() if not blocked.in_vain]
        self.unsure += [grant.batch for grant in self.granted]
        self.links.clear()
        self.pending.clear()
        self.granted.clear()



def run_out(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
