"""Connections and ids belong to one event loop of one process: several loops, forks, threads."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from kits.broker_kit import with_options
from kits.manager_kit import consuming
from kits.servers import RedisServer
from kits.waiting import until, within

from fluidfast import TaskBroker, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.errors import WorkerStartError

pytestmark = [  # loops end here without a shutdown, as those of a web framework's requests do
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What those loops leave is freed here, where its warnings are meant to be, and not in another test."""
    gc.freeze()  # what other tests have left need not be looked at
    yield
    for _ in range(3):
        gc.collect()
    gc.unfreeze()


@task
async def note(ctx: TaskRun) -> None:
    ctx.deps.append(ctx.params["n"])


@task
async def echo(ctx: TaskRun) -> None: ...


def manager_of(url: str, **options: Any) -> TaskManager:
    manager = TaskManager(broker_url=url, **options)
    manager.register_task(echo)
    return manager


def clear(url: str) -> int:
    """How many runs wait; then nothing does."""
    manager = manager_of(url)

    async def count() -> int:
        async with manager:
            found = sum((await manager.broker.queue_length()).values())
            await manager.broker.clear()
            return found

    return asyncio.run(count())


# -- several event loops at once


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("delivery", ["confirmed", "buffered"])
def test_many_loops_at_once(redis_url: str, delivery: str, shards: int) -> None:
    """Each call is made, or refused by an error that names manager.sync. None hangs."""
    url = with_options(redis_url, shards=shards)
    manager = manager_of(url, delivery=delivery)

    def request(n: int) -> str:
        async def queue() -> None:
            async with asyncio.timeout(20):
                await manager.queue("echo", n=n)
                await manager.flush()

        try:
            asyncio.run(queue())
        except RuntimeError as exc:
            return "refused" if "manager.sync" in str(exc) else repr(exc)
        except BaseException as exc:
            return repr(exc)
        return "done"

    with ThreadPoolExecutor(4) as pool:
        counts = Counter(pool.map(request, range(60)))
    assert counts.keys() <= {"done", "refused"}
    assert counts["done"] >= 1
    assert request(60) == "done"
    assert clear(url) >= counts["done"] + 1


def test_many_loops_on_memory_wait_each_for_its_own() -> None:
    """No connection belongs to a loop there."""
    consumer = TaskConsumer(broker_url="memory://places")
    consumer.register_task(echo)
    manager = manager_of("memory://places")

    def request(n: int) -> int:
        run = asyncio.run(manager.queue_and_wait("echo", n=n, timeout=20))
        found: int = run.params["n"]
        return found

    async def main() -> list[int]:
        async with consumer:
            return await asyncio.gather(*(asyncio.to_thread(request, n) for n in range(12)))

    assert asyncio.run(main()) == list(range(12))


@pytest.mark.parametrize("shards", [1, 3])
def test_one_loop_after_another(redis_url: str, shards: int) -> None:
    url = with_options(redis_url, shards=shards)
    manager = manager_of(url)

    async def queue() -> None:
        await manager.queue("echo")
        with pytest.raises(TimeoutError):
            await manager.queue_and_wait("echo", timeout=0.01)

    for _ in range(5):
        asyncio.run(queue())
    assert clear(url) == 10


def test_a_loop_that_was_left_hears_of_it(redis_url: str) -> None:
    """It has only stopped, and goes on: what it waits for is not waited for forever."""
    manager = manager_of(redis_url)
    left = asyncio.new_event_loop()
    waiting: list[Any] = []

    async def hand_over() -> None:
        await manager.queue("echo")
        waiting.append(asyncio.ensure_future(manager.queue("echo")))
        left.stop()

    try:
        handing = left.create_task(hand_over())
        left.run_forever()
        asyncio.run(in_another(manager))

        async def go_on() -> None:
            await within(asyncio.gather(*waiting, return_exceptions=True))

        left.run_until_complete(go_on())
        assert handing.done()
    finally:
        left.close()
    assert clear(redis_url) >= 2


async def in_another(manager: TaskManager) -> None:
    await manager.queue("echo")
    await manager.on_shutdown()


