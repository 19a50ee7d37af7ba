"""Schedules over a restart, and with several schedulers: intervals count from the last actual fire, calendar times that
fell into a restart are made up for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from kits.broker_kit import with_options
from kits.waiting import until

from fluidfast import Scheduler, TaskManager, TaskManagerConfig, TaskRun, crontab, every, task
from fluidfast.core.schedule import CronRun
from fluidfast.errors import BrokerConnectionError, BrokerFullError, ConfigError, NotDurableError, TaskDecoratorError
from fluidfast.manage.firing import LOOKED_SECONDS, ScheduleTasks, mark_of

NOON = datetime(2024, 5, 6, 12, 0, 0, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def scheduled(schedule: Scheduler, name: str = "job", **options: Any) -> Any:
    @task(name=name, schedule=schedule, **options)
    async def job(ctx: TaskRun) -> None:
        """Scheduled."""

    return job


class Fleet:
    """Schedulers on one broker, and a clock in the hands of the test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.managers: list[TaskManager] = []

    def start(self, *schedules: Any, **config: Any) -> ScheduleTasks:
        """A scheduler in a process of its own: it knows nothing of the others. Schedules are made, or functions that
        make one."""
        manager = TaskManager(broker_url=self.url, **config)
        for number, schedule in enumerate(schedules):
            made = schedule() if callable(schedule) and not isinstance(schedule, Scheduler) else schedule
            manager.register_task(scheduled(made, f"job{number}" if number else "job"))
        self.managers.append(manager)
        return ScheduleTasks(manager, 0.1)

    async def waiting(self) -> int:
        return sum((await self.managers[0].broker.queue_length()).values())


@pytest.fixture(params=["memory", "redis", "sharded"])
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}"
    else:
        url = request.getfixturevalue("redis_url")
        if request.param == "sharded":
            url = with_options(url, shards=3)
    found = Fleet(url)
    yield found
    if found.managers:
        await found.managers[0].broker.clear()
    for manager in found.managers:
        await manager.on_shutdown()


async def step(clock: ScheduleTasks, now: datetime) -> int:
    """One heartbeat at this time; gives how many it fired."""
    before = clock.fired
    clock.look(now)
    await clock.fire()
    return clock.fired - before


async def fires(clock: ScheduleTasks, *at: float) -> list[float]:
    """At which of these seconds after noon it fires."""
    return [moment for moment in at if await step(clock, NOON + seconds(moment))]


# -- intervals


@pytest.mark.parametrize("delta", [6.0, 6.5])
async def test_an_interval_counts_from_the_last_fire_of_another_process(fleet: Fleet, delta: float) -> None:
    first = fleet.start(lambda: every(seconds(delta)))
    assert await fires(first, 0.2, 1.5) == [0.2]
    second = fleet.start(lambda: every(seconds(delta)))  # a deploy
    assert await fires(second, 5, 5.1, 5.9, 6.8, 6.9, 8, 11, 12.5, 13.4) == ([6.8, 12.5] if delta == 6 else [6.8, 13.4])
    third = fleet.start(lambda: every(seconds(delta)))
    assert await fires(third, 14, 15, 60) == [60]
    assert await fleet.waiting() == 4


async def test_an_interval_that_passed_while_nobody_was_there_is_due_at_once(fleet: Fleet) -> None:
    assert await fires(fleet.start(lambda: every(seconds(60))), 0) == [0]
    second = fleet.start(lambda: every(seconds(60)))
    assert await fires(second, 1000, 1000.1, 1059, 1060.2) == [1000.1, 1060.2]


async def test_the_first_start_of_all_fires_at_once(fleet: Fleet) -> None:
    assert await fires(fleet.start(lambda: every(seconds(86400))), 0, 1) == [0]


async def test_a_delay_is_for_the_first_run_of_all(fleet: Fleet) -> None:
    make = lambda: every(seconds(60), delay=seconds(5))  # noqa: E731
    assert await fires(fleet.start(make), 0, 4, 5, 6) == [5]
    assert await fires(fleet.start(make), 63, 64.9, 65, 66) == [65]


async def test_a_jitter_is_added_to_the_last_fire_of_another_process(fleet: Fleet) -> None:
    make = lambda: every(seconds(60), jitter=seconds(30))  # noqa: E731
    assert await fires(fleet.start(make), 0) == [0]
    (at,) = await fires(fleet.start(make), *range(1, 92))
    assert 60 <= at <= 91


