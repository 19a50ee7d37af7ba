"""The clock: what is due is fired, once, whatever the broker does and however many schedulers there are."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from kits.waiting import until, within

from fluidfast import (
    Scheduler,
    TaskManager,
    TaskManagerConfig,
    TaskRun,
    TaskScheduler,
    crontab,
    every,
    task,
)
from fluidfast.core.schedule import CronRun
from fluidfast.errors import BrokerConnectionError, BrokerFullError, NotDurableError
from fluidfast.manage.firing import DISABLED, ScheduleTasks
from fluidfast.scheduler.scheduler import TaskScheduler as FacadeScheduler
from fluidfast.settings import get_settings

NOON = datetime(2024, 5, 6, 12, 0, 0, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


class Rig:
    """Schedulers on one broker, and a clock in the hands of the test."""

    def __init__(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"

    def scheduler(self, *tasks: Any, url: str = "", **config: Any) -> ScheduleTasks:
        manager = TaskManager(broker_url=url or self.url, **config)
        for each in tasks:
            manager.register_task(each)
        return ScheduleTasks(manager, 0.1)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def scheduled(schedule: Scheduler, **options: Any) -> Any:
    @task(name=options.pop("name", "job"), schedule=schedule, **options)
    async def job(ctx: TaskRun) -> None:
        """Scheduled."""

    return job


async def step(clock: ScheduleTasks, now: datetime) -> int:
    """One heartbeat at a time of the test's; gives how many it fired."""
    before = clock.fired
    clock.look(now)
    await clock.fire()
    return clock.fired - before


async def waiting(clock: ScheduleTasks) -> int:
    return sum((await clock.task_manager.broker.queue_length()).values())


class Failing:
    """A verb of a broker that fails until it is told not to."""

    def __init__(self, clock: ScheduleTasks, verb: str, error: Exception) -> None:
        self.verb = getattr(clock.task_manager.broker, verb)
        self.error: Exception | None = error
        self.calls = 0
        self.called = asyncio.Event()
        setattr(clock.task_manager.broker, verb, self)

    async def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        self.called.set()
        if self.error is not None:
            raise self.error
        return await self.verb(*args, **options)


def gone() -> Exception:
    return BrokerConnectionError("redis://h: gone")


# -- once


async def test_crontab_fires_once_a_minute(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(crontab(minute="*/2")))
    fired = [await step(clock, NOON + seconds(s)) for s in (0, 0.1, 30, 59.9, 60, 119, 120, 120.1)]
    assert fired == [1, 0, 0, 0, 0, 0, 1, 0]
    assert await waiting(clock) == 2


