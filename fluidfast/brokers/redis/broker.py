"""The broker contract on Redis or Valkey (6.2 or newer): ``redis_servers`` finds the server, ``redis_link`` talks to
it.

Verbs are Lua scripts (``lua/``), so that a run moves from one place to the next in one step. They go over one ``Link``
that all of a process's managers of this broker share; what blocks has links of its own; the rest (task info, locks,
statuses) goes through redis-py, as ``redis_cli``.
"""

import asyncio
import logging
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import redis
import redis.exceptions
from redis.asyncio import Redis

from ... import settings
from ...core._time import keep_for_good, new_id
from ...core.places import has_place, refuse_second_loop
from ...core.states import LETTERS, PRIORITIES, TaskPriority
from ...core.task import Task, TaskInfo, TaskInfoUpdate
from ...errors import (
    BrokerAuthError,
    BrokerConnectionError,
    BrokerError,
    BrokerFullError,
    BrokerURLError,
    ConnectionLostError,
    DurabilityUnsupportedError,
    NotDurableError,
)
from ...texts import printable, writable
from .._leases import paired
from ..base import TaskBroker
from ..contract import (
    DEAD_AFTER,
    MAX_CLAIM,
    PAGE_BYTES,
    PAGE_ENTRIES,
    SUSPECT_AFTER,
    WORKER_DIED,
    Channel,
    Claim,
    Kind,
    Settlement,
    Sifter,
    TaskManagersStatus,
    TaskManagerStatus,
    consumers_among,
    header,
)
from ..url import BrokerURL, number_option
from ._resp import pack
from .channel import RedisChannel, is_durable
from .dead import RedisSifter, parted
from .keys import DEFAULT_NAME, Keys
from .link import Link, LinkLost, ServerReply
from .lock import BrokerLock
from .rights import CONSUMER, PRODUCER, commands_of, memory_policy, missing_rights, warn_of_eviction
from .scripts import NAMES, load
from .servers import OPTIONS, ServerFinder, finder, first_word
from .wakeup import Adoption, WakeUp, enabled_by_name

__all__ = ["RedisTaskBroker"]

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 30.0
"""How long a verb takes at most, if the server was there before and does not come back, or does not answer."""
REPLY_SECONDS = 15.0
"""A server that answers nothing for this long has its connection ended; so long may a new one take to be set up."""
LOCK_SECONDS = 5.0
"""After which aio-fluid's lock of a task opens by itself, for it and for us."""
DELAY_MS = 120_000
"""How long a call that delays runs is known: longer than it is sent again."""
REPLY_MS = 300_000
MAX_PROMOTED = 1000
"""Delayed runs that one step queues at most."""
MAX_REPLIES = 1000
"""Finished runs that are read at a time."""
MAX_ASKED = 100
"""Consumers that are asked whether they run a task, at most: those that were seen last."""
MAX_VISIBLE_SECONDS = 365 * 86400
"""For how long at most aio-fluid is shown a run of a task with ``max_concurrency`` that nobody renews."""
GRANTED = {1: True, 0: False, -1: None}
"""Answers of acquire.lua."""
JUMP_SECONDS = 1.0
"""By how much the server's clock has to go back between two sweeps: less costs no more than that."""
NO_SHARD = -1
FIRST_PAGE = 8
"""Entries of what gave up that are read before it is known how large they are."""
DENIED = ("ACL failure in script", "The user executing the script can't")
"""What a server says of a command within a script that the user may not use: Redis 7.2 and Valkey, older ones."""
TRANSIENT = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ", "MOVED ", "ASK ", "UNBLOCKED ")


class Told(msgspec.Struct):
    """What is read of a manager's status here."""

    tasks: list[str] | None = None


