import random
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from importlib import import_module
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluidfast.core.schedule import CronRun, Scheduler, crontab, every

ROME = ZoneInfo("Europe/Rome")

# fields, zone, time, and the first seven fields of the run that aio-fluid 2.12 answers with
AIO_FLUID: list[tuple[dict[str, Any], str, str, tuple[int, ...] | None]] = [
    ({}, "UTC", "2026-02-28T23:59:59+00:00", (2026, 2, 28, 6, 23, 59, 0)),
    ({"minute": 0}, "UTC", "2026-02-28T23:00:30+00:00", (2026, 2, 28, 6, 23, 0, 0)),
    ({"minute": 0}, "UTC", "2026-02-28T23:01:00+00:00", None),
    ({"minute": "*/7"}, "UTC", "2026-05-05T05:56:00+00:00", (2026, 5, 5, 2, 5, 56, 0)),
    ({"minute": "*/7"}, "UTC", "2026-05-05T05:57:00+00:00", None),
    ({"minute": "*/90"}, "UTC", "2026-05-05T05:00:00+00:00", (2026, 5, 5, 2, 5, 0, 0)),
    ({"minute": "5-10,50", "hour": "9-17"}, "UTC", "2026-05-05T17:50:00+00:00", (2026, 5, 5, 2, 17, 50, 0)),
    ({"minute": "5-10,50", "hour": "9-17"}, "UTC", "2026-05-05T18:50:00+00:00", None),
    ({"hour": "*/5", "minute": 15}, "UTC", "2026-05-05T20:15:00+00:00", (2026, 5, 5, 2, 20, 15, 0)),
    ({"hour": "*/5", "minute": 15}, "UTC", "2026-05-05T21:15:00+00:00", None),
    ({"day": "*/10", "hour": 0, "minute": 0}, "UTC", "2026-01-31T00:00:00+00:00", (2026, 1, 31, 6, 0, 0, 0)),
    ({"day": "*/10", "hour": 0, "minute": 0}, "UTC", "2026-01-30T00:00:00+00:00", None),
    ({"month": "*/6"}, "UTC", "2026-07-31T10:10:00+00:00", (2026, 7, 31, 5, 10, 10, 0)),
    ({"month": "*/6"}, "UTC", "2026-06-30T10:10:00+00:00", None),
    ({"month": "1-3,12", "day": 29}, "UTC", "2028-02-29T00:00:00+00:00", (2028, 2, 29, 2, 0, 0, 0)),
    ({"day_of_week": 7}, "UTC", "2026-03-01T12:00:00+00:00", (2026, 3, 1, 0, 12, 0, 0)),
    ({"day_of_week": 0}, "UTC", "2026-03-01T12:00:00+00:00", (2026, 3, 1, 0, 12, 0, 0)),
    ({"day_of_week": "5-7"}, "UTC", "2026-03-01T12:00:00+00:00", (2026, 3, 1, 0, 12, 0, 0)),
    ({"day_of_week": "1-5"}, "UTC", "2026-03-01T12:00:00+00:00", None),
    ({"day": 13, "day_of_week": 5}, "UTC", "2026-03-13T00:00:00+00:00", (2026, 3, 13, 5, 0, 0, 0)),
    ({"day": 13, "day_of_week": 5}, "UTC", "2026-04-13T00:00:00+00:00", None),
    ({"day": "*", "day_of_week": "*"}, "UTC", "2026-04-13T02:30:00+02:00", (2026, 4, 13, 1, 0, 30, 0)),
    ({"hour": 8, "minute": 30}, "Europe/Rome", "2026-01-15T07:30:00+00:00", (2026, 1, 15, 4, 8, 30, 0)),
    ({"hour": 8, "minute": 30}, "Europe/Rome", "2026-07-15T06:30:00+00:00", (2026, 7, 15, 3, 8, 30, 0)),
    ({"hour": 8, "minute": 30}, "Europe/Rome", "2026-07-15T07:30:00+00:00", None),
    ({"hour": 0, "day_of_week": 1}, "Asia/Kathmandu", "2026-03-01T18:15:00+00:00", (2026, 3, 2, 1, 0, 0, 0)),
    ({"hour": 2, "minute": 30}, "Europe/Rome", "2026-03-29T01:30:00+00:00", None),
    ({"hour": 2, "minute": 30}, "Europe/Rome", "2026-10-25T00:30:00+00:00", (2026, 10, 25, 0, 2, 30, 0)),
    ({"hour": 2, "minute": "*/30"}, "Europe/Rome", "2026-10-25T01:30:00+00:00", (2026, 10, 25, 0, 2, 30, 0)),
    ({"hour": "*", "minute": 0}, "Australia/Lord_Howe", "2026-04-04T15:00:00+00:00", None),
    ({"hour": 19, "minute": "0-59"}, "America/New_York", "2026-12-31T16:59:00-08:00", (2026, 12, 31, 4, 19, 59, 0)),
]


