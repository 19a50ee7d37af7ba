"""The connections of a broker on Redis or Valkey, and their patience with a server that is gone for a while.

Scripts go over one ``Link`` that all managers of a process share. Calls that block have links of their own. The rest
(task info, locks, statuses) goes through redis-py, as ``redis_cli``.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import redis
import redis.exceptions
from redis.asyncio import Redis

from ... import settings
from ...core._time import keep_for_good
from ...core.places import has_place, refuse_second_loop
from ...errors import (
    BrokerAuthError,
    BrokerConnectionError,
    BrokerError,
    BrokerFullError,
    ConnectionLostError,
    DurabilityUnsupportedError,
    NotDurableError,
)
from ..url import BrokerOptions, BrokerURL
from ._resp import pack
from .keys import Declared, Keys, ScriptKeys
from .link import Link, LinkLost, ServerReply
from .rights import PRODUCER, commands_of, memory_policy, missing_rights, warn_of_eviction
from .scripts import NAMES, command, load
from .servers import ServerFinder, finder, first_word

__all__ = ["RECONNECT_SECONDS", "REPLY_SECONDS", "RedisClient", "is_durable", "milliseconds"]

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 30.0
"""A broker operation waits at most this long for a server that was there before and is away, or does not answer."""
REPLY_SECONDS = 15.0
"""The client ends a connection on which the server answers nothing for so long; a new one may take as long to open."""
CANCEL_AGAIN_SECONDS = 0.5
"""A call of redis-py that has swallowed its cancellation is cancelled once more after so long."""
CLEANUP_SECONDS = 2.0
"""How long ``close`` waits for such calls."""
DENIED = ("ACL failure in script", "The user executing the script can't")
"""The server's words about a command within a script that the user may not use: Redis 7.2 and Valkey, older ones."""
TRANSIENT = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ", "MOVED ", "ASK ", "UNBLOCKED ")


