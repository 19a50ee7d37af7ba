"""Schedules: when a task is due. ``every`` counts from the last run, ``crontab`` follows the calendar."""

import random
from abc import ABC, abstractmethod
from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from ..checks import CENTURY, shown
from ..errors import ConfigError

__all__ = ["CronRun", "Scheduler", "crontab", "every"]

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_CENTURY = timedelta(seconds=CENTURY)
_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "day_of_week": (0, 7)}
# every combination of month, day and weekday comes back within 40 years (29 February around the year 2100)
_YEARS_AHEAD = 41


class CronRun(NamedTuple):
    """A moment at which a schedule was due, as wall-clock time in its time zone.

    ``week_day``: 0 is Sunday. ``fold``: 1 if clocks were set back and show this time for the second time.
    """

    year: int
    month: int
    day: int
    week_day: int
    hour: int
    minute: int
    second: int = 0
    tz: tzinfo = UTC
    fold: int = 0

    @property
    def datetime(self) -> datetime:
        """The same moment, as an aware datetime in ``tz``."""
        return datetime(
            self.year, self.month, self.day, self.hour, self.minute, self.second, tzinfo=self.tz, fold=self.fold
        )


def _run_of(moment: datetime, second: int, tz: tzinfo) -> CronRun:
    week_day = moment.isoweekday() % 7
    return CronRun(moment.year, moment.month, moment.day, week_day, moment.hour, moment.minute, second, tz, moment.fold)


class Scheduler(ABC):
    """When a task is due. A call with the time and the last run returns the run to start, or None."""

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.info()})"

    @abstractmethod
    def info(self) -> str:
        """Return the schedule in words."""

    @abstractmethod
    def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
        """Return the run due at ``timestamp``; None if none is. ``last_run``: the last run that this returned."""


class every(Scheduler):
    """Due when ``delta`` has passed since the last run, or at once if there was none.

    ``delay``: how long the first run waits, counted from the first call.
    ``jitter``: the largest random time added to each ``delta``.

    Runs have times in whole seconds, so a ``delta`` of whole seconds does not drift.

        @task(schedule=every(timedelta(minutes=5), jitter=timedelta(seconds=10)))

    Raises:
        ConfigError: an argument is not a timedelta, is negative, or exceeds a century.
    """

    def __init__(self, delta: timedelta, delay: timedelta = timedelta(), jitter: timedelta = timedelta()) -> None:
        for name, value in (("delta", delta), ("delay", delay), ("jitter", jitter)):
            if not isinstance(value, timedelta):
                raise ConfigError(f"every: {name} is {shown(value)}, it must be a timedelta: timedelta(seconds=30)")
            if not timedelta() <= value <= _CENTURY:
                raise ConfigError(f"every: {name} is {value}, it must be at least 0 and at most a century")
        self.delta = delta
        self.delay = delay
        self.jitter = jitter
        self._delta = self.next_delta()
        self._first_call: datetime | None = None
        self._fired: tuple[CronRun, datetime] | None = None

    def info(self) -> str:
        """Return ``delta`` as text."""
        return str(self.delta)

    def next_delta(self) -> timedelta:
        """Return a new time between two runs: ``delta`` plus a random part of ``jitter``."""
        return self.delta + random.random() * self.jitter

    def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
        """Return the run due at ``timestamp`` (UTC if it has no time zone), or None."""
        if timestamp.tzinfo is None:
            timestamp = timestamp.replace(tzinfo=UTC)
        if last_run is None:
            if self.delay:
                self._first_call = self._first_call or timestamp
                if timestamp - self._first_call < self.delay:
                    return None
        elif self._since(last_run, timestamp) < self._delta:
            return None
        self._delta = self.next_delta()
        return self.fired_at(timestamp)

    def fired_at(self, moment: datetime) -> CronRun:
        """Return the run of an aware ``moment`` that another process fired; the next ``delta`` counts from it."""
        run = _run_of(moment, moment.second, moment.tzinfo or UTC)
        self._fired = run, moment
        return run

    def next_run(self, last_run: CronRun | None) -> datetime | None:
        """Return when the run after ``last_run`` is due, in UTC; None: at the next call."""
        if last_run is not None:
            return self._exact(last_run) + self._delta
        if self.delay and self._first_call is not None:
            return self._first_call.astimezone(UTC) + self.delay
        return None

    def restart(self) -> None:
        """Forget the first call and the last run, as in a new process."""
        self._first_call = self._fired = None

    def _since(self, last_run: CronRun, timestamp: datetime) -> timedelta:
        """Return the time since the last run, to the microsecond if ``delta`` is not in whole seconds."""
        return timestamp.astimezone(UTC) - self._exact(last_run)

    def _exact(self, last_run: CronRun) -> datetime:
        """The time of the last run, in UTC: two times of one zone would be subtracted as the wall shows them."""
        if self._delta.microseconds and self._fired is not None and self._fired[0] == last_run:
            return self._fired[1].astimezone(UTC)
        return last_run.datetime.astimezone(UTC)


