"""Time travel: delayed runs become due, schedules fire once per due time, as a real scheduler would fire them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from fluidfast import Scheduler, TaskRun, crontab, every, task
from fluidfast.core.schedule import CronRun
from fluidfast.errors import ConfigError
from fluidfast.testing import Harness, isolated

START = datetime(2030, 3, 1, 12, 0, 30, tzinfo=UTC)


@pytest.fixture
def consumer() -> Iterator[Harness]:
    with isolated() as harness:
        harness.set_now(START)
        yield harness


def schedule(consumer: Harness, schedule: Scheduler, name: str = "job", **options: object) -> list[datetime]:
    """Register a task that notes when it is executed, by the clock of the test."""
    moments: list[datetime] = []

    async def job(ctx: TaskRun) -> None:
        moments.append(consumer.now.replace(microsecond=0))

    consumer.manager.register_task(task(name=name, schedule=schedule, **options)(job))  # type: ignore[call-overload]
    return moments


def test_the_clock(consumer: Harness) -> None:
    assert timedelta() <= consumer.now - START < timedelta(seconds=5)
    with pytest.raises(ConfigError, match="lies before"):
        consumer.sync.travel_to(START)
    for wrong in (datetime(2031, 1, 1), "2031-01-01"):
        with pytest.raises(ConfigError, match="not a datetime with a time zone"):
            consumer.sync.travel_to(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="not a datetime with a time zone"):
            consumer.set_now(wrong)  # type: ignore[arg-type]
    for seconds in (-1, float("nan"), "60", 1e12):
        with pytest.raises(ConfigError, match="seconds"):
            consumer.sync.travel(seconds)  # type: ignore[arg-type]


async def test_schedules_fire_at_their_times(consumer: Harness) -> None:
    daily = schedule(consumer, crontab(hour=5, minute=0), "daily")
    often = schedule(consumer, every(timedelta(hours=1)), "often")
    with consumer.eager():
        await consumer.travel(timedelta(days=2))
    assert daily == [datetime(2030, 3, day, 5, 0, tzinfo=UTC) for day in (2, 3)]
    assert len(often) == 1 + 2 * 24
    assert {b - a for a, b in pairwise(often)} == {timedelta(hours=1)}


async def test_their_runs_are_queued_until_somebody_drains(consumer: Harness) -> None:
    moments = schedule(consumer, crontab(minute="*/15"))
    await consumer.travel(3600)
    assert moments == []
    assert len(consumer.queued_runs("job")) == 4
    await consumer.travel(0)
    assert (await consumer.drain()).states == {"success": 4}
    await consumer.travel(15 * 60)
    assert len(consumer.queued_runs("job")) == 1


@pytest.mark.parametrize("step", [7, 30, 60, 601])
async def test_many_short_ways_are_one_long_way(consumer: Harness, step: int) -> None:
    schedule(consumer, crontab(), "minutely")
    schedule(consumer, every(timedelta(seconds=45)), "every")
    end = START + timedelta(seconds=3 * 601)
    while consumer.now < end:
        await consumer.travel_to(min(end, consumer.now + timedelta(seconds=step)))
    assert len(consumer.queued_runs("minutely")) == 30
    assert len(consumer.queued_runs("every")) == 1 + 3 * 601 // 45


async def test_the_present_minute_has_gone_by(consumer: Harness) -> None:
    """Else it would depend on the time of day whether a test passes."""
    schedule(consumer, crontab(hour=12, minute=0))
    await consumer.travel(3600)
    assert consumer.queued_runs("job") == []


async def test_time_zones_and_changes_of_clocks(consumer: Harness) -> None:
    consumer.set_now(datetime(2030, 3, 30, tzinfo=UTC))
    berlin = schedule(consumer, crontab(hour=2, minute=30, tz="Europe/Berlin"))
    with consumer.eager():
        await consumer.travel(timedelta(days=3))
    zone = ZoneInfo("Europe/Berlin")  # on the 31st there is no 02:30
    assert [moment.astimezone(zone).day for moment in berlin] == [30, 1]


async def test_every_with_delay_starts_anew_in_each_test() -> None:
    delayed = every(timedelta(minutes=10), delay=timedelta(minutes=5))
    for start in (START, START - timedelta(days=1)):
        with isolated() as consumer:
            consumer.set_now(start)
            moments = schedule(consumer, delayed)
            with consumer.eager():
                await consumer.travel(1000)
            assert [round((moment - start).total_seconds(), -1) for moment in moments] == [300, 900]


async def test_jitter_and_fractions_of_a_second(consumer: Harness) -> None:
    moments = schedule(consumer, every(timedelta(seconds=60), jitter=timedelta(seconds=10)))
    schedule(consumer, every(timedelta(milliseconds=500)), "half")
    with consumer.eager():
        await consumer.travel(60)
    assert len(consumer.ended) == len(moments) + 121
    await consumer.travel(7 * 60)
    assert 6 <= len(consumer.queued_runs("job")) <= 8


async def test_a_schedule_of_the_users_own_is_asked_each_second(consumer: Harness) -> None:
    class OddMinutes(Scheduler):
        def info(self) -> str:
            return "odd minutes"

        def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
            if timestamp.minute % 2 == 0 or (last_run is not None and last_run.minute == timestamp.minute):
                return None
            return CronRun(timestamp.year, timestamp.month, timestamp.day, 0, timestamp.hour, timestamp.minute)

    schedule(consumer, OddMinutes())
    await consumer.travel(10 * 60)
    assert len(consumer.queued_runs("job")) == 5


async def test_a_disabled_task_does_not_fire(consumer: Harness) -> None:
    schedule(consumer, crontab(), "minutely")
    schedule(consumer, every(timedelta(minutes=1)), "every")
    for name in ("minutely", "every"):
        await consumer.broker.enable_task(name, enable=False)
    await consumer.travel(3600)
    assert consumer.queued_runs() == []
    for name in ("minutely", "every"):
        await consumer.broker.enable_task(name)
    await consumer.travel(60)
    assert {run.name for run in consumer.queued_runs()} == {"minutely", "every"}


async def test_randomize_delays_by_the_clock_of_the_test(consumer: Harness) -> None:
    schedule(consumer, crontab(minute=1), randomize=lambda: 300)
    await consumer.travel(60)
    assert await consumer.drain() == []
    (run,) = consumer.queued_runs("job")
    assert run.execute_after is not None
    assert run.execute_after.replace(microsecond=0, second=0) == datetime(2030, 3, 1, 12, 6, tzinfo=UTC)
    await consumer.travel(299)
    assert (await consumer.drain()).states == {"success": 1}


async def test_a_way_without_schedules(consumer: Harness) -> None:
    schedule(consumer, crontab(), "minutely")
    schedule(consumer, every(timedelta(minutes=1)), "every")
    await consumer.travel(3600, schedules=False)
    assert consumer.queued_runs() == []
    await consumer.travel_to(consumer.now + timedelta(minutes=5))
    assert len(consumer.queued_runs("minutely")) == 5


async def test_a_run_that_names_its_time(consumer: Harness) -> None:
    moments = schedule(consumer, every(timedelta(days=100)))
    run = consumer.manager.create_task_run("job")
    run.execute_after = START + timedelta(hours=1)
    await consumer.manager.intake.send(run)
    assert await consumer.drain() == []
    await consumer.travel_to(START + timedelta(hours=1))
    await consumer.drain()
    assert len(moments) == 2  # that of the schedule, at once, and that one


async def test_leases_and_locks_last_as_long_as_ever(consumer: Harness) -> None:
    @task
    async def travels(ctx: TaskRun) -> None:
        await consumer.travel(3600)

    await consumer.manager.queue(travels)
    assert (await consumer.drain()).states == {"success": 1}
