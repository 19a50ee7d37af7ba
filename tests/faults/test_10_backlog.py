"""Row 10: a backlog, however long, costs a worker nothing: its rate is that of a short one, its memory is flat."""

from __future__ import annotations

import asyncio
import math
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from apps.backlog import EVERY, marks, tick
from apps.processes import app, rss_bytes
from harness import Fleet, Process, until
from results import Figures

from fluidfast import TaskManager

MB = 1 << 20
PAD = "x" * 100


def fill(fleet: Fleet, count: int) -> float:
    """Queue so many runs. Gives runs a second."""

    def numbers() -> Iterator[dict[str, Any]]:
        return ({"n": n, "pad": PAD} for n in range(count))

    async def feed() -> float:
        async with TaskManager(broker_url=fleet.url) as manager:
            summary = await manager.queue_many(tick, numbers())
            assert summary.queued == count
            return summary.queued / summary.seconds

    return asyncio.run(feed())


class Memory:
    """Resident memory of a process, looked at all the time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.samples: list[tuple[float, int]] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self) -> None:
        while not self.stopped.wait(0.01):
            try:
                self.samples.append((time.monotonic(), rss_bytes(self.process.pid)))
            except OSError:
                return

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    def most(self, until: float = math.inf) -> float:
        """The most that there was, in MB."""
        return max(size for at, size in self.samples if at <= until) / MB


def work_off(fleet: Fleet, count: int, plant: str = "") -> tuple[list[float], float, float]:
    """Fill, then have one worker work it off. Gives runs a second in each tenth of it, the most memory that the worker
    had (MB), and how much of that came after the first tenth."""
    path = fleet.oracle.directory / f"marks-{count}"
    seen = marks(path, count)
    fill(fleet, count)
    env = {"MARKS": path.name, "PLANT": plant, "WAITING": str(count)}
    options: dict[str, Any] = {"app": app("backlog"), "config": {"max_concurrent_tasks": 20}, "env": env}
    [worker] = fleet.workers(1, ready=0, **options)
    memory = Memory(worker)
    try:
        until(
            lambda: not fleet.places(),
            60 + count / 2000,
            lambda: f"worked off: {fleet.places()}\n{worker.log}",
            every=0.1,
        )
    finally:
        memory.stop()
    worker.terminate()
    worker.done()
    counts = {times: seen[:].count(times) for times in range(3)}
    assert counts == {0: 0, 1: count, 2: 0}, counts
    at = [line.at for line in fleet.oracle.notes(worker.who) if line.id.startswith("done ")]
    assert len(at) == count // EVERY
    step = max(1, (len(at) - 1) // 10)
    tenths = [EVERY * step / (at[i + step] - at[i]) for i in range(0, len(at) - step, step)]
    most = memory.most()
    return tenths, most, most - memory.most(until=at[step])


def compare(fleet: Fleet, *, small: int, big: int, repeats: int, plant: str = "") -> dict[str, Any]:
    """Rate and memory of a worker with a small backlog, a big one, a small one again, and so on."""
    rates: dict[int, list[float]] = {small: [], big: []}
    for count in (*[small, big] * repeats, small):
        found, most, growth = work_off(fleet, count, plant)
        rates[count].append(statistics.median(found))
        if count == big:
            tenths, worker_mb, worker_mb_growth = found, most, growth
    fleet.assert_clean()
    small_rate, big_rate = (statistics.median(rates[count]) for count in (small, big))
    return {
        "small": small, "big": big, "rate_small": small_rate, "rate_big": big_rate, "ratio": big_rate / small_rate,
        "rate_first_tenth": tenths[0], "rate_last_tenth": tenths[-1],
        "worker_mb": worker_mb, "worker_mb_growth": worker_mb_growth, "lost": 0, "duplicated": 0,
    }  # fmt: skip


def test_a_backlog_costs_nothing(fleet: Fleet, figures: Figures) -> None:
    found = compare(fleet, small=20_000, big=100_000, repeats=1)
    figures.add(10, "a big backlog beside a small one", **found)
    assert found["ratio"] > 0.5  # a busy machine; the long form looks closer
    assert found["worker_mb_growth"] < 25


@pytest.mark.soak
def test_ten_million(fleet: Fleet, figures: Figures) -> None:
    found = compare(fleet, small=10_000, big=10_000_000, repeats=1)
    figures.add(10, "10 M beside 10 k", **found)
    assert found["ratio"] >= 0.9
    assert found["worker_mb_growth"] < 25


@pytest.mark.soak
@pytest.mark.parametrize("plant", ["keep", "slower"])
def test_calibration(fleet: Fleet, plant: str) -> None:
    found = compare(fleet, small=20_000, big=100_000, repeats=1, plant=plant)
    assert found["worker_mb_growth"] > 25 if plant == "keep" else found["ratio"] < 0.5