class crontab(Scheduler):
    """Due in each minute whose wall-clock time in the time zone ``tz`` matches all five fields.

    ``minute`` 0-59, ``hour`` 0-23, ``day`` 1-31, ``month`` 1-12, ``day_of_week`` 0-7 (Sunday is 0 and 7).
    A field is a number, or a string of pieces between commas: ``a`` a number, ``*`` all, ``*/n`` every n-th from the
    lowest, ``a-b`` a range, ``a-b/n`` every n-th of a range. ``day_of_week`` does not take ``*/n``.
    ``minutes``, ``hours``, ``days`` and ``months`` are other names of the first four.
    ``tz``: a ``tzinfo``, or the name of a zone such as ``"Europe/Berlin"``.

    When clocks are set forward, skipped times are not due. When clocks are set back, repeated times are due twice if
    ``minute`` or ``hour`` contains a ``*``, else only the first time (as with cron).

        @task(schedule=crontab(hour=5, minute=0, tz="Europe/Berlin"))

    Raises:
        ConfigError: a field is not valid (the message names it and its valid values), or the zone is unknown.
        TypeError: both names of a field are given.
    """

    def __init__(
        self,
        minute: str | int = "*",
        hour: str | int = "*",
        day: str | int = "*",
        month: str | int = "*",
        day_of_week: str | int = "*",
        tz: tzinfo | str = UTC,
        *,
        minutes: str | int | None = None,
        hours: str | int | None = None,
        days: str | int | None = None,
        months: str | int | None = None,
    ) -> None:
        minute = _either("minute", minute, minutes)
        hour = _either("hour", hour, hours)
        day = _either("day", day, days)
        month = _either("month", month, months)
        self.tz = _zone(tz)
        self._info = f"minute {minute}; hour {hour}; day {day}; month {month}; day_of_week {day_of_week}"
        self._minutes = _parse("minute", minute)
        self._hours = _parse("hour", hour)
        self._days = frozenset(_parse("day", day))
        self._months = frozenset(_parse("month", month))
        self._week_days = frozenset(number % 7 for number in _parse("day_of_week", day_of_week))
        self._once = "*" not in f"{minute},{hour}"

    @classmethod
    def from_line(cls, line: str, tz: tzinfo | str = UTC) -> "crontab":
        """Return the schedule for a line of cron: minute, hour, day, month and day of the week, between spaces.

        Raises:
            ConfigError: the line is not valid, or gives both a day and a day of the week. With both, cron is due on
                either day, and ``crontab()`` only on days that match both.
        """
        fields = line.split()
        if len(fields) != 5:
            raise ConfigError(
                f"schedule {shown(line)} is not a line of cron with five fields: minute, hour, day, month, "
                'day of the week; "0 5 * * *" is each day at 05:00'
            )
        if fields[2] != "*" and fields[4] != "*":
            raise ConfigError(
                f"schedule {shown(line)} has both a day and a day of the week: cron takes either of them; write "
                f"{_call_of(fields)} for days that are both, or two tasks for either"
            )
        minute, hour, day, month, day_of_week = fields
        return cls(minute, hour, day, month, day_of_week, tz)

    def info(self) -> str:
        """Return the five fields as text."""
        return self._info

    def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
        """Return the run of the minute of ``timestamp``; None if none is due, or if it is ``last_run``.

        Raises:
            ValueError: ``timestamp`` has no time zone.
        """
        moment = self._local(timestamp)
        if not self._matches(moment):
            return None
        run = _run_of(moment, 0, self.tz)
        # not the zone: it is UTC in a run that was made by hand
        if last_run is not None and (last_run[:6], last_run.fold) == (run[:6], run.fold):
            return None
        return run

    def next_run(self, after: datetime) -> datetime:
        """Return the first due time after ``after``, in the time zone ``tz``, to the minute.

        Raises:
            ValueError: ``after`` has no time zone, or no such time comes (30 February).
        """
        moment = self._local(after)
        last_year = moment.year + _YEARS_AHEAD
        utc = moment.replace(second=0, microsecond=0).astimezone(UTC)
        try:
            utc += _MINUTE
            while True:
                moment = utc.astimezone(self.tz)
                wall = moment.replace(tzinfo=None)
                day = self._next_day(wall.date(), last_year)
                if day is None:
                    break
                if wall.second:  # after a change from an offset that was no whole minute (before 1972)
                    utc += timedelta(seconds=60 - wall.second)
                elif day - wall.date() > _DAY:
                    # on to the midnight before the eve of that day: no change of clocks skips a day and a half
                    utc += datetime.combine(day - _DAY, time.min) - wall
                elif (utc + _DAY).astimezone(self.tz).utcoffset() != moment.utcoffset():
                    # clocks change within a day: look at every minute of it
                    if self._matches(moment):
                        return moment
                    utc += _MINUTE
                elif (found := self._next_wall(wall)) is None:
                    utc += _DAY
                else:
                    utc += found - wall
                    moment = utc.astimezone(self.tz)
                    if self._matches(moment):
                        return moment
                    utc += _MINUTE
        except OverflowError:  # the end of the calendar
            pass
        raise ValueError(f"{self} does not come after {after}")

    def _local(self, timestamp: datetime) -> datetime:
        if timestamp.utcoffset() is None:
            raise ValueError(f"crontab: {timestamp} has no time zone")
        # by way of UTC: a time that the clocks left out becomes the one that it means
        return timestamp.astimezone(UTC).astimezone(self.tz)

    def _matches(self, moment: datetime) -> bool:
        return (
            moment.minute in self._minutes
            and moment.hour in self._hours
            and self._matches_day(moment)
            and not (moment.fold and self._once)
        )

    def _matches_day(self, day: date) -> bool:
        return day.day in self._days and day.month in self._months and day.isoweekday() % 7 in self._week_days

    def _next_day(self, day: date, last_year: int) -> date | None:
        """The first day from ``day`` on that matches; None if none does until the end of ``last_year``."""
        while day.year <= last_year:
            if self._matches_day(day):
                return day
            if day.month in self._months:
                day += _DAY
            else:
                day = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
        return None

    def _next_wall(self, wall: datetime) -> datetime | None:
        """The first time that matches, from ``wall`` on, less than a day later; None if there is none."""
        minutes, hours = self._minutes, self._hours
        if self._matches_day(wall):
            if wall.hour in hours and wall.minute <= minutes[-1]:
                return wall.replace(minute=minutes[bisect_left(minutes, wall.minute)])
            if wall.hour < hours[-1]:
                return wall.replace(hour=hours[bisect_left(hours, wall.hour + 1)], minute=minutes[0])
        first = datetime.combine(wall + _DAY, time(hours[0], minutes[0]))
        return first if self._matches_day(first) and first - wall < _DAY else None


