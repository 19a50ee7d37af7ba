"""What the tests of the consumer share: tasks that tell what they do, and looks at what is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskState, task
from kits.broker_kit import places

Start = Callable[..., Awaitable[TaskConsumer]]


class Notes:
    """What tasks tell the test, as ``ctx.deps``."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.started: list[Any] = []
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.lock = threading.Lock()

    def enter(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


@task
async def note(ctx: TaskRun[Any, Notes]) -> None:
    """Notes n."""
    ctx.deps.done.append(ctx.params.get("n"))


@task
async def gated(ctx: TaskRun[Any, Notes]) -> None:
    """Waits for the gate."""
    ctx.deps.enter()
    ctx.deps.started.append(ctx.params.get("n"))
    try:
        await ctx.deps.gate.wait()
    finally:
        ctx.deps.leave()
    ctx.deps.done.append(ctx.params.get("n"))


@task
async def failing(ctx: TaskRun[Any, Notes]) -> None:
    """Fails."""
    ctx.deps.started.append(ctx.retry_attempt)
    raise ZeroDivisionError("on purpose")


class Strict(msgspec.Struct):
    n: int


@task
async def strict(ctx: TaskRun[Strict, Notes]) -> None:
    """Takes an int."""
    ctx.deps.done.append(ctx.params.n)


@task
async def clean(ctx: TaskRun[Any, Notes]) -> None:
    """Notes how often its asyncio task has been cancelled, after a moment in which that would tell."""
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
    ctx.deps.done.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]


def codec_n(manager: TaskManager, payload: bytes) -> Any:
    """The param n in a payload."""
    manager.register_task(gated)
    return manager.broker.codec.decode(payload, manager).params["n"]


async def empty(consumer: TaskManager) -> bool:
    """Whether everything is settled."""
    return await places(consumer.broker) == {}


def told(consumer: TaskConsumer) -> list[tuple[str, str]]:
    """(task, state) of every event from now on."""
    events: list[tuple[str, str]] = []
    for state in TaskState:
        consumer.dispatcher.register_handler(f"{state}.told", lambda run: events.append((run.name, str(run.state))))
    return events


async def info(consumer: TaskManager, name: str) -> Any:
    return (await consumer.broker.get_tasks_info(name))[0]


async def dead_count(consumer: TaskManager, n: int) -> bool:
    return await places(consumer.broker) == {"dead": n}


async def empty_after(consumer: TaskConsumer, events: list[tuple[str, str]], state: str) -> bool:
    return any(s == state for _, s in events) and await empty(consumer)


async def are(consumer: TaskManager, wanted: dict[str, int]) -> bool:
    return await places(consumer.broker) == wanted


async def settled(consumer: TaskManager) -> bool:
    return set(await places(consumer.broker)) <= {"dead"}
