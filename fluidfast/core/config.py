"""The settings of one manager."""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from ..checks import CENTURY, ENQUEUE_TIMEOUT, LEASE_SECONDS, MAX_CONCURRENT, PAYLOAD_BYTES, check_number
from ..errors import ConfigError
from ..settings import Unset, get_settings
from ..texts import hide_password
from .model import Model
from .process import is_in_cpu_process

__all__ = ["ManagerOptions", "TaskManagerConfig"]

RUNS: dict[str, Any] = {"least": 1, "most": 10**9, "whole": True}
BYTES: dict[str, Any] = {"least": 1, "most": 1 << 50, "whole": True}
KEPT: dict[str, Any] = {"most": 1 << 50, "whole": True}
NUMBERS: dict[str, dict[str, Any]] = {
    "max_concurrent_tasks": MAX_CONCURRENT,
    "sleep_millis": {"most": 1000 * CENTURY},
    "lease_seconds": LEASE_SECONDS,
    "max_payload_bytes": PAYLOAD_BYTES,
    "buffer_runs": RUNS,
    "buffer_bytes": BYTES,
    "max_queue_length": RUNS,
    "max_queue_bytes": BYTES,
    "full_timeout": {"infinite": True},
    "max_dead": KEPT,
    "max_dead_bytes": KEPT,
    "max_failed": KEPT,
    "max_failed_bytes": KEPT,
    "catch_up_seconds": {"most": 3600},
    "connect_seconds": {"infinite": True},
    "enqueue_timeout": ENQUEUE_TIMEOUT,
    "retry_floor": {},
}
"""Fields that take a number, and their ranges. None is valid wherever it is the default."""
CHOICES = {"delivery": ("confirmed", "buffered"), "on_full": ("block", "raise"), "on_handler_error": ("log", "stop")}
"""Fields that take one of a few words."""


