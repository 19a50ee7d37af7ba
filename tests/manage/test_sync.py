"""``manager.sync``: the manager from code without an event loop, from any number of threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from kits.manager_kit import consuming, managing, take_runs
from kits.servers import RedisServer
from kits.waiting import until, within

from fluidfast import TaskManager, TaskRun, task
from fluidfast.errors import (
    BrokerConnectionError,
    BufferedRunsLost,
    ParamsError,
    QueueFullError,
    UnknownTaskError,
)
from fluidfast.manage.sync import SyncManager
from fluidfast.produce.bulk import QueueSummary

Start = Callable[..., RedisServer]


class Mail(msgspec.Struct):
    to: int


@task
async def mail(ctx: TaskRun[Mail]) -> None:
    """Notes whom it is for."""
    ctx.deps.setdefault("seen", []).append(ctx.params.to)


@task
async def fail(ctx: TaskRun[Mail]) -> None:
    raise LookupError(f"nobody is called {ctx.params.to}")


@task
async def give_up(ctx: TaskRun[Mail]) -> None:
    ctx.abort("no use")


@task
async def leave(ctx: TaskRun) -> None:
    sys.exit(3)


@task
def plain(ctx: TaskRun[Mail]) -> None:
    ctx.deps["thread"] = threading.current_thread().name


TASKS = (mail, fail, give_up, leave, plain)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fluidfast-sync"]


@contextmanager
def opened(url: str, **options: Any) -> Iterator[TaskManager]:
    manager = TaskManager(broker_url=url, **options)
    for one in TASKS:
        manager.register_task(one)
    before = threads()
    try:
        yield manager
    finally:
        manager.sync.close()
        assert threads() == before, "its thread has ended"


def taken(manager: TaskManager) -> list[TaskRun[Any, Any]]:
    """What waits, taken off, in the manager's own loop."""
    runs: list[TaskRun[Any, Any]] = manager.sync.call(take_runs(manager))
    manager.sync.call(manager.broker.clear())
    return runs


def numbers(runs: list[TaskRun[Any, Any]]) -> list[int]:
    return [run.params.to for run in runs]


# -- one thread


def test_queue(broker_url: str) -> None:
    with opened(broker_url) as manager:
        runs = [manager.sync.queue(mail, to=n) for n in range(50)]
        runs.append(manager.sync.queue("mail", params=Mail(to=50)))
        runs.append(manager.sync.queue(mail, params={"to": 51}))
        runs.append(manager.sync.queue(mail, run_id="mine", to=52))
        first = manager.sync.queue(mail, "high", to=-1)
        assert {str(run.state) for run in runs} == {"queued"}
        assert runs[-1].id == "mine"
        assert str(first.priority) == "high"
        found = taken(manager)
        assert [run.id for run in found] == [run.id for run in (first, *runs)]
        assert numbers(found) == [-1, *range(53)]


def test_queue_many(broker_url: str) -> None:
    seen: list[int] = []

    def progress(summary: QueueSummary) -> None:
        seen.append(summary.queued)

    with opened(broker_url) as manager:
        items: list[Any] = [{"to": n} for n in range(2500)]
        items[7] = {"to": "nobody"}
        summary = manager.sync.queue_many(
            mail, iter(items), priority="low", on_error="collect", return_ids=True, progress=progress
        )
        assert summary.queued == 2499
        assert [index for index, _ in summary.errors] == [7]
        assert seen[-1] == 2499
        found = taken(manager)
        assert [run.id for run in found] == summary.run_ids
        assert {str(run.priority) for run in found} == {"low"}
        with pytest.raises(ParamsError) as caught:
            manager.sync.queue_many(mail, items)
        assert (caught.value.index, caught.value.summary.queued) == (7, 7)
        taken(manager)


