"""Row 13: the module of ``python -m fluidfast worker shut:consumer``. Options: ``grace concurrency plant``."""

from __future__ import annotations

import asyncio

from apps.slow import Length, blocking, quick, sleeping, threaded
from worker_app import OPTIONS, end_with_parent, ledger, work

from fluidfast import TaskConsumer, TaskRun, task


@task(timeout_seconds=600)
async def stubborn(ctx: TaskRun[Length]) -> None:
    """Does not let itself be cancelled."""
    ledger().started(ctx.id)
    end = asyncio.get_running_loop().time() + ctx.params.seconds
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            ledger().note(f"cancelled {ctx.id}")
    ledger().finished(ctx.id)


TASKS = (sleeping, blocking, threaded, quick, stubborn, work)


class NotingConsumer(TaskConsumer):
    async def startup(self) -> None:
        await super().startup()
        ledger().note(f"ready {self.engine.id}")


def consumer() -> TaskConsumer:
    end_with_parent()
    made = NotingConsumer(
        broker_url=OPTIONS["url"],
        max_concurrent_tasks=OPTIONS["concurrency"],
        stopping_grace_period=OPTIONS["grace"],
    )
    if OPTIONS.get("plant") == "no-release":  # what has not started is left to its lease

        async def release_nothing() -> None:
            made.engine.slots.ready.clear()

        made.engine.claiming.release_ready = release_nothing  # type: ignore[method-assign]
    for each in TASKS:
        made.register_task(each)
    return made
