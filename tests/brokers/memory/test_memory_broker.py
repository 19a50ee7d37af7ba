"""The memory broker among threads: ``manager.sync``, or a thread of the application, pushes while a consumer waits in
its event loop. What it promises to one loop is in ``brokers/``."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from typing import Any

import pytest
from kits.broker_kit import HIGH, MEDIUM, put, take
from kits.waiting import until, within

from fluidfast import TaskManager, TaskRun, task
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.memory.broker import MemoryTaskBroker

LONG = 60.0
"""Nobody is to wait for so long."""


@pytest.fixture
def broker() -> MemoryTaskBroker:
    return MemoryTaskBroker(f"memory://{uuid.uuid4().hex}")


class Interrupted:
    """Another thread gets its turn behind the first look at what waits."""

    def __init__(self, looked_at: Any, other: Any) -> None:
        self.looked_at = looked_at
        self.other = other

    def length(self, priority: int) -> int:
        found: int = self.looked_at.length(priority)
        if self.other is not None and priority == 2:
            other, self.other = self.other, None
            in_thread(other)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.looked_at, name)


def in_thread(call: Any) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


async def test_a_push_from_a_thread_wakes(broker: MemoryTaskBroker) -> None:
    waits = asyncio.create_task(broker.wait("a", LONG))
    await until(lambda: len(broker.store.waiters) == 1)
    in_thread(lambda: broker.push(MEDIUM, b"x"))
    await within(waits)
    assert await take(broker) == [b"x"]


async def test_a_push_from_a_thread_just_before_waiting_is_seen(broker: MemoryTaskBroker) -> None:
    queue: Any = broker.store.queue
    broker.store.queue = Interrupted(queue, lambda: broker.push(HIGH, b"x"))  # type: ignore[assignment]
    await within(broker.wait("a", LONG))
    broker.store.queue = queue
    assert await take(broker) == [b"x"]
    assert not broker.store.waiters


async def test_a_reply_from_a_thread_just_before_waiting_is_seen(broker: MemoryTaskBroker) -> None:
    await put(broker, b"x")
    claim = await broker.claim("a", 1)

    class Replies(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            found = super().get(key, default)
            if not asked:
                asked.append(key)
                in_thread(settle)
            return found

    def settle() -> None:
        asyncio.run(broker.settle(Settlement(claim.batch, whole=True, replies=[("m", b"done")])))  # type: ignore[arg-type]

    asked: list[str] = []
    broker.store.replies = Replies()
    assert await within(broker.replies("m", LONG)) == [b"done"]


async def test_who_is_cancelled_as_a_thread_wakes_it_has_another_woken(broker: MemoryTaskBroker) -> None:
    first = asyncio.create_task(broker.wait("a", LONG))
    second = asyncio.create_task(broker.wait("b", LONG))
    await until(lambda: len(broker.store.waiters) == 2)
    in_thread(lambda: broker.push(MEDIUM, b"x"))  # what it says to our loop is heard at the next turn
    first.cancel()
    await within(second)
    assert await take(broker) == [b"x"]


class Contended(deque["asyncio.Future[None]"]):
    """Another thread takes what is there just before we do."""

    def popleft(self) -> asyncio.Future[None]:
        self.clear()
        return super().popleft()

    def remove(self, waiter: asyncio.Future[None]) -> None:
        self.clear()
        super().remove(waiter)


async def test_another_thread_wakes_the_one_that_we_were_about_to(broker: MemoryTaskBroker) -> None:
    broker._waiters = broker.store.waiters = Contended()
    waits = asyncio.create_task(broker.wait("a", 0.05))
    await until(lambda: len(broker.store.waiters) == 1)
    assert broker.push(MEDIUM, b"x")
    await within(waits)
    assert await take(broker) == [b"x"]
    await within(broker.wait("a", 0.01))  # it gives up just as it is woken


async def test_a_waiter_whose_loop_has_ended_is_passed_over(broker: MemoryTaskBroker) -> None:
    ended = asyncio.new_event_loop()
    broker.store.waiters.append(ended.create_future())
    ended.close()
    waits = asyncio.create_task(broker.wait("a", LONG))
    await until(lambda: len(broker.store.waiters) == 2)
    in_thread(lambda: broker.push(MEDIUM, b"x"))
    await within(waits)


async def test_sync_queues_for_a_consumer_that_waits(broker: MemoryTaskBroker) -> None:
    manager = TaskManager(broker_url=f"memory://{broker.name}")

    @task
    async def job(ctx: TaskRun) -> None: ...

    manager.register_task(job)
    for _ in range(20):
        waits = asyncio.create_task(broker.wait("a", LONG))
        await until(lambda: len(broker.store.waiters) == 1)
        await asyncio.to_thread(manager.sync.queue, job)
        await within(waits)
        assert len(await take(broker)) == 1
    await asyncio.to_thread(manager.sync.close)
