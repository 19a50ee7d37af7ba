"""Row 14, a program for a Python that has aio-fluid: a consumer, or a producer of runs.

``FAULT``: role, url, ledgers, who, limit; concurrency (consumer); count, start, task, ms (producer). Ends on SIGTERM; a
producer by itself.
"""

# no "from __future__ import annotations": aio-fluid looks for the params' model in annotations that are no strings

import asyncio
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from fluid.scheduler import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task  # type: ignore[import-not-found]
from pydantic import BaseModel

# by its path: this Python cannot import the package that it stands in
PATH = Path(__file__).parents[3] / "fluidfast" / "commands" / "trials" / "ledger.py"
SPEC = importlib.util.spec_from_file_location("ledger", PATH)
assert SPEC is not None
assert SPEC.loader is not None
ledger = sys.modules["ledger"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ledger)

OPTIONS: dict[str, Any] = json.loads(os.environ["FAULT"])
LEDGER = ledger.Ledger(OPTIONS["ledgers"], OPTIONS["who"])


class Work(BaseModel):
    ms: float = 0


@task(timeout_seconds=60)
async def plain(ctx: TaskRun[Work]) -> None:
    LEDGER.started(ctx.id)
    await asyncio.sleep(ctx.params.ms / 1000)
    LEDGER.finished(ctx.id)


@task(
    timeout_seconds=60,
    max_concurrency=OPTIONS["limit"],
    rate_limit_retry=RetryPolicy(wait=0.1, backoff=1.5, max_wait=5),
)
async def limited(ctx: TaskRun[Work]) -> None:
    LEDGER.started(ctx.id)
    await asyncio.sleep(ctx.params.ms / 1000)
    LEDGER.finished(ctx.id)


def register(manager: TaskManager) -> None:
    for each in (plain, limited):
        manager.register_task(each)


async def consume() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    consumer = TaskConsumer(
        broker_url=OPTIONS["url"],
        max_concurrent_tasks=OPTIONS["concurrency"],
        sleep_millis=20,
        stopping_grace_period=10,
    )
    register(consumer)
    await consumer.startup()
    LEDGER.note("ready aio")
    await stop.wait()
    await consumer.shutdown()


async def produce() -> None:
    async with TaskManager(broker_url=OPTIONS["url"]) as manager:
        register(manager)
        numbers = iter(range(OPTIONS.get("start", 0), OPTIONS.get("start", 0) + OPTIONS["count"]))

        async def lane() -> None:
            for number in numbers:
                id = f"{OPTIONS['who']}-{number}"
                LEDGER.attempted(id)
                await manager.queue(OPTIONS["task"], run_id=id, ms=OPTIONS["ms"])
                LEDGER.acknowledged(id)

        await asyncio.gather(*(lane() for _ in range(4)))


def end_with_parent() -> None:
    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(99)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    end_with_parent()
    asyncio.run(produce() if OPTIONS["role"] == "producer" else consume())
