"""What the run history is asked, and what it answers."""

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ...checks import shown
from ...core.states import TaskPriority, TaskState
from ...errors import ConfigError

__all__ = [
    "Attempt", "HistoryPage", "HistoryQuery", "HistoryStats", "RunDetail", "RunRecord",
    "cleaned", "contains", "cursor_of", "is_storable", "position_of", "read_keep", "utc",
]  # fmt: skip

MAX_LIMIT = 10_000
"""Rows in a page, at most."""
MAX_CURSOR = 2_000
"""Characters of a cursor."""
UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class HistoryQuery(msgspec.Struct, kw_only=True, frozen=True):
    """A question to the history: runs that match every filter, newest first. None: any.

    ``task``, ``state``, ``priority``, ``tags``: one of these values; an empty list matches nothing. ``start``, ``end``:
    queued then or later, then or earlier (naive: UTC). ``params``: an object that the run's params contain, as
    PostgreSQL's ``@>`` has it. ``limit``: rows in the page, 1 to 10,000. ``cursor``: that of the page before.
    """

    task: Sequence[str] | None = None
    state: Sequence[TaskState | str] | None = None
    priority: Sequence[TaskPriority | str] | None = None
    tags: Sequence[str] | None = None
    start: datetime | None = None
    end: datetime | None = None
    params: dict[str, Any] | None = None
    limit: int = 50
    cursor: str = ""


class RunRecord(msgspec.Struct, kw_only=True):
    """A recorded run. Times are UTC, secrets in ``params`` are masked."""

    id: str
    task: str
    priority: TaskPriority
    state: TaskState
    queued: datetime
    start: datetime | None = None
    end: datetime | None = None
    params: dict[str, Any]


class HistoryPage(msgspec.Struct):
    """A page of recorded runs. ``cursor``: for the next page; ``""``: this is the last."""

    runs: list[RunRecord]
    cursor: str = ""


class Attempt(msgspec.Struct, kw_only=True):
    """An attempt at a run that failed, was slow, or followed another attempt. Times are UTC.

    ``attempt`` counts from 1. ``place``: file and line of the error. ``trace_id``: of the trace that the run belongs
    to. A text that there is none of is ``""``.
    """

    run_id: str
    attempt: int
    task: str
    worker: str
    state: str
    start: datetime
    end: datetime
    error: str = ""
    place: str = ""
    traceback: str = ""
    trace_id: str = ""


class RunDetail(msgspec.Struct, kw_only=True):
    """A recorded run and its recorded attempts, the first one first."""

    run: RunRecord
    attempts: list[Attempt]


class HistoryStats(msgspec.Struct, kw_only=True, frozen=True):
    """The recorder of this process.

    ``recorded``: rows written; ``waiting``: rows in memory; ``every``: 1 in so many successes is recorded now;
    ``sampled_out``: successes that sampling left out; ``dropped``: rows lost since the database was away or slow;
    ``refused``: rows that the database refused; ``error``: why it cannot be written now, ``""`` if it can.
    """

    recorded: int = 0
    waiting: int = 0
    every: int = 1
    sampled_out: int = 0
    dropped: int = 0
    refused: int = 0
    error: str = ""


def utc(moment: datetime | None) -> datetime | None:
    """Return a time in UTC; a naive one is in UTC already.

    Raises:
        ConfigError: it is out of range.
    """
    if moment is None or moment.tzinfo is None:
        return moment if moment is None else moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ConfigError(f"{shown(moment)} is not a time between the years 1 and 9999 in UTC") from None


def cursor_of(queued: datetime, run_id: str) -> str:
    """Return the cursor for the runs after this one."""
    position = msgspec.json.encode([(queued - EPOCH) // MICROSECOND, run_id])
    return base64.urlsafe_b64encode(position).decode().rstrip("=")


def position_of(cursor: str) -> tuple[datetime, str]:
    """Return the time and the id of the run that a cursor stands behind.

    Raises:
        ConfigError: it is not a cursor.
    """
    try:
        if len(cursor) > MAX_CURSOR:
            raise ValueError("too long")
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        micros, run_id = msgspec.json.decode(raw, type=tuple[int, str])
        if not is_storable(run_id):
            raise ValueError("not an id")
        return EPOCH + timedelta(microseconds=micros), run_id
    except (ValueError, OverflowError, binascii.Error, msgspec.DecodeError):
        raise ConfigError(f"{shown(cursor)} is not a cursor: give that of the page before, unchanged") from None


def read_keep(keep: str | float | timedelta | None) -> float | None:
    """Return the seconds that rows are kept: ``"14d"``, ``"12h"``, a number of seconds, a timedelta; None: for ever.

    Raises:
        ConfigError: it is none of these, or not above 0.
    """
    if keep is None:
        return None
    seconds = -1.0
    if isinstance(keep, timedelta):
        seconds = keep.total_seconds()
    elif isinstance(keep, str):
        if found := re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([dhms])\s*", keep):
            seconds = float(found[1]) * UNITS[found[2]]
    elif isinstance(keep, int | float) and not isinstance(keep, bool):
        seconds = float(keep)
    if not 0 < seconds < 1e10:
        raise ConfigError(f"keep is {shown(keep)}, it must be a time such as '14d', '12h', '30m' or '90s', or None")
    return seconds


def is_storable(text: str) -> bool:
    """Return whether the databases can hold a text: without NUL and lone surrogates."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text))


def cleaned(value: Any) -> Any:
    """Return JSON data with U+FFFD in place of each NUL and lone surrogate, which PostgreSQL refuses."""
    if isinstance(value, str):
        if is_storable(value):
            return value
        return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, dict):
        return {cleaned(str(key)): cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return value


def contains(whole: Any, part: Any) -> bool:
    """Return whether JSON data contains other JSON data, as PostgreSQL's ``@>`` has it for objects."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(item, wanted) for item in whole) for wanted in part)
    if isinstance(part, bool) or isinstance(whole, bool):
        return part is whole
    return not isinstance(whole, dict | list) and bool(whole == part)
