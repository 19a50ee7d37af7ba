"""``RunOptions``: how to queue one run. ``RunHandle``: a run that was queued. ``Middleware``: code around both ends."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypedDict

import msgspec

from ..checks import CENTURY, check_number, shown
from ..core._time import now_micros
from ..core.states import TaskPriority
from ..errors import ConfigError, TaskUsageError

__all__ = ["EnqueueMiddleware", "ExecuteMiddleware", "Middleware", "RunHandle", "RunOptions", "Wanted", "read_options"]

if TYPE_CHECKING:  # defaults of type variables are of Python 3.13
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")


class RunHandle(msgspec.Struct, Generic[R], frozen=True):
    """A run that was queued. ``R`` is the type of its task's result."""

    id: str
    """The run's id, by default 32 hex digits."""


class RunOptions(TypedDict, total=False):
    """Options of one run, for ``manager.enqueue`` and ``BoundTask.options``.

    ``run_id``: the run's id; default: a new one.
    ``priority``: ``"high"``, ``"medium"`` or ``"low"``; default: the task's.
    ``delay``: seconds, or a timedelta, before it may start, 0 or more.
    ``at``: the moment before which it does not start, with a time zone. A past one: at once.
    """

    run_id: str
    priority: TaskPriority | str
    delay: float | timedelta
    at: datetime


class EnqueueMiddleware(Protocol):
    """Code around each queueing of a run; see ``TaskManager.add_middleware``."""

    async def enqueue(self, run: Any, options: Any, call_next: Callable[[], Awaitable[RunHandle[Any]]]) -> Any:
        """Return ``await call_next()``, the run's handle; or raise to refuse the run.

        ``run``: a ``TaskRun``. ``options``: a copy of the ``RunOptions`` that the caller gave.
        """


class ExecuteMiddleware(Protocol):
    """Code around each call of a task's function; see ``TaskManager.add_middleware``."""

    async def execute(self, run: Any, call_next: Callable[[], Awaitable[Any]]) -> Any:
        """Return ``await call_next()``, the function's result, or another in its place; or raise to fail the run.

        ``run``: a ``TaskRun``; of a batch task, the list of its runs.
        """


Middleware = EnqueueMiddleware | ExecuteMiddleware


class Wanted(NamedTuple):
    """Checked ``RunOptions``."""

    run_id: str = ""
    priority: TaskPriority | str | None = None
    delay: float = 0.0
    at: datetime | None = None

    def given(self) -> dict[str, Any]:
        """Return the ``RunOptions`` that differ from their defaults."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}

    def seconds(self, now: int) -> float:
        """Return the seconds until the run may start, from ``now`` (microseconds since the epoch)."""
        return self.delay if self.at is None else max(0.0, self.at.timestamp() - now / 1e6)


def read_options(options: Mapping[str, Any], method: str = "enqueue") -> Wanted:
    """Check ``RunOptions``. None is as good as no option.

    Raises:
        ConfigError: an option is unknown or out of range, ``at`` has no time zone, or there is a ``delay`` beside it.
        TaskUsageError: ``run_id`` or ``at`` is of another type.
    """
    for name in options:
        if name not in RunOptions.__annotations__:
            close = get_close_matches(name, RunOptions.__annotations__, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(RunOptions.__annotations__)}"
            if method == "enqueue":
                hint += '; params go before the options, as one object or mapping: enqueue(task, {"name": value})'
            raise ConfigError(f"{method} has no option {name!r}; {hint}")
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(run_id := given.get("run_id", ""), str):
        raise TaskUsageError(f"{method}: run_id is {shown(run_id)}, it must be text")
    if "delay" in given:
        if "at" in given:
            raise ConfigError(f"{method}: delay and at exclude each other: give one of them")
        delay = given["delay"]
        given["delay"] = check_number(
            f"{method}: delay", delay.total_seconds() if isinstance(delay, timedelta) else delay, ConfigError
        )
    if "at" in given:
        check_moment(f"{method}: at", given["at"])
    return Wanted(**given)


def check_moment(option: str, moment: Any) -> None:
    if not isinstance(moment, datetime):
        raise TaskUsageError(
            f"{option} is {shown(moment)}, it must be a datetime with a time zone, such as "
            "datetime.now(UTC) + timedelta(minutes=5)"
        )
    if moment.utcoffset() is None:
        raise ConfigError(
            f"{option} is {moment.isoformat(' ')} without a time zone: write datetime(..., tzinfo=UTC) or "
            'tzinfo=ZoneInfo("Europe/Berlin")'
        )
    if moment.timestamp() > now_micros() / 1e6 + CENTURY:
        raise ConfigError(f"{option} is {moment.isoformat(' ')}, it must be within a century from now")
