"""The settings of one manager."""

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from .common import is_in_cpu_process
from .errors import ConfigError
from .settings import get_settings

__all__ = ["TaskManagerConfig"]


@dataclass(kw_only=True)
class TaskManagerConfig:
    """Settings of a manager, a consumer or a scheduler. Those of the environment are the defaults.

    ``broker_url``: where runs are kept (``""``: FLUID_BROKER_URL, else ``memory://``).
    ``schedule_tasks``, ``consume_tasks``: whether a scheduler fires and a consumer consumes.
    ``max_concurrent_tasks``: runs at the same time in one consumer.
    ``sleep_millis``: how long an idle consumer of a broker without wake-ups would sleep, in milliseconds; ours are woken
    and do not sleep, so this is kept for compatibility. ``sleep=`` (seconds) is the same setting.
    ``lease_seconds``: how long a silent consumer keeps what it claimed (None: the URL's, else 30).
    ``max_payload_bytes``: largest run, encoded (None: the URL's, else 1 MiB).

    Raises:
        ConfigError: a value is out of range.
    """

    schedule_tasks: bool = field(default_factory=lambda: not is_in_cpu_process())
    consume_tasks: bool = True
    max_concurrent_tasks: int = field(default_factory=lambda: get_settings().max_concurrent_tasks)
    sleep_millis: float = field(default_factory=lambda: get_settings().sleep_millis)
    broker_url: str = ""
    lease_seconds: float | None = None
    max_payload_bytes: int | None = None

    def __post_init__(self) -> None:
        self.broker_url = str(self.broker_url)
        if self.max_concurrent_tasks < 0:
            raise ConfigError(f"max_concurrent_tasks is {self.max_concurrent_tasks}, it must be at least 0")
        if self.sleep_millis < 0:
            raise ConfigError(f"sleep_millis is {self.sleep_millis}, it must be at least 0")

    @property
    def sleep(self) -> float:
        """``sleep_millis`` in seconds."""
        return self.sleep_millis / 1000

    @classmethod
    def of(cls, **options: Any) -> "TaskManagerConfig":
        """The config of a manager's keyword arguments.

        Raises:
            ConfigError: an option is unknown, or out of range.
        """
        if "sleep" in options:
            options["sleep_millis"] = options.pop("sleep") * 1000
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                close = get_close_matches(name, known, 1)
                hint = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
                raise ConfigError(f"unknown option {name!r}{hint}")
        return cls(**options)
