"""Row 14: the tasks of a mixed fleet as fluidfast's workers know them. ``aio_side.py`` has the same for aio-fluid's."""

from __future__ import annotations

import asyncio

import msgspec
from worker_app import ledger

from fluidfast import RetryPolicy, TaskRun, task

LIMIT = 3


class Work(msgspec.Struct):
    ms: float = 0


@task(timeout_seconds=60)
async def plain(ctx: TaskRun[Work]) -> None:
    ledger().started(ctx.id)
    await asyncio.sleep(ctx.params.ms / 1000)
    ledger().finished(ctx.id)


@task(timeout_seconds=60, max_concurrency=LIMIT, rate_limit_retry=RetryPolicy(wait=0.1, backoff=1.5, max_wait=5))
async def limited(ctx: TaskRun[Work]) -> None:
    ledger().started(ctx.id)
    await asyncio.sleep(ctx.params.ms / 1000)
    ledger().finished(ctx.id)
