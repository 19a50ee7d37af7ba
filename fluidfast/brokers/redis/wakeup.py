"""How a consumer with nothing to do is woken without polling, and starts what it was woken by."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

from ...core._time import new_id
from ...core.states import LETTERS, PRIORITIES, TaskPriority
from ...errors import BrokerConnectionError
from .._leases import Claimed
from ..contract import Claim
from ._resp import pack
from .client import RedisClient, milliseconds
from .link import Link, LinkLost, ServerReply, give
from .scripts import ROOM, command, cut

__all__ = ["MAX_FLAGS", "Adoption", "Blocked", "Inboxes", "WakeUp", "enabled_by_name", "renewals"]

logger = logging.getLogger(__name__)

SURE_SECONDS = 5.0
"""How much later than we the server may lose a connection whose last call has run out."""
REFUSED_SECONDS = 0.5
"""How long a consumer that the server does not let wait pauses before it looks again."""
KNOWN_SHARE = 0.4
"""Of a lease: a blocking call is sent only if the server heard of the consumer no longer ago. The keeper renews after a
third; the call blocks for half a lease at most, and so ends before the consumer can be given up."""
MAX_FLAGS = ROOM
"""Tasks whose enabled flag one call of a script reads."""
MAX_STARTED = 1 << 16
"""Bytes of a payload that starts before it is under a lease: it is sent once more to get there."""


class Adoption:
    """A run that was started out of a consumer's inbox, and has to go under the lease of ``batch``."""

    __slots__ = ("batch", "consumer", "letter", "payload")

    def __init__(self, batch: str, consumer: str, letter: str, payload: bytes) -> None:
        self.batch = batch
        self.consumer = consumer
        self.letter = letter
        self.payload = payload