def test_execute(broker_url: str) -> None:
    with opened(broker_url) as manager:
        assert str(manager.sync.execute(mail, to=3).state) == "success"
        assert manager.deps.seen == [3]
        assert str(manager.sync.execute(give_up, to=3).state) == "aborted"
        assert str(manager.sync.execute(plain, to=3).state) == "success"
        assert manager.deps.thread != threading.current_thread().name
        with pytest.raises(LookupError, match="nobody is called 4"):
            manager.sync.execute(fail, to=4)
        taken(manager)


async def test_queue_and_wait(broker_url: str) -> None:
    async with consuming(broker_url, *TASKS) as consumer:

        def call() -> None:
            with opened(broker_url) as manager:
                assert str(manager.sync.queue_and_wait(mail, to=1, timeout=20).state) == "success"
                assert str(manager.sync.queue_and_wait(fail, to=2, timeout=20).state) == "failure"
                assert str(manager.sync.queue_and_wait(give_up, params=Mail(to=3), timeout=20).state) == "aborted"

        await within(asyncio.to_thread(call))
        assert consumer.deps.seen == [1]
    async with managing(broker_url) as manager:
        await manager.broker.clear()


def test_queue_and_wait_in_vain(broker_url: str) -> None:
    with opened(broker_url) as manager:
        with pytest.raises(TimeoutError):
            manager.sync.queue_and_wait(mail, to=1, timeout=0.05)
        assert numbers(taken(manager)) == [1]


def test_flush(broker_url: str) -> None:
    with opened(broker_url, delivery="buffered") as manager:
        manager.sync.flush()
        for n in range(1500):
            manager.sync.queue(mail, to=n)
        manager.sync.flush()
        assert numbers(taken(manager)) == list(range(1500))


# -- many threads


@pytest.mark.parametrize("delivery", ["confirmed", "buffered"])
def test_eight_threads(broker_url: str, delivery: str) -> None:
    """They share one loop, and what they queue is all there, each thread's in its order."""
    barrier = threading.Barrier(8)

    def work(manager: TaskManager, k: int) -> None:
        barrier.wait(10)
        for n in range(100):
            manager.sync.queue(mail, to=1000 * k + n)
        manager.sync.queue_many(mail, ({"to": 1000 * k + n} for n in range(100, 300)))
        manager.sync.flush()
        manager.sync.execute(mail, to=k)

    with opened(broker_url, delivery=delivery) as manager, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: work(manager, k), range(8)))
        assert len(threads()) == 1
        assert sorted(manager.deps.seen) == list(range(8))
        found = numbers(taken(manager))
        assert sorted(found) == [1000 * k + n for k in range(8) for n in range(300)]
        for k in range(8):
            mine = [n for n in found if n // 1000 == k]
            assert mine == sorted(mine)


async def test_eight_threads_wait_for_their_runs(broker_url: str) -> None:
    def work(manager: TaskManager, k: int) -> list[str]:
        return [str(manager.sync.queue_and_wait(mail, to=10 * k + n, timeout=20).state) for n in range(10)]

    def call() -> list[list[str]]:
        with opened(broker_url) as manager, ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda k: work(manager, k), range(8)))

    async with consuming(broker_url, *TASKS) as consumer:
        assert await within(asyncio.to_thread(call)) == [["success"] * 10] * 8
        assert sorted(consumer.deps.seen) == list(range(80))
        await consumer.broker.clear()


def test_the_first_call_of_many_threads(broker_url: str) -> None:
    """However many come first, there is one loop: ten managers, to give a race its chance."""
    for _ in range(10):
        barrier = threading.Barrier(8)

        def first(manager: TaskManager, barrier: threading.Barrier = barrier) -> SyncManager:
            barrier.wait(10)
            sync = manager.sync
            sync.queue(mail, to=1)
            return sync

        with opened(broker_url) as manager, ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(first, [manager] * 8))) == 1
            assert len(threads()) == (0 if broker_url.startswith("memory") else 1), "memory takes it in any thread"
            assert len(taken(manager)) == 8


# -- what it refuses


