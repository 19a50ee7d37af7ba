"""Answers: queue a run in one process, and wait for its end in another; one by one, and 1,000 at once."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from time import monotonic, process_time
from typing import Any

from fluidfast import TaskManager, TaskRun

from ..common import Child
from . import Found, Way

TASKS = 5_000
AT_ONCE = 1_000
WAIT_SECONDS = 60.0

manager = TaskManager(max_concurrent_tasks=100)


@manager.task
async def answer(user_id: int, email: str) -> None:
    """Nothing."""


def cpu_seconds(process: int) -> float:
    with open(f"/proc/{process}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def asked(url: str, tasks: int, ask: Callable[[Callable[[int], Awaitable[Any]], int], Awaitable[Any]]) -> Found:
    command = [sys.executable, "-P", "-m", "fluidfast", "worker", f"{__name__}:manager", "--log-level", "WARNING"]
    with Child(command, {"FLUID_BROKER_URL": url}) as worker:
        async with TaskManager(broker_url=url) as client:
            client.register_task(answer)

            def wait(number: int) -> Awaitable[TaskRun[Any, Any]]:
                return client.queue_and_wait(
                    "answer", timeout=WAIT_SECONDS, user_id=number, email="someone@example.com"
                )

            await ask(wait, min(tasks, AT_ONCE))
            began, cpu, theirs = monotonic(), process_time(), cpu_seconds(worker.process.pid)
            await ask(wait, tasks)
            seconds, cpu = monotonic() - began, process_time() - cpu
            theirs = cpu_seconds(worker.process.pid) - theirs
    return {
        "answers/s": tasks / seconds,
        "CPU us a call": cpu / tasks * 1e6,
        "... in the worker": theirs / tasks * 1e6,
    }


async def one_by_one(wait: Callable[[int], Awaitable[Any]], tasks: int) -> None:
    for number in range(tasks):
        await wait(number)


async def at_once(wait: Callable[[int], Awaitable[Any]], tasks: int) -> None:
    for first in range(0, tasks, AT_ONCE):
        await asyncio.gather(*(wait(number) for number in range(first, min(first + AT_ONCE, tasks))))


def ours(ask: Callable[[Callable[[int], Awaitable[Any]], int], Awaitable[Any]]) -> Way:
    return lambda url, tasks: asked(url, tasks, ask)


TABLES = {"queue_and_wait": {"one by one": ours(one_by_one), "1,000 at once": ours(at_once)}}