class RedisTaskBroker(TaskBroker):
    """A broker on Redis or Valkey: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://``,
    ``redis+cluster://``.

    The URL is redis-py's (user, password, host, port, ``/db``); behind ``?`` stand our options (``BrokerOptions``) and
    redis-py's for TLS (``ssl_ca_certs`` ...).

    ``shard``: the number of this one among the shards of a ``ShardedRedisBroker``; ``NO_SHARD``: what all of them have
    in common, which has no queues.

    Raises:
        BrokerURLError: the URL is none, or an option of it.
    """

    default_name = DEFAULT_NAME
    url_options = (*OPTIONS, "shards")

    def __init__(self, url: BrokerURL | str, redis_cli: "Redis | None" = None, *, shard: int | None = None) -> None:
        super().__init__(url)
        if shard is None and number_option(self.url, "shards", 1, least=1, whole=True) > 1:
            raise BrokerURLError(f"broker {self.url}: this is a broker of one shard, TaskBroker.from_url gives several")
        self.keys = Keys(self.name if shard in (None, NO_SHARD) else f"{self.name}:{shard}")
        self._alone = shard is None
        self.parts = 1  # over how many shards what is bounded is spread
        self._agreed = False
        self._prefix = self.keys.prefix.encode()
        self.server = self.new_server()
        self._own_client = redis_cli is None
        self.redis_cli: Redis = redis_cli or self.server.client
        self._entering = threading.Lock()
        self._inherited = False  # the server's connections belong to another loop, or to the parent of a fork
        self._ending: asyncio.Future[None] | None = None
        self._link: Link | None = None
        self._link_loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._was_connected = False
        self._roles: set[str] = set()  # what this process does
        self._tried: set[str] = set()  # and has the rights for
        self._trouble: tuple[float, Exception] | None = None  # the last one that is waited out, and when it came
        self.memory_policy = ""  # of the server; "": not known
        self._watch: asyncio.TimerHandle | None = None
        self._blocked: set[Link] = set()
        self._reply_link: Link | None = None
        self._durable_link: Link | None = None
        self._wakeups: dict[str, WakeUp] = {}
        self._renewing: dict[str, redis.Redis] = {}  # of the threads that renew, by consumer
        self._claiming: set[str] = set()  # batches whose claim is not answered: they may hold a lease already
        self.adoptions: dict[str, Adoption] = {}
        self.asking: Counter[str] = Counter()  # claims on their way, by consumer
        self.unsure: set[str] = set()  # consumers whose last claim was not answered
        self._adopting: asyncio.Task[None] | None = None
        self._seen_expired: dict[bytes, Sighting] = {}
        self._seen_silent: dict[bytes, Sighting] = {}
        self._shortest_lease = math.inf  # in seconds, of whoever's lease ends first
        self._server_ahead = -math.inf, math.inf  # of our monotonic clock, in seconds: at least, at most
        self._went_back = False
        self._none_delayed = False  # when we looked last
        has_place(self)

    # -- names (aio-fluid's)

    @property
    def prefix(self) -> str:
        """Prefix of all keys, with the braces that make it a Cluster hash tag."""
        return self.keys.prefix

    def task_queue_name(self, priority: TaskPriority) -> str:
        """Key of the queue of a priority."""
        return self.keys.queue(priority)

    @property
    def task_queue_names(self) -> tuple[str, ...]:
        return tuple(self.keys.queue(priority) for priority in self.options.queues)

    def task_hash_name(self, name: str) -> str:
        """Key of a task's info."""
        return self.keys.task(name)

    def task_run_key(self, task_name: str, run_id: str) -> str:
        """Key that marks a run of a task with ``max_concurrency`` as running."""
        return self.keys.task_run(task_name, run_id)

    def manager_status_key(self, manager_id: str) -> str:
        """Key of a manager's status."""
        return self.keys.manager(manager_id)

    def task_aborted_key(self, run_id: str) -> str:
        """Key of why a run was aborted."""
        return self.keys.aborted(run_id)

    # -- connections

    def new_server(self) -> ServerFinder:
        return finder(self.url, self.keys.name, max(2, settings.get_settings().redis_max_connections))

    def enter_loop(self) -> asyncio.AbstractEventLoop:
        """The running loop. If it is another one than before, connections are made anew: they belong to their loop.

        Raises:
            RuntimeError: the other one runs, in another thread.
        """
        loop = asyncio.get_running_loop()
        if self._link_loop is not loop:
            with self._entering:
                if self._link_loop is not None:
                    if self.is_in_use(self._link_loop):
                        refuse_second_loop(self._link_loop)
                    self._leave_loop(self._link_loop)
                self._begin(loop)
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
        self._link, self._link_loop = None, loop
        self._connecting, self._adopting = asyncio.Lock(), None
        self._was_connected = False
        self._wakeups.clear()
        self.adoptions.clear()
        self.asking.clear()
        self._blocked.clear()
        self._reply_link = self._durable_link = None
        self._watch = None
        self._tried.clear()

    def _forked(self) -> None:
        """In the child of a fork: the connections are the parent's."""
        keep_for_good(
            self._link, self._link_loop, self._connecting, self._adopting, self._watch, set(self._blocked),
            self._reply_link, self._durable_link, dict(self._wakeups), self.server, self.redis_cli.connection_pool,
            self._entering,
        )  # fmt: skip
        self._entering = threading.Lock()
        self._inherited = self._inherited or self._link_loop is not None
        self._begin(None)

    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        return self._link_loop

    async def new_link(self) -> Link:
        """A connection of its own, ready for commands. Raises BrokerConnectionError, BrokerAuthError, or BrokerError if
        the broker was closed meanwhile."""
        opened = self._connecting
        connection = self.server.connection()
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await heeding(connection.connect())  # type: ignore[no-untyped-call]
            link = Link(connection)
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
        """The shared connection, with the scripts loaded; made anew if it is gone."""
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
            self._was_connected = True  # it is there: what is cut off from here on, or loads its data, comes back
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

    async def _link_for(self, role: str) -> Link:
        """``link``, and the user has the rights of a role. Raises BrokerAuthError and as ``link``."""
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
        """End connections to a server that hangs, so that their callers hear of it."""
        assert self._link_loop is not None
        self._watch = self._link_loop.call_later(1.0, self._check_links)
        for link, patience in (
            (self._link, REPLY_SECONDS),
            *((b, REPLY_SECONDS + self.block_seconds) for b in self._blocked),
        ):
            if link is not None and not link.closed and link.stalled(patience):
                logger.warning("broker %s: no answer for %.0f s, connecting again", self.url, patience)
                link.abort()

    async def patiently(self, action: Callable[[], Awaitable[Any]], *, watched: bool = False) -> Any:
        """Do what may be done twice, again after the connection was lost, while the server may still come back; for
        RECONNECT_SECONDS in all, wherever the time goes.

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

    async def script(self, name: str, *arguments: Any) -> Any:
        """Run a script of ``lua/`` that may run twice. Raises as ``patiently``."""
        return await self.call(pack(("EVALSHA", load(name).sha, 1, self._prefix, *arguments)))

    async def call(self, command: bytes) -> Any:
        """The answer to a packed command that may run twice. Raises as ``patiently``."""
        return await self.ask(lambda lost: command)

    async def ask(self, command: Callable[[int], bytes]) -> Any:
        """The answer to what ``command`` packs, given how many answers were lost so far. Raises as ``patiently``."""
        lost = 0

        async def once() -> Any:
            nonlocal lost
            link = await self.link()
            try:
                return await link.call(command(lost))
            except (ServerReply, LinkLost) as exc:
                lost += isinstance(exc, LinkLost)
                raise self.error(exc, link) from exc

        link = self._link
        return await self.patiently(once, watched=link is not None and not link.closed)

    def error(self, exc: Exception, link: Link | None = None) -> BrokerError:
        """What a reply or a lost connection means to our callers."""
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
        """Something by redis-py that may be done twice, its errors in our terms. Raises as ``patiently``."""
        self.enter_loop()
        opened = self._connecting

        async def once() -> Any:
            try:
                return await heeding(action())
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

    async def connect(self) -> None:
        async def once() -> None:
            link = await (self._link_for(CONSUMER) if self.consumes else self.link())
            await self.check_durability(link)
            if self._alone:
                await self.agree(1)

        await self.patiently(once)

    async def agree(self, shards: int) -> None:
        """Find out whether all others spread this broker over as many shards. Who gives another number would never see
        some of the runs, or queue where nobody looks.

        Raises:
            BrokerURLError: they do not.
        """
        if self._agreed:
            return
        key = self.keys.shards

        async def once() -> Any:
            link = await self.link()
            try:
                if shards > 1:
                    await link.call(pack(("SET", key, shards, "NX")))
                return await link.call(pack(("GET", key)))
            except (ServerReply, LinkLost) as exc:
                raise self.error(exc, link) from exc

        there = await self.patiently(once)
        if there is not None and there != b"%d" % shards:
            known = there.decode(errors="replace")
            raise BrokerURLError(
                f"broker {self.url}: shards={shards}, but it is spread over {known}: all processes have to give the "
                f"same number. To change it, let its queues run empty, stop all processes, and await clear() of the "
                f"broker with shards={known} (dead letters go too), or delete the key {key}"
            )
        self._agreed = True

    async def close(self) -> None:
        self.enter_loop()
        self._connecting = asyncio.Lock()  # who connects under the old one is told that this was closed
        self._agreed = False
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        for wakeup in list(self._wakeups.values()):
            await wakeup.close()
        self._wakeups.clear()
        for renewing in self._renewing.values():
            renewing.close()  # it connects again if its thread goes on
        self._renewing.clear()
        self.adoptions.clear()
        if self._adopting is not None:
            self._adopting.cancel()
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

    # -- producing

    never_takes = True

    def push(self, priority: int, payload: bytes) -> bool:
        return False

    async def channel(self) -> Channel:
        durable = self.durable_command()

        async def once() -> Link:
            link = await self._link_for(PRODUCER)
            if self._alone:
                await self.agree(1)
            return link if durable is None else await self.durable_link()

        return RedisChannel(self, await self.patiently(once), durable)

    def durable_command(self) -> bytes | None:
        """What is sent behind each batch so that its answer comes when the batch is safe."""
        milli = milliseconds(self.options.durability_seconds)
        if self.options.durability == "replica":
            return pack(("WAIT", 1, milli))
        if self.options.durability == "fsync":
            return pack(("WAITAOF", 1, 0, milli))
        return None

    async def durable_link(self) -> Link:
        """The connection of what waits for a replica or the disk, which must not keep consumers waiting."""
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
        return NotDurableError(
            f"broker {self.url}: {count} runs are queued, but not safe by "
            f"durability={self.options.durability!r} within {self.options.durability_seconds} s"
        )

    async def durably(self, name: str, *arguments: Any) -> tuple[Any, bool]:
        """``script`` for one that queues runs. Gives what it gives, and whether they are as safe as ``durability``
        demands."""
        durable = self.durable_command()
        if durable is None:
            return await self.script(name, *arguments), True
        command = pack(("EVALSHA", load(name).sha, 1, self._prefix, *arguments))

        async def once() -> Any:
            link = await self.durable_link()
            try:
                reply, safe = link.call(command), link.call(durable)
                return await reply, await safe
            except (ServerReply, LinkLost) as exc:
                raise self.error(exc, link) from exc

        result, safe = await self.patiently(once)
        return result, is_durable(safe)

    async def forget(self, producer: str) -> None:
        link = await self.link()
        try:
            await link.call(pack(("DEL", self.keys.producer(producer))))
        except (ServerReply, LinkLost) as exc:
            raise self.error(exc) from exc

    async def push_once(self, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        # A producer of one batch: its mark and the push are one script.
        counts = [int(priority == number) for number in range(3)]
        arguments = (f"once:{key}", 1, milliseconds(seconds), 0, *counts, payload)
        (pushed, _), durable = await self.durably("enqueue", *arguments)
        if pushed and not durable:  # else it was another call's, which was told
            raise self.not_durable(1)
        return bool(pushed)

    async def push_after(
        self, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        (pushed, found), durable = await self.durably(
            "fire", mark, after, at, milliseconds(seconds), PRIORITIES[priority], payload
        )
        if pushed and not durable:
            raise self.not_durable(1)
        return bool(pushed), int(found)

    async def marks(self, *names: str) -> list[int]:
        if not names:
            return []
        keys = [self.keys.mark(name) for name in names]
        return [int(value or 0) for value in await self.redis(lambda: self.redis_cli.mget(keys))]

    async def set_marks(self, names: Sequence[str], value: int, seconds: float) -> None:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for name in names:
                pipe.set(self.keys.mark(name), value, px=milliseconds(seconds))
            return await pipe.execute()

        if names:
            await self.redis(action)

    async def delay(self, entries: Sequence[tuple[float, int, bytes]]) -> None:
        flat: list[Any] = [new_id(), DELAY_MS]
        for seconds, priority, payload in entries:
            flat += (milliseconds(seconds), LETTERS[priority].encode() + payload)
        _, durable = await self.durably("delay", *flat)
        if not durable:
            raise self.not_durable(len(entries))

    # -- consuming

    async def claim(
        self,
        consumer: str,
        limit: int,
        *,
        max_bytes: int = 8 << 20,
        idle: bool = True,
        waits: bool = False,
        tasks: Sequence[str] = (),
    ) -> Claim:
        self.enter_loop()
        await self.adopt()
        batch = self.new_batch()
        letters = "".join(LETTERS[PRIORITIES.index(priority)] for priority in self.options.queues)
        count, lease = min(limit, MAX_CLAIM), milliseconds(self.options.lease_seconds)

        def command(lost: int) -> bytes:
            # An answer that was lost may be too much for this connection. So half goes back, and others may have it.
            # Each try asks for less than the one before: a try that reaches the server late takes nothing back.
            return pack(
                (
                    "EVALSHA", load("claim").sha, 1, self._prefix, consumer, batch, max(1, count >> lost),
                    max_bytes >> lost, lease, letters, int(idle) + 2 * int(waits), *tasks,
                )
            )  # fmt: skip

        self._claiming.add(batch)
        self.asking[consumer] += 1
        emptied = b""
        try:
            given, flags, suspects, strikes, alone, at, emptied = await self.ask(command)
        except BaseException:  # the server may do it yet
            self.unsure.add(consumer)
            raise
        finally:
            self._claiming.discard(batch)
            self.asking[consumer] -= 1
            if self.asking[consumer] <= 0:
                del self.asking[consumer]
            if consumer in self.unsure:
                emptied = b"*"
            if (wakeup := self._wakeups.get(consumer)) is not None:
                wakeup.claimed(emptied.decode())
        self.unsure.discard(consumer)  # what was asked before on this connection has been done before
        items = paired(given)
        if strikes:
            struck = {strikes[i].decode(): int(strikes[i + 1]) for i in range(0, len(strikes), 2)}
            for item in items:
                item.strikes = struck.get(item.field, 0)
        enabled = enabled_by_name(tasks, flags)
        # a claim whose reply was lost gives what it gave, and no longer knows where that came from
        suspect = bool(alone) or (bool(strikes) and any(item.strikes >= SUSPECT_AFTER for item in items))
        return Claim(batch, items, enabled, alone=suspect, suspects=suspects, at=at)

    def new_batch(self) -> str:
        """A batch's name, never used before. It ends with the batch's lease in ms: see ``reap``."""
        return f"{new_id()}-{milliseconds(self.options.lease_seconds)}"

    async def adopt(self) -> None:
        """Have what was started out of an inbox go under its lease, if it is still ours. Raises as ``script``."""
        if not self.adoptions:
            return
        loop = self.enter_loop()
        if self._adopting is None or self._adopting.done():
            # by one for all: none may be sent by a second caller when the first has seen it settled
            self._adopting = loop.create_task(self._adopt())
            self._adopting.add_done_callback(heard)
        adopting = self._adopting
        try:
            await asyncio.shield(adopting)
        except asyncio.CancelledError:
            if adopting.cancelled():  # and not we
                raise BrokerConnectionError(f"broker {self.url}: it was closed") from None
            raise

    async def _adopt(self) -> None:
        lease = milliseconds(self.options.lease_seconds)
        while self.adoptions:
            one = next(iter(self.adoptions.values()))
            await self.script("adopt", one.consumer, one.batch, lease, one.letter, one.payload)
            self.adoptions.pop(one.batch, None)

    def look_seconds(self, consumer: str) -> float:
        wakeup = self._wakeups.get(consumer)
        if wakeup is not None and wakeup.unclaimed:  # it came in the moment in which the waiting was over
            return 0.0
        return 30.0 if wakeup is not None and wakeup.is_sure else super().look_seconds(consumer)

    async def settle(self, settlement: Settlement) -> bool:
        await self.adopt()
        s = settlement
        arguments: list[Any] = [s.batch, REPLY_MS]
        if s.whole:
            arguments.append("*")
        else:
            arguments += (len(s.done), *s.done)
        arguments.append(len(s.retries))
        for seconds, priority, payload in s.retries:
            arguments += (milliseconds(seconds), LETTERS[priority].encode() + payload)
        arguments.append(len(s.dead) + len(s.failed))
        for field, reason in s.dead:
            arguments += (field, "dead", header(reason))
        for field, reason in s.failed:
            arguments += (field, "failed", header(reason))
        arguments.append(len(s.info))
        for task, (end, duration, state) in s.info.items():
            arguments += (task, f'"{end}"', msgspec.json.encode(timedelta(seconds=duration)), f'"{state}"')
        arguments.append(len(s.replies))
        for manager_id, payload in s.replies:
            arguments += (manager_id, payload)
        arguments.append(len(s.slots))
        for task, slot in s.slots:
            arguments += (task, slot)
        arguments += (len(s.survived), *s.survived)
        if s.dead or s.failed:
            arguments += (*self.bounds("dead"), *self.bounds("failed"))
        answer = await self.script("settle", *arguments)
        if isinstance(answer, bytes):
            reason = printable(answer.decode(errors="replace"))
            logger.error("broker %s: runs are settled, but not all of their records: %s", self.url, reason)
        return bool(answer)

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """How many entries of what gave up this shard keeps, and how many bytes of them."""
        count, size = self.options.bounds(kind)
        return -(-count // self.parts), -(-size // self.parts)

    async def release(self, batch: str, fields: Sequence[str]) -> int:
        await self.adopt()
        return int(await self.script("release", batch, SUSPECT_AFTER, *fields))

    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]] = ()) -> list[str]:
        await self.adopt()
        lease = milliseconds(self.options.lease_seconds)
        flat = [part for slot in slots for part in slot]
        lost = await self.script("renew", consumer, lease, len(batches), *batches, *flat)
        return [batch.decode() for batch in lost]

    def renewer(self, consumer: str) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]:
        lease = self.options.lease_seconds
        client = self._renewing[consumer] = self.server.sync_client(max(0.5, lease / 3))
        script = load("renew")

        def renew(batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
            flat = [part for slot in slots for part in slot]
            began = monotonic()
            wakeup = self._wakeups.get(consumer)
            claiming = [*self._claiming.copy(), *self.adoptions.copy()]
            every = [*batches, *claiming]
            arguments: list[Any] = [self._prefix, consumer, milliseconds(lease), len(every), *every, *flat]
            lost: Any
            nonlocal client
            try:
                lost = client.evalsha(script.sha.decode(), 1, *arguments)
            except redis.exceptions.NoScriptError:
                lost = client.eval(script.text.decode(), 1, *arguments)
            except redis.exceptions.RedisError:  # the keys may be elsewhere by now
                client.close()
                client = self._renewing[consumer] = self.server.sync_client(max(0.5, lease / 3))
                raise
            if wakeup is not None:
                wakeup.lives(began)
            return [text for batch in lost if (text := batch.decode()) not in claiming]

        return renew

    def yielder(self, consumer: str) -> Callable[[], object] | None:
        patience = max(0.5, self.options.lease_seconds / 3)
        client = self.server.sync_client(patience)
        script = load("farewell")
        wakeup = self._wakeups.setdefault(consumer, WakeUp(self, consumer))  # it may wait while we give back

        def give_back() -> object:
            alone = wakeup.gives_back()
            try:
                count: object = client.eval(script.text.decode(), 1, self._prefix, consumer, 0, alone)
            except BaseException:  # the server may do it yet
                wakeup.gave_back(monotonic() + patience)
                raise
            finally:
                client.close()  # it is a rare thing, not worth a connection
            wakeup.gave_back()
            return count

        return give_back

    @property
    def block_seconds(self) -> float:
        """How long one wake-up call blocks. It ends before the lease does in which it was sent: see ``WakeUp``."""
        return min(15.0, self.options.lease_seconds / 2)

    async def reap(self) -> int:
        now = monotonic()
        batches, consumers = (
            [(name, seen.deadline) for name, seen in before.items() if now >= seen.confirmed_at]
            for before in (self._seen_expired, self._seen_silent)
        )
        expired, silent, taken, server_ms, shortest = await self.script(
            "reap", SUSPECT_AFTER, DEAD_AFTER, milliseconds(self.options.lease_seconds),
            header(WORKER_DIED), int(self._went_back),
            len(batches), *(part for pair in batches for part in pair),
            len(consumers), *(part for pair in consumers for part in pair), *self.bounds("dead"),
        )  # fmt: skip
        # whatever time the answer took, and whenever within it the server looked at its clock
        at_least, at_most = self._server_ahead
        self._server_ahead = server_ms / 1000 - monotonic(), server_ms / 1000 - now
        self._went_back = self._server_ahead[1] < at_least - JUMP_SECONDS
        leapt = self._server_ahead[0] > at_most + JUMP_SECONDS
        self._seen_expired = sightings(self._seen_expired, expired, now, leapt)
        self._seen_silent = sightings(self._seen_silent, silent, now, leapt)
        self._shortest_lease = shortest / 1000 or math.inf
        if self._went_back:
            logger.warning("broker %s: the server's clock went back: leases are counted by its new time", self.url)
        if taken:
            logger.warning("broker %s: took back %d runs of consumers that fell silent", self.url, taken)
            for wakeup in self._wakeups.values():  # nothing wakes them for a suspect
                wakeup.wake()
        return int(taken)

    def reap_seconds(self) -> float:
        return max(0.05, min(super().reap_seconds(), self._shortest_lease / 2))

    async def promote(self) -> float | None:
        if self._none_delayed and not await self.call(pack(("ZRANGE", self.keys.delayed, 0, 0))):
            return None  # what an idle consumer asks once a second costs one command
        moved, wait = await self.script("promote", MAX_PROMOTED)
        self._none_delayed = wait < 0
        if moved >= MAX_PROMOTED:
            return 0.0
        return None if wait < 0 else wait / 1000

    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        self.enter_loop()
        wakeup = self._wakeups.get(consumer)
        if wakeup is None:
            wakeup = self._wakeups[consumer] = WakeUp(self, consumer)
        return await wakeup.wait(timeout, tasks)

    async def idle_no_more(self, consumer: str) -> None:
        """Nothing more is to be moved to this consumer's inbox until it waits again; what was, is for others."""
        if (wakeup := self._wakeups.get(consumer)) is not None and (wakeup.pending or wakeup.moved):
            await wakeup.unblock()
            await self.adopt()
            wakeup.claimed("*")  # with one that did not end in time
            await self.script("farewell", consumer, 0, "")
            wakeup.moved = False

    async def farewell(self, consumer: str) -> None:
        wakeup = self._wakeups.pop(consumer, None)
        no_more = True
        if wakeup is not None:
            try:
                await wakeup.unblock()
                no_more = wakeup.is_sure and not wakeup.pending
            finally:
                await wakeup.close()
        await self.adopt()
        # One whose inbox may yet get something stays known until its lease has run out: that is then taken back.
        await self.script("farewell", consumer, int(no_more), "")
        self.unsure.discard(consumer)

    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        lease = milliseconds(self.options.lease_seconds)
        seconds = min(task.timeout_seconds, MAX_VISIBLE_SECONDS)
        visible = math.ceil(seconds + min(10, max(1, seconds / 2)))
        fleet = self.options.fleet
        arguments = (task.name, slot, task.max_concurrency, lease, visible, fleet)
        if fleet == "own":
            return GRANTED[await self.script("acquire", *arguments)]

        async def action() -> Any:
            # the lock under which aio-fluid counts what runs and adds to it
            async with self.redis_cli.lock(f"tasks:{task.name}", timeout=LOCK_SECONDS, sleep=0.02) as lock:
                running = await self._foreign_runs(task.name)
                await lock.reacquire()  # it has opened if that took too long, and then this raises
                return await self.script("acquire", *arguments, *running)

        return GRANTED[await self.redis(action)]

    async def free(self, slots: Sequence[tuple[str, str]]) -> None:
        await self.script("free", *(part for slot in slots for part in slot))

    async def _foreign_runs(self, task_name: str) -> list[bytes]:
        """Ids of the runs of a task that have one of aio-fluid's keys, which our own runs have too."""
        pattern = glob_escaped(self.keys.task_run(task_name, "")) + "*"
        names: list[Any] = [key async for key in self.redis_cli.scan_iter(pattern, count=1000)]
        ids: list[Any] = await self.redis_cli.mget(*names) if names else []
        # the pattern of task "a" fits the keys of task "a-b" as well
        prefix = self.keys.task_run(task_name, "").encode()
        return [found for name, found in zip(names, ids, strict=True) if found is not None and name == prefix + found]

    async def replies(self, address: str, timeout: float) -> list[bytes]:
        link = self._reply_link
        if link is None or link.closed:
            link = self._reply_link = await self.blocking_link()
        key = self.keys.reply(address)
        seconds = f"{min(timeout, REPLY_SECONDS / 2):.3f}"
        try:
            # it moves the first to where it is: waits for one, and takes none away
            if await link.call(pack(("BLMOVE", key, key, "LEFT", "LEFT", seconds))) is None:
                return []
            found: list[bytes] = await link.call(pack(("LRANGE", key, 0, MAX_REPLIES - 1)))
            link.send(pack(("LPOP", key, len(found))), lambda reply, exc: None)  # if that is lost they come once more
            return found
        except (ServerReply, LinkLost) as exc:
            raise self.error(exc) from exc
        except asyncio.CancelledError:
            link.abort()  # it blocks still, and nobody takes its answer
            raise

    async def consumers_of(self, task_name: str) -> tuple[int, int] | None:
        link = await self.link()
        try:
            ids = await link.call(pack(("ZRANGE", self.keys.consumers, -MAX_ASKED, -1)))
            # one by one: an ACL ties GET to keys, and these are few
            statuses = await asyncio.gather(*(link.call(pack(("GET", self.keys.manager(i.decode())))) for i in ids))
        except (ServerReply, LinkLost) as exc:
            raise self.error(exc, link) from exc
        return consumers_among((tasks_of(status) for status in statuses if status is not None), task_name)

    async def blocking_link(self) -> Link:
        async def once() -> Link:
            await self.link()
            return await self.new_link()

        link: Link = await self.patiently(once)
        self._blocked = {one for one in self._blocked if not one.closed} | {link}  # the dead are nobody's
        return link

    # -- what is there

    async def queue_length(self) -> dict[str, int]:
        lengths = await self._each("llen", PRIORITIES)
        return {str(priority): length for priority, length in zip(PRIORITIES, lengths, strict=True)}

    async def queue_bytes(self) -> int:
        # of a list the server looks at a few nodes, however long it is
        return sum(found or 0 for found in await self._each("memory_usage", PRIORITIES))

    async def _each(self, command: str, priorities: Sequence[TaskPriority]) -> list[Any]:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for priority in priorities:
                getattr(pipe, command)(self.keys.queue(priority))
            return await pipe.execute()

        return await self.redis(action)  # type: ignore[no-any-return]

    async def clear_queue(self, *priorities: TaskPriority) -> dict[str, int]:
        targets = tuple(TaskPriority(priority) for priority in priorities) or PRIORITIES

        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=True)
            for priority in targets:
                pipe.llen(self.keys.queue(priority))
                pipe.unlink(self.keys.queue(priority))
            return await pipe.execute()

        results = await self.redis(action)
        return {str(priority): results[2 * i] for i, priority in enumerate(targets)}

    async def clear(self) -> int:
        if self._alone:
            await self.agree(1)

        cursor: Any = 0
        count: int = 0

        async def some() -> tuple[Any, int]:
            following, keys = await self.redis_cli.scan(cursor, glob_escaped(self.prefix) + "-*", 1000)
            return following, await self.redis_cli.unlink(*keys) if keys else 0

        while True:
            cursor, removed = await self.redis(some)
            count += int(removed)
            if not cursor:
                return count

    async def dead_length(self, kind: Kind = "dead") -> int:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            pipe.llen(self.keys.gave_up(kind))
            pipe.hget(self.keys.kept, f"{kind}:gone")
            return await pipe.execute()

        length, gone = await self.redis(action)
        return max(0, int(length) - int(gone or 0))

    async def dead_trimmed(self, kind: Kind = "dead") -> int:
        return int(await self.redis(lambda: self.redis_cli.hget(self.keys.kept, f"{kind}:trimmed")) or 0)

    def sifter(self, kind: Kind = "dead") -> Sifter:
        return RedisSifter(self, kind)

    async def dead(
        self, limit: int = 100, offset: int = 0, *, oldest: bool = False, kind: Kind = "dead"
    ) -> list[tuple[str, bytes]]:
        gone = await self.redis(lambda: self.redis_cli.hget(self.keys.kept, f"{kind}:gone"))
        # places where an entry was taken out are passed over one by one, as long as there are any
        at, skip = (0, offset) if int(gone or 0) else (offset, 0)
        entries: list[bytes] = []
        step = FIRST_PAGE
        while (left := limit + skip - len(entries)) > 0:
            size = min(left, step)
            page = await self._dead_page(kind, at, size, oldest)
            at += len(page)
            entries += [entry for entry in page if entry]
            if len(page) < size:
                break
            step = max(1, min(PAGE_ENTRIES, PAGE_BYTES * len(page) // (sum(map(len, page)) or 1)))
        return [parted(entry) for entry in entries[skip:]]

    async def _dead_page(self, kind: Kind, at: int, size: int, oldest: bool) -> list[bytes]:
        """Read ``size`` entries behind ``at`` others. A command and no script, so that a user who only reads may."""
        key = self.keys.gave_up(kind)
        first, last = (-at - size, -at - 1) if oldest else (at, at + size - 1)
        page: list[bytes] = await self.redis(lambda: self.redis_cli.lrange(key, first, last))
        return page[::-1] if oldest else page

    async def delayed_length(self) -> int:
        return int(await self.redis(lambda: self.redis_cli.zcard(self.keys.delayed)))

    async def leased_length(self) -> int:
        async def action() -> int:
            # Inboxes first: a run moves from there under a lease, so that between the two reads none is missed.
            pipe = self.redis_cli.pipeline(transaction=False)
            consumers: Any = await self.redis_cli.zrange(self.keys.consumers, 0, -1)
            for consumer in consumers:
                for priority in PRIORITIES:
                    pipe.llen(self.keys.inbox(consumer.decode(), priority))
            reserved: int = sum(await pipe.execute())
            batches: Any = await self.redis_cli.zrange(self.keys.leases, 0, -1)
            for batch in batches:
                pipe.hlen(self.keys.lease(batch.decode()))
            leased: int = sum(await pipe.execute())
            return reserved + leased

        return int(await self.redis(action))

    # -- tasks and managers

    async def get_tasks_info(self, *task_names: str) -> list[TaskInfo]:
        names = [name for name in (task_names or self.registry) if name in self.registry]
        if not names:
            return []

        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(self.keys.task(name))
            return await pipe.execute()

        hashes = await self.redis(action)
        return [decode_info(self.registry[name], fields) for name, fields in zip(names, hashes, strict=True)]

    async def update_task(self, task: Task[Any], params: Mapping[str, Any]) -> TaskInfo:
        update = msgspec.convert(dict(params), TaskInfoUpdate)
        mapping: dict[Any, Any] = {name: msgspec.json.encode(getattr(update, name)) for name in params}

        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=True)
            if mapping:
                pipe.hset(self.keys.task(task.name), mapping=mapping)
            pipe.hgetall(self.keys.task(task.name))
            return await pipe.execute()

        return decode_info(task, (await self.redis(action))[-1])

    async def set_manager_status(self, manager_id: str, data: dict[str, Any], ttl: int) -> None:
        value = msgspec.json.encode(data)
        await self.redis(lambda: self.redis_cli.set(self.keys.manager(manager_id), value, ex=ttl))

    async def get_all_manager_statuses(self) -> TaskManagersStatus:
        async def action() -> Any:
            pattern = glob_escaped(self.prefix) + "-manager-*"
            keys = [key async for key in self.redis_cli.scan_iter(pattern, count=1000)]
            return await self.redis_cli.mget(*keys) if keys else []

        values = await self.redis(action)
        workers = []
        for value in values:
            try:
                workers.append(msgspec.json.decode(value or b"", type=TaskManagerStatus))
            except msgspec.DecodeError:  # it has just gone, or its key is somebody else's
                continue
        return TaskManagersStatus(workers=workers, queues=await self.queue_length())

    async def current_task_runs(self, task_name: str) -> int:
        async def action() -> int:
            seconds, micros = await self.redis_cli.time()
            now = seconds * 1000 + micros // 1000  # slots of dead workers stay until the next acquire
            return int(await self.redis_cli.zcount(self.keys.slots(task_name), f"({now}", "+inf"))

        return int(await self.redis(action))

    async def set_task_aborted(self, run_id: str, reason: str) -> None:
        await self.redis(lambda: self.redis_cli.set(self.keys.aborted(run_id), writable(reason), ex=60))

    async def get_task_aborted(self, run_id: str) -> str | None:
        value = await self.redis(lambda: self.redis_cli.get(self.keys.aborted(run_id)))
        return None if value is None else value.decode()

    def lock(self, name: str, timeout: float | None = None) -> Any:
        self.enter_loop()
        if self.url.scheme.endswith("+cluster"):  # which only speaks to the node of our slot
            name = self.keys.lock(name)
        return BrokerLock(self, name, timeout)

    async def first(self, key: str, seconds: float) -> bool:
        full = self.keys.first(key)
        return bool(await self.redis(lambda: self.redis_cli.set(full, b"1", nx=True, px=milliseconds(seconds))))


async def heeding(call: Awaitable[Any]) -> Any:
    """Await a call of redis-py, and be cancelled if its caller was: ``asyncio.wait_for``, through which redis-py sends,
    may swallow that in Python 3.11, and give a result or an error instead."""
    caller = asyncio.current_task()
    assert caller is not None
    before = caller.cancelling()
    try:
        result = await call
    except Exception as exc:
        if caller.cancelling() > before:
            raise asyncio.CancelledError from exc
        raise
    if caller.cancelling() > before:
        raise asyncio.CancelledError
    return result


def heard(ended: "asyncio.Task[None]") -> None:
    """What it ended with is told to who waits for it, if somebody does."""
    if not ended.cancelled():
        ended.exception()


def tasks_of(status: bytes) -> list[str] | None:
    """The tasks that a consumer runs, as its status says; None: it does not say."""
    try:
        return msgspec.json.decode(status, type=Told).tasks
    except msgspec.DecodeError:
        return None


def milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))