@pytest.mark.parametrize("schedulers", [2, 5])
async def test_one_of_several_fires_each_interval(fleet: Fleet, schedulers: int) -> None:
    clocks = [fleet.start(lambda: every(seconds(10))) for _ in range(schedulers)]
    for tenth in range(0, 600, 3):
        for clock in clocks:
            clock.look(NOON + seconds(tenth / 10))
        await asyncio.gather(*(clock.fire() for clock in clocks))
        if tenth == 300:  # one is replaced
            clocks[0] = fleet.start(lambda: every(seconds(10)))
    assert await fleet.waiting() == 6


async def test_a_stale_scheduler_does_not_fire_early(fleet: Fleet) -> None:
    """It was stopped (SIGSTOP) for a while, and knows an old time."""
    stale, living = (fleet.start(lambda: every(seconds(10))) for _ in range(2))
    assert await fires(stale, 0) == [0]
    assert await fires(living, 1, 10, 20, 30) == [10, 20, 30]
    assert await fires(stale, 35, 35.1, 39, 40.1) == [40.1]


async def test_clocks_that_differ(fleet: Fleet) -> None:
    """One that is ahead does not make the others wait for more than an interval."""
    ahead, right = (fleet.start(lambda: every(seconds(10))) for _ in range(2))
    assert await fires(ahead, 3600) == [3600]
    assert await fires(right, 1, 5, 10.9, 11, 20, 21) == [11, 21]


async def test_another_interval_under_the_name(fleet: Fleet) -> None:
    assert await fires(fleet.start(lambda: every(seconds(3600))), 0) == [0]
    assert await fires(fleet.start(lambda: every(seconds(10))), 5, 9, 10) == [10]


async def test_a_reply_that_is_lost(fleet: Fleet) -> None:
    """The run was queued, and asked for again: it is queued once, and the next one is due in time."""
    clock = fleet.start(lambda: every(seconds(10)))
    broker = clock.task_manager.broker
    push_after = broker.push_after

    async def loses(*arguments: Any) -> tuple[bool, int]:
        await push_after(*arguments)
        raise BrokerConnectionError("lost")

    broker.push_after = loses  # type: ignore[method-assign]
    assert await fires(clock, 0) == []
    broker.push_after = push_after  # type: ignore[method-assign]
    assert await fires(clock, 0.1, 5, 9) == []
    assert await fleet.waiting() == 1
    assert await fires(clock, 10, 11) == [10]


async def test_a_run_that_is_queued_and_not_durable(fleet: Fleet) -> None:
    clock = fleet.start(lambda: every(seconds(10)))
    broker = clock.task_manager.broker
    push_after = broker.push_after

    async def warns(*arguments: Any) -> tuple[bool, int]:
        await push_after(*arguments)
        raise NotDurableError("queued, but not safe")

    broker.push_after = warns  # type: ignore[method-assign]
    assert await fires(clock, 0, 5, 10, 15) == [0, 10]
    assert await fleet.waiting() == 2


# -- the calendar


def nightly() -> crontab:
    return crontab(minute=0, hour=12)


async def test_a_minute_that_fell_into_a_restart(fleet: Fleet) -> None:
    assert await fires(fleet.start(nightly), -5, -3) == []
    several = [fleet.start(nightly) for _ in range(3)]
    for clock in several:
        clock.look(NOON + seconds(62))
    await asyncio.gather(*(clock.fire() for clock in several))
    assert sum(clock.fired for clock in several) == 1
    assert [await fires(clock, 70, 130, 300) for clock in several] == [[], [], []]
    assert await fires(fleet.start(nightly), 400) == []
    assert await fleet.waiting() == 1


@pytest.mark.parametrize(
    ("config", "back_after", "made_up"),
    [
        ({}, 599, True),
        ({}, 661, False),
        ({"catch_up_seconds": 90}, 89, True),
        ({"catch_up_seconds": 90}, 151, False),
        ({"catch_up_seconds": 0}, 61, False),
        ({"catch_up_seconds": 3600}, 3599, True),
    ],
    ids=str,
)
async def test_the_window(fleet: Fleet, config: dict[str, Any], back_after: float, made_up: bool) -> None:
    await fires(fleet.start(nightly), -3600, -3500)
    assert bool(await fires(fleet.start(nightly, **config), back_after)) is made_up