# -- manager.sync beside an event loop


async def test_sync_is_called_in_the_loop_that_the_manager_is_awaited_in(redis_url: str) -> None:
    """A plain task of a consumer may use it: the consumer's connections stay where they are."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    @task
    def plain(ctx: TaskRun) -> None:
        for n in range(3):
            ctx.task_manager.sync.queue("note", n=n)
        ctx.task_manager.sync.queue_and_wait("note", n=3, timeout=20)
        loop.call_soon_threadsafe(done.set)

    deps: list[int] = []
    async with consuming(redis_url, plain, note, deps=deps) as consumer:
        await consumer.queue("plain")
        await within(done.wait())
        await until(lambda: sorted(deps) == [0, 1, 2, 3])
        assert consumer.engine.is_running()
        assert not [each for each in threading.enumerate() if each.name == "fluidfast-sync"]
        with pytest.raises(RuntimeError, match="use await there"):
            consumer.sync.queue("note", n=4)


def test_sync_then_await_then_sync(redis_url: str) -> None:
    """The loop of sync goes on, but it has nothing to do: it lets go of the connections."""
    manager = manager_of(redis_url)
    manager.sync.queue("echo")
    asyncio.run(in_another(manager))
    manager.sync.queue("echo")
    manager.sync.close()
    assert clear(redis_url) == 3


def test_sync_while_the_loop_that_it_is_called_in_ends(redis_url: str) -> None:
    """Answers, or an error: no thread hangs."""
    manager = manager_of(redis_url)
    told: list[str] = []

    def call() -> None:
        try:
            manager.sync.queue_and_wait("echo", timeout=600)
        except BaseException as exc:
            told.append(type(exc).__name__)

    async def main() -> None:
        await manager.queue("echo")
        thread.start()
        await until(lambda: any(inbox.expected for inbox in manager._replies.inboxes.values()))

    thread = threading.Thread(target=call)
    asyncio.run(main())
    thread.join(20)
    assert told
    assert told[0] in ("CancelledError", "RuntimeError")
    manager.sync.close()
    clear(redis_url)


# -- forks


def forked(work: Callable[[], Any], seconds: float = 30) -> int:
    """Do it in a forked child; give its exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        # One that hangs says where, and ends. By a signal: the watchdog of `dump_traceback_later` is a thread, and
        # where pytest has one (`-o faulthandler_timeout`), the child would wait for the parent's for ever.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(int(seconds))
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def connections(server: RedisServer) -> set[str]:
    with redis.Redis.from_url(server.url) as client:
        return {each["id"] for each in client.client_list()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("sync", [False, True])
def test_each_child_of_a_fork_gets_its_own_answers(redis_url: str, sync: bool, shards: int) -> None:
    url = with_options(redis_url, shards=shards)
    manager = manager_of(url)
    manager.sync.queue("echo", n=-1)  # it has a thread, a loop and connections, none of which a child may use

    async def await_them() -> None:
        for n in range(5):
            assert (await manager.queue_and_wait("echo", n=n, timeout=20)).params["n"] == n
        await manager.on_shutdown()

    def call_them() -> None:
        for n in range(5):
            assert manager.sync.queue_and_wait("echo", n=n, timeout=20).params["n"] == n
        manager.sync.close()

    async def main() -> list[int]:
        async with consuming(url, echo):
            work = call_them if sync else lambda: asyncio.run(await_them())
            return await asyncio.gather(*(asyncio.to_thread(forked, work) for _ in range(4)))

    assert asyncio.run(main()) == [0] * 4
    manager.sync.queue_many("echo", [{"n": n} for n in range(3)])  # the parent's connection is as it was
    manager.sync.close()
    assert clear(url) == 3


def test_ids_are_made_in_the_process_that_uses_them(redis_url: str) -> None:
    consumer = TaskConsumer(broker_url=redis_url)
    mine = consumer.manager_id
    reader, writer = os.pipe()
    for _ in range(3):
        assert forked(lambda: os.write(writer, consumer.manager_id.encode())) == 0
    theirs = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert len({mine, theirs[:32], theirs[32:64], theirs[64:96]}) == 4
    assert consumer.manager_id == mine


def test_a_consumer_that_is_made_before_the_fork_runs_in_each_child(redis_url: str) -> None:
    """As in gunicorn --preload: each under its own id, with its own lease and inbox."""
    consumer = TaskConsumer(broker_url=redis_url, deps=[])
    consumer.register_task(note)
    consumer.sync.queue("note", n=0)

    async def live() -> None:
        async with consumer:
            await consumer.queue_and_wait("note", n=1, timeout=20)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: forked(lambda: asyncio.run(live())), range(3))) == [0] * 3
    asyncio.run(live())
    consumer.sync.close()
    assert clear(redis_url) == 0


