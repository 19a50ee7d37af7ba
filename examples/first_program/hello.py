"""Queue a run of a task, and wait for its end."""

import asyncio
import os

import msgspec

from fluidfast import TaskConsumer, TaskRun, task


class Greeting(msgspec.Struct):
    name: str


@task
async def greet(ctx: TaskRun[Greeting]) -> None:
    print(f"hello {ctx.params.name}", flush=True)


manager = TaskConsumer(broker_url=os.environ.get("FLUID_BROKER_URL", "memory://"))
manager.register_task(greet)


async def main() -> None:
    async with manager:  # consumes from here on; the end of the block drains
        run = await manager.queue_and_wait(greet, name="Grace")
        print(run.state)


if __name__ == "__main__":
    asyncio.run(main())