def test_from_within_its_own_loop(broker_url: str) -> None:
    """It would wait for itself for ever."""

    @task
    async def nested(ctx: TaskRun[Mail]) -> None:
        with pytest.raises(RuntimeError, match="within its own event loop"):
            ctx.task_manager.sync.queue(mail, to=1)
        with pytest.raises(RuntimeError, match="within its own event loop"):
            ctx.task_manager.sync.close()
        await ctx.queue(mail, to=2)

    with opened(broker_url) as manager:
        manager.sync.execute(nested, to=0)
        with pytest.raises(RuntimeError, match="within its own event loop"):
            manager.sync.queue_many(mail, [{"to": 3}], progress=lambda summary: manager.sync.flush() and None)
        assert numbers(taken(manager)) == [2, 3]


def test_a_plain_task_may_use_it(broker_url: str) -> None:
    """That is in a thread of its own, so it can block."""

    @task
    def outer(ctx: TaskRun[Mail]) -> None:
        ctx.task_manager.sync.queue(mail, to=ctx.params.to + 1)

    with opened(broker_url) as manager:
        assert str(manager.sync.execute(outer, to=0).state) == "success"
        assert numbers(taken(manager)) == [1]


def test_exceptions_pass_through(broker_url: str) -> None:
    with opened(broker_url, max_queue_length=2, on_full="raise") as manager:
        with pytest.raises(UnknownTaskError):
            manager.sync.queue("nothing_like_it")
        with pytest.raises(ParamsError) as caught:
            manager.sync.queue(mail, to="nobody")
        assert caught.value.field == "to"
        with pytest.raises(ValueError, match="urgent"):
            manager.sync.queue(mail, "urgent", to=1)
        manager.sync.queue(mail, to=1)
        manager.sync.queue(mail, to=2)
        with pytest.raises(QueueFullError):
            manager.sync.queue(mail, to=3)
        with pytest.raises(QueueFullError) as full:
            manager.sync.queue_many(mail, [{"to": 3}])
        assert full.value.summary.queued == 0
        assert numbers(taken(manager)) == [1, 2]


def test_exceptions_of_the_server_pass_through(start_server: Start) -> None:
    server = start_server(maxmemory="1")
    manager = TaskManager(broker_url=server.url, delivery="buffered")
    run = manager.sync.queue(mail, to=1)
    with pytest.raises(BufferedRunsLost) as caught:
        manager.sync.flush()
    assert caught.value.run_ids == [run.id]
    manager.sync.queue(mail, to=2)
    with pytest.raises(BufferedRunsLost):
        manager.sync.close()
    assert threads() == [], "it is closed all the same"
    server.kill()
    other = TaskManager(broker_url=server.url)
    with pytest.raises(BrokerConnectionError):
        other.sync.queue(mail, to=1)
    other.sync.close()


# -- its end


def test_closed_and_used_again(broker_url: str) -> None:
    with opened(broker_url) as manager:
        manager.sync.close()
        for n in range(3):
            manager.sync.queue(mail, to=n)
            manager.sync.flush()
            assert len(threads()) == 1
            if n < 2 and not broker_url.startswith("memory"):
                manager.sync.close()
                manager.sync.close()
                assert threads() == []
        assert numbers(taken(manager)) == [0, 1, 2]


def test_as_a_context_manager(broker_url: str) -> None:
    with opened(broker_url) as manager:
        with manager.sync as sync:
            assert sync is manager.sync
            for n in range(10):
                sync.queue(mail, to=n)
        assert threads() == []
        assert numbers(taken(manager)) == list(range(10))
        with pytest.raises(LookupError, match="5"), manager.sync as sync:
            sync.execute(fail, to=5)
        assert threads() == []


def test_closing_flushes(redis_url: str) -> None:
    with opened(redis_url, delivery="buffered") as manager:
        for n in range(700):
            manager.sync.queue(mail, to=n)
        manager.sync.close()
        assert numbers(taken(manager)) == list(range(700))