def at(text: str, zone: tzinfo | None = None) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if zone is None else moment.replace(tzinfo=zone)


@pytest.mark.parametrize(("fields", "zone", "moment", "expected"), AIO_FLUID)
def test_crontab_agrees_with_aio_fluid(
    fields: dict[str, Any], zone: str, moment: str, expected: tuple[int, ...] | None
) -> None:
    run = crontab(**fields, tz=ZoneInfo(zone))(at(moment))
    assert (run and run[:7]) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "crontab(minute *; hour *; day *; month *; day_of_week *)"),
        (
            {"minute": "0,30", "hours": 4, "day_of_week": "1-5"},
            "crontab(minute 0,30; hour 4; day *; month *; day_of_week 1-5)",
        ),
    ],
)
def test_crontab_str(fields: dict[str, Any], expected: str) -> None:
    assert str(crontab(**fields)) == expected


def test_crontab_takes_both_names_of_a_field() -> None:
    one = crontab(minute="*/5", hour=3, day="1-7", month=2)
    other = crontab(minutes="*/5", hours=3, days="1-7", months=2)
    assert str(one) == str(other)
    assert one.next_run(at("2026-01-01", UTC)) == other.next_run(at("2026-01-01", UTC))
    with pytest.raises(TypeError, match="hour and hours"):
        crontab(hour=3, hours=3)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("minute", 60, "from 0 to 59"),
        ("minute", -1, "from 0 to 59"),
        ("minute", "0-61", "from 0 to 59"),
        ("minutes", "*/0", "from 0 to 59"),
        ("minute", "*/x", "a-b/n"),
        ("minute", "*/3x", "a-b/n"),
        ("minute", "5/10", "a-b/n"),
        ("minute", "5-", "a-b/n"),
        ("minute", "-5", "a-b/n"),
        ("minute", "1-2-3", "a-b/n"),
        ("minute", "1-9/", "a-b/n"),
        ("minute", "", "a-b/n"),
        ("minute", "1,,2", "a-b/n"),
        ("minute", "foo", "a-b/n"),
        ("minute", "٣", "a-b/n"),
        ("minute", 1.5, "a-b/n"),
        ("hour", 24, "from 0 to 23"),
        ("hour", "22-2", "from 0 to 23"),
        ("day", 0, "from 1 to 31"),
        ("month", 13, "from 1 to 12"),
        ("day_of_week", 8, "from 0 to 7"),
        ("day_of_week", "*/2", "a-b/n"),
    ],
)
def test_crontab_names_what_is_wrong(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed) as caught:
        crontab(**{field: value})
    assert f"{field.removesuffix('s')}={value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "numbers"),
    [
        ("minute", "1-9/4,50", [1, 5, 9, 50]),
        ("minute", " 1 , 2 ", [1, 2]),
        ("hour", "*/6", [0, 6, 12, 18]),
        ("day", "*/10", [1, 11, 21, 31]),
        ("month", "1,4,*/6,8-9", [1, 4, 7, 8, 9]),
        ("day_of_week", "1-5/2", [1, 3, 5]),
        ("day_of_week", "6-7", [0, 6]),
        ("day_of_week", "*", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_crontab_fields(field: str, value: str, numbers: list[int]) -> None:
    options: dict[str, Any] = {field: value}
    schedule = crontab(**options)
    start = at("2026-01-01", UTC)
    step = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1)}.get(field, timedelta(days=1))
    position = {"minute": 5, "hour": 4, "day": 2, "month": 1, "day_of_week": 3}[field]
    runs = [schedule(start + step * count) for count in range(366)]
    found: set[Any] = {run[position] for run in runs if run}
    assert sorted(found) == numbers


