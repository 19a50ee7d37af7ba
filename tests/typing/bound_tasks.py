"""What type checkers say of the shape of user code. ``# wrong`` marks the lines that both of them refuse."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import msgspec

from fluidfast import RetryPolicy, RunHandle, Task, TaskConsumer, TaskManager, TaskRun, TaskScheduler, task
from fluidfast.produce.bulk import QueueSummary


class Mail(msgspec.Struct):
    to: str
    copies: int = 1


class Receipt(msgspec.Struct):
    id: str


manager = TaskManager(broker_url="memory://typing", max_concurrent_tasks=10, delivery="buffered")


@manager.task(retry=RetryPolicy(max_attempts=3), priority="high", schedule="0 5 * * *")
async def send(to: str, copies: int = 1, *, note: dict[str, Any] | None = None) -> Receipt:
    return Receipt(to)


@manager.task
def resize(ctx: TaskRun, path: str, width: int = 100) -> bytes:
    return path.encode()


@manager.task
async def mail(ctx: TaskRun[Mail]) -> Receipt:
    return Receipt(ctx.params.to)


@manager.task(batch=100)
async def insert(runs: list[TaskRun[Mail]]) -> None:
    for run in runs:
        assert_type(run.params, Mail)


async def deliver(ctx: TaskRun[Mail]) -> Receipt:
    return Receipt(ctx.params.to)


plain: Task[Mail, Receipt] = task(deliver)


async def good() -> None:
    assert_type(await send.queue("grace"), RunHandle[Any])
    await send.queue(to="grace", copies=2, note={"any": object()})
    await resize.queue("a.png", width=7)
    await mail.queue(Mail("grace"))
    await mail.queue(to="grace", copies=2)
    await insert.queue(Mail("grace"))
    await send.options(priority="low", delay=timedelta(minutes=1), run_id="x").queue("grace")
    await resize.options(at=datetime.now(UTC)).queue(path="a.png")
    assert_type(await send.queue_many({"to": name} for name in ("grace", "ada")), QueueSummary)
    assert_type(await send.execute("grace"), TaskRun[Any, Any])
    assert_type(await send("grace"), Receipt)
    assert_type(resize(manager.create_task_run(resize, path="a.png"), "a.png"), bytes)
    assert_type(send.sync.queue("grace"), RunHandle[Any])
    assert_type(send.options(delay=1).sync.queue("grace"), RunHandle[Any])
    assert_type(await manager.enqueue(plain, Mail("grace"), delay=30), RunHandle[Receipt])
    await manager.enqueue(plain, {"to": "grace"}, priority="low")
    await manager.queue(send, to="grace")
    await manager.queue_and_wait(resize, path="a.png")
    manager.register_task(send)
    assert_type(manager.sync.enqueue(plain, Mail("grace")), RunHandle[Receipt])


async def bad(naive: datetime) -> None:
    await send.queue(too="grace")  # wrong
    await send.queue("grace", copies="2")  # wrong
    await send.queue("grace", 1, {})  # wrong
    await resize.queue("a.png", widht=7)  # wrong
    await resize.queue(width=7)  # wrong
    await send.options(delay=1).queue(1)  # wrong
    await resize.options(delay=1).queue(path=1)  # wrong
    await send.execute(copies=1)  # wrong
    send.sync.queue(too="grace")  # wrong
    send.options(dealy=3)  # wrong
    send.options(at="tomorrow")  # wrong
    await send(7)  # wrong
    await manager.enqueue(plain, Receipt("x"))  # wrong
    await manager.enqueue(plain, Mail("grace"), dealy=3)  # wrong
    await manager.queue_and_wait(send, {"to": "grace"})  # wrong
    manager.register_task(bad)  # wrong
    await manager.queue(bad)  # wrong
    TaskManager(brokr_url="memory://")  # wrong
    TaskManager(delivery="sometimes")  # wrong
    TaskConsumer(max_concurrent_task=3)  # wrong
    TaskScheduler(name="a", schedule_task=True)  # wrong
    manager.task(retires=RetryPolicy())  # wrong
    task(timeout=3)  # wrong


def defaults(one: Task[Mail], two: Task[Mail, Receipt], run: TaskRun[Mail]) -> Coroutine[Any, Any, RunHandle]:
    assert_type(one, Task[Mail, Any])
    assert_type(run, TaskRun[Mail, Any])
    return manager.enqueue(two, Mail("grace"))