async def test_who_waits_when_it_is_closed(broker_url: str) -> None:
    """Hears of it, instead of waiting for ever."""
    with opened(broker_url) as manager, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(manager.sync.queue_and_wait, mail, to=1, timeout=600)
        await until(lambda: any(inbox.expected for inbox in manager._replies.inboxes.values()))
        await asyncio.to_thread(manager.sync.close)
        with pytest.raises((concurrent.futures.CancelledError, asyncio.CancelledError)):
            await within(asyncio.to_thread(waiting.result, 10), 15)
        taken(manager)


def test_closed_while_others_call(broker_url: str) -> None:
    """Each call is answered: it is done, or it was cancelled. What is done is on the queue, once."""
    stop = threading.Event()

    def work(manager: TaskManager, k: int) -> tuple[set[int], set[int]]:
        done: set[int] = set()
        unknown: set[int] = set()
        for n in range(1_000_000):
            if stop.is_set():
                break
            number = 1_000_000 * k + n
            try:
                manager.sync.queue(mail, to=number)
            except (concurrent.futures.CancelledError, asyncio.CancelledError):
                unknown.add(number)
            else:
                done.add(number)
        return done, unknown

    with opened(broker_url) as manager, ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, manager, k) for k in range(4)]
        try:
            for _ in range(15):
                manager.sync.queue(mail, to=-1)
                manager.sync.close()
        finally:
            stop.set()
        done: set[int] = set()
        unknown: set[int] = set()
        for future in working:
            mine, cancelled = future.result(20)
            done |= mine
            unknown |= cancelled
        found = [n for n in numbers(taken(manager)) if n >= 0]
        assert len(found) == len(set(found))
        assert done <= set(found) <= done | unknown
        assert done


# -- when the loop's thread is not what it was


def in_time(call: Callable[[], Any]) -> Any:
    """What it gives or raises, and not for ever: a caller that hangs is a thread of its own here."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future.result(10)


def forked(call: Callable[[], Any]) -> int:
    """Call it in a child; how that ended, 0 for well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is just what this is about
        child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_a_payload_that_cannot_be_handed_over(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*args: Any) -> None:
        raise MemoryError("no room for it")

    with opened(redis_url) as manager:
        producer = manager.intake.producer
        monkeypatch.setattr(
            manager.intake, "producer", type("Broken", (type(producer),), {"submit": submit})(manager.broker)
        )
        with pytest.raises(MemoryError, match="no room"):
            in_time(lambda: manager.sync.queue(mail, to=1))
        monkeypatch.setattr(manager.intake, "producer", producer)
        in_time(lambda: manager.sync.queue(mail, to=2))
        assert numbers(taken(manager)) == [2]


def test_a_task_that_would_end_the_process(broker_url: str) -> None:
    """It ends the call that runs it; others are served on."""
    with opened(broker_url) as manager:
        with pytest.raises(SystemExit):
            in_time(lambda: manager.sync.execute(leave))
        in_time(lambda: manager.sync.queue(mail, to=1))
        assert numbers(in_time(lambda: taken(manager))) == [1]


def test_the_child_of_a_fork_has_a_thread_of_its_own(redis_url: str) -> None:
    with opened(redis_url) as manager:
        manager.sync.queue(mail, to=1)

        def use() -> None:
            in_time(lambda: manager.sync.queue(mail, to=2))
            in_time(manager.sync.close)

        assert forked(use) == 0
        in_time(lambda: manager.sync.queue(mail, to=3))
        assert numbers(taken(manager)) == [1, 2, 3]


def test_the_child_of_a_fork_may_close_what_it_did_not_use(redis_url: str) -> None:
    with opened(redis_url) as manager:
        manager.sync.queue(mail, to=1)
        assert forked(lambda: in_time(manager.sync.close)) == 0
        assert numbers(taken(manager)) == [1]
