"""CPU-bound work: 10 ms of it a run, each way to get a process, beside a ProcessPoolExecutor.

A worker of two slots more than cores runs it; this process queues all runs and waits for them.
"""

import asyncio
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from fluidfast import TaskManager, TaskRun, task

from ..common import Child
from . import Found, Way

TASKS = 400
WORK_SECONDS = 0.010
WAIT_SECONDS = 120.0


def work(_: int = 0) -> None:
    began = process_time()
    while process_time() - began < WORK_SECONDS:
        pass


@task(cpu_bound=True)
def forked(ctx: TaskRun[Any]) -> None:
    work()


@task(cpu_bound="pool")
def pooled(ctx: TaskRun[Any]) -> None:
    work()


@task(cpu_bound="spawn")
def spawned(ctx: TaskRun[Any]) -> None:
    work()


manager = TaskManager(max_concurrent_tasks=(os.cpu_count() or 1) + 2)
manager.register_from_dict(globals())


def cpu_seconds(top: int) -> float:
    """What a process has used with all those that it has started."""
    fields = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found = path.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        fields[int(path.parent.name)] = found
    family = {top}
    while more := {pid for pid, found in fields.items() if int(found[1]) in family} - family:
        family |= more
    ticks = sum(int(number) for pid in family for number in fields[pid][11:15])
    return float(ticks / os.sysconf("SC_CLK_TCK"))


def in_executor(url: str, tasks: int) -> Found:
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    with ProcessPoolExecutor() as pool:
        list(pool.map(work, range(20)))
        began = monotonic()
        list(pool.map(work, range(tasks)))
        seconds = monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
    return {"runs/s": tasks / seconds, "CPU ms a run": spent / (tasks + 20) * 1e3}


def ours(name: str, share: float = 1.0) -> Way:
    async def way(url: str, tasks: int) -> Found:
        tasks = int(tasks * share)
        command = [sys.executable, "-P", "-m", "fluidfast", "worker", f"{__name__}:manager", "--log-level", "WARNING"]
        with Child(command, {"FLUID_BROKER_URL": url}) as worker:
            async with TaskManager(broker_url=url) as client:
                client.register_from_dict(globals())

                async def ask(count: int) -> None:
                    await asyncio.gather(*(client.queue_and_wait(name, timeout=WAIT_SECONDS) for _ in range(count)))

                await ask(8)
                began, cpu = monotonic(), cpu_seconds(worker.process.pid)
                await ask(tasks)
                seconds, cpu = monotonic() - began, cpu_seconds(worker.process.pid) - cpu
        return {"runs/s": tasks / seconds, "CPU ms a run": cpu / tasks * 1e3}

    return way


WAYS: dict[str, Callable[[str, int], Any]] = {
    "ProcessPoolExecutor": in_executor,
    'cpu_bound="pool"': ours("pooled"),
    "cpu_bound=True": ours("forked"),
    'cpu_bound="spawn"': ours("spawned", 0.05),
}
TABLES = {"10 ms of work": WAYS}
