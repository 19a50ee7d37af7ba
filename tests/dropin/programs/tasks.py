"""Declare tasks, register them, execute them here, and describe them."""

import asyncio
from datetime import timedelta

from fluid.scheduler import RetryPolicy, TaskInfo, TaskManager, TaskPriority, TaskRun, every, task
from fluid.scheduler.models import TaskInfoUpdate
from pydantic import BaseModel, Field


class Order(BaseModel):
    item: str = Field(description="What to buy")
    amount: int = 1
    gift: bool = False


@task
async def nothing(ctx: TaskRun) -> None:
    """Do nothing.

    Not even that.
    """
    ctx.logger.info("nothing")


@task(name="buy", tags=["shop", "money"], priority=TaskPriority.high, timeout_seconds=5)
async def buy_something(ctx: TaskRun[Order]) -> None:
    """Buy something"""
    print("buy", ctx.params.amount, ctx.params.item, ctx.params.gift, ctx.state, ctx.name)


@task(
    schedule=every(timedelta(hours=1)),
    max_concurrency=2,
    short_description="Clean",
    description="Clean up what is old",
    retry=RetryPolicy(max_attempts=3, wait=1, backoff=2, max_wait=9, exceptions=(ValueError,)),
    env={"COLOUR": "red"},
)
async def clean(ctx: TaskRun) -> None:
    print("clean")


def described(info: TaskInfo) -> None:
    shown = info.model_dump(mode="json", exclude={"module", "retry"})
    for name in sorted(shown):
        print(" ", name, sorted(shown[name]) if name == "tags" else shown[name])
    if info.retry is not None:
        print("  retry", info.retry.max_attempts, info.retry.wait, info.retry.backoff, info.retry.exceptions)


async def main() -> None:
    manager = TaskManager()
    manager.register_from_dict(globals())
    print("registry", sorted(manager.registry))
    run = await manager.execute("buy", item="tea", amount=2)
    print(run.state, run.is_done, run.is_failure, run.priority, run.duration is not None)
    await manager.execute(buy_something, item="cake", gift=True)
    run = await manager.execute(clean)
    print(run.state, run.name, run.name_id == f"clean.{run.id}", len(run.id))
    for one in (nothing, buy_something, clean):
        print(one.name, one.cpu_bound, one.params_model is Order)
        described(one.info())
    print(TaskInfoUpdate(enabled=False).model_dump_json())
    renamed = nothing._replace(name="renamed", tags=frozenset(["x"]))
    print(renamed.name, renamed.info().tags, isinstance(renamed, tuple))
    await manager.on_shutdown()


asyncio.run(main())
