"""Hooks after the end of a run, and after a failed attempt."""

from __future__ import annotations

from typing import Any

import pytest
from kits.waiting import until

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task


@task
async def good(ctx: TaskRun[Any]) -> None:
    """Succeeds."""


@task(retry=RetryPolicy(max_attempts=1, wait=0.01))
async def bad(ctx: TaskRun[Any]) -> None:
    raise ValueError("on purpose")


@task(batch=10, batch_wait=0.01)
async def together(runs: list[TaskRun[Any]]) -> dict[str, Exception]:
    return {runs[0].id: KeyError("of a batch")}


async def test_hooks_after_runs(caplog: pytest.LogCaptureFixture) -> None:
    """They are those of the manager, also if one is added later. One that raises harms neither the run nor the next."""
    ended: list[tuple[str, str]] = []
    failures: list[tuple[str, int, str, str]] = []

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("in a hook")

    def failed(run: TaskRun[Any], exc: BaseException, place: str) -> None:
        failures.append((run.name, run.retry_attempt, type(exc).__name__, place.partition(":")[0]))

    manager = TaskManager(broker_url="memory://after-runs")
    for one in (good, bad, together):
        manager.register_task(one)
    manager.hooks.after_end(broken)
    manager.hooks.after_failure(broken)
    consumer = TaskConsumer.of(manager)
    manager.hooks.after_end(lambda run: ended.append((run.name, str(run.state))))
    manager.hooks.after_failure(failed)
    async with consumer:
        for one in (good, bad, together):
            await consumer.queue(one)
        await until(lambda: len(ended) == 3)
        assert sorted(ended) == [("bad", "failure"), ("good", "success"), ("together", "failure")]
        assert sorted(failures) == [
            ("bad", 0, "ValueError", "test_hooks_after_runs.py"),
            ("bad", 1, "ValueError", "test_hooks_after_runs.py"),
            ("together", 0, "KeyError", ""),
        ]
        assert caplog.text.count("failed for run") == 6
        assert not consumer.engine.slots.running