def _zone(tz: tzinfo | str) -> tzinfo:
    """The time zone of a name, or the zone itself."""
    if isinstance(tz, tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except Exception as exc:  # of many kinds: not a name, a path, a folder, no such zone
        raise ConfigError(
            f'crontab: tz is {shown(tz)}, it must be a time zone: tz="Europe/Berlin" or tz=ZoneInfo("Europe/Berlin") '
            "(on a system without time zones: pip install tzdata)"
        ) from exc


def _call_of(fields: list[str]) -> str:
    """The call of ``crontab`` for the five fields of a line of cron."""
    given = [f"{name}={value!r}" for name, value in zip(_FIELDS, fields, strict=True) if value != "*"]
    return f"crontab({', '.join(given)})"


def _either(name: str, value: str | int, plural: str | int | None) -> str | int:
    """The value of a field that has two names."""
    if plural is None:
        return value
    if value != "*":
        raise TypeError(f"crontab: {name} and {name}s are the same field, give one of them")
    return plural


def _parse(name: str, value: str | int) -> list[int]:
    """The numbers that a field stands for, in order."""
    numbers: set[int] = set()
    low, high = _FIELDS[name]
    if name == "minute" and isinstance(value, str) and len(fields := value.split()) == 5:
        raise ConfigError(
            f"crontab: {shown(value)} is a line of cron, and the five fields are arguments of their own: write "
            f"{_call_of(fields)}, or schedule={value!r}"
        )
    steps = "" if name == "day_of_week" else ", */n"
    for piece in str(value).split(","):
        try:
            numbers.update(_parse_piece(piece.strip(), low, high, bool(steps)))
        except ValueError:
            raise ConfigError(
                f"crontab: {shown(piece)} is not valid in {name}={shown(value)}: "
                f"allowed are numbers from {low} to {high}, a-b, a-b/n, *{steps}, and several of these between commas"
            ) from None
    return sorted(numbers)


def _parse_piece(piece: str, low: int, high: int, star_steps: bool) -> range:
    span, slash, step_text = piece.partition("/")
    step = _number(step_text) if slash else 1
    if span == "*":
        first, last, may_step = low, high, star_steps
    else:
        first_text, dash, last_text = span.partition("-")
        first = _number(first_text)
        last = _number(last_text) if dash else first
        may_step = bool(dash)
    if not low <= first <= last <= high or step < 1 or (slash and not may_step):
        raise ValueError(piece)
    return range(first, last + 1, step)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(text)
    return int(text)