class Inboxes:
    """The state of the inboxes of one process's consumers, which claims, wake-up calls and renewing threads share.

    ``adoptions`` by batch. ``claiming``: batches whose claim is not answered, which may hold a lease already.
    ``asking``: how many claims of a consumer are on their way. ``unsure``: consumers whose last claim was not answered.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self.adoptions: dict[str, Adoption] = {}
        self.claiming: set[str] = set()
        self.asking: Counter[str] = Counter()
        self.unsure: set[str] = set()
        self.adopting: asyncio.Task[None] | None = None

    def left(self) -> None:
        """Forget the calls of an event loop that was left."""
        self.adopting = None
        self.adoptions.clear()
        self.claiming.clear()  # else the child of a fork would prolong its parent's leases
        self.asking.clear()

    def close(self) -> None:
        """End the call that is on its way."""
        self.adoptions.clear()
        if self.adopting is not None:
            self.adopting.cancel()

    def new_batch(self) -> str:
        """Return a batch's name, never used before. It ends with the batch's lease in ms: see ``reap``."""
        return f"{new_id()}-{milliseconds(self.client.options.lease_seconds)}"

    async def adopt(self) -> None:
        """Put the runs that were started out of an inbox under their leases, if they are ours still.

        Raises as ``RedisClient.script``.
        """
        if not self.adoptions:
            return
        loop = self.client.enter_loop()
        if self.adopting is None or self.adopting.done():
            # by one for all: none may be sent by a second caller when the first has seen it settled
            self.adopting = loop.create_task(self._adopt())
            self.adopting.add_done_callback(retrieve)
        adopting = self.adopting
        try:
            await asyncio.shield(adopting)
        except asyncio.CancelledError:
            if adopting.cancelled():  # and not we
                raise BrokerConnectionError(f"broker {self.client.url}: it was closed") from None
            raise

    async def _adopt(self) -> None:
        lease = milliseconds(self.client.options.lease_seconds)
        while self.adoptions:
            one = next(iter(self.adoptions.values()))
            declared = self.client.declare.adopt(one.consumer, one.batch, PRIORITIES[LETTERS.index(one.letter)])
            await self.client.script("adopt", declared, one.batch, lease, one.letter, one.payload)
            self.adoptions.pop(one.batch, None)

    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
        """``TaskBroker.renew``: the server hears first of what was started."""
        await self.adopt()
        lease = milliseconds(self.client.options.lease_seconds)
        lost: list[bytes] = []
        for some, held in renewals(batches, slots):
            names = [slot for _, slot in held]
            declared = self.client.declare.renew(held)
            lost += await self.client.script("renew", declared, consumer, lease, len(some), *some, *names)
        return [batch.decode() for batch in lost]


class Blocked:
    """A blocking call: the payload that it ``moved``, and the answer about ``tasks`` of the same moment (``seen``).

    ``life``: that of the consumer in which it was sent. ``spent``: a claim may have taken what it moved, or a thread
    may have given it back.
    """

    __slots__ = ("end", "life", "moved", "seen", "spent", "tasks")

    def __init__(self, end: "asyncio.Future[None]", tasks: Sequence[str], life: int) -> None:
        self.end = end
        self.tasks = tasks
        self.life = life
        self.moved: bytes | None = None
        self.seen: Any = None
        self.spent = False

    @property
    def in_vain(self) -> bool:
        """Whether it has run out."""
        end = self.end
        return end.done() and not end.cancelled() and end.exception() is None and self.moved is None


class WakeUp:
    """Blocks for one consumer: BLMOVE from each queue to its inbox, one connection a priority.

    A run is safe in the inbox, and one push wakes one waiter. The run starts at once, where it is certain to be there:
    the flags that a claim looks at were read behind BLMOVE, this consumer is known to live, so that nobody takes its
    inbox, and neither a claim of its own nor its thread can have had the run. It goes under a lease before anything
    else is said to the server, right after its first step: to wake the server takes longer than that. Else the claim
    that follows gives it.

    ``lives_at``: when, by the monotonic clock, the server was last told that the consumer lives; ``life`` is another
    one after it was silent for longer than a lease. ``lost_at``: when a connection was last lost.
    """

    def __init__(self, client: RedisClient, inboxes: Inboxes, consumer: str) -> None:
        self.client = client
        self.inboxes = inboxes
        self.consumer = consumer
        self.links: dict[TaskPriority, tuple[Link, int]] = {}
        self.pending: dict[TaskPriority, Blocked] = {}
        self.woken: asyncio.Future[None] | None = None
        self.moved = False  # something may be in the inbox
        self.unclaimed = False  # and no claim has been answered since
        self.tasks: Sequence[str] = ()
        self.lives_at = self.lost_at = -math.inf
        self.life = 0
        self.gives_back_until = -math.inf

    async def wait(self, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        """Wait until something was moved, or ``timeout`` seconds. Raises BrokerConnectionError.

        Gives the run to start, if ``tasks`` says whose enabled flag is wanted; None: claim.
        """
        if tasks is not None and len(tasks) > MAX_FLAGS:
            tasks = None
        self.tasks = tasks or ()
        for priority in self.client.options.queues:
            if priority not in self.pending or self.pending[priority].in_vain:
                await self.block(priority)
        loop = asyncio.get_running_loop()
        woken = self.woken = loop.create_future()
        timer = loop.call_later(timeout, self.wake)
        if any(blocked.end.done() for blocked in self.pending.values()):
            woken.set_result(None)
        claim: Claim | None = None
        try:
            await woken
            if tasks is not None:
                # before they are collected: the thread that gives back looks at those that are pending
                moved = ((p, blocked) for p in PRIORITIES if (blocked := self.pending.get(p)) and blocked.moved)
                if (first := next(moved, None)) is not None:
                    claim = self.start(*first)
        finally:
            timer.cancel()
            self.woken = None
            refused = self.collect()
        if refused and claim is None:  # a server that is full, say: it would refuse the next one as fast
            await asyncio.sleep(min(timeout, REFUSED_SECONDS))
        return claim

    def start(self, priority: TaskPriority, blocked: Blocked) -> Claim | None:
        """Give the run that a call has moved, if it may start: see above."""
        inboxes, payload = self.inboxes, blocked.moved
        if (
            payload is None
            or len(payload) > MAX_STARTED
            or self.consumer in inboxes.asking
            or self.consumer in inboxes.unsure
            or blocked.seen is None
            or blocked.seen[0]  # something is suspect: a claim knows what
            or len(blocked.seen) < 3
            or monotonic() - self.lives_at > self.client.options.lease_seconds
            or blocked.life != self.life  # after that: the thread that renews has changed it before
        ):
            return None
        _, flags, at = blocked.seen
        enabled = enabled_by_name(blocked.tasks, flags)
        letter = LETTERS[PRIORITIES.index(priority)]
        adoption = Adoption(inboxes.new_batch(), self.consumer, letter, payload)
        inboxes.adoptions[adoption.batch] = adoption
        if blocked.spent:  # after that: a thread that gives back has set this before it looked there
            del inboxes.adoptions[adoption.batch]
            return None
        return Claim(adoption.batch, [Claimed(f"{letter}1", payload)], enabled, at=at)

    def claimed(self, letters: str) -> None:
        """A claim has taken something from the inboxes with these letters, or from all of them, perhaps ("*")."""
        self.unclaimed = False
        for priority, blocked in self.pending.items():
            if letters == "*" or LETTERS[PRIORITIES.index(priority)] in letters:
                blocked.spent = True

    def lives(self, at: float) -> None:
        """The server has been told that the consumer lives, after ``at``. May be called in another thread."""
        if at - self.lives_at > self.client.options.lease_seconds:
            self.life += 1
        self.lives_at = at

    @property
    def is_known(self) -> bool:
        """Whether the server heard of the consumer so lately that a call may block."""
        return monotonic() - self.lives_at <= KNOWN_SHARE * self.client.options.lease_seconds

    @property
    def is_sure(self) -> bool:
        """Whether no call of a connection that was lost can move anything any more, unheard of."""
        return monotonic() - self.lost_at > self.client.block_seconds + SURE_SECONDS

    def gives_back(self) -> str:
        """Called in another thread, which is about to give back what is in the inboxes.

        Gives letters of those that it has to leave alone, for what is in there has started.
        """
        self.gives_back_until = math.inf
        for blocked in list(self.pending.values()):
            blocked.spent = True
        return "".join(a.letter for a in list(self.inboxes.adoptions.values()) if a.consumer == self.consumer)

    def gave_back(self, at: float = -math.inf) -> None:
        """The thread has, and what is moved from here on stays; or, if it has failed, what is moved after ``at``."""
        self.gives_back_until = at

    def collect(self) -> bool:
        """Forget the calls that have ended. True: the server refused one."""
        refused = False
        for priority, blocked in list(self.pending.items()):
            if blocked.end.done():
                del self.pending[priority]
                if not blocked.end.cancelled() and (exc := blocked.end.exception()) is not None:
                    self.drop(priority)
                    refused = refused or isinstance(exc, ServerReply)
                    self.moved = self.unclaimed = True  # its answer may have been lost
                    logger.debug("broker %s: a wake-up call failed: %s", self.client.url, exc)
                elif not blocked.in_vain:
                    self.moved = self.unclaimed = True
        return refused

    def wake(self) -> None:
        """Let who waits look again."""
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)

    async def block(self, priority: TaskPriority) -> None:
        held = self.links.get(priority)
        if held is None or held[0].closed:
            self.drop(priority)
            link = await self.client.blocking_link()
            try:
                client = await link.call(pack(("CLIENT", "ID")))
                # known before anything may be moved to its inbox, to the server that this link goes to, which may have
                # come back without its data since the claim
                await self.renew()
                held = self.links[priority] = (link, client)
            except BaseException as exc:
                self.client.forget(link)
                if isinstance(exc, (LinkLost, ServerReply)):
                    raise self.client.error(exc) from exc
                raise
        elif not self.is_known:
            await self.renew()
        self._call(priority, held[0])

    async def renew(self) -> None:
        began = monotonic()
        await self.inboxes.renew(self.consumer, (), ())
        self.lives(began)

    def _call(self, priority: TaskPriority, link: Link) -> None:
        client = self.client
        inbox = client.keys.inbox(self.consumer, priority)
        block = pack(
            ("BLMOVE", client.keys.queue(priority), inbox, "RIGHT", "LEFT", f"{client.block_seconds:.3f}"),
        )
        peek = command("peek", client.declare.peek(self.consumer, priority, self.tasks))
        blocked = Blocked(asyncio.get_running_loop().create_future(), self.tasks, self.life)
        failed: Exception | None = None
        self.pending[priority] = blocked
        if monotonic() < self.gives_back_until:  # after that: the thread looks there when it has set this
            blocked.spent = True

        def answered(reply: Any, exc: Exception | None) -> None:
            nonlocal failed
            blocked.moved, failed = reply, exc

        def seen(reply: Any, exc: Exception | None) -> None:
            blocked.seen = reply or None  # the server knows the script, or a claim will say that it does not
            give(blocked.end, None, failed)
            if (
                self.pending.get(priority) is blocked
                and self.woken is not None
                and not self.woken.done()
                and blocked.in_vain
                and reply in ([0], None)
                and self.is_known  # else it is renewed first
            ):
                self._call(priority, link)  # nothing is in the inbox or suspect: no reason to look
            else:
                self.wake()

        # and not by a callback of the future, which would take a turn of the event loop
        link.send(block + peek, answered, seen)

    async def unblock(self) -> None:
        """End the blocking calls; what they moved by then is in the inbox."""
        blocked = [(self.links[p][1], b.end) for p, b in self.pending.items() if not b.end.done() and p in self.links]
        if not blocked:
            self.collect()
            return
        link = await self.client.link()
        end = monotonic() + self.client.block_seconds + 1
        try:
            while blocked and monotonic() < end:
                for client, _ in blocked:
                    await link.call(pack(("CLIENT", "UNBLOCK", client)))
                # again if one was not blocking yet: its command is on another connection, on its way
                await asyncio.wait([end for _, end in blocked], timeout=0.02)
                blocked = [(client, end) for client, end in blocked if not end.done()]
        except (ServerReply, LinkLost) as exc:
            raise self.client.error(exc) from exc
        self.collect()

    def drop(self, priority: TaskPriority) -> None:
        held = self.links.pop(priority, None)
        if held is not None:
            self.lost_at = monotonic()
            self.client.forget(held[0])

    async def close(self) -> None:
        """End the connections."""
        for priority in list(self.links):
            self.drop(priority)
        self.pending.clear()


def renewals(
    batches: Sequence[str], slots: Sequence[tuple[str, str]]
) -> Iterator[tuple[Sequence[str], Sequence[tuple[str, str]]]]:
    """Cut what is to be renewed, so that a call of the script has room for every part."""
    if len(batches) + 3 * len(slots) <= ROOM:
        yield batches, slots
    else:
        for some in cut(batches, 1):
            yield some, ()
        for held in cut(slots, 3):
            yield (), held


def enabled_by_name(tasks: Sequence[str], flags: Sequence[bytes | None]) -> dict[str, bool]:
    """Name the enabled flags of tasks, which scripts give in the order of the tasks. A task without one is enabled."""
    return {name: flag is None or flag == b"true" for name, flag in zip(tasks, flags, strict=True)}


def retrieve(ended: "asyncio.Task[None]") -> None:
    """Take the error of a task: whoever waits for it gets it, and nobody may wait."""
    if not ended.cancelled():
        ended.exception()
