"""How a consumer with nothing to do is woken without polling."""

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from .redis_link import Link, LinkLost, ServerReply, give, pack
from .states import TaskPriority

if TYPE_CHECKING:
    from .redis_broker import RedisTaskBroker

__all__ = ["WakeUp"]

logger = logging.getLogger(__name__)

REFUSED_SECONDS = 0.5
"""How long a consumer that the server does not let wait pauses before it looks again."""


class WakeUp:
    """Blocks for one consumer: BLMOVE from each queue to its inbox, one connection a priority.

    What is moved is safe in the inbox, and one push wakes one waiter.
    """

    def __init__(self, broker: "RedisTaskBroker", consumer: str) -> None:
        self.broker = broker
        self.consumer = consumer
        self.links: dict[TaskPriority, tuple[Link, int]] = {}
        self.pending: dict[TaskPriority, asyncio.Future[Any]] = {}
        self.woken: asyncio.Future[None] | None = None
        self.moved = False  # something may be in the inbox

    async def wait(self, timeout: float) -> None:
        """Until something was moved, or ``timeout`` seconds. Raises BrokerConnectionError."""
        for priority in self.broker.options.queues:
            if priority not in self.pending or moved_nothing(self.pending[priority]):
                await self.block(priority)
        loop = asyncio.get_running_loop()
        woken = self.woken = loop.create_future()
        timer = loop.call_later(timeout, self.wake)
        if any(future.done() for future in self.pending.values()):
            woken.set_result(None)
        try:
            await woken
        finally:
            timer.cancel()
            self.woken = None
            refused = self.collect()
        if refused:  # a server that is full, say: it would refuse the next one as fast
            await asyncio.sleep(min(timeout, REFUSED_SECONDS))

    def collect(self) -> bool:
        """Forget the calls that have ended. True: the server refused one."""
        refused = False
        for priority, future in list(self.pending.items()):
            if future.done():
                del self.pending[priority]
                if not future.cancelled() and (exc := future.exception()) is not None:
                    self.drop(priority)
                    refused = refused or isinstance(exc, ServerReply)
                    self.moved = True  # its answer may have been lost
                    logger.debug("broker %s: a wake-up call failed: %s", self.broker.url, exc)
                elif not moved_nothing(future):
                    self.moved = True
        return refused

    def wake(self) -> None:
        """Let who waits look again."""
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)

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
        command = pack(
            (
                "BLMOVE", broker.keys.queue(priority), broker.keys.inbox(self.consumer, priority),
                "RIGHT", "LEFT", f"{broker.block_seconds:.3f}",
            )
        )  # fmt: skip
        self._call(priority, held[0], command)

    def _call(self, priority: TaskPriority, link: Link, command: bytes) -> None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.pending[priority] = future

        def answered(reply: Any, exc: Exception | None) -> None:
            give(future, reply, exc)
            if (
                self.pending.get(priority) is future
                and self.woken is not None
                and not self.woken.done()
                and moved_nothing(future)
            ):
                self._call(priority, link, command)  # it has moved nothing: that is no reason to look
            else:
                self.wake()

        link.send(command, answered)  # and not by a callback of the future, which would take a turn of the event loop

    async def unblock(self) -> None:
        """End the blocking calls; what they moved by then is in the inbox."""
        blocked = [(self.links[p][1], f) for p, f in self.pending.items() if not f.done() and p in self.links]
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
        self.pending.clear()


def moved_nothing(future: "asyncio.Future[Any]") -> bool:
    """Whether a blocking call has run out."""
    return future.done() and not future.cancelled() and future.exception() is None and future.result() is None