class RedisClient:
    """The way of one broker, or of one shard, to its server.

    ``options`` are the broker's, and may change. ``is_in_use``: whether connections that belong to an event loop may
    not be left for those of another one. ``left`` is called when they were. ``declare``: makes the KEYS of each script.
    """

    def __init__(
        self,
        url: BrokerURL,
        options: BrokerOptions,
        keys: Keys,
        redis_cli: "Redis | None" = None,
        *,
        is_in_use: Callable[[asyncio.AbstractEventLoop | None], bool],
        left: Callable[[], None],
    ) -> None:
        self.url = url
        self.options = options
        self.keys = keys
        self.declare = ScriptKeys(keys)
        self.is_in_use = is_in_use
        self.server = self.new_server()
        self.redis_cli: Redis = redis_cli or self.server.client
        self.memory_policy = ""  # of the server; "": not known
        self._left = left
        self._own_client = redis_cli is None
        self._entering = threading.Lock()
        self._inherited = False  # the server's connections belong to another loop, or to the parent of a fork
        self._ending: asyncio.Future[None] | None = None
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._was_connected = False
        self._roles: set[str] = set()  # what this process does
        self._tried: set[str] = set()  # and has the rights for
        self._trouble: tuple[float, Exception] | None = None  # the last one that is waited out, and when it came
        self._watch: asyncio.TimerHandle | None = None
        self._blocked: set[Link] = set()
        self._reply_link: Link | None = None
        self._durable_link: Link | None = None
        self._abandoned: set[asyncio.Future[Any]] = set()  # calls of redis-py whose callers were cancelled
        has_place(self)

    def new_server(self) -> ServerFinder:
        """Return a way to the server of the URL, with a pool of its own."""
        return finder(self.url, self.keys.name, max(2, settings.get_settings().redis_max_connections))

    def enter_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. If it is another one than before, begin there without connections.

        Raises:
            RuntimeError: the other one runs, in another thread.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            with self._entering:
                if self._loop is not None:
                    if self.is_in_use(self._loop):
                        refuse_second_loop(self._loop)
                    self._leave_loop(self._loop)
                self._begin(loop)
                self._left()
        return loop

    def _leave_loop(self, old: asyncio.AbstractEventLoop) -> None:
        """End the connections in the loop that they belong to, if that may still run."""
        links = [
            link for link in (self._link, *self._blocked, self._reply_link, self._durable_link) if link is not None
        ]
        pool = self.server.client.connection_pool

        def end() -> None:
            for link in links:
                link.abort()
            self._ending = asyncio.ensure_future(pool.disconnect())

        if not old.is_closed():
            old.call_soon_threadsafe(end)
        self._inherited = True

    def _begin(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Start without connections. None: in the child of a fork, where no loop runs."""
        if loop is not None and self._inherited:
            self._inherited = False
            self.server = self.new_server()
            if self._own_client:  # the client that is known to others, with redis-py's new pool
                self.redis_cli.connection_pool = self.server.client.connection_pool
        self._link, self._loop = None, loop
        self._connecting = asyncio.Lock()
        self._was_connected = False
        self._blocked.clear()
        self._reply_link = self._durable_link = None
        self._abandoned = set()
        self._watch = None
        self._tried.clear()

    def _forked(self) -> None:
        """In the child of a fork: the connections are the parent's."""
        keep_for_good(
            self._link, self._loop, self._connecting, self._watch, set(self._blocked), self._reply_link,
            self._durable_link, self.server, self.redis_cli.connection_pool, self._entering, self._abandoned,
        )  # fmt: skip
        self._entering = threading.Lock()
        self._inherited = self._inherited or self._loop is not None
        self._begin(None)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the connections belong to, if there are any."""
        return self._loop

    async def new_link(self) -> Link:
        """Open a connection of its own, ready for commands.

        Raises:
            BrokerConnectionError, BrokerAuthError: the server is not there, or refuses the user.
            BrokerError: the broker was closed meanwhile.
        """
        opened = self._connecting
        connection = self.server.connection()
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                link: Link = await self._cancellable(open_link(connection), connection._close)
        except asyncio.CancelledError:
            connection._close()  # type: ignore[no-untyped-call]
            raise
        except redis.exceptions.AuthenticationError as exc:
            raise BrokerAuthError(f"broker {self.url}: the server refused the user or the password: {exc}") from exc
        except TimeoutError as exc:
            connection._close()  # type: ignore[no-untyped-call]
            raise BrokerConnectionError(f"broker {self.url}: cannot connect: no answer") from exc
        except (redis.exceptions.RedisError, OSError) as exc:
            reason = await first_word(connection) or exc  # which redis-py may not have read
            raise BrokerConnectionError(f"broker {self.url}: cannot connect: {reason}") from exc
        self._refuse_if_closed(opened, link)
        return link

    def _refuse_if_closed(self, opened: asyncio.Lock | None, link: Link) -> None:
        """End a connection that was begun before the broker was closed: nobody else would. ``opened`` is of then."""
        if self._connecting is not opened:
            link.abort()
            raise BrokerError(f"broker {self.url}: it was closed while it connected")

    async def link(self) -> Link:
        """Return the shared connection, with the scripts loaded; open a new one if it is gone."""
        loop = self.enter_loop()
        link = self._link
        if link is not None and not link.closed:
            return link
        opened = self._connecting
        assert opened is not None
        async with opened:
            if self._link is not None and not self._link.closed:
                return self._link
            link = await self.new_link()
            self._was_connected = True  # it is there: if it cuts us off from here on, or loads its data, it comes back
            try:
                # on every connection: it may be a server that was restarted or took over
                async with asyncio.timeout(REPLY_SECONDS):
                    for name in NAMES:
                        loaded = link.call(pack(("SCRIPT", "LOAD", load(name).text)))
                    await loaded
                    await self._look_at(link)
                    await self._try_rights(link)
            except (LinkLost, ServerReply) as exc:
                link.abort()
                raise self.error(exc) from exc
            except TimeoutError as exc:
                link.abort()
                raise BrokerConnectionError(f"broker {self.url}: no answer within {REPLY_SECONDS:.0f} s") from exc
            except BaseException:
                link.abort()
                raise
            self._refuse_if_closed(opened, link)
            link.busy_poll(self.options.busy_poll_us * 1e-6)
            self._link = link
            if self._watch is None:
                self._watch = loop.call_later(1.0, self._check_links)
            return link

    async def _look_at(self, link: Link) -> None:
        """Learn what the server does when it is full. Raises LinkLost."""
        server = str(link.peer or self.url)
        self.memory_policy = await memory_policy(link, server)
        warn_of_eviction(self.url, server, self.memory_policy)

    async def _try_rights(self, link: Link) -> None:
        """Find out whether the user may do what this process does. Nobody else may use this connection meanwhile.

        Raises:
            BrokerAuthError: a right is missing. It says which.
        """
        for role in sorted(self._roles - self._tried):
            missing, words = await missing_rights(link, commands_of(role, self.keys))
            if role == PRODUCER and missing in (["exec"], ["multi"]):  # it gets by without, see RedisChannel
                missing = []
            if missing:
                grant = " ".join(f"+{name}" for name in missing)
                raise BrokerAuthError(
                    f"broker {self.url}: the user lacks rights that a {role} needs: {', '.join(missing)}. "
                    f"Grant it {grant} on the broker's keys (SECURITY.md lists the least rights). The server: {words}"
                )
            self._tried.add(role)

    async def link_for(self, role: str) -> Link:
        """Return ``link()``, if the user has the rights of a role. Raises BrokerAuthError and as ``link``."""
        self._roles.add(role)
        try:
            link = await self.link()
            if role not in self._tried:  # that one was there before, for something else
                other = await self.new_link()
                try:
                    await self._try_rights(other)
                except (LinkLost, ServerReply) as exc:
                    raise self.error(exc) from exc
                finally:
                    other.abort()
        except BrokerAuthError:
            self._roles.discard(role)  # the others go on
            raise
        return link

    def _check_links(self) -> None:
        """End the connections to a server that hangs, so that their callers get an error."""
        assert self._loop is not None
        self._watch = self._loop.call_later(1.0, self._check_links)
        for link, patience in (
            (self._link, REPLY_SECONDS),
            *((b, REPLY_SECONDS + self.block_seconds) for b in self._blocked),
        ):
            if link is not None and not link.closed and link.stalled(patience):
                logger.warning("broker %s: no answer for %.0f s, connecting again", self.url, patience)
                link.abort()

    async def patiently(self, action: Callable[[], Awaitable[Any]], *, watched: bool = False) -> Any:
        """Do something that may be done twice; do it again after the connection was lost, for RECONNECT_SECONDS in all.

        ``watched``: the first try ends by itself when the server does not answer, see ``_check_links``.

        Raises:
            BrokerConnectionError: it was not there from the start, or is not back after that time.
            BrokerError: the server refused.
        """
        began, seconds = monotonic(), RECONNECT_SECONDS
        pause = 0.02
        while True:
            try:
                if watched:
                    watched = False
                    return await action()
                async with asyncio.timeout(began + seconds - monotonic()):
                    return await action()
            except BrokerAuthError:
                raise
            except BrokerConnectionError as exc:
                now = monotonic()
                if not self._was_connected or now + pause > began + seconds:
                    raise
                self._trouble = (now, exc)
            except TimeoutError as exc:
                if self._trouble is not None and self._trouble[0] >= began:
                    raise self._trouble[1] from exc
                raise BrokerConnectionError(f"broker {self.url}: no answer within {seconds:.0f} s") from exc
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def script(self, name: str, keys: Declared, *arguments: Any) -> Any:
        """Run a script of ``lua/`` that may run twice. ``keys`` are from ``declare``. Raises as ``patiently``."""
        return await self.call(command(name, keys, *arguments))

    async def call(self, packed: bytes) -> Any:
        """Return the answer to a packed command that may run twice. Raises as ``patiently``."""
        return await self.ask(lambda lost: packed)

    async def ask(self, packed: Callable[[int], bytes]) -> Any:
        """As ``call``, of the command that ``packed`` gives, told how many answers were lost so far."""
        lost = 0

        async def once() -> Any:
            nonlocal lost
            link = await self.link()
            try:
                return await link.call(packed(lost))
            except (ServerReply, LinkLost) as exc:
                lost += isinstance(exc, LinkLost)
                raise self.error(exc, link) from exc

        link = self._link
        return await self.patiently(once, watched=link is not None and not link.closed)

    def error(self, exc: Exception, link: Link | None = None) -> BrokerError:
        """Return the error of ours that a reply, or a lost connection, means to our callers."""
        text = str(exc)
        if isinstance(exc, LinkLost):
            return ConnectionLostError(f"broker {self.url}: {text}")
        if "OOM command not allowed" in text:
            return BrokerFullError(
                f"broker {self.url}: the server is at its maxmemory"
                f"{f' (maxmemory-policy {self.memory_policy})' if self.memory_policy else ''}; nothing was stored. "
                "Add memory, or let consumers catch up"
            )
        if text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")) or any(words in text for words in DENIED):
            return BrokerAuthError(f"broker {self.url}: {text}")
        if text.startswith("BEHIND"):  # sent again behind what is still to be confirmed, it is not
            return ConnectionLostError(f"broker {self.url}: {text}")
        if text.startswith("NOSCRIPT") or any(word in text for word in TRANSIENT):
            self.server.moved()
            for stale in (link, self._link):  # a new connection loads the scripts, or finds the new primary
                if stale is not None:
                    stale.abort()
            return ConnectionLostError(f"broker {self.url}: {text}")
        return BrokerError(f"broker {self.url}: {text}")

    async def redis(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Do something by redis-py that may be done twice; its errors are ours. Raises as ``patiently``."""
        self.enter_loop()
        opened = self._connecting

        async def once() -> Any:
            try:
                return await self._cancellable(action())
            except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
                raise BrokerAuthError(f"broker {self.url}: {exc}") from exc
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as exc:
                raise BrokerConnectionError(f"broker {self.url}: {exc}") from exc
            except (redis.exceptions.MovedError, redis.exceptions.AskError) as exc:
                self.server.moved()
                await self.server.client.connection_pool.disconnect()
                raise ConnectionLostError(f"broker {self.url}: {exc}") from exc
            except redis.exceptions.OutOfMemoryError as exc:  # redis-py has taken the first word off
                raise self.error(ServerReply(f"OOM {exc}")) from exc
            except redis.exceptions.RedisError as exc:
                raise self.error(ServerReply(str(exc))) from exc

        try:
            return await self.patiently(once)
        finally:
            if self._connecting is not opened:  # closed meanwhile: its connection went back to the pool behind that
                await self.server.client.connection_pool.disconnect(inuse_connections=False)

    async def _cancellable(self, call: Awaitable[Any], undo: Callable[[], object] | None = None) -> Any:
        """Await a call of redis-py in a task of its own, and be cancelled at once if the caller is.

        redis-py sends through ``asyncio.wait_for``, which may swallow a cancellation in Python 3.11: the call then goes
        on to its next wait, for as long as that takes. ``undo`` is called when it has ended after all.
        """
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            self._abandon(task, undo)
            raise
        return task.result()

    def _abandon(self, call: "asyncio.Future[Any]", undo: Callable[[], object] | None) -> None:
        abandoned = self._abandoned
        loop = call.get_loop()

        def cancel() -> None:
            if not call.done():
                call.cancel()
                loop.call_later(CANCEL_AGAIN_SECONDS, cancel)

        def over(ended: "asyncio.Future[Any]") -> None:
            abandoned.discard(ended)
            if not ended.cancelled() and ended.exception() is None and isinstance(ended.result(), Link):
                ended.result().abort()  # nobody waits for it any more
            if undo is not None:
                undo()

        abandoned.add(call)
        call.add_done_callback(over)
        cancel()

    async def blocking_link(self) -> Link:
        """Open a connection for calls that block. Raises as ``patiently``."""

        async def once() -> Link:
            await self.link()
            return await self.new_link()

        link: Link = await self.patiently(once)
        self._blocked = {one for one in self._blocked if not one.closed} | {link}  # the dead are nobody's
        return link

    def forget(self, link: Link) -> None:
        """End a connection that blocks."""
        self._blocked.discard(link)
        link.abort()

    async def reply_link(self) -> Link:
        """Return the connection on which this process waits for results."""
        link = self._reply_link
        if link is None or link.closed:
            link = self._reply_link = await self.blocking_link()
        return link

    def durable_command(self) -> bytes | None:
        """Return the command behind each batch whose answer comes when the batch is safe; None: none is needed."""
        milli = milliseconds(self.options.durability_seconds)
        if self.options.durability == "replica":
            return pack(("WAIT", 1, milli))
        if self.options.durability == "fsync":
            return pack(("WAITAOF", 1, 0, milli))
        return None

    async def durable_link(self) -> Link:
        """Return the connection that waits for a replica or the disk, and so does not keep consumers waiting."""
        link = self._durable_link
        if link is None or link.closed:
            link = await self.blocking_link()
            try:
                await self.check_durability(link)
            except BaseException:
                link.abort()
                raise
            self._durable_link = link
        return link

    async def check_durability(self, link: Link) -> None:
        """Find out, before anything is sent, whether the server can do what ``durability`` demands."""
        if self.options.durability != "fsync":
            return
        try:
            await link.call(pack(("WAITAOF", 1, 0, 1)))
        except (ServerReply, LinkLost) as exc:
            text = str(exc).lower()
            if "unknown command" in text:
                mend = "which came with Redis and Valkey 7.2: update the server"
            elif "appendonly is disabled" in text:
                mend = "and its append-only file is off: set appendonly to yes"
            else:
                raise self.error(exc, link) from exc
            raise DurabilityUnsupportedError(
                f"broker {self.url}: durability='fsync' needs the server's WAITAOF, {mend}, or choose "
                f"durability='replica' or 'none'. Nothing was sent. The server says: {exc}"
            ) from exc

    def not_durable(self, count: int) -> NotDurableError:
        """Return the error for so many runs that are queued, but not safe."""
        return NotDurableError(
            f"broker {self.url}: {count} runs are queued, but not safe by "
            f"durability={self.options.durability!r} within {self.options.durability_seconds} s"
        )

    async def durably(self, name: str, keys: Declared, *arguments: Any) -> tuple[Any, bool]:
        """Run a script that queues runs. Gives its answer, and whether they are as safe as ``durability`` demands."""
        durable = self.durable_command()
        if durable is None:
            return await self.script(name, keys, *arguments), True
        packed = command(name, keys, *arguments)

        async def once() -> Any:
            link = await self.durable_link()
            try:
                reply, safe = link.call(packed), link.call(durable)
                return await reply, await safe
            except (ServerReply, LinkLost) as exc:
                raise self.error(exc, link) from exc

        result, safe = await self.patiently(once)
        return result, is_durable(safe)

    @property
    def block_seconds(self) -> float:
        """Seconds that one wake-up call blocks. It ends before the lease does in which it was sent: see ``WakeUp``."""
        return min(15.0, self.options.lease_seconds / 2)

    async def close(self) -> None:
        """End the connections. The client may be used again."""
        if self._abandoned:  # they may still ask for connections
            await asyncio.wait(self._abandoned, timeout=CLEANUP_SECONDS)
        self._connecting = asyncio.Lock()  # a caller that connects under the old one gets an error
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        for blocked in self._blocked:
            blocked.abort()
        self._blocked.clear()
        self._reply_link = self._durable_link = None
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        await self.redis_cli.aclose()
        await self.server.client.aclose()
        await self.server.client.connection_pool.disconnect()  # aclose leaves alone a pool that it was given


async def open_link(connection: Any) -> Link:
    """Connect, and hand the connection to a link in the same step: the link hears of all that comes behind."""
    await connection.connect()
    return Link(connection)


def milliseconds(seconds: float) -> int:
    """Round up."""
    return max(0, math.ceil(seconds * 1000))


def is_durable(reply: Any) -> bool:
    """Whether the answer to WAIT or WAITAOF names a server."""
    return bool(reply[0] if isinstance(reply, list) else reply)