async def test_every_fires_once_an_interval(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(every(seconds(5))))
    fired = [await step(clock, NOON + seconds(s)) for s in (1.95, 2, 5.9, 6.05, 7, 10.99, 11.01, 16)]
    assert fired == [1, 0, 0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("replicas", [2, 5])
async def test_each_due_time_is_fired_by_one_of_many(rig: Rig, replicas: int) -> None:
    tasks = [scheduled(crontab(), name="calendar"), scheduled(every(seconds(10)), name="interval")]
    clocks = [rig.scheduler(*tasks) for _ in range(replicas)]
    for number, clock in enumerate(clocks):
        clock.look(NOON + seconds(0.1 * number))
    await asyncio.gather(*(clock.fire() for clock in clocks))
    assert sum(clock.fired for clock in clocks) == 2
    for tenth in range(1, 1200):
        clock = clocks[tenth % replicas]
        await step(clock, NOON + seconds(tenth / 10))
    assert await waiting(clocks[0]) == 2 + 12  # two minutes, two minutes of ten seconds
    names = []
    while (run := await clocks[0].task_manager.broker.get_task_run(clocks[0].task_manager)) is not None:
        names.append(run.name)
    assert names.count("calendar") == 2
    assert names.count("interval") == 12


async def test_schedulers_that_take_turns(rig: Rig) -> None:
    """One is killed, another started: within a due time nothing is fired again."""
    job = scheduled(every(seconds(3600)))
    first, second = rig.scheduler(job), rig.scheduler(job)
    assert await step(first, NOON + seconds(1)) == 1
    assert await step(second, NOON + seconds(100)) == 0
    assert await step(second, NOON + seconds(3700)) == 1


async def test_short_intervals(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(every(timedelta(milliseconds=500))))
    fired = [await step(clock, NOON + seconds(s / 10)) for s in range(21)]
    assert sum(fired) == 5
    assert [tenth for tenth, count in enumerate(fired) if count] == [0, 5, 10, 15, 20]


async def test_no_interval_at_all_is_one_a_heartbeat(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(every(timedelta())))
    assert [await step(clock, NOON + seconds(s)) for s in (0, 0.11, 0.21, 0.31)] == [1, 1, 1, 1]


async def test_a_schedule_of_ones_own(rig: Rig) -> None:
    class OnTheHalfMinute(Scheduler):
        def info(self) -> str:
            return "half minutes"

        def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
            t = timestamp
            run = CronRun(t.year, t.month, t.day, t.isoweekday() % 7, t.hour, t.minute, t.second // 30 * 30)
            return None if run == last_run else run

    clocks = [rig.scheduler(scheduled(OnTheHalfMinute())) for _ in range(2)]
    fired = [[await step(clock, NOON + seconds(s)) for clock in clocks] for s in (0, 29, 30, 45, 60)]
    assert fired == [[1, 0], [0, 0], [1, 0], [0, 0], [1, 0]]


async def test_minutes_that_a_blocked_loop_missed(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(crontab()))
    assert await step(clock, NOON) == 1
    assert await step(clock, NOON + seconds(190)) == 3
    assert await step(clock, NOON + timedelta(hours=3)) == 1  # the clock was set, or the machine slept
    assert await step(clock, NOON) == 0


@pytest.mark.parametrize("schedulers", [2, 5])
async def test_through_redis(redis_url: str, rig: Rig, schedulers: int) -> None:
    tasks = [scheduled(crontab(), name="calendar"), scheduled(every(seconds(60)), name="interval")]
    clocks = [rig.scheduler(*tasks, url=redis_url) for _ in range(schedulers)]
    for minute in range(3):
        for clock in clocks:
            clock.look(NOON + seconds(60 * minute))
        await asyncio.gather(*(clock.fire() for clock in clocks))
        assert await waiting(clocks[0]) == 2 * (minute + 1)
    assert sum(clock.fired for clock in clocks) == 6
    await clocks[0].task_manager.broker.clear()
    for clock in clocks:
        await clock.task_manager.on_shutdown()


# -- what goes wrong


@pytest.mark.parametrize(
    ("schedule", "verb"),
    [
        (crontab(), "push_once"),
        (crontab(), "get_tasks_info"),
        (crontab(), "first"),
        (crontab(), "marks"),
        (every(seconds(60)), "push_after"),
        (every(seconds(60)), "get_tasks_info"),
        (every(seconds(60)), "marks"),
    ],
    ids=str,
)
async def test_a_broker_that_is_not_there_loses_no_due_time(rig: Rig, schedule: Scheduler, verb: str) -> None:
    clock = rig.scheduler(scheduled(schedule))
    failing = Failing(clock, verb, gone())
    assert await step(clock, NOON) == 0
    assert await step(clock, NOON + seconds(0.1)) == 0
    assert failing.calls == 2
    failing.error = None
    assert await step(clock, NOON + seconds(0.2)) == 1
    assert await step(clock, NOON + seconds(0.3)) == 0
    assert await waiting(clock) == 1


async def test_calendar_times_are_all_made_up_for_and_intervals_once(rig: Rig) -> None:
    calendar = scheduled(crontab(), name="calendar")
    interval = scheduled(every(seconds(60)), name="interval")
    clock = rig.scheduler(calendar, interval)
    failing = Failing(clock, "get_tasks_info", gone())
    for minute in range(4):
        await step(clock, NOON + seconds(60 * minute))
    failing.error = None
    assert await step(clock, NOON + seconds(185)) == 5
    assert clock._due == {}


async def test_one_task_that_the_broker_refuses_holds_up_no_other(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(crontab(), name="a"), scheduled(crontab(), name="b"))
    failing = Failing(clock, "push_once", BrokerFullError("redis://h: full"))
    await step(clock, NOON)
    assert failing.calls == 2
    failing.error = gone()
    await step(clock, NOON + seconds(1))
    assert failing.calls == 3  # with nobody there, one is enough
    failing.error = None
    assert await step(clock, NOON + seconds(2)) == 2


async def test_what_is_queued_and_not_durable_is_fired(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """To try again would find it queued, by nobody knows whom, and tell nobody of it."""
    told: list[str] = []
    clock = rig.scheduler(scheduled(crontab(), name="a"), scheduled(crontab(), name="b"))
    for state in ("init", "queued"):
        clock.task_manager.dispatcher.register_handler(state, lambda run: told.append(f"{run.state} {run.name}"))
    failing = Failing(clock, "push_once", NotDurableError("redis://h: queued, but not safe"))
    assert await step(clock, NOON) == 2
    assert await step(clock, NOON + seconds(1)) == 0
    assert failing.calls == 2
    assert told == ["init a", "queued a", "init b", "queued b"]
    assert "fired schedule:a:" in caplog.text
    assert caplog.text.count("queued, but not safe") == 2


async def test_what_was_due_too_long_ago_is_given_up(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    clock = rig.scheduler(scheduled(every(seconds(1))))
    failing = Failing(clock, "push_after", gone())
    await step(clock, NOON)
    failing.error = None
    since = next(iter(clock._due.values())).since
    with patch("fluidfast.manage.firing.monotonic", lambda: since + 1000):
        await clock.fire()
    assert clock.fired == 0
    assert "gave up schedule:job:" in caplog.text


async def test_errors_are_logged_once_an_outage(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    clock = rig.scheduler(scheduled(crontab()))
    failing = Failing(clock, "push_once", gone())
    for tenth in range(5):
        await step(clock, NOON + seconds(tenth / 10))
    assert failing.calls == 5
    assert caplog.text.count("trying again") == 1


async def test_a_task_that_cannot_be_made_a_run_of(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    class Needed(msgspec.Struct):
        a: int

    clock = rig.scheduler(scheduled(crontab(), name="a", params_model=Needed), scheduled(crontab(), name="b"))
    assert await step(clock, NOON) == 1
    assert "cannot make a run of task a" in caplog.text
    assert await step(clock, NOON + seconds(1)) == 0


async def test_a_schedule_that_fails(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Scheduler):
        def info(self) -> str:
            return "broken"

        def __call__(self, timestamp: datetime, last_run: CronRun | None = None) -> CronRun | None:
            raise ZeroDivisionError

    clock = rig.scheduler(scheduled(Broken(), name="a"), scheduled(crontab(), name="b"))
    assert [await step(clock, NOON + seconds(s)) for s in (0, 1, 2)] == [1, 0, 0]
    assert caplog.text.count("the schedule of task a failed") == 1


# -- what it asks and says


async def test_the_broker_is_asked_only_when_something_is_due(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(crontab(minute=30)))
    asked = Failing(clock, "get_tasks_info", gone())
    for tenth in range(50):
        await step(clock, NOON + seconds(tenth / 10))
    assert asked.calls == 0


@pytest.mark.parametrize("schedule", [crontab(), every(seconds(60))], ids=str)
async def test_a_disabled_task(rig: Rig, schedule: Scheduler) -> None:
    clock = rig.scheduler(scheduled(schedule))
    broker = clock.task_manager.broker
    await broker.enable_task("job", enable=False)
    asked = Failing(clock, "get_tasks_info", gone())
    asked.error = None
    assert [await step(clock, NOON + seconds(s)) for s in (0, 0.1, 0.2)] == [0, 0, 0]
    assert asked.calls == 1
    await broker.enable_task("job")
    assert await step(clock, NOON + 0.9 * DISABLED) == 0
    assert await step(clock, NOON + DISABLED) == 1


async def test_a_disabled_task_and_a_clock_that_is_set_back(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(crontab()))
    await clock.task_manager.broker.enable_task("job", enable=False)
    assert await step(clock, NOON) == 0
    await clock.task_manager.broker.enable_task("job")
    assert await step(clock, NOON - seconds(3600)) == 1


async def test_events(rig: Rig) -> None:
    told: list[tuple[str, str]] = []
    clocks = [rig.scheduler(scheduled(crontab())) for _ in range(2)]
    for clock in clocks:
        for state in ("init", "queued"):
            clock.task_manager.dispatcher.register_handler(state, lambda run: told.append((run.state, run.id)))
        await step(clock, NOON)
    assert [state for state, _ in told] == ["init", "queued"]
    assert told[0][1] == told[1][1]


async def test_randomize(rig: Rig) -> None:
    clock = rig.scheduler(scheduled(crontab(), randomize=lambda: 30))
    before = datetime.now(UTC)
    assert await step(clock, NOON) == 1
    run = await clock.task_manager.broker.get_task_run(clock.task_manager)
    assert run is not None
    assert run.execute_after is not None
    assert seconds(29) < run.execute_after - before < seconds(60)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, SystemExit, KeyboardInterrupt, StopIteration])
async def test_whatever_a_schedule_or_randomize_raises(rig: Rig, kind: type[BaseException], caplog: Any) -> None:
    """It keeps nothing else from being fired."""

    def fails(*given: Any) -> Any:
        raise kind

    class Broken(crontab):
        __call__ = fails

    clock = rig.scheduler(
        scheduled(Broken(), name="a"), scheduled(crontab(), randomize=fails, name="b"), scheduled(crontab(), name="c")
    )
    assert await step(clock, NOON) == 1
    assert not clock._due
    assert "the schedule of task a failed" in caplog.text
    assert "cannot make a run of task b" in caplog.text


async def test_a_randomized_run_is_delayed_by_its_consumer() -> None:
    scheduler = TaskScheduler(broker_url=f"memory://{uuid.uuid4().hex}")
    scheduler.register_task(scheduled(every(seconds(3600)), randomize=lambda: 500))
    await scheduler.startup()
    await until(scheduler.broker.delayed_length)
    assert scheduler.engine.finished == 0
    await scheduler.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLUID_SCHEDULER_HEARTBEAT_MILLIS", "5")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


# -- the worker


def live(*tasks: Any, cls: Callable[..., TaskScheduler] = TaskScheduler, **options: Any) -> TaskScheduler:
    scheduler = cls(**{"broker_url": f"memory://{uuid.uuid4().hex}", **options})
    for each in tasks:
        scheduler.register_task(each)
    return scheduler


def clock_of(scheduler: TaskScheduler) -> ScheduleTasks:
    (clock,) = (worker for worker in scheduler.workers() if isinstance(worker, ScheduleTasks))
    return clock


def test_names() -> None:
    assert FacadeScheduler is TaskScheduler
    scheduler = live()
    assert scheduler.type == "task_scheduler"
    assert clock_of(scheduler).worker_name == "schedule_tasks"


def test_heartbeat_from_the_environment(quick: None) -> None:
    assert clock_of(live()).heartbeat == 0.005
    assert ScheduleTasks(TaskManager(broker_url="memory://")).heartbeat == 0.005


def test_arguments() -> None:
    config = TaskManagerConfig(broker_url="memory://", schedule_tasks=False)
    scheduler = TaskScheduler(deps=1, config=config, name="mine", stopping_grace_period=3)
    assert (scheduler.deps, scheduler.config, scheduler.worker_name) == (1, config, "mine")
    assert clock_of(scheduler)._stopping_grace_period == 3


@pytest.mark.usefixtures("quick")
class TestLife:
    async def test_it_schedules_and_consumes(self) -> None:
        runs: asyncio.Queue[float] = asyncio.Queue()

        @task(schedule=every(timedelta(milliseconds=30)))
        async def often(ctx: TaskRun) -> None:
            runs.put_nowait(asyncio.get_running_loop().time())

        scheduler = live(often)
        await scheduler.startup()
        for _ in range(4):
            await within(runs.get())
        await scheduler.shutdown()
        assert clock_of(scheduler).fired >= 4

    async def test_a_broker_error_does_not_end_it(self) -> None:
        done = asyncio.Event()

        @task(schedule=every(seconds(3600)))
        async def once(ctx: TaskRun) -> None:
            done.set()

        scheduler = live(once)
        failing = Failing(clock_of(scheduler), "push_after", gone())
        await scheduler.startup()
        await within(failing.called.wait())
        failing.called.clear()
        await within(failing.called.wait())
        assert scheduler.is_running()
        failing.error = None
        await within(done.wait())
        await scheduler.shutdown()

    async def test_a_slow_broker_does_not_keep_it_from_looking(self) -> None:
        scheduler = live(scheduled(every(seconds(3600)), name="a"))
        clock = clock_of(scheduler)
        let_go = asyncio.Event()

        class Slow(Failing):
            async def __call__(self, *args: Any, **options: Any) -> Any:
                self.called.set()
                await let_go.wait()
                return await self.verb(*args, **options)

        slow = Slow(clock, "push_after", gone())
        await scheduler.startup()
        await within(slow.called.wait())
        scheduler.register_task(scheduled(every(seconds(3600)), name="b"))
        await until(lambda: "b" in clock.last_run)
        stopping = asyncio.create_task(scheduler.shutdown())
        let_go.set()
        await within(stopping)
        assert clock.fired == 2  # what was seen to be due is fired before it ends

    async def test_it_ends_although_the_broker_hangs(self, caplog: pytest.LogCaptureFixture) -> None:
        scheduler = live(scheduled(every(seconds(3600))), stopping_grace_period=0.1)
        clock = clock_of(scheduler)
        called = asyncio.Event()

        async def hangs(*_: Any) -> tuple[bool, int]:
            called.set()
            await asyncio.Event().wait()
            return True, 0

        clock.task_manager.broker.push_after = hangs  # type: ignore[method-assign]
        await scheduler.startup()
        await within(called.wait())
        await within(scheduler.shutdown())
        assert "stopped before it could fire schedule:job:" in caplog.text

    async def test_schedule_tasks_can_be_held(self) -> None:
        done = asyncio.Event()

        @task(schedule=every(seconds(3600)))
        async def once(ctx: TaskRun) -> None:
            done.set()

        scheduler = live(once, schedule_tasks=False)
        clock = clock_of(scheduler)
        await scheduler.startup()
        await clock.tick()
        assert clock.last_run == {}
        scheduler.config.schedule_tasks = True
        await within(done.wait())
        await scheduler.shutdown()

    async def test_it_can_schedule_only(self) -> None:
        scheduler = live(scheduled(every(seconds(3600))), consume_tasks=False)
        fired = asyncio.Event()
        scheduler.dispatcher.register_handler("queued", lambda run: fired.set())
        await scheduler.startup()
        await within(fired.wait())
        assert await scheduler.broker.queue_length() == {"high": 0, "medium": 1, "low": 0}
        await scheduler.shutdown()
