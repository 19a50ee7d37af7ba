"""The load of ``bench``: what is queued, and what the process that runs it sees of it."""

import asyncio
import mmap
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from ...brokers.base import TaskBroker
from ...core._run import TaskRun
from ...core.task import Task, task

__all__ = [
    "DETAILS",
    "IDLE_RUNS",
    "TASK_NAME",
    "Load",
    "Order",
    "left_on",
    "params_of",
    "peak_memory_mib",
    "percentile_ms",
]

TASK_NAME = "bench"
DETAILS = "no-op, params: user_id int, email str, amount float, tags [str, str]"
SAMPLES = 20_000
"""About how many waits are sampled."""
IDLE_RUNS = 200
"""Runs that are queued one at a time, when the worker has nothing to do."""
STALL_SECONDS = 120.0


class Order(msgspec.Struct):
    """Params of a run; ``user_id`` is the number of the run."""

    user_id: int
    email: str
    amount: float
    tags: list[str]


def params_of(number: int) -> dict[str, Any]:
    """The params of a run, as the keywords of ``queue``."""
    return {"user_id": number, "email": "grace.hopper@example.com", "amount": 129.95, "tags": ["new", "paid"]}


class Load:
    """Runs that are expected, and those that came.

    ``marks``: a byte for each run, how often it ran. ``waits``: seconds from queued to start of each run whose number
    is a multiple of ``stride``. ``idle_waits``: of all those from ``tasks`` on.
    """

    def __init__(self, tasks: int, marks: "bytearray | mmap.mmap") -> None:
        self.tasks = tasks
        self.marks = marks
        self.stride = max(1, tasks // SAMPLES)
        self.waits: list[float] = []
        self.idle_waits: list[float] = []
        self.seen = 0
        self._expected = 0
        self._all: asyncio.Event = asyncio.Event()

    @staticmethod
    def file_of_marks(path: Path, size: int) -> mmap.mmap:
        """The marks in a file that another process makes them in."""
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), size)

    def task(self) -> Task[Order]:
        """The task that marks its run."""
        load, marks, stride, tasks = self, self.marks, self.stride, self.tasks

        @task(name=TASK_NAME, params_model=Order)
        async def bench(ctx: TaskRun[Order]) -> None:
            number = ctx.params.user_id
            times = marks[number]
            marks[number] = min(times + 1, 255)
            if times == 0:
                load.seen += 1
                if load.seen == load._expected:
                    load._all.set()
            if number % stride == 0 or number >= tasks:
                assert ctx.start is not None
                assert ctx.queued is not None
                wait = (ctx.start - ctx.queued).total_seconds()
                (load.idle_waits if number >= tasks else load.waits).append(wait)

        return bench

    def expect(self, total: int) -> None:
        """``drained`` is to wait until this many different runs have come."""
        self._expected = total
        if self.seen < total:
            self._all.clear()
        else:
            self._all.set()

    async def drained(self, broker: TaskBroker, progress: Callable[[int], object]) -> None:
        """Wait until all expected runs have run and are settled, or nothing is left to run.

        ``progress`` is told ten times a second how many have run.

        Raises:
            TimeoutError: runs are left, and none has ended for STALL_SECONDS.
        """
        seen, since = self.seen, monotonic()
        while not self._all.is_set():
            try:
                async with asyncio.timeout(0.1):
                    await self._all.wait()
            except TimeoutError:
                pass
            progress(self.seen)
            if self.seen != seen:
                seen, since = self.seen, monotonic()
            elif monotonic() - since > STALL_SECONDS:
                raise TimeoutError(f"no run has ended for {STALL_SECONDS:.0f} s, {seen:,} have before")
            elif monotonic() - since > 2 and not await left_on(broker):
                return
        since = monotonic()
        while left := await left_on(broker):
            if monotonic() - since > STALL_SECONDS:
                raise TimeoutError(f"all {self.seen:,} runs have run, but {left:,} are not settled")
            await asyncio.sleep(0.001)

    def percentiles(self) -> dict[str, float | None]:
        """Of the sampled waits, in milliseconds."""
        return {
            "p50": percentile_ms(self.waits, 50),
            "p99": percentile_ms(self.waits, 99),
            "idle_p50": percentile_ms(self.idle_waits, 50),
            "idle_p99": percentile_ms(self.idle_waits, 99),
        }


async def left_on(broker: TaskBroker) -> int:
    """Return the number of runs that the broker still has: waiting, leased, delayed.

    They are counted in the order in which a run passes through, so that none is missed.
    """
    waiting = sum((await broker.queue_length()).values())
    return waiting + await broker.leased_length() + await broker.delayed_length()


def percentile_ms(waits: Sequence[float], percent: float) -> float | None:
    """A percentile (nearest rank) of seconds, in milliseconds."""
    if not waits:
        return None
    ordered = sorted(waits)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 3)


def peak_memory_mib() -> float:
    """The most memory that this process has had resident, in MiB."""
    try:
        # ru_maxrss of a child starts with that of its parent, this does not
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
