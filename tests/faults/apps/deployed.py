"""Row 23, a program: a scheduler that also consumes, for rolling restarts. It notes what is due and when it fires."""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import timedelta
from typing import Any

import worker_app
from worker_app import OPTIONS, end_with_parent, ledger

from fluidfast import TaskRun, TaskScheduler, every, task
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.wire.peek import read_fields

PERIOD = 2.0


@task(schedule=every(timedelta(seconds=PERIOD)))
async def ticking(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    ledger().finished(ctx.id)


def take_notes() -> None:
    """Write down each firing that the broker accepted."""
    push_after = RedisTaskBroker.push_after

    async def push_noted(self: RedisTaskBroker, *args: Any) -> tuple[bool, int]:
        ledger().attempted(str(read_fields(args[-1])["id"]))
        is_ours, fired = await push_after(self, *args)
        if is_ours:
            ledger().note(f"fired {args[2] / 1e6:.3f}")
        return is_ours, fired

    RedisTaskBroker.push_after = push_noted  # type: ignore[method-assign]


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    scheduler = TaskScheduler(broker_url=OPTIONS["url"], max_concurrent_tasks=20, stopping_grace_period=5)
    worker_app.register(scheduler)
    scheduler.register_task(ticking)
    await scheduler.startup()
    ledger().note(f"ready {scheduler.engine.id}")
    await stop.wait()
    await scheduler.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    end_with_parent()
    take_notes()
    asyncio.run(main())
