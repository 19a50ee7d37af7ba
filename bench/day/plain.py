"""Plain functions: no-ops as ``def``, beside the same called by ``run_in_executor`` from an ``async def``.

As the worker command has it (32 slots), and with 100 slots. ``async def`` shows what a run takes without a thread.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fluidfast import TaskRun, task

from . import Found, Way, drained, peer

TASKS = 30_000
POOL = ThreadPoolExecutor(32)


def noop() -> None:
    """Does nothing."""


@task(name="noop")
def in_thread(ctx: TaskRun[Any]) -> None:
    """The no-op as a plain function."""


@task(name="noop")
async def by_executor(ctx: TaskRun[Any]) -> None:
    """The no-op in a pool of threads, as applications call it without help."""
    await asyncio.get_running_loop().run_in_executor(POOL, noop)


@task(name="noop")
async def in_loop(ctx: TaskRun[Any]) -> None:
    """The no-op in the event loop."""


def ways(slots: int) -> dict[str, Way]:
    def with_task(task: Any) -> Way:
        async def way(url: str, tasks: int) -> Found:
            return await drained(url, tasks, task, max_concurrent_tasks=slots)

        return way

    return {
        "run_in_executor": with_task(by_executor),
        "def": with_task(in_thread),
        "async def": with_task(in_loop),
        "mayu": peer("mayu"),
    }


TABLES = {"32 slots": ways(32), "100 slots": ways(100)}
