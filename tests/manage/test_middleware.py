"""Middleware: order, exceptions, cancellation, and what it sees from each way of queueing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kits.manager_kit import consuming, managing, take_runs, waiting

from fluidfast import RunHandle, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import TaskUsageError


@task
async def note(ctx: TaskRun) -> str:
    ctx.deps.log.append("note")
    return "noted"


@task(timeout_seconds=0.2)
async def hangs(ctx: TaskRun) -> None:
    await asyncio.Event().wait()


@task(batch=10, batch_wait=0.01)
async def many(runs: list[TaskRun]) -> None:
    runs[0].deps.log.append("many")


class Traced:
    """Notes what it is called around."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name = name
        self.log = log

    async def enqueue(self, run: TaskRun, options: Any, call_next: Any) -> RunHandle[Any]:
        self.log.append((self.name, run.params.get("n"), dict(options)))
        options["delay"] = 3600  # a copy
        handle: RunHandle[Any] = await call_next()
        self.log.append((self.name, handle.id == run.id))
        return handle

    async def execute(self, run: Any, call_next: Any) -> Any:
        self.log.append(f"{self.name} {'list' if isinstance(run, list) else run.name}")
        try:
            result = await call_next()
        except BaseException as exc:
            self.log.append(f"{self.name} {type(exc).__name__}")
            raise
        self.log.append(f"{self.name} {result}")
        return result


async def test_around_queueing_from_each_way(broker_url: str) -> None:
    log: list[Any] = []
    async with managing(broker_url, note) as manager:
        manager.add_middleware(Traced("a", log))
        manager.add_middleware(Traced("b", log))
        assert not manager.hands_over()
        for send, options in (
            (lambda: manager.queue(note, n=1), {}),
            (lambda: manager.queue(note, "low", run_id="x", n=1), {"run_id": "x", "priority": "low"}),
            (lambda: manager.enqueue(note, {"n": 1}, priority="high"), {"priority": "high"}),
            (lambda: manager.queue_many(note, [{"n": 1}], priority="high"), {"priority": "high"}),
            (lambda: asyncio.to_thread(manager.sync.queue, note, n=1), {}),
            (lambda: asyncio.to_thread(manager.sync.enqueue, note, {"n": 1}, run_id="y"), {"run_id": "y"}),
        ):
            log.clear()
            await send()
            assert log == [("a", 1, options), ("b", 1, options), ("b", True), ("a", True)]
        assert await waiting(manager) == 6
        await asyncio.to_thread(manager.sync.close)


async def test_around_running(broker_url: str) -> None:
    log: list[Any] = []
    async with consuming(broker_url, note, hangs, many) as consumer:
        consumer.deps.log = log
        consumer.add_middleware(Traced("a", log))
        consumer.add_middleware(Traced("b", log))
        for name, state, expected in (
            ("note", "success", ["a note", "b note", "note", "b noted", "a noted"]),
            ("hangs", "failure", ["a hangs", "b hangs", "b CancelledError", "a CancelledError"]),
            ("many", "success", ["a list", "b list", "many", "b None", "a None"]),
        ):
            run = await consumer.queue_and_wait(name, timeout=20)
            assert (run.state, [each for each in log if isinstance(each, str)]) == (state, expected)
            log.clear()
        await consumer.broker.clear()


class Refuses:
    async def enqueue(self, run: TaskRun, options: Any, call_next: Any) -> Any:
        if run.params.n == "late":
            await call_next()
        raise PermissionError("no")


class ForgetsToReturn:
    async def enqueue(self, run: TaskRun, options: Any, call_next: Any) -> Any:
        await call_next()


class ForgetsToGoOn:
    async def enqueue(self, run: TaskRun, options: Any, call_next: Any) -> Any:
        return RunHandle(run.id)


@pytest.mark.parametrize(
    ("middleware", "n", "error", "words", "queued"),
    [
        (Refuses(), "", PermissionError, "no", 0),
        (Refuses(), "late", PermissionError, "no", 1),
        (ForgetsToReturn(), "", TaskUsageError, r"is queued, but .* write 'return await call_next\(\)'", 1),
        (ForgetsToGoOn(), "", TaskUsageError, r"returned without call_next\(\)", 0),
    ],
)
async def test_what_goes_wrong_around_queueing(
    middleware: Any, n: str, error: type[Exception], words: str, queued: int
) -> None:
    async with managing("memory://middleware", note) as manager:
        manager.add_middleware(middleware)
        for send in (lambda: manager.enqueue(note, {"n": n}), lambda: manager.queue_many(note, [{"n": n}])):
            with pytest.raises(error, match=words):
                await send()
            assert len(await take_runs(manager)) == queued


class Sync:
    def execute(self, run: TaskRun, call_next: Any) -> Any: ...


@pytest.mark.parametrize(
    ("middleware", "words"),
    [
        (object(), "has neither"),
        (Sync(), "its execute must be an async def"),
        (Traced, r"write add_middleware\(Traced"),
    ],
)
def test_what_is_no_middleware(middleware: Any, words: str) -> None:
    with pytest.raises(TaskUsageError, match=words):
        TaskManager(broker_url="memory://").add_middleware(middleware)


async def test_a_consumer_made_of_the_manager_has_it() -> None:
    log: list[Any] = []
    manager = TaskManager(broker_url="memory://middleware-of")
    manager.register_task(note)
    manager.deps.log = log
    manager.add_middleware(Traced("a", log))
    async with TaskConsumer.of(manager) as consumer:
        await consumer.queue_and_wait("note", timeout=20)
    assert [each for each in log if isinstance(each, str)] == ["a note", "note", "a noted"]
