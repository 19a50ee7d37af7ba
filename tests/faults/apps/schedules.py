"""Row 16, a program: a scheduler that only schedules. Options: ``plant``, ``crontab`` (true: with one)."""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import timedelta
from typing import Any

from worker_app import OPTIONS, end_with_parent, ledger

from fluidfast import TaskRun, TaskScheduler, crontab, every, task
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.wire.peek import read_fields


async def note(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    ledger().finished(ctx.id)


each_second = task(schedule=every(timedelta(seconds=1)), name="each_second")(note)
each_other = task(schedule=every(timedelta(seconds=2)), name="each_other")(note)
PERIODS = {"each_second": 1, "each_other": 2}
each_minute = task(schedule=crontab(), name="each_minute")(note)


def take_notes() -> None:
    """Which run is meant for which due time, and who was told to be the first."""
    push_once = RedisTaskBroker.push_once

    async def push_noted(self: RedisTaskBroker, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        ledger().note(f"try {key} {read_fields(payload)['id']}")
        is_ours = await push_once(self, key, seconds, priority, payload)
        if is_ours:
            ledger().note(f"fired {key}")
        return is_ours

    RedisTaskBroker.push_once = push_noted  # type: ignore[method-assign]
    push_after = RedisTaskBroker.push_after

    async def push_after_noted(
        self: RedisTaskBroker, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        name = mark.partition(":")[2]
        key = f"schedule:{name}:{at // (1_000_000 * PERIODS[name])}"
        ledger().note(f"try {key} {read_fields(payload)['id']}")
        is_ours, fired = await push_after(self, mark, after, at, seconds, priority, payload)
        if is_ours:
            ledger().note(f"fired {key}")
        return is_ours, fired

    RedisTaskBroker.push_after = push_after_noted  # type: ignore[method-assign]


def plant(bug: str) -> None:
    push_once = RedisTaskBroker.push_once

    async def mark_then_push(self: RedisTaskBroker, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        """Two steps: who dies between them leaves a due time to nobody."""
        if not await self.first(key, seconds):
            return False
        await asyncio.sleep(0.05)
        return await push_once(self, f"{key}{read_fields(payload)['id']}", seconds, priority, payload)

    async def push_always(self: RedisTaskBroker, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        return await push_once(self, f"{key}{read_fields(payload)['id']}", seconds, priority, payload)

    push_after = RedisTaskBroker.push_after

    async def mark_then_push_after(
        self: RedisTaskBroker, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        (fired,) = await self.marks(mark)
        if fired not in (0, after):
            return False, fired
        await self.set_marks([mark], at, seconds)
        await asyncio.sleep(0.05)
        return await push_after(self, f"{mark}{at}", 0, at, seconds, priority, payload)

    async def push_after_always(
        self: RedisTaskBroker, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        return await push_after(self, f"{mark}{read_fields(payload)['id']}", 0, at, seconds, priority, payload)

    if bug:
        planted: Any = {
            "mark-then-push": (mark_then_push, mark_then_push_after), "push-always": (push_always, push_after_always)
        }[bug]  # fmt: skip
        RedisTaskBroker.push_once, RedisTaskBroker.push_after = planted  # type: ignore[method-assign]


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    scheduler = TaskScheduler(broker_url=OPTIONS["url"], consume_tasks=False, stopping_grace_period=2)
    for each in (each_second, each_other, *([each_minute] if OPTIONS["crontab"] else [])):
        scheduler.register_task(each)
    await scheduler.startup()
    ledger().note(f"ready {scheduler.engine.id}")
    await stop.wait()
    await scheduler.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    end_with_parent()
    plant(OPTIONS["plant"])
    take_notes()
    asyncio.run(main())
