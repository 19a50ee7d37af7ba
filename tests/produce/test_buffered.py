"""``delivery="buffered"``: queue() returns before the broker has confirmed. Nothing of it is lost in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from kits.manager_kit import consuming, managing, take_runs, waiting
from kits.servers import RedisServer
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import (
    BrokerConnectionError,
    BrokerFullError,
    BufferedRunsLost,
    ConfigError,
    ParamsError,
    PayloadTooLargeError,
    UnknownTaskError,
)
from fluidfast.produce.producer import MAX_BATCH

Start = Callable[..., RedisServer]


class Mail(msgspec.Struct):
    to: int
    body: str = ""


@task
async def mail(ctx: TaskRun[Mail]) -> None:
    """Takes a Struct."""


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[TaskManager]:
    async with managing(url, mail, delivery="buffered", **options) as manager:
        yield manager


def alone(server: RedisServer, **options: Any) -> TaskManager:
    """A manager on a server that is maltreated: nothing is cleared at the end."""
    manager = TaskManager(broker_url=server.url, delivery="buffered", **options)
    manager.register_task(mail)
    return manager


async def on_queue(url: str) -> list[TaskRun[Any, Any]]:
    """What waits there, taken off."""
    async with TaskManager(broker_url=url) as manager:
        manager.register_task(mail)
        return await take_runs(manager)


def numbers(runs: list[TaskRun[Any, Any]]) -> list[int]:
    return [run.params.to for run in runs]


# -- what it is for


async def test_a_plain_loop(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        runs = [await manager.queue(mail, to=n) for n in range(5000)]
        assert {str(run.state) for run in runs} == {"queued"}
        await manager.flush()
        assert manager.intake.producer.pending == manager.intake.producer.pending_bytes == 0
        found = await take_runs(manager)
        assert [run.id for run in found] == [run.id for run in runs]
        assert numbers(found) == list(range(5000))


async def test_flush_of_nothing(broker_url: str) -> None:
    async with opened(broker_url) as manager:
        await manager.flush()
        await manager.queue(mail, to=1)
        await manager.flush()
        await manager.flush()
        assert await waiting(manager) == 1


async def test_shutdown_flushes(broker_url: str) -> None:
    async with TaskManager(broker_url=broker_url) as other:  # keeps a memory broker's store alive
        other.register_task(mail)
        manager = TaskManager(broker_url=broker_url, delivery="buffered")
        async with manager:
            for n in range(1234):
                await manager.queue(mail, to=n)
        assert numbers(await take_runs(other)) == list(range(1234))


async def test_it_returns_before_the_server_answers(start_server: Start) -> None:
    server = start_server()
    async with alone(server) as manager:
        await manager.queue(mail, to=0)
        await manager.flush()
        server.pause()
        async with asyncio.timeout(5):
            for n in range(1, 100):
                await manager.queue(mail, to=n)
        assert manager.intake.producer.pending == 99
        flushing = asyncio.create_task(manager.flush())
        await asyncio.wait([flushing], timeout=0.05)
        assert not flushing.done()
        server.resume()
        await within(flushing)
        assert numbers(await take_runs(manager)) == list(range(100))


async def test_the_order_of_the_calls(broker_url: str) -> None:
    """Whoever queues what, by whichever way."""
    async with opened(broker_url) as manager:
        for n in range(10):
            await manager.queue(mail, to=n)
        await manager.queue_many(mail, [Mail(to=n) for n in range(10, 20)])
        for n in range(20, 30):
            await manager.queue(mail, to=n)
        await manager.queue(mail, "high", to=-1)
        await manager.flush()
        assert numbers(await take_runs(manager)) == [-1, *range(30)]


async def test_errors_of_the_caller_are_raised_at_once(broker_url: str) -> None:
    async with opened(broker_url, max_payload_bytes=1000) as manager:
        with pytest.raises(ParamsError):
            await manager.queue(mail, to="nobody")
        with pytest.raises(PayloadTooLargeError):
            await manager.queue(mail, to=1, body="x" * 1000)
        with pytest.raises(UnknownTaskError):
            await manager.queue("nothing_like_it")
        await manager.flush()
        assert await waiting(manager) == 0


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="delivery"):
        TaskManager(delivery="eventually")
    with pytest.raises(ConfigError, match="buffer_runs"):
        TaskManager(delivery="buffered", buffer_runs=0)
    with pytest.raises(ConfigError, match="buffer_bytes"):
        TaskManager(delivery="buffered", buffer_bytes=0)


# -- its bounds


@pytest.mark.parametrize("bound", [1, 10, 1000, 2500])
async def test_the_buffer_is_bounded(start_server: Start, bound: int) -> None:
    server = start_server()
    async with alone(server, buffer_runs=bound) as manager:
        producer = manager.intake.producer
        most = 0

        async def fill() -> None:
            nonlocal most
            for n in range(6000 if bound > 10 else 60):
                await manager.queue(mail, to=n)
                most = max(most, producer.pending)

        await manager.queue(mail, to=-1)
        await manager.flush()
        server.pause()
        filling = asyncio.create_task(fill())
        await until(lambda: producer.pending >= bound)
        await asyncio.wait([filling], timeout=0.05)
        assert not filling.done(), "the caller is held"
        assert bound <= producer.pending <= bound + MAX_BATCH
        server.resume()
        await within(filling)
        assert most <= bound + MAX_BATCH
        await manager.flush()
        assert numbers(await take_runs(manager)) == [-1, *range(6000 if bound > 10 else 60)]


async def test_the_buffer_is_bounded_in_bytes(start_server: Start) -> None:
    server = start_server()
    async with alone(server, buffer_bytes=1 << 20) as manager:
        producer = manager.intake.producer
        await manager.queue(mail, to=-1)
        await manager.flush()
        server.pause()

        async def fill() -> None:
            for n in range(100):
                await manager.queue(mail, to=n, body="x" * 100_000)
                assert producer.pending_bytes < (1 << 20) + 101_000

        filling = asyncio.create_task(fill())
        await until(lambda: producer.pending_bytes >= 1 << 20)
        await asyncio.wait([filling], timeout=0.05)
        assert not filling.done()
        server.resume()
        await within(filling)
        await manager.flush()
        assert numbers(await take_runs(manager)) == [-1, *range(100)]


async def test_many_callers_share_the_buffer(start_server: Start) -> None:
    server = start_server()
    async with alone(server, buffer_runs=500) as manager:
        producer = manager.intake.producer
        most = 0

        async def fill(start: int) -> None:
            nonlocal most
            for n in range(start, start + 200):
                await manager.queue(mail, to=n)
                most = max(most, producer.pending)

        await manager.queue(mail, to=-1)
        await manager.flush()
        server.pause()
        filling = [asyncio.create_task(fill(200 * i)) for i in range(40)]
        await until(lambda: producer.pending >= 500)
        await asyncio.wait(filling, timeout=0.05)
        assert producer.pending <= 500 + MAX_BATCH
        server.resume()
        await within(asyncio.gather(*filling))
        assert most <= 500 + MAX_BATCH
        await manager.flush()
        assert sorted(numbers(await take_runs(manager))) == list(range(-1, 8000))


async def test_a_caller_that_is_cancelled_while_it_is_held(start_server: Start) -> None:
    """Its run was accepted before: it is queued, once."""
    server = start_server()
    async with alone(server, buffer_runs=5) as manager:
        await manager.queue(mail, to=-1)
        await manager.flush()
        server.pause()
        for n in range(4):
            await manager.queue(mail, to=n)
        held = asyncio.create_task(manager.queue(mail, to=4))
        await until(lambda: manager.intake.producer.pending == 5)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        server.resume()
        await within(manager.queue(mail, to=5))
        await manager.flush()
        assert numbers(await take_runs(manager)) == [-1, 0, 1, 2, 3, 4, 5]


# -- what fails


class Tally:
    """What was accepted and what was said to be lost."""

    def __init__(self, manager: TaskManager) -> None:
        self.manager = manager
        self.accepted: dict[str, int] = {}
        self.lost: list[str] = []
        self.causes: list[BaseException | None] = []

    async def queue(self, n: int, **params: Any) -> None:
        """Queue one, again after a loss was raised in its place."""
        while True:
            try:
                run = await self.manager.queue(mail, to=n, **params)
            except BufferedRunsLost as exc:
                self.note(exc)
            else:
                self.accepted[run.id] = n
                return

    async def flush(self) -> None:
        try:
            await self.manager.flush()
        except BufferedRunsLost as exc:
            self.note(exc)

    def note(self, exc: BufferedRunsLost) -> None:
        self.lost += exc.run_ids
        self.causes.append(exc.__cause__)
        assert f"{len(exc.run_ids)} buffered runs" in str(exc)


async def test_a_server_that_is_full(start_server: Start) -> None:
    server = start_server(maxmemory="6mb")
    async with alone(server) as manager:
        tally = Tally(manager)
        n = 0
        async with asyncio.timeout(20):
            while not tally.lost:
                await tally.queue(n, body="x" * 500)
                n += 1
            for _ in range(500):  # some of which may fit
                await tally.queue(n, body="x" * 500)
                n += 1
        await tally.flush()
        assert all(isinstance(cause, BrokerFullError) for cause in tally.causes)
        assert len(set(tally.lost)) == len(tally.lost), "each is said once"
        found = [run.id for run in await take_runs(manager)]
        assert len(set(found)) == len(found)
        assert set(found) == tally.accepted.keys() - set(tally.lost)
        assert set(tally.lost) <= tally.accepted.keys()
        # there is room again, and nothing is left of the trouble
        await tally.queue(n)
        await manager.flush()
        assert numbers(await take_runs(manager)) == [n]


async def test_a_loss_is_raised_by_flush(start_server: Start) -> None:
    server = start_server(maxmemory="1")
    manager = alone(server)
    run = await manager.queue(mail, to=1)
    with pytest.raises(BufferedRunsLost) as caught:
        await manager.flush()
    assert caught.value.run_ids == [run.id]
    assert isinstance(caught.value.__cause__, BrokerFullError)
    await manager.flush()
    await manager.on_shutdown()


async def test_a_loss_is_raised_by_shutdown(start_server: Start) -> None:
    server = start_server(maxmemory="1")
    manager = alone(server)
    run = await manager.queue(mail, to=1)
    with pytest.raises(BufferedRunsLost) as caught:
        await manager.on_shutdown()
    assert caught.value.run_ids == [run.id]
    await manager.on_shutdown()


async def test_a_server_that_goes_and_comes_back(start_server: Start) -> None:
    server = start_server(appendonly="always")
    async with alone(server) as manager:
        restart: asyncio.Task[None] | None = None
        for n in range(20_000):
            await manager.queue(mail, to=n)
            if n == 7000:
                server.kill()
                restart = asyncio.create_task(asyncio.to_thread(server.restart))
        assert restart is not None
        await restart
        await within(manager.flush())
        assert numbers(await take_runs(manager)) == list(range(20_000))


async def test_a_server_that_stays_away(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluidfast.produce.producer.SEND_SECONDS", 0.3)
    server = start_server(appendonly="always")
    async with alone(server, buffer_runs=2000, enqueue_timeout=0.3) as manager:
        tally = Tally(manager)
        for n in range(3000):
            await tally.queue(n)
            if n == 1500:
                server.kill()
        await within(tally.flush())
        assert tally.lost
        assert all(isinstance(cause, BrokerConnectionError) for cause in tally.causes)
        assert len(set(tally.lost)) == len(tally.lost)
        server.restart()
        await tally.queue(3000)
        await within(manager.flush())
        found = [run.id for run in await take_runs(manager)]
        assert len(set(found)) == len(found), "nothing twice"
        assert set(found) >= tally.accepted.keys() - set(tally.lost), "what was not said to be lost is there"
        assert set(found) <= tally.accepted.keys()


async def test_a_server_that_was_never_there(start_server: Start) -> None:
    server = start_server()
    server.kill()
    manager = alone(server)
    run = await manager.queue(mail, to=1)
    with pytest.raises(BufferedRunsLost) as caught:
        await within(manager.flush())
    assert caught.value.run_ids == [run.id]
    assert isinstance(caught.value.__cause__, BrokerConnectionError)
    await manager.on_shutdown()


def test_an_event_loop_that_ends_before_the_flush(
    redis_url: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What it had not sent is lost, and that is said by the next loop's first call."""
    manager = TaskManager(broker_url=redis_url, delivery="buffered")
    manager.register_task(mail)

    async def one(n: int) -> str:
        return (await manager.queue(mail, to=n)).id

    async def end() -> None:
        await manager.broker.clear()
        await manager.on_shutdown()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        first = runner.run(one(1))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        with pytest.raises(BufferedRunsLost, match="the event loop ended") as caught:
            runner.run(manager.flush())
        assert caught.value.run_ids == [first]
        second = runner.run(one(2))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        with pytest.raises(BufferedRunsLost) as caught:
            runner.run(one(3))
        assert caught.value.run_ids == [second]
        runner.run(one(4))
        runner.run(manager.flush())
        found = runner.run(on_queue(redis_url))
        assert 4 in numbers(found)
        runner.run(end())


