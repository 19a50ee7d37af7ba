"""The application that the files in this folder deploy. Put yours in its place."""

import asyncio
import os

import msgspec
from health import Heartbeat

from fluidfast import TaskManager, TaskRun, task


class Order(msgspec.Struct):
    order: str
    seconds: float = 0


@task
async def ship(ctx: TaskRun[Order]) -> None:
    """Ship an order."""
    print(f"begin {ctx.params.order}", flush=True)
    await asyncio.sleep(ctx.params.seconds)
    print(f"end {ctx.params.order}", flush=True)


manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
manager.register_task(ship)
manager.add_async_context_manager(Heartbeat())
