"""Where the server is: one address, the primary that Sentinels name, or the Cluster node that holds our slot.

Each gives redis-py connections that find their server when they connect, so that whoever reconnects after a failover or
after a slot has moved is at the right place.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

import redis
import redis.exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry as SyncRetry

from ...errors import BrokerURLError
from ..url import BrokerURL

__all__ = ["OPTIONS", "SCHEMES", "ServerFinder", "finder", "first_word"]

T = TypeVar("T")

SCHEMES = (
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster",
)  # fmt: skip
OPTIONS = (
    "db",
    "sentinel_password",
    "sentinel_username",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_password",
)
"""URL options that are passed on to redis-py."""
CONNECT_SECONDS = 5.0
FIRST_WORD_SECONDS = 0.5
"""How long a server that has just ended a connection may take to say why."""
ASK_SECONDS = 2.0
"""How long a Sentinel or a Cluster node may take to say where the primary is, before the next one is asked."""


class ServerFinder(ABC):
    """Makes connections to where the broker's keys are."""

    client: Redis
    """redis-py's client, over a pool of such connections."""

    def connection(self) -> AbstractConnection:
        """A connection of its own, not connected yet."""
        made: AbstractConnection = self.client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        return made

    @abstractmethod
    def sync_client(self, timeout_seconds: float) -> "redis.Redis":
        """A blocking client, for a thread."""

    async def of_each_primary(self, ask: Callable[[Redis], Awaitable[T]]) -> list[T]:
        """Ask each server that keeps keys: of a Cluster all primaries. Raises as ``ask``."""
        return [await ask(self.client)]

    def moved(self) -> None:  # noqa: B027
        """The server said that it is not the one: look again at the next connection."""


def finder(url: BrokerURL, name: str, max_connections: int) -> ServerFinder:
    """The finder of a broker URL. ``name`` decides the Cluster slot.

    Raises:
        BrokerURLError: the URL does not say where the server is.
    """
    secure = "rediss" + url.scheme.removeprefix("redis").removeprefix("unix")
    for option in url.query:
        if option.startswith("ssl_") and not url.scheme.startswith("rediss"):
            raise BrokerURLError(
                f"broker {url}: {option} is an option of TLS, which {url.scheme}:// does not use: "
                f"leave it out, or write {secure}://"
            )
        if option.startswith("sentinel_") and not url.scheme.endswith("+sentinel"):
            raise BrokerURLError(
                f"broker {url}: {option} is for Sentinels, which {url.scheme}:// does not have: "
                "leave it out, or write redis+sentinel://HOST:PORT/SERVICE"
            )
    try:
        made: ServerFinder
        if url.scheme.endswith("+sentinel"):
            made = Sentinels(url, max_connections)
        elif url.scheme.endswith("+cluster"):
            made = ClusterNode(url, name, max_connections)
        else:
            made = Address(url, max_connections)
        made.connection()  # redis-py looks at most options only now
        return made
    except (ValueError, TypeError, redis.exceptions.RedisError) as exc:
        if isinstance(exc, BrokerURLError):
            raise
        raise BrokerURLError(f"broker {url}: {exc}") from exc


async def first_word(connection: AbstractConnection) -> str:
    """Why a server ends connections as soon as they are made ("max number of clients reached"); "" if it does not say.

    A client that is busy with its own first words may lose those of the server. So ask again, and listen only.
    """
    path, host, port = (getattr(connection, name, None) for name in ("path", "host", "port"))
    try:
        async with asyncio.timeout(FIRST_WORD_SECONDS):
            opening = asyncio.open_unix_connection(path) if path else asyncio.open_connection(host, port)
            reader, writer = await opening
            try:
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError):  # a TimeoutError too: then it waits for us to speak
        return ""
    return line.decode(errors="replace").strip().removeprefix("-") if line.startswith(b"-") else ""


def common(**more: Any) -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_keepalive": True,
        "decode_responses": False,
        **more,
    }


def redis_query(url: BrokerURL, names: Collection[str], *, tls: bool) -> str:
    """The options of a URL that redis-py is to read."""
    options = {name: value for name, value in url.query.items() if name in names}
    if tls and options.get("ssl_cert_reqs") != "none":
        options.setdefault("ssl_check_hostname", "True")  # which redis-py does by itself from version 6 on
    return urlencode(options)


