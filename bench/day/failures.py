"""Failures: runs that raise, with the log at INFO beside the log off.

The exception comes from three calls deep. Each run fails once and succeeds at its retry, which waits for nothing; or it
fails for good, and its text stays with the failed runs.
"""

import logging
from typing import Any

from fluidfast import RetryPolicy, TaskRun, task
from fluidfast.commands.logs import Log

from . import Found, Way, drained

TASKS = 20_000


def call(depth: int) -> None:
    if depth:
        call(depth - 1)
    raise ConnectionError("gateway.example.com:443 did not answer within 3 s")


@task(name="fails", retry=RetryPolicy(max_attempts=3, wait=0.0))
async def once(ctx: TaskRun[Any]) -> None:
    """Fails at its first attempt."""
    if not ctx.retry_attempt:
        call(2)


@task(name="fails")
async def for_good(ctx: TaskRun[Any]) -> None:
    """Fails."""
    call(2)


def ways(task: Any) -> dict[str, Way]:
    def with_log(level: str) -> Way:
        async def way(url: str, tasks: int) -> Found:
            if level:
                log = Log(level, None)
            else:
                logging.disable()
            found = await drained(url, tasks, task, skip=0.0, max_concurrent_tasks=32)
            if level:
                log.flush()
            return found

        return way

    return {"log off": with_log(""), "log at INFO": with_log("INFO")}


TABLES = {"every run fails once": ways(once), "every run fails for good": ways(for_good)}
