"""Runs that queue other runs: who came from whom."""

import asyncio

from fluid.scheduler import TaskConsumer, TaskPriority, TaskRun, TaskState, task
from pydantic import BaseModel


class Page(BaseModel):
    number: int
    of: int = 3


@task
async def crawl(ctx: TaskRun[Page]) -> None:
    """Fetch a page, then the next one"""
    if ctx.params.number < ctx.params.of:
        await ctx.queue("crawl", number=ctx.params.number + 1, of=ctx.params.of)
    else:
        await ctx.queue(report, priority=TaskPriority.high, pages=ctx.params.number)


class Pages(BaseModel):
    pages: int


@task
async def report(ctx: TaskRun[Pages]) -> None:
    print("pages", ctx.params.pages, "priority", ctx.priority)


async def main() -> None:
    consumer = TaskConsumer(sleep_millis=10)
    consumer.register_from_dict(globals())
    runs: list[TaskRun] = []
    over = asyncio.Event()

    def ended(run: TaskRun) -> None:
        runs.append(run)
        if run.name == "report":
            over.set()

    consumer.dispatcher.register_handler("success", ended)
    await consumer.startup()
    first = await consumer.queue("crawl", number=1)
    print(first.state is TaskState.queued, first.params, first.from_run_id == "", first.root_run_id == "")
    async with asyncio.timeout(20):
        await over.wait()
    runs.sort(key=lambda run: run.queued)
    ids = [run.id for run in runs]
    print([run.name for run in runs], ids[0] == first.id, len(set(ids)))
    for run in runs:
        came_from = ids.index(run.from_run_id) if run.from_run_id else None
        root = ids.index(run.root_run_id) if run.root_run_id else None
        print(run.name, run.state, came_from, root, run.in_queue is not None, run.total is not None)
    await consumer.shutdown()


asyncio.run(main())
