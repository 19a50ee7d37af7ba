"""``worker --processes N``: real processes."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import redis
from kits.command_kit import COMMAND, environment, until

APP = """
import asyncio, os
from fluidfast import TaskManager, task

@task
async def die(ctx):
    os._exit(9)

@task
async def who(ctx):
    await asyncio.sleep(0.2)
    with open("pids", "a") as file:
        file.write(f"{{os.getpid()}}\\n")

manager = TaskManager(broker_url={url!r}, lease_seconds=1, connect_seconds=1)
manager.register_task(die)
manager.register_task(who)
"""


class Supervised:
    def __init__(self, folder: Path, url: str, *options: str) -> None:
        (folder / "app.py").write_text(APP.format(url=url))
        self.folder = folder
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "worker", "app:manager", "--processes", "2", *options],
                cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text()

    def started(self) -> int:
        return len(re.findall(r"fluidfast.worker(?:\[\d\])?: worker \w+:", self.text()))

    def queue(self, name: str, count: int = 1) -> None:
        lines = b"{}\n" * count
        subprocess.run(
            [*COMMAND, "queue", "app:manager", name, "--from", "-"],
            cwd=self.folder, env=environment(), input=lines, check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def pids(self) -> list[int]:
        file = self.folder / "pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def client(redis_url: str):
    with redis.Redis.from_url(redis_url.partition("?")[0]) as made:
        yield made


def test_two_workers_share_the_work_and_drain(tmp_path: Path, redis_url: str) -> None:
    workers = Supervised(tmp_path, redis_url)
    try:
        until(lambda: workers.started() == 2, "two workers")
        workers.queue("who", 20)
        until(lambda: len(workers.pids()) == 20, "all runs")
        assert len(set(workers.pids())) == 2
        assert workers.process.pid not in workers.pids()
    finally:
        code = workers.end()
    assert code == 0, workers.text()
    assert not any(alive(pid) for pid in set(workers.pids()))
    assert "0 had been replaced" in workers.text()


def test_a_dead_worker_is_replaced_and_poison_is_buried(tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    workers = Supervised(tmp_path, redis_url)
    try:
        until(lambda: workers.started() == 2, "two workers")
        workers.queue("die")
        dead = next(f"{{{name}}}-ff:dead" for name in re.findall(r"name=([^&]+)", redis_url))
        until(lambda: client.llen(dead), "the poison among the dead", 40)
        until(lambda: workers.started() == 5, "three workers more")
        workers.queue("who", 4)
        until(lambda: len(workers.pids()) == 4, "work goes on")
    finally:
        code = workers.end()
    assert code == 0, workers.text()
    assert "3 had been replaced" in workers.text()
    assert workers.text().count("ended with exit code 9") == 3


def test_workers_end_with_their_supervisor(tmp_path: Path, redis_url: str) -> None:
    workers = Supervised(tmp_path, redis_url)
    until(lambda: workers.started() == 2, "two workers")
    workers.queue("who", 12)
    until(lambda: len(set(workers.pids())) == 2, "both at work")
    workers.process.send_signal(signal.SIGKILL)
    workers.process.wait(10)
    until(lambda: not any(alive(pid) for pid in set(workers.pids())), "the workers' end")


def test_workers_that_cannot_start_are_not_started_for_ever(tmp_path: Path) -> None:
    workers = Supervised(tmp_path, "redis://127.0.0.1:1/0")
    assert workers.process.wait(60) == 1
    assert "workers cannot start" in workers.text()
    assert "Traceback" not in workers.text()


def test_memory_is_not_shared_by_processes(tmp_path: Path) -> None:
    workers = Supervised(tmp_path, "memory://")
    assert workers.process.wait(30) == 1
    assert "processes cannot share memory://" in workers.text()
