"""Row 20: plain functions that hang for longer than anybody waits, among good ones, and one with a limit."""

from __future__ import annotations

import time

from worker_app import ledger

from fluidfast import RetryPolicy, TaskRun, task


@task(timeout_seconds=0.3, retry=RetryPolicy(max_attempts=0))
def hang(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    time.sleep(600)
    ledger().finished(ctx.id)


@task(timeout_seconds=60)
def good(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    time.sleep(0.01)
    ledger().finished(ctx.id)


@task(
    timeout_seconds=0.2, max_concurrency=1, retry=RetryPolicy(max_attempts=0),
    rate_limit_retry=RetryPolicy(max_attempts=1000, wait=0.1),
)  # fmt: skip
def one_at_a_time(ctx: TaskRun) -> None:
    """Goes on for longer than its timeout: until it has really ended, none of its kind may run beside it."""
    ledger().started(ctx.id)
    ledger().note(f"in {ctx.id}")
    time.sleep(0.6)
    ledger().note(f"out {ctx.id}")
    ledger().finished(ctx.id)