def asking() -> dict[str, Any]:
    """Options of a connection to one of several that may be asked: it is not tried again, the next one is asked."""
    return {"socket_timeout": ASK_SECONDS, "socket_connect_timeout": ASK_SECONDS, "retry": Retry(NoBackoff(), 0)}


def server_options(url: BrokerURL, scheme: str, place: str, db: str = "") -> dict[str, Any]:
    """redis-py's keyword arguments for one server of a URL that names several."""
    query = redis_query(
        url, {name for name in OPTIONS if name != "db" and not name.startswith("sentinel_")}, tls=scheme == "rediss"
    )
    user = urlsplit(url.raw).netloc.rpartition("@")[0]
    netloc = f"{user}@{place}" if user else place
    options: dict[str, Any] = dict(parse_url(urlunsplit((scheme, netloc, f"/{db}" if db else "", query, ""))))
    return options


def places(url: BrokerURL, default_port: int) -> list[tuple[str, int]]:
    """The host:port pairs between commas in a URL."""
    hosts = urlsplit(url.raw).netloc.rpartition("@")[2]
    found = []
    for text in hosts.split(","):
        host, _, port = text.strip().rpartition(":") if not text.endswith("]") else (text, "", "")
        if not host:
            host, port = text.strip(), ""
        if not host or (port and not port.isdigit()):
            # not the text itself: it may be a part of a password that should have been escaped
            raise BrokerURLError(f"broker {url}: each server must be host:port")
        found.append((host.strip("[]"), int(port) if port else default_port))
    return found


class HiddenOptions:
    """Connections whose repr shows no options: the password is among them (redis-py 5.3 to 7)."""

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__}>"


class Pool(HiddenOptions, BlockingConnectionPool):
    pass


class SyncPool(HiddenOptions, redis.ConnectionPool):
    pass


class Address(ServerFinder):
    """One server: ``redis://``, ``rediss://``, ``unix://``."""

    def __init__(self, url: BrokerURL, max_connections: int) -> None:
        query = redis_query(url, OPTIONS, tls=url.scheme == "rediss")
        self.url = url.raw.partition("?")[0] + (f"?{query}" if query else "")
        options: dict[str, Any] = dict(parse_url(self.url))
        more = common()
        if url.scheme == "unix":
            del more["socket_keepalive"]
        self.pool = Pool(max_connections=max_connections, timeout=20, **options, **more)
        self.client = Redis(connection_pool=self.pool)

    def sync_client(self, timeout_seconds: float) -> "redis.Redis":
        pool = SyncPool.from_url(
            self.url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, protocol=2
        )
        return redis.Redis.from_pool(pool)


