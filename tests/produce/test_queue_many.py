"""``queue_many``: what it takes, what it refuses, and what its summary says when something goes wrong half way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kits.manager_kit import managing, take_runs, waiting
from kits.servers import RedisServer
from kits.waiting import within
from pydantic import BaseModel

from fluidfast import Task, TaskManager, TaskRun, task
from fluidfast.errors import (
    BrokerConnectionError,
    BrokerFullError,
    ConfigError,
    ParamsError,
    PayloadTooLargeError,
    TaskError,
    UnknownTaskError,
)
from fluidfast.produce.bulk import QueueSummary
from fluidfast.produce.producer import MAX_BATCH, MAX_BATCH_BYTES

Start = Callable[..., RedisServer]


class Mail(msgspec.Struct):
    to: int
    body: str = ""


class Order(BaseModel):
    number: int
    note: str = ""


@dataclass
class Point:
    x: int


@task
async def note(ctx: TaskRun) -> None:
    """Takes anything."""


@task
async def mail(ctx: TaskRun[Mail]) -> None:
    """Takes a Struct."""


@task
async def order(ctx: TaskRun[Order]) -> None:
    """Takes a pydantic model."""


@task
async def point(ctx: TaskRun[Point]) -> None:
    """Takes a dataclass."""


@task(priority="low")
async def chore(ctx: TaskRun) -> None:
    """Is in no hurry."""


def numbered(count: int) -> Iterator[dict[str, int]]:
    return ({"n": n} for n in range(count))


async def numbered_later(count: int) -> AsyncIterator[dict[str, int]]:
    for n in range(count):
        if n % 700 == 0:
            await asyncio.sleep(0)
        yield {"n": n}


def numbers(runs: list[TaskRun[Any, Any]]) -> list[int]:
    return [run.params["n"] for run in runs]


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[TaskManager]:
    async with managing(url, note, mail, order, point, chore, **options) as manager:
        yield manager


class Spy:
    """Sees the batches that a manager sends, and lets them through."""

    def __init__(self, manager: TaskManager, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        self.sizes: list[int] = []
        submit = manager.intake.producer.submit_batch

        def seen(priority: int, payloads: list[bytes]) -> asyncio.Future[None]:
            self.counts.append(len(payloads))
            self.sizes.append(sum(map(len, payloads)))
            return submit(priority, payloads)

        monkeypatch.setattr(manager.intake.producer, "submit_batch", seen)


# -- what it takes


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(numbered(2500)),
        lambda: tuple(numbered(2500)),
        lambda: numbered(2500),
        lambda: map(dict, numbered(2500)),
        lambda: {n: {"n": n} for n in range(2500)}.values(),
        lambda: numbered_later(2500),
    ],
    ids=["list", "tuple", "generator", "map", "view", "async generator"],
)
async def test_any_iterable(broker_url: str, make: Callable[[], Any]) -> None:
    async with opened(broker_url) as manager:
        summary = await manager.queue_many(note, make())
        runs = await take_runs(manager)
    assert numbers(runs) == list(range(2500))
    assert {(run.name, str(run.state), str(run.priority)) for run in runs} == {("note", "queued", "medium")}
    assert (summary.queued, summary.errors, summary.run_ids) == (2500, [], None)
    assert summary.bytes > 2500 * 100
    assert summary.seconds > 0
    assert summary.rate == pytest.approx(2500 / summary.seconds)


@pytest.mark.parametrize(
    ("taker", "items", "read"),
    [
        (mail, [Mail(to=n) for n in range(50)], lambda run: run.params.to),
        (mail, [{"to": n} for n in range(50)], lambda run: run.params.to),
        (mail, [Mail(to=n) if n % 2 else {"to": n, "body": "x"} for n in range(50)], lambda run: run.params.to),
        (order, [Order(number=n) for n in range(50)], lambda run: run.params.number),
        (order, [{"number": n} for n in range(50)], lambda run: run.params.number),
        (order, [Order(number=n) if n % 2 else {"number": str(n)} for n in range(50)], lambda run: run.params.number),
        (point, [Point(x=n) for n in range(50)], lambda run: run.params.x),
        (point, [{"x": n} for n in range(50)], lambda run: run.params.x),
    ],
    ids=["Struct", "of Struct", "mixed", "pydantic", "of pydantic", "mixed pydantic", "dataclass", "of dataclass"],
)
async def test_param_objects(
    broker_url: str, taker: Task[Any], items: list[Any], read: Callable[[TaskRun[Any, Any]], int]
) -> None:
    async with opened(broker_url) as manager:
        summary = await manager.queue_many(taker, items)
        runs = await take_runs(manager)
    assert summary.queued == 50
    assert [read(run) for run in runs] == list(range(50))
    assert {type(run.params) for run in runs} == {taker.params_model}


async def test_many_keep_their_order_in_bounded_batches(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(broker_url) as manager:
        spy = Spy(manager, monkeypatch)
        summary = await manager.queue_many("note", numbered(25_000))
        assert await waiting(manager) == summary.queued == 25_000
        assert sum(spy.counts) == 25_000
        assert max(spy.counts) <= MAX_BATCH
        assert len(spy.counts) == 25
        assert numbers(await take_runs(manager)) == list(range(25_000))


async def test_few_huge_items_are_bounded_by_bytes(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "x" * 300_000
    async with opened(broker_url) as manager:
        spy = Spy(manager, monkeypatch)
        summary = await manager.queue_many(mail, (Mail(to=n, body=body) for n in range(30)))
        assert summary.queued == 30
        assert summary.bytes == sum(spy.sizes)
        assert max(spy.sizes) < MAX_BATCH_BYTES + 301_000, "one item over the bound at most"
        assert [run.params.to for run in await take_runs(manager)] == list(range(30))


async def test_priority(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        await manager.queue_many(chore, numbered(2))
        await manager.queue_many(note, numbered(3))
        await manager.queue_many(chore, numbered(4), priority="high")
        assert await manager.broker.queue_length() == {"high": 4, "medium": 3, "low": 2}
        runs = await take_runs(manager)
        assert [str(run.priority) for run in runs] == ["high"] * 4 + ["medium"] * 3 + ["low"] * 2
        with pytest.raises(ValueError, match="urgent"):
            await manager.queue_many(note, numbered(3), priority="urgent")
        assert await waiting(manager) == 0


async def test_run_ids(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        summary = await manager.queue_many(note, numbered(3300), return_ids=True)
        assert summary.run_ids is not None
        assert len(set(summary.run_ids)) == 3300
        assert [run.id for run in await take_runs(manager)] == summary.run_ids


@pytest.mark.parametrize("make", [list, lambda: iter(()), lambda: numbered_later(0)], ids=["list", "iterator", "async"])
async def test_nothing(broker_url: str, make: Callable[[], Any]) -> None:
    seen: list[int] = []
    async with opened(broker_url) as manager:
        summary = await manager.queue_many(note, make(), return_ids=True, progress=lambda s: seen.append(s.queued))
        assert (summary.queued, summary.bytes, summary.errors, summary.run_ids) == (0, 0, [], [])
        assert summary.rate == 0
        assert seen == []
        assert await waiting(manager) == 0


async def test_two_at_a_time_beside_single_ones(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        await asyncio.gather(
            manager.queue_many(note, ({"n": n} for n in range(0, 6000, 2))),
            manager.queue_many(note, ({"n": n} for n in range(1, 6000, 2))),
            *(manager.queue(note, priority="high", n=n) for n in range(100)),
        )
        runs = await take_runs(manager)
    assert numbers(runs[:100]) == list(range(100))
    rest = numbers(runs[100:])
    assert sorted(rest) == list(range(6000))
    assert [n for n in rest if n % 2] == list(range(1, 6000, 2)), "each keeps its own order"
    assert [n for n in rest if not n % 2] == list(range(0, 6000, 2))


async def test_the_loop_gets_its_turn(broker_url: str) -> None:
    """A broker that takes at once, and items that are all refused, leave room for others all the same."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with opened(broker_url) as manager:
        ticking = asyncio.create_task(others())
        await manager.queue_many(note, numbered(20_000))
        assert turns >= 20
        turns = 0
        summary = await manager.queue_many(mail, numbered(20_000), on_error="collect")
        assert turns >= 20
        assert len(summary.errors) == 20_000
        ticking.cancel()


