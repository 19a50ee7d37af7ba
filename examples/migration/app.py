"""An application written for aio-fluid. Nothing in it changes but the imports."""

import asyncio
import os
from datetime import timedelta

from fluid.scheduler import TaskRun, TaskScheduler, every, task
from pydantic import BaseModel


class AddValues(BaseModel):
    a: float = 0
    b: float = 0


@task
async def add(ctx: TaskRun[AddValues]) -> None:
    """Log the sum of two values"""
    ctx.logger.info("sum = %s", ctx.params.a + ctx.params.b)


@task(schedule=every(timedelta(seconds=30)), max_concurrency=1)
async def heartbeat(ctx: TaskRun) -> None:
    """Log that the application is alive"""
    ctx.logger.info("alive")


def task_scheduler(**kwargs: object) -> TaskScheduler:
    scheduler = TaskScheduler(**kwargs)
    scheduler.register_from_dict(globals())
    return scheduler


async def main() -> None:
    async with task_scheduler(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379")) as scheduler:
        run = await scheduler.queue_and_wait("add", a=2, b=5)
        print(run.name, run.state)


if __name__ == "__main__":
    asyncio.run(main())