class Sighting(NamedTuple):
    """A deadline that has passed, and from when on, by our monotonic clock, a second look may act on it."""

    deadline: bytes
    confirmed_at: float


def sightings(before: dict[bytes, Sighting], flat: list[Any], now: float, leapt: bool) -> dict[bytes, Sighting]:
    """Note the deadlines that a sweep saw passed: flat triples of name, deadline and lease in ms.

    Those that are still the same half a lease later are confirmed; a whole lease later if the server's clock ``leapt``
    forward, since then every deadline has passed, and the living need the time to renew that their lease gives them.
    """
    after = {}
    for name, deadline, lease_ms in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        known = before.get(name)
        if known is None or known.deadline != deadline:
            # half of it is more than the third in which the living renew
            known = Sighting(deadline, now + lease_ms / (1000 if leapt else 2000))
        after[name] = known
    return after


def decode_info(task: Task[Any], fields: Mapping[bytes, bytes]) -> TaskInfo:
    update = {}
    for name, value in fields.items():
        key = name.decode(errors="replace")
        if key not in TaskInfoUpdate.__struct_fields__:
            continue
        kind = TaskInfoUpdate.__annotations__[key]
        try:
            update[key] = msgspec.json.decode(value, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("task %s: its info %s on the broker cannot be read", task.name, key)
    return task.info(**update)


def glob_escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\^" else c for c in text)
