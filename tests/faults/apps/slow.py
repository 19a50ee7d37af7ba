"""Row 11: handlers that take longer than a lease: one awaits, one blocks the event loop, one is in a thread."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec
from worker_app import ledger

from fluidfast import TaskRun, task
from fluidfast.consume.keeper import LeaseKeeper

PLANT = os.environ.get("PLANT", "")
if PLANT:  # no renewals, or such as are a task of the event loop
    start = LeaseKeeper.start

    def start_in_loop(self: LeaseKeeper) -> None:
        async def renew() -> None:
            while not self._stopped.is_set():
                await asyncio.sleep(self._period)
                self._renew(*self._held())

        start(self)
        if PLANT == "keeper-in-loop":
            self.task = asyncio.get_running_loop().create_task(renew())  # type: ignore[attr-defined]

    LeaseKeeper._run = lambda self: None  # type: ignore[method-assign]
    LeaseKeeper.start = start_in_loop  # type: ignore[method-assign]


class Length(msgspec.Struct):
    seconds: float = 0


@task(timeout_seconds=600)
async def sleeping(ctx: TaskRun[Length]) -> None:
    ledger().started(ctx.id)
    await asyncio.sleep(ctx.params.seconds)
    ledger().finished(ctx.id)


@task(timeout_seconds=600)
async def blocking(ctx: TaskRun[Length]) -> None:
    ledger().started(ctx.id)
    time.sleep(ctx.params.seconds)  # noqa: ASYNC251
    ledger().finished(ctx.id)


@task(timeout_seconds=600)
def threaded(ctx: TaskRun[Length]) -> None:
    ledger().started(ctx.id)
    time.sleep(ctx.params.seconds)
    ledger().finished(ctx.id)


@task(timeout_seconds=600)
async def quick(ctx: TaskRun[Length]) -> None:
    ledger().started(ctx.id)
    ledger().finished(ctx.id)