async def test_a_long_outage_makes_up_for_the_window_only(fleet: Fleet) -> None:
    assert await fires(fleet.start(crontab), 0) == [0]
    second = fleet.start(crontab)
    assert await step(second, NOON + timedelta(hours=8, seconds=5)) == 9 + 1
    assert await step(second, NOON + timedelta(hours=8, seconds=6)) == 0


async def test_each_minute_of_a_short_outage_is_made_up_for(fleet: Fleet) -> None:
    assert await fires(fleet.start(crontab), 0) == [0]
    assert await step(fleet.start(crontab), NOON + seconds(185)) == 3
    assert await fleet.waiting() == 4


async def test_nothing_is_made_up_for_at_the_first_start_of_all(fleet: Fleet) -> None:
    assert await fires(fleet.start(nightly), 62, 63) == []


async def test_a_task_that_is_new_is_not_made_up_for(fleet: Fleet) -> None:
    await fires(fleet.start(lambda: crontab(minute=30)), -5)
    assert await fires(fleet.start(lambda: crontab(minute=30), nightly), 62) == []


async def test_two_applications_on_one_broker(fleet: Fleet) -> None:
    """That the one was there does not mean that the other's tasks were looked at."""
    other = fleet.start(lambda: crontab(minute=30))
    ours = TaskManager(broker_url=fleet.url)
    ours.register_task(scheduled(nightly(), "ours"))
    fleet.managers.append(ours)
    await fires(ScheduleTasks(ours, 0.1), -5)
    await fires(other, -4, 10, 50)
    again = TaskManager(broker_url=fleet.url)
    again.register_task(scheduled(nightly(), "ours"))
    fleet.managers.append(again)
    assert await fires(ScheduleTasks(again, 0.1), 62) == [62]


async def test_a_minute_that_was_due_and_not_fired_when_its_scheduler_died(fleet: Fleet) -> None:
    first = fleet.start(nightly)
    await fires(first, -30)
    first._tell_at = 0
    first.look(NOON)  # and killed before it fired
    first.task_manager.broker.push_once = never  # type: ignore[method-assign]
    await first.fire()
    assert await fires(fleet.start(nightly), 62) == [62]


async def never(*arguments: Any) -> bool:
    raise BrokerFullError("full")


async def test_a_disabled_task_is_not_made_up_for(fleet: Fleet) -> None:
    first = fleet.start(nightly, crontab)
    await fires(first, -5)
    await first.task_manager.broker.enable_task("job", enable=False)
    second = fleet.start(nightly, crontab)
    assert await step(second, NOON + seconds(62)) == 2  # both minutes of the other task


