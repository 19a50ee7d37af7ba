"""Row 12, a program: a process with several consumers, which note when they are woken. Options: ``consumers``,
``plant``.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from time import monotonic

from worker_app import OPTIONS, end_with_parent, ledger

from fluidfast import TaskConsumer, TaskRun, task
from fluidfast.brokers.contract import Claim
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.client import RedisClient
from fluidfast.brokers.redis.wakeup import WakeUp


@task
async def pick_up(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    ledger().finished(ctx.id)


def take_notes() -> None:
    wait = WakeUp.wait

    async def wait_noted(self: WakeUp, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        began = monotonic()
        claim = await wait(self, timeout, tasks)
        if monotonic() - began < timeout - 0.05:
            ledger().note(f"woken {self.consumer}")
        return claim

    WakeUp.wait = wait_noted  # type: ignore[method-assign]


def plant(bug: str) -> None:
    async def wait_polling(
        self: RedisTaskBroker, consumer: str, timeout: float, tasks: Sequence[str] | None = None
    ) -> None:
        for _ in range(int(timeout / 0.02)):
            if sum((await self.queue_length()).values()):
                ledger().note(f"woken {consumer}")
                return
            await asyncio.sleep(0.02)

    if bug == "polling":
        RedisTaskBroker.wait = wait_polling  # type: ignore[method-assign]
    elif bug == "short-calls":
        RedisClient.block_seconds = 0.5  # type: ignore[assignment, misc]


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    consumers = [TaskConsumer(broker_url=OPTIONS["url"]) for _ in range(OPTIONS["consumers"])]
    for consumer in consumers:
        consumer.register_task(pick_up)
        await consumer.startup()
    ledger().note(f"ready {len(consumers)}")
    await stop.wait()
    await asyncio.gather(*(consumer.shutdown() for consumer in consumers))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    end_with_parent()
    take_notes()
    plant(OPTIONS["plant"])
    asyncio.run(main())