class PrimaryPool(SentinelConnectionPool):
    """Connections to the primary. Ending them all ends those to the Sentinels too."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.connection_pool.disconnect()


class Sentinels(ServerFinder):
    """``redis+sentinel://[user:password@]host:port,host:port/SERVICE[/DB]``: the primary that the Sentinels name.

    ``sentinel_username`` and ``sentinel_password`` are for the Sentinels themselves.
    """

    def __init__(self, url: BrokerURL, max_connections: int) -> None:
        self.places = places(url, 26379)
        path = [unquote(part) for part in urlsplit(url.raw).path.split("/") if part]
        if not 1 <= len(path) <= 2:
            raise BrokerURLError(f"broker {url}: the path must be /SERVICE or /SERVICE/DB")
        self.service = path[0]
        tls = url.scheme.startswith("rediss")
        options = server_options(url, "rediss" if tls else "redis", "x", url.query.get("db", "".join(path[1:])))
        for name in ("host", "port", "connection_class"):
            options.pop(name, None)
        if tls:
            options["ssl"] = True
        self.options = options
        self.sentinel_options: dict[str, Any] = {
            name.removeprefix("sentinel_"): value for name, value in url.query.items() if name.startswith("sentinel_")
        }
        if tls:
            self.sentinel_options.update((k, v) for k, v in options.items() if k.startswith("ssl"))
        self.sentinel = Sentinel(  # type: ignore[no-untyped-call]
            self.places, sentinel_kwargs=common(**asking(), **self.sentinel_options), **options, **common()
        )
        self.client = self.sentinel.master_for(self.service, connection_pool_class=PrimaryPool)

    def sync_client(self, timeout_seconds: float) -> "redis.Redis":
        from redis.sentinel import Sentinel as SyncSentinel

        timeouts = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds, "protocol": 2}
        sentinel = SyncSentinel(  # type: ignore[no-untyped-call]
            self.places,
            sentinel_kwargs={**self.sentinel_options, **timeouts, "retry": SyncRetry(NoBackoff(), 0)},
            **self.options,
            **timeouts,
        )
        client: redis.Redis = sentinel.master_for(self.service)  # type: ignore[no-untyped-call]
        return client


class ClusterNode(ServerFinder):
    """``redis+cluster://[user:password@]host:port,host:port``: the node that holds the slot of the broker's name.

    All keys of a broker stand on one hash tag, so one node serves them all. While the slot is on its way to another
    node, it answers scripts with ASK or TRYAGAIN (they all declare ``Keys.nothing``, which is never there), and we wait
    until the slot has arrived: to follow would split queues over two nodes.
    """

    def __init__(self, url: BrokerURL, name: str, max_connections: int) -> None:
        if url.query.get("db", "0") != "0" or urlsplit(url.raw).path.strip("/"):
            raise BrokerURLError(f"broker {url}: a Cluster has database 0 only, and its URL no path")
        self.seeds = places(url, 6379)
        self.slot = key_slot(name.encode())
        tls = url.scheme.startswith("rediss")
        options = server_options(url, "rediss" if tls else "redis", "x")
        for known in ("host", "port", "connection_class"):
            options.pop(known, None)
        self.options = options
        self.tls = tls
        self.place: tuple[str, int] | None = None
        self.primaries: set[tuple[str, int]] = set()
        found = self

        class SlotConnection(SSLConnection if tls else Connection):  # type: ignore[misc]
            """Connects to the node that holds the slot at that time."""

            async def connect(self) -> None:
                self.host, self.port = await found.locate()
                try:
                    await super().connect()
                except redis.exceptions.ConnectionError:
                    found.moved()
                    raise

        self.pool = Pool(
            connection_class=SlotConnection, max_connections=max_connections, timeout=20, **options, **common()
        )
        self.client = Redis(connection_pool=self.pool)

    def moved(self) -> None:
        self.place = None

    async def locate(self) -> tuple[str, int]:
        """Ask the nodes that we know who holds the slot."""
        if self.place is not None:
            return self.place
        trouble: Exception = redis.exceptions.ConnectionError("no node was asked")
        for host, port in self.seeds:
            client = Redis(host=host, port=port, ssl=self.tls, **self.options, **common(**asking()))
            try:
                slots = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (redis.exceptions.RedisError, OSError) as exc:
                trouble = exc
                continue
            finally:
                await client.aclose()
            if (place := self.choose(slots, host)) is not None:
                self.place = place
                return place
            trouble = redis.exceptions.ConnectionError(f"no node holds slot {self.slot}")
        raise redis.exceptions.ConnectionError(f"no node of the cluster could tell: {trouble}") from trouble

    async def of_each_primary(self, ask: Callable[[Redis], Awaitable[T]]) -> list[T]:
        await self.locate()
        answers = []
        for host, port in sorted(self.primaries):
            client = Redis(host=host, port=port, ssl=self.tls, **self.options, **common())
            try:
                answers.append(await ask(client))
            finally:
                await client.aclose()
        return answers

    def choose(self, slots: Any, asked: str) -> tuple[str, int] | None:
        """The primary of our slot in the answer to CLUSTER SLOTS; redis-py gives it parsed, or as the server did."""
        if isinstance(slots, dict):
            entries = [(first, last, nodes["primary"]) for (first, last), nodes in slots.items()]
        else:
            entries = [(entry[0], entry[1], entry[2]) for entry in slots]
        self.primaries.clear()
        chosen = None
        for first, last, node in entries:
            host = node[0].decode() if isinstance(node[0], bytes) else node[0]
            known = (host or asked, int(node[1]))
            self.primaries.add(known)
            if known not in self.seeds:
                self.seeds.append(known)
            if first <= self.slot <= last:
                chosen = known
        return chosen

    def sync_client(self, timeout_seconds: float) -> "redis.Redis":
        timeouts: dict[str, Any] = {
            "socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds,
            "retry": SyncRetry(NoBackoff(), 0),
        }  # fmt: skip
        host, port = self.place or self.seeds[0]
        kind = redis.SSLConnection if self.tls else redis.Connection
        return redis.Redis.from_pool(SyncPool(kind, host=host, port=port, protocol=2, **self.options, **timeouts))
