"""Row 22: tasks that end in twenty odd ways. ``odd_async`` and ``odd_plain`` do what ``ODD[way]`` does."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import msgspec
from worker_app import OPTIONS, ledger

from fluidfast import RetryPolicy, TaskRun, task

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class NoText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class SubclassOfCancelled(asyncio.CancelledError):
    pass


class SubclassOfStop(StopIteration):
    pass


def raising(make: Callable[[], BaseException]) -> Callable[[Any], None]:
    def way(ctx: Any) -> None:
        raise make()

    return way


def chained(ctx: Any) -> None:
    try:
        raise ValueError("first")
    except ValueError as exc:
        raise StopIteration(1) from exc


def circular(ctx: Any) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    raise one


def changes_its_run(ctx: Any) -> None:
    TENANT.set("acme")
    ctx.params.way = "something else"
    raise ValueError("with its params changed")


ODD: dict[str, Callable[[Any], Any]] = {
    "value": raising(lambda: ValueError("plain")),
    "stop": raising(lambda: StopIteration(3)),
    "stop_subclass": raising(SubclassOfStop),
    "stop_async": raising(StopAsyncIteration),
    "generator_exit": raising(GeneratorExit),
    "cancelled": raising(asyncio.CancelledError),
    "cancelled_subclass": raising(SubclassOfCancelled),
    "system_exit": raising(lambda: SystemExit(3)),
    "keyboard": raising(KeyboardInterrupt),
    "base": raising(lambda: BaseException("base")),
    "timeout": raising(lambda: TimeoutError("its own")),
    "no_text": raising(NoText),
    "long_text": raising(lambda: ValueError("x" * 1_000_000)),
    "surrogate": raising(lambda: ValueError("half \ud800")),
    "control": raising(lambda: ValueError("a\x1b[2J\nERROR forged")),
    "group": raising(lambda: BaseExceptionGroup("many", [ValueError(), asyncio.CancelledError()])),
    "memory": raising(MemoryError),
    "recursion": lambda ctx: ODD["recursion"](ctx),
    "chained": chained,
    "circular": circular,
    "changes": changes_its_run,
    "a_generator": lambda ctx: (_ for _ in ()),
}


class Odd(msgspec.Struct):
    way: str


@task(timeout_seconds=30, retry=RetryPolicy(max_attempts=0))
async def odd_async(ctx: TaskRun[Odd]) -> Any:
    ledger().started(ctx.id)
    return ODD[ctx.params.way](ctx)


@task(timeout_seconds=30, retry=RetryPolicy(max_attempts=0))
def odd_plain(ctx: TaskRun[Odd]) -> Any:
    ledger().started(ctx.id)
    return ODD[ctx.params.way](ctx)


@task(timeout_seconds=30, batch=10, batch_wait=0.01, retry=RetryPolicy(max_attempts=0))
async def odd_batch(runs: list[TaskRun[Odd]]) -> Any:
    for run in runs:
        ledger().started(run.id)
    return ODD[runs[0].params.way](runs[0])


@task(timeout_seconds=30)
async def good(ctx: TaskRun) -> None:
    ledger().started(ctx.id)
    if (tenant := TENANT.get()) != "nobody":
        raise AssertionError(f"a good run sees the context of another: {tenant}")
    await asyncio.sleep(0)
    ledger().finished(ctx.id)


if OPTIONS.get("role") == "worker":
    import logging

    logging.disable(logging.ERROR)  # thousands of tracebacks are not what is looked at here
