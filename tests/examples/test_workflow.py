from __future__ import annotations

import signal
from pathlib import Path

import redis
from kits.example_kit import Example, started
from kits.waiting import until

from fluidfast import TaskManager

WORKER = "fluidfast worker workflow:manager"
PAY = """fluidfast queue workflow:manager pay --params '{"order": "A-7", "items": ["cup", "pot", "tea"]}'"""


async def test_an_order_is_shipped_once_also_if_it_is_paid_twice(redis_url: str, tmp_path: Path) -> None:
    example = Example("workflow", tmp_path, FLUID_BROKER_URL=redis_url)
    example.run(PAY)
    example.run(PAY)  # as if the first run had been delivered twice
    async with TaskManager(broker_url=redis_url) as manager:
        broker = manager.broker

        async def idle() -> bool:
            waiting = sum((await broker.queue_length()).values()) + await broker.delayed_length()
            return not waiting and not await broker.leased_length()

        with example.start(WORKER) as first, example.start(WORKER) as second:
            started(first, second)
            await until(idle, "nothing is queued or leased")
            for worker in (first, second):
                worker.signal(signal.SIGTERM)
                assert worker.end() == 0
        assert (first.stdout + second.stdout).splitlines() == ["shipped A-7"]
    with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
        name = redis_url.partition("?name=")[2]
        client.delete(f"{{{name}}}-packed-A-7", f"{{{name}}}-shipped-A-7")
