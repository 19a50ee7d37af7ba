"""Settings from the environment, read at first use; importing this module reads nothing.

Names of environment variables are compared without regard to case; where several spellings are set, the upper-case
one counts. A variable that is set to nothing counts as not set.

==========================  =====================================  =====================================
field                       variable                               default
==========================  =====================================  =====================================
broker_url                  FLUID_BROKER_URL, REDIS_DEFAULT_URL    memory://
max_concurrent_tasks        FLUID_MAX_CONCURRENT_TASKS             5
sleep_millis                FLUID_SLEEP_MILLIS                     1000
scheduler_heartbeat_millis  FLUID_SCHEDULER_HEARTBEAT_MILLIS       100
stopping_grace_period       FLUID_STOPPING_GRACE_PERIOD            10
redis_max_connections       MAX_REDIS_CONNECTIONS                  5
app_name                    APP_NAME                               fluid
log_level                   LOG_LEVEL                              INFO
http_insecure               FLUID_HTTP_INSECURE                    false
retry_floor                 FLUID_RETRY_FLOOR                      0
redis_default_url           REDIS_DEFAULT_URL                      redis://localhost:6379
env                         PYTHON_ENV                             dev
log_handler                 LOG_HANDLER                            plain
python_log_format           PYTHON_LOG_FORMAT                      time, level, logger, message
==========================  =====================================  =====================================

``FLUID_ENV_PREFIX`` puts another prefix in the place of ``FLUID_``; set to nothing, it means no prefix at all.
"""

import os
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from .checks import MAX_CONCURRENT, read_number
from .errors import ConfigError

__all__ = ["Settings", "Unset", "get_settings", "read_settings"]


class Unset(int):
    """The default of a number that nobody has set, so that a command may have another default."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that the environment gives. Every upper-case field name is also an attribute of this module.

    ``broker_url``: where runs are kept. It may hold a password, so it is not part of ``repr``.
    ``max_concurrent_tasks``: how many runs one consumer executes at a time; 0: none.
    ``sleep_millis``: how long an idle consumer waits, in milliseconds.
    ``scheduler_heartbeat_millis``: how often schedules are looked at, in milliseconds, at least 1.
    ``stopping_grace_period``: how long a worker that is asked to stop may take, in seconds.
    ``redis_max_connections``: size of the connection pool, at least 1.
    ``app_name``: the root of the names of task loggers.
    ``log_level``: in upper case.
    ``http_insecure``: whether the HTTP routes are served without ``auth``.
    ``retry_floor``: the least seconds before any retry; see ``TaskManagerConfig``.
    ``redis_default_url``, ``env``, ``log_handler``, ``python_log_format``: for programs that read aio-fluid's settings.
    The first may hold a password, so it is not part of ``repr``.
    """

    broker_url: str = field(default="memory://", repr=False)
    max_concurrent_tasks: int = Unset(5)  # it is immutable
    sleep_millis: int = 1000
    scheduler_heartbeat_millis: int = 100
    stopping_grace_period: float = 10
    redis_max_connections: int = 5
    app_name: str = "fluid"
    log_level: str = "INFO"
    http_insecure: bool = False
    retry_floor: float = 0.0
    redis_default_url: str = field(default="redis://localhost:6379", repr=False)
    env: str = "dev"
    log_handler: str = "plain"
    python_log_format: str = "%(asctime)s %(levelname)s %(name)s %(message)s"


_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


class _Environment:
    """The environment at one moment, by lower-case name."""

    def __init__(self) -> None:
        # an upper-case name sorts before its other spellings, so it is the last to be written
        self._variables = {name.lower(): (name, os.environ[name]) for name in sorted(os.environ, reverse=True)}
        self.prefix = self._variables.get("fluid_env_prefix", ("", "fluid_"))[1].lower()

    def _get(self, name: str) -> tuple[str, str]:
        """The variable's name as it is spelled in the environment, and its value; both empty if it is not set."""
        found, value = self._variables.get(name, ("", ""))
        value = value.strip()
        return (found, value) if value else ("", "")

    def text(self, default: str, *names: str) -> str:
        return next((value for _, value in map(self._get, names) if value), default)

    def number(self, default: Any, name: str, **ranges: Any) -> Any:
        variable, text = self._get(name)
        return read_number(variable, text, ConfigError, **ranges) if text else default

    def flag(self, default: bool, name: str) -> bool:
        variable, text = self._get(name)
        if not text:
            return default
        if text.lower() not in _FLAGS:
            raise ConfigError(f"{variable}={text!r} must be true or false")
        return _FLAGS[text.lower()]


@cache
def get_settings() -> Settings:
    """The settings of this process: read at the first call, then kept.

    ``get_settings.cache_clear()`` makes the next call read the environment again.

    Raises:
        ConfigError: a value that is not of its kind; names the variable and the value.
    """
    return read_settings()


def read_settings() -> Settings:
    """Read the settings now, past what ``get_settings`` keeps. Raises as that does."""
    default = Settings()
    env = _Environment()
    return Settings(
        broker_url=env.text(default.broker_url, f"{env.prefix}broker_url", "redis_default_url"),
        max_concurrent_tasks=env.number(
            default.max_concurrent_tasks, f"{env.prefix}max_concurrent_tasks", **MAX_CONCURRENT
        ),
        sleep_millis=env.number(default.sleep_millis, f"{env.prefix}sleep_millis", whole=True),
        scheduler_heartbeat_millis=env.number(
            default.scheduler_heartbeat_millis, f"{env.prefix}scheduler_heartbeat_millis", least=1, whole=True
        ),
        stopping_grace_period=env.number(default.stopping_grace_period, f"{env.prefix}stopping_grace_period"),
        redis_max_connections=env.number(
            default.redis_max_connections, "max_redis_connections", least=1, most=10_000, whole=True
        ),
        app_name=env.text(default.app_name, "app_name"),
        log_level=env.text(default.log_level, "log_level").upper(),
        http_insecure=env.flag(default.http_insecure, f"{env.prefix}http_insecure"),
        retry_floor=env.number(default.retry_floor, f"{env.prefix}retry_floor"),
        redis_default_url=env.text(default.redis_default_url, "redis_default_url"),
        env=env.text(default.env, "python_env"),
        log_handler=env.text(default.log_handler, "log_handler"),
        python_log_format=env.text(default.python_log_format, "python_log_format"),
    )


_FIELDS = frozenset(item.name.upper() for item in fields(Settings))


def __getattr__(name: str) -> Any:
    """A setting by its upper-case name, such as ``settings.APP_NAME``."""
    if name in _FIELDS:
        return getattr(get_settings(), name.lower())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