# -- beside other ways


async def test_beside_queue_and_wait(broker_url: str) -> None:
    seen: list[int] = []

    @task
    async def see(ctx: TaskRun[Mail]) -> None:
        seen.append(ctx.params.to)

    async with consuming(broker_url, see) as consumer, managing(broker_url, see, delivery="buffered") as manager:
        for n in range(100):
            await manager.queue(see, to=n)
        run = await manager.queue_and_wait(see, to=100, timeout=20)
        assert str(run.state) == "success"
        await manager.flush()
        await until(lambda: len(seen) == 101)
        assert sorted(seen) == list(range(101))
        await until(lambda: consumer.engine.finished == 101)


async def test_a_consumer_that_queues_from_its_tasks(broker_url: str) -> None:
    """Shut down while the children of its tasks are in the buffer: they are flushed."""

    @task
    async def parent(ctx: TaskRun[Mail]) -> None:
        for n in range(20):
            await ctx.queue(mail, "low", to=ctx.params.to * 20 + n)

    url = broker_url + ("&" if "?" in broker_url else "?") + "queues=high,medium"
    async with managing(broker_url, mail, parent) as other:
        await other.queue_many(parent, [Mail(to=n) for n in range(30)])
        consumer = TaskConsumer(broker_url=url, delivery="buffered", stopping_grace_period=5)
        consumer.register_task(parent)
        consumer.register_task(mail)
        await consumer.startup()
        await until(lambda: consumer.engine.finished == 30)
        await consumer.shutdown()
        assert sorted(numbers(await take_runs(other))) == list(range(600))


async def test_a_burst_of_large_runs_goes_in_bounded_commands(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that come together do not make one command that a server would refuse."""
    async with managing(redis_url, mail) as manager:
        sizes: list[int] = []
        send = manager.intake.producer._dispatch_batch

        def seen(groups: Any, size: int, *rest: Any) -> None:
            sizes.append(size)
            send(groups, size, *rest)

        monkeypatch.setattr(manager.intake.producer, "_dispatch_batch", seen)
        await asyncio.gather(*(manager.queue(mail, to=n, body="x" * 500_000) for n in range(60)))
        assert sum(sizes) > 30_000_000
        assert max(sizes) < 10_000_000
        assert sorted(numbers(await take_runs(manager))) == list(range(60))
