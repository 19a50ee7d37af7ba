"""A broker's URL: the server that it names, and the options behind its question mark."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from ..checks import ENQUEUE_TIMEOUT, LEASE_SECONDS, PAYLOAD_BYTES, read_number
from ..core.states import PRIORITIES, TaskPriority
from ..errors import BrokerURLError
from ..settings import get_settings
from ..texts import MAX_ERROR, hide_password, printable
from .contract import Kind

__all__ = ["BOUND", "BOUNDS", "DURABILITIES", "BrokerOptions", "BrokerURL", "number_option", "option"]

DURABILITIES = ("none", "replica", "fsync")

BOUNDS = ("max_dead", "max_dead_bytes", "max_failed", "max_failed_bytes")
BOUND: dict[str, Any] = {"most": 1 << 50, "whole": True}
"""Range of each of them."""


@dataclass(frozen=True)
class BrokerURL:
    """A broker's URL, taken apart. Its text and its repr hide the password.

    Raises:
        BrokerURLError: it cannot be taken apart.
    """

    raw: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.raw)
            if "," not in parts.netloc:
                parts.port  # noqa: B018
        except ValueError:
            # its own message quotes what it could not read, which may be a part of the password
            raise BrokerURLError(
                f"broker {self}: not a URL: a port is a number, and in a user or a password write % / ? # @ [ ] : "
                "as %25 %2F %3F %23 %40 %5B %5D %3A"
            ) from None

    @property
    def scheme(self) -> str:
        return self.raw.partition("://")[0].lower() if "://" in self.raw else ""

    @property
    def query(self) -> dict[str, str]:
        """The options behind the question mark. The last of two of the same name counts."""
        return dict(parse_qsl(urlsplit(self.raw).query, keep_blank_values=True))

    @property
    def host(self) -> str | None:
        return urlsplit(self.raw).hostname

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.raw).path)

    def __str__(self) -> str:
        return printable(hide_password(self.raw), MAX_ERROR)

    def __repr__(self) -> str:
        return f"BrokerURL({str(self)!r})"


def option(url: BrokerURL, name: str, convert: Callable[[str], Any], default: Any, wanted: str) -> Any:
    text = url.query.get(name)
    if text is None:
        return default
    try:
        return convert(text)
    except (ValueError, KeyError) as exc:
        raise BrokerURLError(f"broker {url}: option {name}={text!r} must be {wanted}") from exc


def number_option(url: BrokerURL, name: str, default: float, **ranges: Any) -> Any:
    """A number among the options of a URL, or the default. Raises BrokerURLError."""
    text = url.query.get(name)
    return default if text is None else read_number(f"broker {url}: option {name}", text, BrokerURLError, **ranges)


def one_of(*allowed: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return convert


def priorities(text: str) -> tuple[TaskPriority, ...]:
    named = {TaskPriority(name) for name in text.split(",")} if text else set()
    return tuple(priority for priority in PRIORITIES if priority in named)


@dataclass
class BrokerOptions:
    """Options of a broker: of its URL, and of a manager's config, which wins.

    ``name``: brokers of the same name on the same server share their queues. ``queues``: the priorities that its
    consumers serve. ``lease_seconds``: how long a silent consumer keeps the runs that it claimed. ``wire``: the format
    that producers write, ``json`` or ``msgpack``. ``max_payload_bytes``: the largest run. ``durability``: a batch is
    confirmed when the server has it (``none``), when a ``replica`` has it too (WAIT), or when the server has written
    it to its append-only file (``fsync``: WAITAOF, Redis and Valkey from 7.2); ``durability_seconds``: how long the
    broker waits for that. ``fleet``: ``mixed`` while aio-fluid's consumers run tasks with ``max_concurrency`` too: then
    their runs count, which takes aio-fluid's lock and a SCAN for each such run; ``own`` otherwise. ``busy_poll_us``:
    busy-poll the socket for the answer to a short command for up to so many microseconds before yielding to the event
    loop; 0: never. ``max_dead``, ``max_dead_bytes``: keep so many dead letters, the newest of them; 0: none.
    ``max_failed``, ``max_failed_bytes``: the same for failed runs of tasks without ``retry``. ``enqueue_timeout``: how
    long ``queue`` and the other calls that queue wait, in seconds, for a server that does not answer. ``retry_floor``:
    the least seconds before a retry.
    """

    name: str
    queues: tuple[TaskPriority, ...] = PRIORITIES
    lease_seconds: float = 30.0
    wire: str = "json"
    max_payload_bytes: int = 1 << 20
    durability: str = "none"
    durability_seconds: float = 2.0
    fleet: str = "own"
    busy_poll_us: int = 100
    max_dead: int = 1_000_000
    max_dead_bytes: int = 256 << 20
    max_failed: int = 100_000
    max_failed_bytes: int = 64 << 20
    enqueue_timeout: float = 30.0
    retry_floor: float = 0.0

    NAMES: ClassVar[tuple[str, ...]] = (
        "name",
        "queues",
        "lease_seconds",
        "wire",
        "max_payload_bytes",
        "durability",
        "durability_seconds",
        "fleet",
        "busy_poll_us",
        "enqueue_timeout",
        "retry_floor",
        *BOUNDS,
    )

    @classmethod
    def from_url(cls, url: BrokerURL, default_name: str, also: Iterable[str] = ()) -> "BrokerOptions":
        """The options in a URL. ``also``: names that the caller reads itself.

        Raises:
            BrokerURLError: an option is unknown or has a bad value.
        """
        known = (*cls.NAMES, *also)
        for name in url.query:
            if name not in known:
                raise BrokerURLError(f"broker {url}: unknown option {name!r}, known are {', '.join(known)}")
        names = ", ".join(PRIORITIES)
        return cls(
            name=option(url, "name", str, default_name, "a name") or default_name,
            queues=option(url, "queues", priorities, PRIORITIES, f"a comma-separated list of {names}"),
            lease_seconds=number_option(url, "lease_seconds", 30.0, **LEASE_SECONDS),
            wire=option(url, "wire", one_of("json", "msgpack"), "json", "json or msgpack"),
            max_payload_bytes=number_option(url, "max_payload_bytes", 1 << 20, **PAYLOAD_BYTES),
            durability=option(url, "durability", one_of(*DURABILITIES), "none", f"one of {', '.join(DURABILITIES)}"),
            durability_seconds=number_option(url, "durability_seconds", 2.0, least=0.001),
            fleet=option(url, "fleet", one_of("own", "mixed"), "own", "own or mixed"),
            busy_poll_us=number_option(url, "busy_poll_us", 100, most=1_000_000, whole=True),
            enqueue_timeout=number_option(url, "enqueue_timeout", cls.enqueue_timeout, **ENQUEUE_TIMEOUT),
            retry_floor=number_option(url, "retry_floor", get_settings().retry_floor),
            **{name: number_option(url, name, getattr(cls, name), **BOUND) for name in BOUNDS},
        )

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """Return how many entries of this kind the broker keeps, and how many bytes of them."""
        return getattr(self, f"max_{kind}"), getattr(self, f"max_{kind}_bytes")