# -- what it refuses


async def test_unknown_task(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        with pytest.raises(UnknownTaskError, match="nothing_like_it"):
            await manager.queue_many("nothing_like_it", numbered(3))
        assert await waiting(manager) == 0


async def test_unknown_on_error(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        with pytest.raises(ConfigError, match="ignore"):
            await manager.queue_many(note, numbered(3), on_error="ignore")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await manager.queue_many(note, 7)  # type: ignore[arg-type]
        assert await waiting(manager) == 0


BAD = {0, 1, 999, 1000, 1001, 2345, 2999}
"""At the edges of batches, and within."""


def some_bad(count: int = 3000) -> list[dict[str, Any]]:
    return [{"to": "nobody" if n in BAD else n} for n in range(count)]


async def later(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.mark.parametrize("wrap", [list, later], ids=["iterable", "async"])
async def test_bad_items_are_collected(broker_url: str, wrap: Callable[[Any], Any]) -> None:
    async with opened(broker_url) as manager:
        summary = await manager.queue_many(mail, wrap(some_bad()), on_error="collect", return_ids=True)
        assert [index for index, _ in summary.errors] == sorted(BAD)
        for _, exc in summary.errors:
            assert isinstance(exc, ParamsError)
            assert (exc.task_name, exc.field) == ("mail", "to")
        runs = await take_runs(manager)
        assert summary.queued == len(runs) == 3000 - len(BAD)
        assert [run.params.to for run in runs] == [n for n in range(3000) if n not in BAD]
        assert summary.run_ids == [run.id for run in runs]


@pytest.mark.parametrize("wrap", [list, later], ids=["iterable", "async"])
@pytest.mark.parametrize("bad", [0, 1, 999, 1000, 1001, 4321])
async def test_the_first_bad_item_is_raised(broker_url: str, wrap: Callable[[Any], Any], bad: int) -> None:
    items = [{"to": "nobody" if n == bad else n} for n in range(5000)]
    async with opened(broker_url) as manager:
        with pytest.raises(ParamsError) as caught:
            await manager.queue_many(mail, wrap(items), return_ids=True)
        exc = caught.value
        assert (exc.index, exc.field) == (bad, "to")
        runs = await take_runs(manager)
        assert [run.params.to for run in runs] == list(range(bad)), "those before it, and none behind it"
        assert exc.summary.queued == bad
        assert exc.summary.run_ids == [run.id for run in runs]
        assert exc.summary.seconds > 0


async def test_a_run_that_is_too_large(broker_url: str) -> None:
    items = [Mail(to=n, body="x" * (3000 if n == 5 else 10)) for n in range(10)]
    async with opened(broker_url, max_payload_bytes=2000) as manager:
        with pytest.raises(PayloadTooLargeError, match="2000") as caught:
            await manager.queue_many(mail, items)
        assert (caught.value.index, caught.value.summary.queued) == (5, 5)
        assert [run.params.to for run in await take_runs(manager)] == [0, 1, 2, 3, 4]
        summary = await manager.queue_many(mail, items, on_error="collect")
        assert [(index, type(exc)) for index, exc in summary.errors] == [(5, PayloadTooLargeError)]
        assert summary.queued == await waiting(manager) == 9


class Broken(Exception):
    pass


def breaking(count: int) -> Iterator[dict[str, int]]:
    yield from numbered(count)
    raise Broken(f"after {count}")


async def breaking_later(count: int) -> AsyncIterator[dict[str, int]]:
    for item in numbered(count):
        yield item
    raise Broken(f"after {count}")


@pytest.mark.parametrize("make", [breaking, breaking_later], ids=["iterator", "async iterator"])
@pytest.mark.parametrize("count", [0, 10, 1000, 2500])
async def test_items_that_raise_themselves(broker_url: str, make: Callable[[int], Any], count: int) -> None:
    """What was given before is queued, and the exception says how many that were."""
    async with opened(broker_url) as manager:
        with pytest.raises(Broken, match=f"after {count}") as caught:
            await manager.queue_many(note, make(count), return_ids=True)
        summary: QueueSummary = caught.value.summary  # type: ignore[attr-defined]
        runs = await take_runs(manager)
        assert numbers(runs) == list(range(count))
        assert summary.queued == count
        assert summary.run_ids == [run.id for run in runs]


async def test_an_iterator_may_be_gone_on_with(broker_url: str) -> None:
    """A generator is not closed by an item that does not fit: the rest of it may be queued by another call."""
    items = iter([{"to": 0}, {"to": "nobody"}, {"to": 2}])
    generator = (item for item in items)
    async with opened(broker_url) as manager:
        with pytest.raises(ParamsError):
            await manager.queue_many(mail, generator)
        summary = await manager.queue_many(mail, generator)
        assert summary.queued == 1
        assert [run.params.to for run in await take_runs(manager)] == [0, 2]


# -- told on the way


async def test_progress(broker_url: str) -> None:
    seen: list[tuple[int, int, float]] = []

    def progress(summary: QueueSummary) -> None:
        seen.append((summary.queued, summary.bytes, summary.seconds))

    async with opened(broker_url) as manager:
        summary = await manager.queue_many(note, numbered(4500), progress=progress)
        assert [queued for queued, _, _ in seen] == [1000, 2000, 3000, 4000, 4500]
        assert [seen[-1][0], seen[-1][1]] == [summary.queued, summary.bytes]
        assert [size for _, size, _ in seen] == sorted({size for _, size, _ in seen})
        assert [seconds for _, _, seconds in seen] == sorted(seconds for _, _, seconds in seen)


async def test_progress_that_raises(broker_url: str) -> None:
    """It ends the queueing, and the summary still counts what is queued."""
    calls: list[int] = []

    def progress(summary: QueueSummary) -> None:
        calls.append(summary.queued)
        raise Broken("enough")

    async with opened(broker_url) as manager:
        with pytest.raises(Broken) as caught:
            await manager.queue_many(note, numbered(20_000), progress=progress)
        assert calls[0] == 1000
        queued = caught.value.summary.queued  # type: ignore[attr-defined]
        assert queued == await waiting(manager)
        assert 1000 <= queued < 20_000


async def test_events(broker_url: str) -> None:
    inits: list[TaskRun[Any, Any]] = []
    queueds: list[TaskRun[Any, Any]] = []
    async with opened(broker_url) as manager:
        manager.dispatcher.register_handler("init", inits.append)
        manager.dispatcher.register_handler("queued", queueds.append)
        summary = await manager.queue_many(note, numbered(1500), priority="high", return_ids=True)
        assert [run.id for run in inits] == [run.id for run in queueds] == summary.run_ids
        assert numbers(inits) == numbers(queueds) == list(range(1500))
        assert {(str(run.state), run.queued is None, str(run.priority)) for run in inits} == {("init", True, "high")}
        assert {(str(run.state), run.queued is None) for run in queueds} == {("queued", False)}
        manager.dispatcher.unregister_handler("init")
        await manager.queue_many(note, numbered(5))
        assert (len(inits), len(queueds)) == (1500, 1505)
        manager.dispatcher.unregister_handler("queued")
        await manager.queue_many(note, numbered(5))
        assert (len(inits), len(queueds)) == (1500, 1505)


async def test_no_run_is_said_to_be_queued_that_was_refused(start_server: Start) -> None:
    server = start_server(maxmemory="6mb")
    told: list[TaskRun[Any, Any]] = []
    async with TaskManager(broker_url=server.url) as manager:
        manager.register_task(mail)
        manager.dispatcher.register_handler("queued", told.append)
        with pytest.raises(BrokerFullError) as caught:
            await manager.queue_many(mail, (Mail(to=n, body="x" * 1000) for n in range(50_000)))
        queued = await waiting(manager)
        assert 0 < queued < 50_000
        assert caught.value.summary.queued == queued == len(told)


# -- cancelled


async def test_cancelled_between_items(broker_url: str) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncIterator[dict[str, int]]:
        for n in range(10_000):
            if n == 3500:
                reached.set()
                await go_on.wait()
            yield {"n": n}

    async with opened(broker_url) as manager:
        queueing = asyncio.create_task(manager.queue_many(note, items(), return_ids=True))
        await within(reached.wait())
        queueing.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await queueing
        summary: QueueSummary = caught.value.summary  # type: ignore[attr-defined]
        await manager.flush()
        runs = await take_runs(manager)
        assert numbers(runs) == list(range(3000)), "whole batches, in their order"
        assert 0 <= summary.queued <= 3000
        assert summary.run_ids == [run.id for run in runs[: summary.queued]]


async def test_cancelled_while_the_server_hangs(start_server: Start) -> None:
    """Cancelled at once, with a summary that is right: it counts what was confirmed, not what may come through yet."""
    server = start_server()
    started = asyncio.Event()

    def progress(summary: QueueSummary) -> None:
        if summary.queued == 2000:
            server.pause()
            started.set()

    async with TaskManager(broker_url=server.url) as manager:
        manager.register_task(note)
        queueing = asyncio.create_task(manager.queue_many(note, numbered(50_000), progress=progress))
        await within(started.wait())
        queueing.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await within(queueing, 5)
        confirmed = caught.value.summary.queued  # type: ignore[attr-defined]
        server.resume()
        await manager.flush()
        queued = await waiting(manager)
        assert 2000 <= confirmed <= queued <= 2000 + 6 * MAX_BATCH
        runs = await take_runs(manager)
        assert numbers(runs) == list(range(queued)), "nothing is missing in between"


async def test_out_of_time(start_server: Start) -> None:
    server = start_server()
    async with TaskManager(broker_url=server.url) as manager:
        manager.register_task(note)
        await manager.queue(note, n=-1)
        server.pause()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.2):
                await manager.queue_many(note, numbered(5000))
        cause = caught.value.__cause__ or caught.value.__context__  # the latter before Python 3.11.4
        assert isinstance(cause, asyncio.CancelledError)
        assert cause.summary.queued == 0  # type: ignore[attr-defined]
        server.resume()


# -- a server that goes


async def test_a_server_that_is_killed_and_comes_back(start_server: Start) -> None:
    """Nothing that was confirmed is lost and nothing is queued twice, however often the batches had to be sent."""
    server = start_server(appendonly="always")
    kills = iter([4000, 20_000, 33_000])
    kill_at = next(kills)
    restarts: list[asyncio.Task[None]] = []

    def progress(summary: QueueSummary) -> None:
        nonlocal kill_at
        if summary.queued >= kill_at:
            kill_at = next(kills, 10**9)
            server.kill()
            restarts.append(asyncio.create_task(asyncio.to_thread(server.restart)))

    async with TaskManager(broker_url=server.url) as manager:
        manager.register_task(note)
        summary = await within(manager.queue_many(note, numbered(40_000), progress=progress, return_ids=True), 60)
        assert len(restarts) == 3
        await asyncio.gather(*restarts)
        runs = await take_runs(manager)
        assert len(runs) == summary.queued == 40_000
        assert numbers(runs) == list(range(40_000))
        assert [run.id for run in runs] == summary.run_ids


async def test_a_server_that_is_killed_and_stays_away(start_server: Start) -> None:
    server = start_server(appendonly="always")

    def progress(summary: QueueSummary) -> None:
        if summary.queued == 5000:
            server.kill()

    async with TaskManager(broker_url=server.url, enqueue_timeout=0.3) as manager:
        manager.register_task(note)
        with pytest.raises(BrokerConnectionError) as caught:
            await within(manager.queue_many(note, numbered(50_000), progress=progress))
        confirmed = caught.value.summary.queued
        server.restart()
        queued = await waiting(manager)
        assert 5000 <= confirmed <= queued <= confirmed + 6 * MAX_BATCH
        assert numbers(await take_runs(manager)) == list(range(queued))


async def test_no_server(start_server: Start) -> None:
    server = start_server()
    server.kill()
    manager = TaskManager(broker_url=server.url)
    with pytest.raises(BrokerConnectionError) as caught:
        await within(manager.queue_many(note, numbered(5000)))
    assert isinstance(caught.value, TaskError)
    assert caught.value.summary.queued == 0
    await manager.on_shutdown()


# -- memory

FLAT = """
import asyncio, resource, sys
from fluidfast import TaskManager, task

@task
async def note(ctx): ...

def items(count):
    return ({"user_id": n, "email": "someone@example.com", "amount": 12.5, "tags": ["new", "eu"]} for n in range(count))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)

async def main():
    manager = TaskManager(broker_url=sys.argv[1])
    await manager.queue_many(note, items(30_000))
    await manager.broker.clear_queue()
    before = peak()
    summary = await manager.queue_many(note, items(300_000))
    print(summary.queued, peak() - before)
    await manager.broker.clear()
    await manager.on_shutdown()

asyncio.run(main())
"""


async def test_memory_stays_flat(redis_url: str, tmp_path: Path) -> None:
    script = tmp_path / "flat.py"
    script.write_text(FLAT)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, str(script), redis_url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    queued, grown_kib = map(int, done.stdout.split())
    assert queued == 300_000
    assert grown_kib < 8 * 1024, "a tenth of what the payloads take"
