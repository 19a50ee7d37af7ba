"""What only the Redis broker has: keys that aio-fluid shares, scripts that the server forgot, locks, event loops."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
import redis
from faults.proxy import THERE, FaultProxy
from kits.broker_kit import MEDIUM, Sender, put, take, with_options
from kits.redis_broker_kit import Running, StartServer, all_promoted, clients, consumer_of, is_held, note, ran
from kits.servers import RedisServer
from kits.waiting import until, within
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockError, LockNotOwnedError

from fluidfast import TaskManager
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.url import BrokerURL
from fluidfast.core.states import PRIORITIES, TaskState
from fluidfast.errors import BrokerAuthError, BrokerError, BrokerLayoutError

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class TestSharedWithAioFluid:
    """One set of lists, one form of payload: a fleet is moved one process at a time."""

    def test_names(self) -> None:
        broker = TaskBroker.from_url("redis://localhost:6379")
        assert isinstance(broker, RedisTaskBroker)
        assert broker.prefix == "{redis-task-broker}"
        assert broker.task_queue_names == tuple(
            f"{{redis-task-broker}}-queue-{priority}" for priority in ("high", "medium", "low")
        )
        assert broker.task_hash_name("t") == "{redis-task-broker}-tasks-t"
        assert broker.task_run_key("t", "r") == "{redis-task-broker}-task-run-t-r"
        assert broker.manager_status_key("m") == "{redis-task-broker}-manager-m"
        assert broker.task_aborted_key("r") == "{redis-task-broker}-aborted-r"
        named = TaskBroker.from_url("redis://localhost:6379/3?name=mine")
        assert named.task_queue_names[0] == "{mine}-queue-high"

    async def test_a_payload_that_aio_fluid_pushed_runs(self, redis_url: str, no_leaked_keys: Any) -> None:
        no_leaked_keys.allow("*-tasks-*")
        theirs = {
            "id": "0190f1a7c0de4b0f8a2b3c4d5e6f7081",
            "task": "note",
            "priority": "high",
            "params": {"n": "theirs"},
            "state": "queued",
            "task_manager": None,
            "queued": "2026-07-01T10:20:30.123456Z",
            "start": None,
            "end": None,
            "execute_after": None,
            "rate_limit_attempt": 0,
            "retry_attempt": 0,
            "from_run_id": "",
            "root_run_id": "",
        }
        by_hand = b'{"task": "note", "params": {"n": "by hand"}}'
        consumer = consumer_of(redis_url, max_concurrent_tasks=1)
        async with Redis.from_url(redis_url.partition("?")[0]) as client:
            await client.lpush(consumer.broker.task_queue_names[0], json.dumps(theirs))
            await client.lpush(consumer.broker.task_queue_names[1], by_hand)
            async with Running(consumer):
                await until(lambda: len(ran) == 2)
        assert ran == ["theirs", "by hand"]

    async def test_our_payload_is_plain_json(self, manager: TaskManager) -> None:
        run = await manager.queue("note", priority="low", n=1, text='é\n"')
        assert isinstance(manager.broker, RedisTaskBroker)
        raw = await manager.broker.redis_cli.rpop(manager.broker.task_queue_names[2])
        assert isinstance(raw, bytes)
        payload = json.loads(raw)
        assert payload.pop("queued") == pytest.approx(run.queued.timestamp(), abs=1e-5)  # type: ignore[union-attr]
        assert payload == {
            "id": run.id,
            "task": "note",
            "priority": "low",
            "state": "queued",
            "params": {"n": 1, "text": 'é\n"'},
        }

    async def test_info_is_theirs(self, manager: TaskManager, no_leaked_keys: Any) -> None:
        no_leaked_keys.allow("*-tasks-note")
        assert isinstance(manager.broker, RedisTaskBroker)
        key = manager.broker.task_hash_name("note")
        theirs = {
            "enabled": b"false",
            "last_run_end": b'"2026-07-01T10:20:30.123456Z"',
            "last_run_duration": b'"PT0.25S"',
            "last_run_state": b'"success"',
            "unheard_of": b"1",
        }
        await manager.broker.redis_cli.hset(key, mapping=theirs)  # type: ignore[misc]
        (info,) = await manager.broker.get_tasks_info("note")
        assert not info.enabled
        assert info.last_run_state is TaskState.success
        assert info.last_run_duration is not None
        assert info.last_run_duration.total_seconds() == 0.25
        await manager.broker.enable_task("note", True)
        assert await manager.broker.redis_cli.hget(key, "enabled") == b"true"  # type: ignore[misc]

    async def test_a_slot_is_seen_by_them(self, broker: RedisTaskBroker) -> None:
        limited = note._replace(max_concurrency=1)
        assert await broker.acquire(limited, "run-1")
        assert 0 < await broker.redis_cli.ttl(broker.task_run_key("note", "run-1")) <= 71
        await put(broker, b"x")
        claim = await broker.claim("a", 1)
        await broker.settle(Settlement(claim.batch, whole=True, slots=[("note", "run-1")]))
        assert not await broker.redis_cli.exists(broker.task_run_key("note", "run-1"))


class TestScriptsAreForgotten:
    async def test_every_verb_loads_them_again(self, broker: RedisTaskBroker) -> None:
        flush = broker.redis_cli.script_flush
        await put(broker, b"a", b"b", b"c")
        await flush()
        await put(broker, b"d")
        await flush()
        claim = await broker.claim("a", 10)
        fields = [item.field for item in claim.items]
        assert [item.payload for item in claim.items] == [b"a", b"b", b"c", b"d"]
        await flush()
        assert await broker.renew("a", [claim.batch]) == []
        await flush()
        assert await broker.release(claim.batch, fields[3:]) == 1
        await flush()
        assert await broker.settle(Settlement(claim.batch, whole=True, retries=[(0.0, MEDIUM, b"e")]))
        await flush()
        await broker.promote()
        await flush()
        await broker.delay([(0.0, MEDIUM, b"f")])
        await flush()
        assert await broker.reap() == 0
        await until(lambda: all_promoted(broker))
        await flush()
        await broker.deregister("a")
        assert await take(broker) == [b"d", b"e", b"f"]

    async def test_with_durability(self, start_server: StartServer) -> None:
        server = start_server(appendonly="everysec")
        broker = TaskBroker.from_url(with_options(server.url, durability="replica", durability_seconds=0.05))
        sender = Sender(broker)
        for n in range(3):
            with pytest.raises(BrokerError, match="not safe"):  # there is no replica
                await sender.send([], [b"%d" % n])
            if isinstance(broker, RedisTaskBroker):
                await broker.redis_cli.script_flush()
        async with TaskManager(broker_url=server.url, durability="replica") as manager:
            manager.register_task(note)
            manager.broker.options.durability_seconds = 0.05
            for _ in range(2):
                start = monotonic()
                with pytest.raises(BrokerError, match="not safe"):
                    await manager.queue("note")
                assert monotonic() - start < 5
                await manager.broker.redis_cli.script_flush()  # type: ignore[attr-defined]
        assert (await broker.queue_length())["medium"] == 5
        await broker.clear()
        await broker.close()


class TestLock:
    async def test_without_rights(self, start_server: StartServer) -> None:
        """Each of its verbs says it as all others do."""
        server = start_server(acl=["user default on nopass ~* +@all", "user eve on >pw ~* +@all"])
        broker = TaskBroker.from_url(server.url_as("eve", "pw"))
        lock = broker.lock("a", timeout=60)
        assert await lock.acquire()
        assert await lock.extend(60)
        assert await lock.reacquire()
        assert await lock.owned()
        assert await lock.locked()
        with redis.Redis(port=server.port) as client:
            client.execute_command("ACL", "SETUSER", "eve", "-get", "-set", "-eval", "-evalsha")
        verbs = (lock.release, lambda: lock.extend(60), lock.reacquire, lock.owned, lock.locked)
        for verb in (*verbs, broker.lock("b").acquire, broker.lock("c").__aenter__):
            with pytest.raises(BrokerAuthError, match="eve"):
                await within(verb())
        await broker.close()

    async def test_held_no_more(self, broker: RedisTaskBroker) -> None:
        """That is redis-py's to say, as in aio-fluid."""
        lock = broker.lock(f"lock of {broker.name}", timeout=60)
        with pytest.raises(LockError):
            await lock.release()
        assert await lock.acquire()
        await broker.redis_cli.delete(lock.name)
        for verb in (lambda: lock.extend(60), lock.reacquire, lock.release):
            with pytest.raises(LockNotOwnedError):
                await verb()

    async def test_an_answer_is_lost(self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Taken and let go of all the same: who sends it again is not to wait for itself."""
        await broker.connect()
        lost: list[str] = []
        for name in ("do_acquire", "do_release"):

            def losing(verb: Any, name: str) -> Any:
                async def first_answer_lost(lock: Any, token: bytes) -> Any:
                    answer = await verb(lock, token)
                    if name not in lost:
                        lost.append(name)
                        raise redis.exceptions.ConnectionError("its answer is lost")
                    return answer

                return first_answer_lost

            monkeypatch.setattr(Lock, name, losing(getattr(Lock, name), name))
        lock = broker.lock(f"lock of {broker.name}", timeout=60)
        async with asyncio.timeout(20), lock:
            assert await lock.owned()
        assert lost == ["do_acquire", "do_release"]
        assert not await lock.locked()


class TestAnotherEventLoop:
    """A manager that is used under one ``asyncio.run`` after the other."""

    @staticmethod
    async def use(manager: TaskManager) -> None:
        broker = manager.broker
        assert [info.name for info in await broker.get_tasks_info("note")] == ["note"]
        async with broker.lock(f"lock of {broker.name}", timeout=5):
            pass
        await broker.set_manager_status(manager.manager_id, {"kind": "test", "status": {}}, 1)
        await broker.get_all_manager_statuses()
        await asyncio.gather(*(broker.queue_length() for _ in range(100)))  # more than the pool has connections
        await manager.queue("note", n=1)
        assert len(await take(broker)) == 1

    # of connections that nobody closed while their loop was there
    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("first", ["lock", "redis", "queue", "close"])
    @pytest.mark.parametrize("closed", [True, False])
    def test_all_works_again(self, redis_url: str, loop_factory: LoopFactory, first: str, closed: bool) -> None:
        manager = TaskManager(broker_url=redis_url)
        manager.register_task(note)
        client = manager.broker.redis_cli  # type: ignore[attr-defined]

        async def once(begin: bool) -> None:
            if begin and first == "lock":
                async with manager.broker.lock(f"lock of {redis_url}", timeout=5):
                    pass
            elif begin and first == "queue":
                await manager.queue("note", n=1)
                assert len(await take(manager.broker)) == 1
            elif begin and first == "close":
                await manager.on_shutdown()
            await self.use(manager)
            await client.ping()
            if closed:
                await manager.on_shutdown()

        for turn in range(3):
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(once(turn > 0))
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(manager.on_shutdown())
        gc.collect()


class TestPagesOfTheDead:
    async def test_a_reply_is_bounded(self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        lrange = broker.redis_cli.lrange

        async def measured(*args: Any) -> Any:
            found = await lrange(*args)
            sizes.append(sum(map(len, found)))
            return found

        monkeypatch.setattr(broker.redis_cli, "lrange", measured)
        entries = [f"{n} why\n".encode() + (b"large" * 200_000 if n < 20 else b"small") for n in range(30)]
        await broker.redis_cli.lpush(broker.keys.dead, *entries)
        assert [header for header, _ in await broker.dead(100)] == [f"{n} why" for n in range(29, -1, -1)]
        assert max(sizes) <= 8 << 20
        await broker.redis_cli.delete(broker.keys.dead)

    @pytest.mark.parametrize("oldest", [False, True])
    async def test_none_is_given_twice(
        self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch, oldest: bool
    ) -> None:
        """While more of them give up."""
        lrange = broker.redis_cli.lrange

        async def pushes(*args: Any) -> Any:
            found = await lrange(*args)
            await broker.redis_cli.lpush(broker.keys.dead, b"99 later\nx")
            return found

        monkeypatch.setattr(broker.redis_cli, "lrange", pushes)
        await broker.redis_cli.lpush(broker.keys.dead, *(b"%d why\nx" % n for n in range(40)))
        expected = range(40) if oldest else range(39, -1, -1)
        assert [header for header, _ in await broker.dead(40, oldest=oldest)] == [f"{n} why" for n in expected]
        await broker.redis_cli.delete(broker.keys.dead)


@pytest.mark.parametrize("after", [0, 2000], ids=["before its first answer", "while the scripts are loaded"])
@pytest.mark.parametrize("verb", ["link", "blocking_link"])
async def test_what_connects_while_the_broker_is_closed_leaves_no_connection(
    redis_server: RedisServer, redis_url: str, verb: str, after: int
) -> None:
    """Its loop would be closed with the connection open: a ResourceWarning in whatever runs then."""
    with FaultProxy(redis_server.port) as proxy:
        broker = TaskBroker.from_url(proxy.url_of(redis_url))
        proxy.stall(THERE, after)
        connecting = asyncio.create_task(getattr(broker.client, verb)())
        await until(lambda: is_held(proxy))
        await broker.close()
        proxy.flow()
        with pytest.raises(BrokerError, match="was closed while it connected"):
            await within(connecting)
        await until(lambda: not clients(proxy))


async def test_clear_leaves_other_names_alone(redis_server: RedisServer) -> None:
    """Names with glob characters are not patterns."""
    names = ["a*", "ab", "a[b]", "a?"]
    brokers = [TaskBroker.from_url(f"{redis_server.url}?name={name.replace('?', '%3F')}") for name in names]
    for broker in brokers:
        await put(broker, broker.name.encode())
    for broker in brokers:
        assert await broker.clear() == 1
    for broker in brokers:
        await broker.close()


def test_used_in_one_event_loop_after_another(redis_url: str) -> None:
    manager = TaskManager(broker_url=redis_url)
    manager.register_task(note)

    async def queue(n: int) -> int:
        await manager.queue("note", n=n)
        return (await manager.broker.queue_length())["medium"]

    for n in range(1, 4):
        with asyncio.Runner() as runner:
            assert runner.run(queue(n)) == n
            runner.run(manager.on_shutdown())
    with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
        client.delete(*manager.broker.task_queue_names)


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_newer_layout_is_refused(redis_url: str, shards: int) -> None:
    """By each way in, before anything is queued or claimed that would be misread."""
    url = with_options(redis_url, shards=shards)
    key = RedisTaskBroker(BrokerURL(redis_url)).keys.layout
    async with Redis.from_url(redis_url.partition("?")[0]) as client:
        try:
            await client.set(key, "7")
            for way in ("connect", "channel", "queue", "consume"):
                consumer = consumer_of(url)
                calls: dict[str, Callable[[], Any]] = {
                    "connect": consumer.broker.connect,
                    "channel": consumer.broker.channel,
                    "queue": lambda consumer=consumer: consumer.queue(note, n=1),
                    "consume": consumer.startup,
                }
                with pytest.raises(BrokerLayoutError, match=r"layout 7, and this one \(\S+\) knows layout 1: upgrade"):
                    await within(calls[way]())
                await consumer.broker.close()
            await client.set(key, "1")
            broker = TaskBroker.from_url(url)
            await broker.connect()
            assert await broker.queue_length() == dict.fromkeys(PRIORITIES, 0)
            await broker.close()
        finally:
            await client.delete(key)