def test_crontab_is_due_once_a_minute() -> None:
    schedule = crontab(hour=8, minute=0)
    run = schedule(at("2026-02-20T08:00:05", UTC))
    assert run == CronRun(2026, 2, 20, 5, 8, 0)
    assert schedule(at("2026-02-20T08:00:59.9", UTC), run) is None
    assert schedule(at("2026-02-20T08:01", UTC), run) is None
    assert schedule(at("2026-02-21T08:00", UTC), run) is not None


def test_crontab_in_a_zone() -> None:
    schedule = crontab(hour=8, minute=0, tz=ROME)
    run = schedule(at("2026-07-01T06:00:30", UTC))
    assert run is not None
    assert run.tz is ROME
    assert run.datetime == at("2026-07-01T06:00", UTC)
    # a run that was made by hand, as if it were UTC
    assert schedule(at("2026-07-01T06:00", UTC), CronRun(2026, 7, 1, 3, 8, 0)) is None


def test_crontab_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        crontab()(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="time zone"):
        crontab().next_run(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("fields", "after", "expected"),
    [
        ({}, "2026-01-01T00:00:59.5+00:00", "2026-01-01T00:01:00+00:00"),
        ({"minute": 0}, "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00"),
        ({"minute": "10,20", "hour": "9,17"}, "2026-01-01T17:20:00+00:00", "2026-01-02T09:10:00+00:00"),
        ({"minute": "10,20", "hour": "9,17"}, "2026-01-01T09:20:00+00:00", "2026-01-01T17:10:00+00:00"),
        ({"minute": 0, "hour": 0, "day": 29, "month": 2}, "2026-01-01T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
        # the longest wait there is, because 2100 has no such day
        (
            {"minute": 0, "hour": 0, "day": 29, "month": 2, "day_of_week": 3},
            "2688-02-29T00:00:00+00:00",
            "2728-02-29T00:00:00+00:00",
        ),
        ({"minute": 0, "hour": 1, "day": 1}, "2026-01-01T02:30:00+02:00", "2026-01-01T01:00:00+00:00"),
    ],
)
def test_next_run(fields: dict[str, Any], after: str, expected: str) -> None:
    assert crontab(**fields).next_run(at(after)).isoformat() == expected


# Rome: at 02:00 on 29 March 2026 clocks show 03:00; at 03:00 on 25 October 2026 they show 02:00
@pytest.mark.parametrize(
    ("fields", "after", "expected"),
    [
        ({"hour": 2, "minute": 30}, "2026-03-28T02:30+01:00", ["2026-03-30T02:30+02:00", "2026-03-31T02:30+02:00"]),
        ({"minute": 30}, "2026-03-29T00:30+01:00", ["2026-03-29T01:30+01:00", "2026-03-29T03:30+02:00"]),
        ({"hour": 3, "minute": 0}, "2026-03-29T00:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T03:00+02:00"]),
        ({"hour": 2, "minute": 30}, "2026-10-24T02:30+02:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        ({"minute": 0}, "2026-10-25T01:00+02:00", ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]),
        (
            {"hour": 2, "minute": "*/30"},
            "2026-10-25T01:00+02:00",
            [
                "2026-10-25T02:00+02:00",
                "2026-10-25T02:30+02:00",
                "2026-10-25T02:00+01:00",
                "2026-10-25T02:30+01:00",
                "2026-10-26T02:00+01:00",
            ],
        ),
        ({"hour": 2, "minute": 30}, "2026-10-25T02:15+01:00", ["2026-10-26T02:30+01:00"]),
        ({"hour": 3, "minute": 0}, "2026-10-25T02:15+02:00", ["2026-10-25T03:00+01:00"]),
    ],
)
def test_next_run_across_changes_of_clocks(fields: dict[str, Any], after: str, expected: list[str]) -> None:
    schedule = crontab(**fields, tz=ROME)
    moment = at(after)
    for text in expected:
        moment = schedule.next_run(moment)
        assert moment.isoformat(timespec="minutes") == text
        assert moment.tzinfo is ROME


def test_every_hour_of_a_day_with_25_hours_is_due() -> None:
    schedule = crontab(minute=0, tz=ROME)
    last: CronRun | None = None
    due = 0
    for minute in range(25 * 60):
        run = schedule(at("2026-10-24T22:00", UTC) + timedelta(minutes=minute), last)
        if run is not None:
            due += 1
            assert run.datetime.astimezone(UTC) == at("2026-10-24T22:00", UTC) + timedelta(minutes=minute)
            last = run
    assert due == 25


def test_a_time_that_clocks_leave_out_is_the_one_that_it_means() -> None:
    # 02:30 does not exist: it is 30 minutes after the change, 03:30
    assert crontab(hour=3, minute=30, tz=ROME)(at("2026-03-29T02:30", ROME)) is not None
    assert crontab(hour=2, minute=30, tz=ROME)(at("2026-03-29T02:30", ROME)) is None


@pytest.mark.parametrize("fields", [{"day": 30, "month": 2}, {"day": 31, "month": "2,4,6,9,11"}])
def test_next_run_that_never_comes(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not come"):
        crontab(**fields).next_run(at("2026-01-01", UTC))


def test_next_run_at_the_end_of_the_calendar() -> None:
    with pytest.raises(ValueError, match="does not come"):
        crontab(month=1).next_run(at("9999-12-31T23:59", UTC))


def test_next_run_after_an_offset_with_seconds() -> None:
    # Monrovia went from -00:44:30 to 00:00 on 7 January 1972
    zone = ZoneInfo("Africa/Monrovia")
    found = crontab(minute="*/10", tz=zone).next_run(at("1972-01-06T23:55", zone))
    assert found.isoformat() == "1972-01-07T00:50:00+00:00"


# a field as text, and the numbers that it stands for
def star(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    return st.just(("*", frozenset(range(low, high + 1))))


def pieces(low: int, high: int, star_steps: bool) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    number = st.integers(low, high)
    steps = st.integers(1, high + 5)
    ranges = st.tuples(number, number).map(sorted)
    options: list[st.SearchStrategy[tuple[str, frozenset[int]]]] = [
        star(low, high),
        number.map(lambda a: (str(a), frozenset((a,)))),
        ranges.map(lambda r: (f"{r[0]}-{r[1]}", frozenset(range(r[0], r[1] + 1)))),
        st.tuples(ranges, steps).map(
            lambda rn: (f"{rn[0][0]}-{rn[0][1]}/{rn[1]}", frozenset(range(rn[0][0], rn[0][1] + 1, rn[1])))
        ),
    ]
    if star_steps:
        options.append(steps.map(lambda n: (f"*/{n}", frozenset(range(low, high + 1, n)))))
    return st.one_of(options)


def fields(low: int, high: int, star_steps: bool = True) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    several = st.lists(pieces(low, high, star_steps), min_size=1, max_size=3)
    return several.map(lambda ps: (",".join(text for text, _ in ps), frozenset().union(*(found for _, found in ps))))


def mostly_star(low: int, high: int, star_steps: bool = True) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    return st.one_of(star(low, high), fields(low, high, star_steps))


# changes of clocks: an hour, half an hour, a whole day that is left out, during a month of fasting, a zone that moved
CHANGES = [
    ("Europe/Rome", "2026-03-29T01:00"),
    ("Europe/Rome", "2026-10-25T01:00"),
    ("America/New_York", "2026-03-08T07:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Africa/Casablanca", "2026-02-15T02:00"),
    ("Asia/Kathmandu", "1985-12-31T18:30"),
    ("Asia/Pyongyang", "2015-08-14T15:00"),
    ("America/Sao_Paulo", "2018-11-04T03:00"),
    ("UTC", "2026-12-31T23:00"),
]


@settings(max_examples=75, deadline=None)
@given(
    change=st.sampled_from(CHANGES),
    before=st.integers(0, 3 * 24 * 3600),
    minute=fields(0, 59),
    hour=fields(0, 23),
    day=mostly_star(1, 31),
    month=mostly_star(1, 12),
    week_day=mostly_star(0, 7, star_steps=False),
)
def test_next_run_is_what_a_walk_finds(
    change: tuple[str, str],
    before: int,
    minute: tuple[str, frozenset[int]],
    hour: tuple[str, frozenset[int]],
    day: tuple[str, frozenset[int]],
    month: tuple[str, frozenset[int]],
    week_day: tuple[str, frozenset[int]],
) -> None:
    zone = ZoneInfo(change[0])
    schedule = crontab(minute[0], hour[0], day[0], month[0], week_day[0], tz=zone)
    after = at(change[1], UTC) - timedelta(seconds=before)
    once = "*" not in minute[0] + hour[0]

    def is_due(moment: datetime) -> bool:
        return (
            moment.minute in minute[1]
            and moment.hour in hour[1]
            and moment.day in day[1]
            and moment.month in month[1]
            and bool({moment.isoweekday(), moment.isoweekday() % 7} & week_day[1])
            and not (once and moment.fold)
        )

    try:
        found = schedule.next_run(after)
    except ValueError:
        found = at("2200-01-01", UTC)
    utc = after.replace(second=0)
    for _ in range(5 * 24 * 60):
        utc += timedelta(minutes=1)
        local = utc.astimezone(zone)
        assert (schedule(utc) is not None) == is_due(local)
        if is_due(local):
            assert found.astimezone(UTC) == utc
            assert found.fold == local.fold
            return
    assert found.astimezone(UTC) > utc


# every


def test_every_is_due_at_once_and_then_after_delta() -> None:
    schedule = every(timedelta(seconds=10))
    start = at("2026-02-20T08:00:00.9", UTC)
    run = schedule(start)
    assert run == CronRun(2026, 2, 20, 5, 8, 0, 0)
    assert schedule(start + timedelta(seconds=9), run) is None
    # counted from the whole second
    run = schedule(start + timedelta(seconds=9.2), run)
    assert run is not None
    assert run.datetime == at("2026-02-20T08:00:10", UTC)
    assert schedule(start + timedelta(seconds=60), run) is not None
    assert str(schedule) == "every(0:00:10)"


def test_every_of_less_than_a_second() -> None:
    schedule = every(timedelta(milliseconds=300))
    start = at("2026-02-20T08:00:00.8", UTC)
    run = None
    due = []
    for tenth in range(10):
        found = schedule(start + timedelta(milliseconds=100 * tenth), run)
        if found is not None:
            due.append(tenth)
            run = found
    assert due == [0, 3, 6, 9]


def test_every_with_a_delay() -> None:
    schedule = every(timedelta(seconds=10), delay=timedelta(seconds=3))
    start = at("2026-02-20T08:00", UTC)
    assert schedule(start) is None
    assert schedule(start + timedelta(seconds=2)) is None
    run = schedule(start + timedelta(seconds=3))
    assert run is not None
    assert schedule(start + timedelta(seconds=5), run) is None


def test_every_with_a_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    schedule = every(timedelta(seconds=10), jitter=timedelta(seconds=1))
    assert schedule.next_delta() == timedelta(seconds=10.5)
    start = at("2026-02-20T08:00", UTC)
    run = schedule(start)
    assert schedule(start + timedelta(seconds=10.4), run) is None
    assert schedule(start + timedelta(seconds=10.5), run) is not None


def test_every_takes_a_naive_time_as_utc() -> None:
    schedule = every(timedelta(seconds=10))
    run = schedule(datetime(2026, 2, 20, 8))
    assert run is not None
    assert run.tz is UTC
    assert schedule(datetime(2026, 2, 20, 8, 0, 9), run) is None
    assert schedule(at("2026-02-20T08:00:10", UTC), run) is not None


def test_every_across_a_change_of_clocks() -> None:
    schedule = every(timedelta(hours=1))
    run = schedule(at("2026-03-29T01:30", ROME))
    assert run is not None
    # an hour later the clock on the wall shows 03:30
    assert schedule(at("2026-03-29T03:15", ROME), run) is None
    assert schedule(at("2026-03-29T03:30", ROME), run) is not None
    assert schedule(at("2026-03-29T02:30", timezone(timedelta(hours=1))), run) is not None


@pytest.mark.parametrize("name", ["delta", "delay", "jitter"])
def test_every_is_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        every(**{"delta": timedelta(seconds=1), name: timedelta(seconds=-1)})


def test_a_schedule_of_ones_own() -> None:
    class never(Scheduler):
        def info(self) -> str:
            return "not today"

        def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
            return None

    assert str(never()) == "never(not today)"
    with pytest.raises(TypeError):
        Scheduler()  # type: ignore[abstract]


@pytest.mark.parametrize("module", ["crontab", "scheduler_crontab"])
def test_crontab_facades(module: str) -> None:
    assert import_module(f"fluidfast.scheduler.{module}").crontab is crontab


@pytest.mark.parametrize("module", ["every", "scheduler_every"])
def test_every_facades(module: str) -> None:
    assert import_module(f"fluidfast.scheduler.{module}").every is every
