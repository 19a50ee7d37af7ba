"""A worker process is killed by SIGKILL in the middle of its work. Nothing is lost, and what runs twice had begun.

Counted from files outside the broker. This file is also the worker's program: `python test_kill.py URL FILE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kits.broker_kit import places, with_options
from kits.waiting import until, within
from redis.asyncio import Redis

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.redis.broker import RedisTaskBroker

RUNS = 10_000
LEASE_SECONDS = 1.0


class Record:
    """An append-only file: one line for each start and each end, written before anything else happens."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, what: str, run_id: str) -> None:
        os.write(self.file, f"{what} {run_id}\n".encode())


@task
async def work(ctx: TaskRun[Any, Record]) -> None:
    """Takes up to 4 ms."""
    ctx.deps.write("start", ctx.id)
    await asyncio.sleep(random.random() * 0.004)
    ctx.deps.write("end", ctx.id)


async def worker(url: str, path: str) -> None:
    consumer = TaskConsumer(
        broker_url=url, deps=Record(Path(path)), max_concurrent_tasks=20, lease_seconds=LEASE_SECONDS
    )
    consumer.register_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.gracefully_stop)
    await consumer.startup()
    await consumer.wait_for_shutdown()


def read(path: Path, what: str) -> list[str]:
    """Ids of the runs that were started, or ended."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # a line that was cut off is none
    return [line.partition(" ")[2] for line in lines if line.startswith(what)]


@contextlib.asynccontextmanager
async def running(url: str, path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with path.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, url, str(path), stdout=log, stderr=subprocess.STDOUT, env=environ
        )
    try:
        yield process
    finally:
        print(path.with_suffix(".log").read_text())
        if process.returncode is None:
            process.kill()
        await process.wait()


async def held(broker: RedisTaskBroker) -> set[str]:
    """Ids of the runs that are under a lease."""
    client: Redis = broker.redis_cli
    batches = await client.zrange(broker.keys.leases, 0, -1)
    payloads = [payload for b in batches for payload in await client.hvals(broker.keys.lease(b.decode()))]  # type: ignore[misc]
    return {json.loads(payload)["id"] for payload in payloads}


async def consumers_known(broker: RedisTaskBroker, n: int) -> bool:
    return int(await broker.redis_cli.zcard(broker.keys.consumers)) == n


@pytest.mark.parametrize("kills", [1, 2])
async def test_a_second_worker_finishes_what_a_killed_one_held(
    redis_url: str, tmp_path: Path, no_leaked_keys: Any, kills: int
) -> None:
    no_leaked_keys.allow("*-tasks-*")
    if kills > 1:
        no_leaked_keys.allow("*-ff:consumers", "*-ff:consumer-leases")
    url = with_options(redis_url, lease_seconds=LEASE_SECONDS)
    async with TaskManager(broker_url=url) as manager:
        manager.register_task(work)
        broker = manager.broker
        assert isinstance(broker, RedisTaskBroker)
        summary = await manager.queue_many("work", ({} for _ in range(RUNS)), return_ids=True)
        queued = set(summary.run_ids or ())
        assert len(queued) == RUNS

        may_run_twice: Counter[str] = Counter()
        files = [tmp_path / f"worker-{n}" for n in range(kills + 1)]
        for n in range(kills):
            async with running(url, files[n]) as process:
                await until(lambda n=n: len(read(files[n], "end")) > RUNS // (kills + 2))  # type: ignore[misc]
                process.send_signal(signal.SIGKILL)
                await within(process.wait())
            unsettled = await held(broker)
            assert unsettled, "it was killed while it held nothing"
            may_run_twice.update(unsettled & set(read(files[n], "start")))

        async with running(url, files[kills]) as process:

            async def all_settled() -> bool:
                assert process.returncode is None
                return await places(broker) == {}

            await until(all_settled, seconds=60, every=0.05)
            if kills == 1:  # what was known of the dead goes too
                await until(lambda: consumers_known(broker, 1), every=0.05)
            process.send_signal(signal.SIGTERM)
            assert await within(process.wait()) == 0

        started = Counter(run_id for path in files for run_id in read(path, "start"))
        ended = Counter(run_id for path in files for run_id in read(path, "end"))
        assert set(ended) == queued, "lost"
        assert set(started) == queued
        twice = Counter({run_id: n - 1 for run_id, n in started.items() if n > 1})
        print(f"killed {kills}, started twice {twice.total()}, had begun and were not settled {may_run_twice.total()}")
        assert twice <= may_run_twice
        assert Counter({run_id: n - 1 for run_id, n in ended.items() if n > 1}) <= may_run_twice
        assert await broker.dead() == []


async def test_a_worker_that_is_terminated_repeats_nothing(redis_url: str, tmp_path: Path, no_leaked_keys: Any) -> None:
    no_leaked_keys.allow("*-tasks-*")
    async with TaskManager(broker_url=redis_url) as manager:
        manager.register_task(work)
        summary = await manager.queue_many("work", ({} for _ in range(3000)), return_ids=True)
        files = [tmp_path / f"worker-{n}" for n in range(3)]
        for path in files[:2]:
            async with running(redis_url, path) as process:
                await until(lambda path=path: len(read(path, "end")) > 500)  # type: ignore[misc]
                process.send_signal(signal.SIGTERM)
                assert await within(process.wait(), 30) == 0
            assert await manager.broker.leased_length() == 0
        async with running(redis_url, files[2]) as process:
            await until(lambda: is_empty(manager), seconds=60)
            process.send_signal(signal.SIGTERM)
            assert await within(process.wait(), 30) == 0
        for what in ("start", "end"):
            assert Counter(run_id for path in files for run_id in read(path, what)) == Counter(summary.run_ids)


async def is_empty(manager: TaskManager) -> bool:
    return await places(manager.broker) == {}


if __name__ == "__main__":
    asyncio.run(worker(sys.argv[1], sys.argv[2]))
