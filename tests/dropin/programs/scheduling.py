"""Schedules: when they fire, and a scheduler that fires one."""

import asyncio
from datetime import UTC, datetime, timedelta

from fluid.scheduler import Scheduler, TaskRun, TaskScheduler, crontab, every, task

ticks: list[str] = []
enough = asyncio.Event()


@task(schedule=every(timedelta(seconds=0.2)))
async def tick(ctx: TaskRun) -> None:
    ticks.append(ctx.name)
    if len(ticks) == 2:
        enough.set()


@task(schedule=crontab(hour=3, minute="*/15", day_of_week="1-5"))
async def nightly(ctx: TaskRun) -> None: ...


def minutes(schedule: Scheduler, start: datetime, count: int) -> list[str]:
    """The first minutes of a day at which a schedule fires."""
    fired: list[str] = []
    last = None
    for minute in range(24 * 60):
        moment = start + timedelta(minutes=minute)
        if (run := schedule(moment, last)) is not None:
            last = run
            fired.append(moment.strftime("%H:%M"))
    return fired[:count]


async def main() -> None:
    monday = datetime(2024, 1, 1, tzinfo=UTC)
    print(minutes(crontab(minute="*/20"), monday, 4))
    print(minutes(crontab(hour="8-10", minute="30"), monday, 5))
    print(minutes(crontab(hour="3", minute="0", day="1"), monday, 5))
    print(minutes(crontab(hour="3", minute="0", month="2"), monday, 5))
    print(minutes(nightly.schedule, monday, 5), minutes(nightly.schedule, monday + timedelta(days=5), 5))
    print(isinstance(nightly.schedule, Scheduler), tick.info().schedule)

    scheduler = TaskScheduler(sleep_millis=10)
    scheduler.register_from_dict(globals())
    print(scheduler.type, sorted(scheduler.registry), sorted(task.name for task in scheduler.registry.periodic()))
    await scheduler.startup()
    async with asyncio.timeout(20):
        await enough.wait()
    await scheduler.shutdown()
    print(set(ticks), scheduler.is_stopped())

    still = TaskScheduler(sleep_millis=10, schedule_tasks=False)
    still.register_task(tick)
    ticks.clear()
    await still.startup()
    await asyncio.sleep(0.3)
    await still.shutdown()
    print(ticks)


asyncio.run(main())