async def test_looks_are_told_now_and_then(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with each heartbeat."""
    now = 1000.0
    monkeypatch.setattr("fluidfast.manage.firing.monotonic", lambda: now)
    clock = fleet.start(nightly)
    broker = clock.task_manager.broker
    told: list[Any] = []
    set_marks = broker.set_marks

    async def noted(*arguments: Any) -> None:
        told.append(arguments)
        await set_marks(*arguments)

    broker.set_marks = noted  # type: ignore[method-assign]
    for tenth in range(600):
        now += 0.1
        clock.look(NOON + seconds(3600 + tenth / 10))
        if clock._has_to_tell():
            await clock.fire()
    assert len(told) == 3
    assert LOOKED_SECONDS == 20
    assert (await broker.marks("looked:job"))[0] > NOON.timestamp() * 1e6


async def test_a_minute_in_a_zone(fleet: Fleet) -> None:
    make = lambda: crontab(minute=0, hour=14, tz="Europe/Berlin")  # noqa: E731
    await fires(fleet.start(make), -5)
    assert await fires(fleet.start(make), 62) == [62]


def test_marks_of_kinds_of_schedules() -> None:
    """A task whose schedule becomes one of another kind takes no look for a fire."""
    assert mark_of(scheduled(every(seconds(1)))) == "fired:job"
    assert mark_of(scheduled(crontab())) == "looked:job"


@pytest.mark.parametrize("value", [-1, 3601, float("nan"), True, "600"])
def test_the_range_of_the_window(value: Any) -> None:
    with pytest.raises(ConfigError, match="catch_up_seconds is "):
        TaskManagerConfig(catch_up_seconds=value)


async def test_marks_are_forgotten(fleet: Fleet) -> None:
    broker = fleet.start(nightly).task_manager.broker
    assert await broker.marks() == []
    await broker.set_marks([], 1, 1)
    await broker.set_marks(["a", "b"], 7, 60)
    await broker.set_marks(["short"], 7, 0.001)

    async def is_forgotten() -> bool:
        return await broker.marks("short") == [0]

    await until(is_forgotten)
    assert await broker.marks("b", "none", "a") == [7, 0, 7]
    assert await broker.push_after("a", 6, 9, 60, 1, b"{}") == (False, 7)
    assert await broker.push_after("a", 7, 9, 60, 1, b"{}") == (True, 9)
    assert await broker.push_after("a", 7, 9, 60, 1, b"{}") == (False, 9)
    assert await broker.push_after("new", 5, 2, 60, 0, b"{}") == (True, 2)
    assert await broker.queue_length() == {"high": 1, "medium": 1, "low": 0}


# -- what a schedule is


def test_a_zone_by_its_name() -> None:
    named = crontab(minute=30, hour=5, tz="Europe/Berlin")
    assert named.tz == ZoneInfo("Europe/Berlin")
    assert named.next_run(NOON) == crontab(minute=30, hour=5, tz=ZoneInfo("Europe/Berlin")).next_run(NOON)
    assert crontab(tz=timezone(seconds(3600))).tz == timezone(seconds(3600))


@pytest.mark.parametrize(
    "tz", ["Europe/Nowhere", "", "../etc/passwd", "/etc/localtime", "Europe", "\0", 7, None, seconds(1)]
)
def test_no_zone(tz: Any) -> None:
    with pytest.raises(ConfigError, match=r'tz="Europe/Berlin"'):
        crontab(tz=tz)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("0 5 * * *", {"minute": 0, "hour": 5}),
        ("*/15 8-18 * * 1-5", {"minute": "*/15", "hour": "8-18", "day_of_week": "1-5"}),
        ("  0   0 1 */3 * ", {"minute": 0, "hour": 0, "day": 1, "month": "*/3"}),
        ("30 4 * * 7", {"minute": 30, "hour": 4, "day_of_week": 0}),
    ],
)
def test_a_line_of_cron(line: str, fields: dict[str, Any]) -> None:
    @task(schedule=line)
    async def job(ctx: TaskRun) -> None: ...

    assert isinstance(job.schedule, crontab)
    moment = NOON
    for _ in range(20):
        found = job.schedule.next_run(moment)
        assert found == crontab(**fields).next_run(moment)
        moment = found


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("", "five fields"),
        ("@daily", '"0 5 \\* \\* \\*" is each day at 05:00'),
        ("0 5 * *", "five fields"),
        ("0 0 5 * * *", "five fields"),
        ("99 5 * * *", "minute='99': allowed are numbers from 0 to 59"),
        ("0 9 * * MON-FRI", "day_of_week='MON-FRI': allowed are numbers from 0 to 7"),
        ("0 5 1 * 1", r"crontab\(minute='0', hour='5', day='1', day_of_week='1'\)"),
        (seconds(60), r"schedule=every\(timedelta"),
        (60, r"schedule=every\(timedelta"),
        (every, "it must be a schedule"),
        (scheduled(crontab()), "it must be a schedule"),
        ([], "it must be a schedule"),
    ],
)
def test_no_schedule(schedule: Any, says: str) -> None:
    with pytest.raises(TaskDecoratorError, match=says) as caught:

        @task(schedule=schedule)
        async def job(ctx: TaskRun) -> None: ...

    assert "task 'job'" in str(caught.value)


def test_a_line_of_cron_as_the_minute() -> None:
    with pytest.raises(ConfigError, match=r"crontab\(minute='0', hour='5'\), or schedule='0 5 \* \* \*'"):
        crontab("0 5 * * *")


def test_a_schedule_that_is_a_function() -> None:
    """As aio-fluid takes it: anything that is called with the time and the last run."""

    def never(timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
        return None

    made: Callable[..., Any] = task(schedule=never)  # type: ignore[arg-type]
    assert made(scheduled(crontab()).executor).schedule is never