@dataclass(kw_only=True)
class TaskManagerConfig(Model):
    """Settings of a manager, a consumer or a scheduler. The environment supplies the defaults.

    ``broker_url``: the broker that stores runs (``""``: FLUID_BROKER_URL, else ``memory://``).
    ``schedule_tasks``, ``consume_tasks``: whether a scheduler fires and a consumer consumes.
    ``catch_up_seconds``: 0 to 3600. A scheduler fires a ``crontab`` minute that it missed, because of a restart or a
    blocked event loop, up to this many seconds late; 0: never.
    ``max_concurrent_tasks``: how many runs one consumer executes at the same time.
    ``sleep_millis``: kept for compatibility with aio-fluid, without effect: the broker wakes idle consumers.
    ``sleep=`` (seconds) is the same setting.
    ``lease_seconds``: seconds after which a silent consumer loses its runs (None: the URL's, else 30).
    ``max_payload_bytes``: the largest encoded run, in bytes (None: the URL's, else 1 MiB).
    ``durability``: ``"none"``, ``"replica"`` or ``"fsync"``: what a queued batch awaits beside the server's answer
    (None: the URL's, else none); see ``BrokerOptions``. A batch that waits in vain raises NotDurableError.
    ``max_dead``, ``max_dead_bytes``: the most dead letters, and bytes of them, that the broker keeps, the newest
    (None: the URL's, else 1,000,000 and 256 MiB; 0: none).
    ``max_failed``, ``max_failed_bytes``: the same for failed runs of tasks without ``retry`` (None: the URL's, else
    100,000 and 64 MiB).
    ``delivery``: with ``"confirmed"``, ``queue`` returns when the broker has stored the run. With ``"buffered"``, it
    returns when the run is in this process's buffer. The producer sends the buffer at once and confirms it in the
    background. ``await manager.flush()`` and shutdown wait for it. The next ``queue``, and ``flush``, raise a failure.
    ``buffer_runs``, ``buffer_bytes``: the size of that buffer.
    ``max_queue_length``: the number of queued runs above which ``queue`` blocks (None: no limit). A producer knows the
    number from its last confirmed batch, so several producers overshoot by the runs that they have in flight.
    ``max_queue_bytes``: the same in bytes of payloads and the server's overhead, estimated from their mean size.
    ``on_full``: on a full queue, ``"block"`` for at most ``full_timeout`` seconds (None: without limit), or ``"raise"``
    QueueFullError.
    ``enqueue_timeout``: seconds that ``queue``, ``queue_many`` and ``manager.sync`` wait for a server that was there
    before and does not answer, before they raise BrokerConnectionError (None: the URL's, else 30; may be ``math.inf``).
    Further calls then raise it at once, until the server answers again. Buffered runs wait for 30 seconds regardless.
    ``retry_floor``: the least seconds between a failure, or a run without a slot, and its retry. A shorter wait of a
    ``RetryPolicy`` is raised to it (None: the URL's, else FLUID_RETRY_FLOOR, else 0). aio-fluid waits 5 seconds.
    ``on_handler_error``: when an async handler of an event raises, ``"log"`` it, or log it and ``"stop"`` the consumer,
    which then raises the error from ``wait_for_shutdown``, as aio-fluid does.
    ``connect_seconds``: seconds that a starting consumer waits for its broker before ``startup()`` raises.

    Raises:
        ConfigError: a value is out of range.
    """

    schedule_tasks: bool = field(default_factory=lambda: not is_in_cpu_process())
    consume_tasks: bool = True
    catch_up_seconds: float = 600.0
    max_concurrent_tasks: int = field(default_factory=lambda: get_settings().max_concurrent_tasks)
    sleep_millis: float = field(default_factory=lambda: get_settings().sleep_millis)
    broker_url: str = ""
    lease_seconds: float | None = None
    max_payload_bytes: int | None = None
    durability: Literal["none", "replica", "fsync"] | None = None
    max_dead: int | None = None
    max_dead_bytes: int | None = None
    max_failed: int | None = None
    max_failed_bytes: int | None = None
    delivery: Literal["confirmed", "buffered"] = "confirmed"
    buffer_runs: int = 50_000
    buffer_bytes: int = 64 << 20
    max_queue_length: int | None = None
    max_queue_bytes: int | None = None
    on_full: Literal["block", "raise"] = "block"
    full_timeout: float | None = None
    connect_seconds: float = 30.0
    enqueue_timeout: float | None = None
    retry_floor: float | None = None
    on_handler_error: Literal["log", "stop"] = "log"

    def __post_init__(self) -> None:
        self.broker_url = str(self.broker_url)
        for name, ranges in NUMBERS.items():
            if (value := getattr(self, name)) is not None and not isinstance(value, Unset):
                setattr(self, name, check_number(name, value, ConfigError, **ranges))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, it must be one of {', '.join(allowed)}")

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["broker_url"] = hide_password(self.broker_url)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _fields(self, mode: str) -> dict[str, Any]:
        values = super()._fields(mode)
        return {**values, "broker_url": hide_password(self.broker_url)} if mode == "json" else values

    @property
    def sleep(self) -> float:
        """``sleep_millis`` in seconds."""
        return self.sleep_millis / 1000

    @classmethod
    def of(cls, **options: Any) -> "TaskManagerConfig":
        """Return the config for a manager's keyword arguments.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        if "sleep" in options:
            options["sleep_millis"] = check_number("sleep", options.pop("sleep"), ConfigError) * 1000
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                close = get_close_matches(name, known, 1)
                hint = f", did you mean {close[0]!r}?" if close else f"; it must be one of {', '.join(known)}"
                raise ConfigError(f"unknown option {name!r}{hint}")
        return cls(**options)


class ManagerOptions(TypedDict, total=False):
    """Keywords of managers: the fields of ``TaskManagerConfig``, which explains them, and ``sleep``."""

    schedule_tasks: bool
    consume_tasks: bool
    catch_up_seconds: float
    max_concurrent_tasks: int
    sleep_millis: float
    sleep: float
    broker_url: str
    lease_seconds: float | None
    max_payload_bytes: int | None
    durability: Literal["none", "replica", "fsync"] | None
    max_dead: int | None
    max_dead_bytes: int | None
    max_failed: int | None
    max_failed_bytes: int | None
    delivery: Literal["confirmed", "buffered"]
    buffer_runs: int
    buffer_bytes: int
    max_queue_length: int | None
    max_queue_bytes: int | None
    on_full: Literal["block", "raise"]
    full_timeout: float | None
    connect_seconds: float
    enqueue_timeout: float | None
    retry_floor: float | None
    on_handler_error: Literal["log", "stop"]