async def test_a_consumer_that_runs_is_refused_in_a_child(broker_url: str) -> None:
    """And nothing that the child does to it reaches the parent's."""
    deps: list[int] = []
    async with consuming(broker_url, note, deps=deps) as consumer:
        await consumer.queue_and_wait("note", n=1, timeout=20)

        def child() -> None:
            with pytest.raises(WorkerStartError, match=f"runs in process {os.getppid()}, and this process is a fork"):
                asyncio.run(consumer.startup())
            asyncio.run(consumer.shutdown())
            consumer.gracefully_stop()
            consumer.sync_queue("note")

        assert forked(child) == 0
        await consumer.queue_and_wait("note", n=2, timeout=20)
        assert deps == [1, 2]
        assert consumer.is_running()


async def test_a_child_that_ends_does_not_touch_its_parents_connections(
    redis_server: RedisServer, redis_url: str
) -> None:
    """Not even as its interpreter ends and frees what it has: the parent goes on with the same ones."""
    manager = manager_of(redis_url)
    await manager.queue("echo")
    async with consuming(redis_url, note, deps=[]) as consumer:
        await consumer.queue_and_wait("note", n=1, timeout=20)
        before = connections(redis_server)
        pid = os.fork()
        if not pid:
            del manager, consumer
            gc.collect()
            os._exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        await consumer.queue_and_wait("note", n=2, timeout=20)
        await manager.queue("echo")
        link = manager.broker.client._link  # type: ignore[attr-defined]
        assert not link.closed
        assert before & connections(redis_server)
    await manager.broker.clear()
    await manager.on_shutdown()


def test_a_child_begins_with_an_empty_memory_broker() -> None:
    """Its parent's runs are its parent's: they would run twice."""
    manager = manager_of("memory://places-fork")
    manager.sync.queue("echo")
    manager.sync.close()

    def child() -> None:
        lengths = asyncio.run(manager.broker.queue_length())
        assert sum(lengths.values()) == 0

    assert forked(child) == 0
    assert sum(asyncio.run(manager.broker.queue_length()).values()) == 1


def test_a_child_prolongs_no_lease_of_its_parent(redis_url: str) -> None:
    """Not even of a claim whose answer had not come when it was forked: the parent may be gone for long."""
    broker = TaskBroker.from_url(redis_url)
    assert isinstance(broker, RedisTaskBroker)

    async def forked_while_it_claims() -> int:
        await broker.connect()
        link = await broker.client.link()
        call = link.call
        codes: list[int] = []

        def child() -> None:
            assert not broker.inboxes.claiming

        def call_and_fork(command: bytes) -> Any:
            codes.append(forked(child))
            return call(command)

        link.call = call_and_fork  # type: ignore[method-assign]
        await broker.claim("a", 1)
        await broker.close()
        return codes[0]

    assert asyncio.run(forked_while_it_claims()) == 0


def test_what_is_on_its_way_in_the_parent_is_not_lost_in_the_child(redis_url: str) -> None:
    manager = manager_of(redis_url, delivery="buffered")
    for n in range(600):
        manager.sync.queue("echo", n=n)

    def child() -> None:
        manager.sync.flush()
        manager.sync.queue("echo", n=-1)
        manager.sync.close()

    assert forked(child) == 0
    manager.sync.flush()
    manager.sync.close()
    assert clear(redis_url) == 601
