"""Row 9: tasks that take their worker down with them, and good ones."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal

import msgspec
from worker_app import ledger

from fluidfast import TaskRun, task
from fluidfast.brokers.redis import broker as redis_broker

PLANT = os.environ.get("PLANT", "")
if PLANT == "no-suspects":  # whoever was beside a poison three times is blamed as well
    redis_broker.SUSPECT_AFTER = 1_000_000
elif PLANT == "no-strikes":  # a poison comes back for ever
    redis_broker.SUSPECT_AFTER = redis_broker.DEAD_AFTER = 1_000_000

ROOM_BYTES = 64 << 20


class Dose(msgspec.Struct):
    ms: float = 0


@task(timeout_seconds=60)
async def good(ctx: TaskRun[Dose]) -> None:
    ledger().started(ctx.id)
    await asyncio.sleep(ctx.params.ms / 1000)
    ledger().finished(ctx.id)


@task
async def segfault(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


@task
async def leave(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    os._exit(7)


def eat() -> None:
    """Take memory until the process may have no more."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES, hard))
    eaten = []
    try:
        while True:
            eaten.append(bytearray(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


@task
async def glutton(ctx: TaskRun) -> None:
    """As the kernel ends who eats too much."""
    ledger().started(ctx.id)
    try:
        eat()
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)


@task
async def hungry(ctx: TaskRun) -> None:
    """Python says no in time: the run fails, and its worker lives."""
    ledger().started(ctx.id)
    try:
        eat()
    finally:
        ledger().finished(ctx.id)
