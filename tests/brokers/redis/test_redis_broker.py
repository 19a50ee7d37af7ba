"""What only the Redis broker has: keys that aio-fluid shares, URLs, and a server that refuses, fills up or goes
away."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any

import pytest
import redis
from faults.proxy import BACK, THERE, FaultProxy, Side
from kits.broker_kit import HIGH, MEDIUM, Sender, places, put, take, with_options
from kits.servers import RedisServer
from kits.waiting import pass_time, until, within
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockError, LockNotOwnedError

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.wakeup import Inboxes
from fluidfast.core.states import TaskState
from fluidfast.errors import BrokerAuthError, BrokerConnectionError, BrokerError, BrokerFullError, BrokerURLError

StartServer = Callable[..., RedisServer]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
ran: list[Any] = []


@task
async def note(ctx: TaskRun[Any, Any]) -> None:
    """Notes its params."""
    ran.append(ctx.params.get("n"))


@task
async def slow_note(ctx: TaskRun[Any, Any]) -> None:
    """Notes its params after a moment."""
    await asyncio.sleep(0.002)
    ran.append(ctx.params.get("n"))


@task(max_concurrency=1)
async def limited(ctx: TaskRun[Any, Any]) -> None: ...


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@pytest.fixture
async def broker(redis_url: str, no_leaked_keys: Any) -> AsyncIterator[RedisTaskBroker]:
    broker = TaskBroker.from_url(redis_url)
    assert isinstance(broker, RedisTaskBroker)
    yield broker
    await broker.close()


@pytest.fixture
async def manager(redis_url: str, no_leaked_keys: Any) -> AsyncIterator[TaskManager]:
    async with TaskManager(broker_url=redis_url) as manager:
        manager.register_task(note)
        yield manager


def consumer_of(url: str, **options: Any) -> TaskConsumer:
    consumer = TaskConsumer(broker_url=url, **{"stopping_grace_period": 5, **options})
    consumer.register_from_dict({"note": note, "slow_note": slow_note})
    return consumer


class Running:
    """A consumer within a block."""

    def __init__(self, consumer: TaskConsumer) -> None:
        self.consumer = consumer

    async def __aenter__(self) -> TaskConsumer:
        await self.consumer.startup()
        return self.consumer

    async def __aexit__(self, *exc_info: object) -> None:
        await within(self.consumer.shutdown())


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


class TestURL:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("nonesuch://localhost", "Invalid broker nonesuch://localhost"),
            ("localhost:6379", "Invalid broker"),
            ("redis://localhost?lease_secs=3", "unknown option 'lease_secs'"),
            ("redis://localhost?lease_seconds=0", "lease_seconds='0'"),
            ("redis://localhost?lease_seconds=nan", "lease_seconds='nan'"),
            ("redis://localhost?lease_seconds=soon", "lease_seconds='soon'"),
            ("redis://localhost?queues=high,urgent", "queues='high,urgent'"),
            ("redis://localhost?wire=pickle", "wire='pickle'"),
            ("redis://localhost?max_payload_bytes=-1", "max_payload_bytes='-1'"),
            ("redis://localhost?max_payload_bytes=0.5", "max_payload_bytes='0.5'"),
            ("redis://localhost:port", "redis://localhost:port"),
            ("redis://localhost:99999", "redis://localhost:99999"),
            ("redis://[::1", "redis://"),
            ("redis://localhost?db=first", "db"),
            ("memory://?lease_secs=3", "unknown option 'lease_secs'"),
        ],
    )
    def test_errors(self, url: str, message: str) -> None:
        with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
            TaskManager(broker_url=url)
        assert isinstance(caught.value, BrokerURLError)

    def test_options(self) -> None:
        broker = TaskBroker.from_url(
            "redis://localhost?name=a&lease_seconds=1.5&wire=msgpack&max_payload_bytes=1000&queues=low&name=b"
        )
        assert broker.name == "b"
        assert broker.options.lease_seconds == 1.5
        assert broker.options.queues == ("low",)
        assert broker.options.max_payload_bytes == 1000
        assert broker.codec.msgpack

    def test_config_over_url(self) -> None:
        manager = TaskManager(broker_url="redis://localhost?lease_seconds=1.5", lease_seconds=7, max_payload_bytes=99)
        assert manager.broker.options.lease_seconds == 7
        assert manager.broker.codec.max_bytes == 99

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://localhost:6379/1?name=a", "redis://localhost:6379/1?name=a"),
            ("redis://localhost:6379/1?name=a@b", "redis://localhost:6379/1?name=a@b"),
            ("redis://:hunter2@localhost:6379/1?name=a", "redis://:***@localhost:6379/1?name=a"),
            ("redis://me:hunter2@localhost", "redis://me:***@localhost"),
            ("redis://me:hunter2@[::1]:1/0", "redis://me:***@[::1]:1/0"),
            ("redis://me@localhost", "redis://me@localhost"),
            # characters that should have been escaped
            ("redis://me:hun/ter2@localhost:6379/1", "redis://me:***@localhost:6379/1"),
            ("redis://me:hun#ter2@localhost", "redis://me:***@localhost"),
            ("redis://:hun?ter2@localhost?name=a", "redis://:***@localhost?name=a"),
            ("redis://:hunt@er2@localhost", "redis://:***@localhost"),
            ("redis://:h[unter2@localhost", "redis://:***@localhost"),
            ("redis+sentinel://me:hunter2@a:1,b:2/main", "redis+sentinel://me:***@a:1,b:2/main"),
            (
                "rediss://localhost?ssl_keyfile_password=hunter2&name=a",
                "rediss://localhost?ssl_keyfile_password=***&name=a",
            ),
            ("redis+sentinel://a/main?sentinel_password=hunter2", "redis+sentinel://a/main?sentinel_password=***"),
        ],
    )
    def test_no_password_is_shown(self, url: str, shown: str) -> None:
        text = self.shown(url)
        assert shown in text
        # The traceback shows source lines of this test; the url is in none of them.
        for part in ("hunter2", "ter2", "hunt", "hun/", "h[un", "'hun'"):
            assert part not in text

    def shown(self, url: str) -> str:
        """All that is said of a broker with this url."""
        try:
            broker = TaskBroker.from_url(url)
        except BrokerURLError as exc:
            return "".join(traceback.format_exception(exc))
        return f"{broker.url} {broker.url!r} {broker!r}"

    async def test_unix_socket(self, start_server: StartServer) -> None:
        server = start_server(unixsocket=True, requirepass="p/w")
        broker = TaskBroker.from_url(with_options(server.unix_url, name="u"))
        assert "p/w" not in str(broker.url)
        assert "p%2Fw" not in str(broker.url)
        await put(broker, b"x")
        assert await take(broker) == [b"x"]
        waiting = asyncio.create_task(broker.wait("a", 60))
        await put(broker, b"y")
        await within(waiting)
        await broker.deregister("a")
        await broker.clear()
        await broker.close()

    async def test_database(self, redis_server: RedisServer, redis_url: str) -> None:
        other = redis_url.replace("/0?", "/5?")
        zero, five = TaskBroker.from_url(redis_url), TaskBroker.from_url(other)
        await put(zero, b"zero")
        await put(five, b"five")
        assert await take(zero) == [b"zero"]
        assert await take(five) == [b"five"]
        await zero.close()
        await five.close()


class TestRefused:
    SECRET = "hun@ter/2 é"

    async def everything(self, url: str) -> list[BrokerError]:
        """The errors of all that a manager may first say to its server."""
        errors: list[BrokerError] = []
        for say in (
            lambda m: m.queue("note", n=1),
            lambda m: m.broker.connect(),
            lambda m: m.broker.queue_length(),
            lambda m: m.broker.claim("a", 1),
            lambda m: m.broker.delay([(1.0, MEDIUM, b"x")]),
            lambda m: m.queue_and_wait("note", timeout=5),
            lambda m: m.broker.wait("a", 1),
            lambda m: m.broker.lock("a").acquire(),
        ):
            manager = TaskManager(broker_url=url)
            manager.register_task(note)
            with pytest.raises(BrokerConnectionError) as caught:
                await within(say(manager))
            assert isinstance(caught.value, RuntimeError)
            errors.append(caught.value)
            await manager.on_shutdown()
        return errors

    async def test_no_server(self) -> None:
        start = monotonic()
        for error in await self.everything("redis://127.0.0.1:1"):
            assert "redis://127.0.0.1:1" in str(error)
            assert not isinstance(error, BrokerAuthError)
        assert monotonic() - start < 10

    async def test_no_server_for_a_consumer(self) -> None:
        consumer = consumer_of("redis://127.0.0.1:1", connect_seconds=0.1)
        with pytest.raises(BrokerConnectionError, match=r"redis://127\.0\.0\.1:1"):
            await within(consumer.startup())
        assert consumer.is_stopped()

    @pytest.mark.parametrize("login", ["", ":wrong@", "nobody:{secret}@", "{secret}@"])
    async def test_wrong_password(
        self, start_server: StartServer, login: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server = start_server(requirepass=self.SECRET)
        from urllib.parse import quote

        login = login.replace("{secret}", quote(self.SECRET, safe=""))
        url = f"redis://{login}127.0.0.1:{server.port}/0"
        for error in await self.everything(url):
            assert isinstance(error, BrokerAuthError)
            text = "".join(traceback.format_exception(error))
            for secret in (self.SECRET, quote(self.SECRET, safe="")):
                if ":" in login:
                    assert secret not in text
                    assert secret not in caplog.text
        good = TaskBroker.from_url(server.url)
        await good.connect()
        await good.close()

    async def test_user_without_rights(self, start_server: StartServer) -> None:
        server = start_server(acl=["user default on nopass ~* +@all", "user weak on >pw ~* +ping +client +select"])
        broker = TaskBroker.from_url(server.url_as("weak", "pw"))
        with pytest.raises(BrokerAuthError) as caught:
            await broker.connect()
        assert "pw" not in str(caught.value)
        await broker.close()

    async def test_wrong_type_under_our_key(self, broker: RedisTaskBroker) -> None:
        await broker.redis_cli.set(broker.task_queue_names[1], b"not a list")
        with pytest.raises(BrokerError, match="WRONGTYPE") as caught:
            await put(broker, b"x")
        assert not isinstance(caught.value, BrokerConnectionError)
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await broker.claim("a", 1)
        await broker.redis_cli.delete(broker.task_queue_names[1])
        await put(broker, b"x")
        assert await take(broker) == [b"x"]


class TestFull:
    """A server at its maxmemory, noeviction: nothing goes in, and what is in goes on."""

    @pytest.fixture
    async def server(self, start_server: StartServer) -> RedisServer:
        return start_server()

    @pytest.fixture
    async def client(self, server: RedisServer) -> AsyncIterator[Redis]:
        async with Redis.from_url(server.url) as client:
            yield client

    async def fill(self, client: Redis) -> None:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "500kb")  # less than it takes by itself

    async def relieve(self, client: Redis) -> None:
        await client.config_set("maxmemory", "0")

    async def test_nothing_is_partially_queued(self, server: RedisServer, client: Redis) -> None:
        async with TaskManager(broker_url=server.url) as manager:
            manager.register_task(note)
            used = int((await client.info("memory"))["used_memory"])
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", str(used + 3_000_000))
            confirmed = 0
            errors: list[BaseException] = []
            while not errors and confirmed < 50_000:
                results = await asyncio.gather(
                    *(manager.queue("note", text="x" * 1000) for _ in range(500)), return_exceptions=True
                )
                errors = [result for result in results if isinstance(result, BaseException)]
                confirmed += len(results) - len(errors)
            assert confirmed
            assert {type(error) for error in errors} == {BrokerFullError}
            assert "maxmemory" in str(errors[0])
            assert (await manager.broker.queue_length())["medium"] == confirmed
            await self.relieve(client)
            await manager.queue("note")
            assert (await manager.broker.queue_length())["medium"] == confirmed + 1

    async def test_claim_and_settle_go_on(self, server: RedisServer, client: Redis) -> None:
        broker = TaskBroker.from_url(with_options(server.url, lease_seconds=0.2))
        other = TaskBroker.from_url(with_options(server.url, lease_seconds=0.2))
        await put(broker, *(b"%03d" % i for i in range(300)))
        await put(broker, b"high", priority=HIGH)
        await broker.delay([(0.0, MEDIUM, b"delayed")])
        await broker.connect()
        abandoned = await other.claim("dead", 1)
        assert [item.payload for item in abandoned.items] == [b"high"]
        await self.fill(client)
        for refused in (put(broker, b"x"), broker.delay([(1.0, MEDIUM, b"x")])):
            with pytest.raises(BrokerFullError):
                await refused
        claim = await broker.claim("a", 200)
        fields = [item.field for item in claim.items]
        assert len(fields) == 200
        assert await broker.renew("a", [claim.batch]) == []
        assert await broker.settle(Settlement(claim.batch, done=fields[:50]))
        assert await broker.renew("a", [claim.batch]) == []
        assert await broker.acquire(note._replace(max_concurrency=1), "run-1")
        retries = [(0.0, MEDIUM, b"again %d" % i) for i in range(5)]
        dead = [(fields[i], "why") for i in range(100, 110)]
        more = Settlement(
            claim.batch, done=fields[50:110], retries=retries, dead=dead, replies=[("me", b"done")],
            slots=[("note", "run-1")], info={"note": ("2026-07-01T00:00:00+00:00", 1.0, "success")},
        )  # fmt: skip
        assert await broker.settle(more)
        assert await broker.release(claim.batch, fields[110:150]) == 40
        await until(lambda: all_promoted(broker))
        with pytest.raises(BrokerFullError):  # it is still full
            await put(broker, b"x")

        async def sweep() -> int:
            assert await broker.renew("a", [claim.batch]) == []
            return await broker.reap()

        assert await until(sweep) == 1  # the abandoned one
        await broker.deregister("a")
        assert await broker.settle(Settlement(claim.batch, whole=True))
        taken = []
        while some := await take(broker):
            taken += some
        expected = [b"%03d" % i for i in [*range(110, 150), *range(200, 300)]]
        assert taken == [b"high", *expected, b"delayed", *(b"again %d" % i for i in range(5))]
        assert await places(broker) == {"dead": 10}
        await self.relieve(client)
        await put(broker, b"x")
        await broker.clear()
        await broker.close()
        await other.close()

    async def test_waiting_does_not_spin(self, server: RedisServer, client: Redis) -> None:
        broker = TaskBroker.from_url(server.url)
        await broker.connect()
        await self.fill(client)
        start = monotonic()
        for _ in range(3):
            assert await take(broker, consumer="a") == []
            await broker.wait("a", 0.2)
        assert monotonic() - start > 0.5
        await self.relieve(client)
        waiting = asyncio.create_task(broker.wait("a", 60))
        await put(broker, b"x")
        await within(waiting)
        assert await take(broker, consumer="a") == [b"x"]
        await broker.deregister("a")
        await broker.close()

    async def test_a_consumer_empties_it(self, server: RedisServer, client: Redis) -> None:
        consumer = consumer_of(with_options(server.url, lease_seconds=0.3))
        for n in range(50):
            await consumer.queue("note", n=n)
        await self.fill(client)
        async with Running(consumer):
            await until(lambda: len(ran) == 50)
            with pytest.raises(BrokerFullError):
                await consumer.queue("note", n=50)
            await until(lambda: is_empty(consumer.broker))
            await self.relieve(client)
            await consumer.queue("note", n=51)
            await until(lambda: 51 in ran)
        assert sorted(ran) == [*range(50), 51]


async def all_promoted(broker: TaskBroker) -> bool:
    return await broker.promote() is None


async def is_empty(broker: TaskBroker) -> bool:
    return await places(broker) == {}


class TestClaimAskedAgain:
    """The reply to a claim may be lost. Who asks again, under the same batch id, gets the same, or less of it."""

    @pytest.fixture
    def batch_ids(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Sets the batch id of the claims that follow."""
        return lambda batch: monkeypatch.setattr(Inboxes, "new_batch", lambda _: batch)

    async def test_same_items_in_the_same_order(
        self, broker: RedisTaskBroker, batch_ids: Callable[[str], None]
    ) -> None:
        payloads = [b"%04d" % i for i in range(800)]  # more than a small hash keeps in order
        await put(broker, *payloads, b"next")
        batch_ids("batch-1")
        first = await broker.claim("a", 800)
        assert [item.payload for item in first.items] == payloads
        assert await broker.claim("a", 800) == first
        assert await places(broker) == {"medium": 1, "leased": 800}
        assert await broker.settle(Settlement("batch-1", done=[item.field for item in first.items[1:]]))
        assert (await broker.claim("a", 5)).items == first.items[:1]
        assert await broker.settle(Settlement("batch-1", whole=True))
        batch_ids("batch-2")
        assert [item.payload for item in (await broker.claim("a", 5)).items] == [b"next"]
        assert await broker.settle(Settlement("batch-2", whole=True))

    @pytest.mark.parametrize("less", [{"limit": 3}, {"limit": 800, "max_bytes": 12}])
    async def test_who_asks_for_less_gives_the_rest_back(
        self, broker: RedisTaskBroker, batch_ids: Callable[[str], None], less: dict[str, int]
    ) -> None:
        """To where it came from: it is the next to be taken. One that asks for more gets no more."""
        high, low = ([b"%s%03d" % (letter, i) for i in range(400)] for letter in (b"h", b"l"))
        await put(broker, *high, priority=0)
        await put(broker, *low, priority=2)
        batch_ids("batch-1")
        first = await broker.claim("a", 800)
        assert [item.payload for item in first.items] == high + low
        assert (await broker.claim("a", **less)).items == first.items[:3]
        assert (await broker.claim("a", 800)).items == first.items[:3]
        assert await places(broker) == {"high": 397, "low": 400, "leased": 3}
        assert (await broker.claim("a", 1, max_bytes=0)).items == first.items[:1]
        assert await broker.settle(Settlement("batch-1", whole=True))
        batch_ids("batch-2")
        assert [item.payload for item in (await broker.claim("a", 800)).items] == (high + low)[1:]
        assert await broker.settle(Settlement("batch-2", whole=True))

    async def test_a_suspect_is_alone_the_second_time_too(
        self, redis_url: str, batch_ids: Callable[[str], None]
    ) -> None:
        broker = TaskBroker.from_url(with_options(redis_url, lease_seconds=0.1))
        await put(broker, b"poison")
        for i in range(2):
            batch_ids(f"death-{i}")
            assert len((await broker.claim("a", 10)).items) == 1
            await until(broker.reap)
        await put(broker, b"good")
        batch_ids("batch-1")
        first = await broker.claim("a", 10)
        assert [(item.payload, item.strikes) for item in first.items] == [(b"poison", 2)]
        assert first.alone
        assert await broker.claim("a", 10) == first
        assert await broker.settle(Settlement("batch-1", whole=True, survived=[first.items[0].field]))
        batch_ids("batch-2")
        second = await broker.claim("a", 10)
        assert [item.payload for item in second.items] == [b"good"]
        assert not second.alone
        assert await broker.claim("a", 10) == second
        assert await broker.settle(Settlement("batch-2", whole=True))
        await broker.close()

    async def test_through_a_lost_connection(self, broker: RedisTaskBroker, redis_url: str) -> None:
        await put(broker, *(b"%d" % i for i in range(10)))
        link = await broker.client.link()
        call = link.call

        def cut(command: bytes) -> Any:
            """The command gets through, its reply does not."""
            reply = call(command)
            link.data_received = lambda data: link.abort()  # type: ignore[method-assign]
            return reply

        link.call = cut  # type: ignore[method-assign]
        claim = await within(broker.claim("a", 5))
        assert [item.payload for item in claim.items] == [b"%d" % i for i in range(2)]  # half of what was too much
        assert await places(broker) == {"medium": 8, "leased": 2}
        assert await broker.settle(Settlement(claim.batch, whole=True))
        assert await take(broker) == [b"%d" % i for i in range(2, 10)]

    async def test_one_run_is_given_however_small_the_bound_has_become(self, broker: RedisTaskBroker) -> None:
        await put(broker, b"one", b"two")
        link = await broker.client.link()
        call = link.call

        def cut(command: bytes) -> Any:
            """Neither gets through."""
            link.abort()
            return call(command)

        link.call = cut  # type: ignore[method-assign]
        claim = await within(broker.claim("a", 5, max_bytes=1))
        assert [item.payload for item in claim.items] == [b"one"]
        assert await broker.settle(Settlement(claim.batch, whole=True))
        assert await take(broker) == [b"two"]

    async def test_more_than_the_connection_survives(
        self, broker: RedisTaskBroker, redis_server: RedisServer, redis_url: str
    ) -> None:
        """Else it would be asked for again and again, and prolonged all the while, so that nobody else has it."""
        payloads = [b"%01000d" % i for i in range(200)]
        await put(broker, *payloads)
        taken: list[bytes] = []
        with FaultProxy(redis_server.port) as proxy:
            frail = TaskBroker.from_url(proxy.url_of(redis_url))
            await frail.connect()
            proxy.every(BACK, 100_000)
            while len(taken) < len(payloads):
                claim = await within(frail.claim("a", 200), 10)
                assert await broker.settle(Settlement(claim.batch, whole=True))
                taken += [item.payload for item in claim.items]
            assert proxy.cuts >= 2
            await frail.close()
        assert taken == payloads


async def test_a_run_in_an_inbox_counts_as_there(broker: RedisTaskBroker) -> None:
    inbox = broker.keys.inbox("c", "low")
    await broker.redis_cli.zadd(broker.keys.consumers, {"b": 1, "c": 2})
    assert not await broker.has_runs()
    await broker.redis_cli.lpush(inbox, b"run")  # type: ignore[misc]
    assert await broker.has_runs()
    await broker.redis_cli.delete(inbox, broker.keys.consumers)


async def test_the_inbox_of_a_consumer_that_fell_silent_is_taken(redis_url: str, no_leaked_keys: Any) -> None:
    url = with_options(redis_url, lease_seconds=1)  # it blocks for half of that: long enough for what is put
    dead, alive = TaskBroker.from_url(url), TaskBroker.from_url(url)
    assert isinstance(dead, RedisTaskBroker)
    waiting = asyncio.create_task(dead.wait("dead", 60))
    await until(lambda: dead._wakeups and len(dead._wakeups["dead"].pending) == 3)
    await put(alive, b"h", priority=HIGH)
    await put(alive, b"m1", b"m2")
    await within(waiting)
    await dead.close()  # it does not deregister
    assert (await places(alive)).get("medium", 0) <= 1
    start = monotonic()
    taken = 0
    while taken < 2:
        taken += await alive.reap()
        await pass_time(0.02)
        assert monotonic() - start < 20
    assert await take(alive) == [b"h", b"m1", b"m2"]
    await alive.close()


class TestServerGoesAway:
    async def test_restart(self, start_server: StartServer) -> None:
        """Producer and consumer wait for a server that comes back, and nothing that was confirmed is lost."""
        server = start_server(appendonly="always")
        consumer = consumer_of(with_options(server.url, lease_seconds=1), max_concurrent_tasks=3)
        manager = TaskManager(broker_url=server.url)
        manager.register_task(note)
        confirmed: list[int] = []
        stop = asyncio.Event()

        async def produce() -> None:
            n = 0
            while not stop.is_set():
                await manager.queue("note", n=n)
                confirmed.append(n)
                n += 1

        async with Running(consumer):
            producing = asyncio.create_task(produce())
            for _ in range(2):
                so_far = len(confirmed)
                await until(lambda so_far=so_far: len(confirmed) > so_far + 100)  # type: ignore[misc]
                server.kill()
                server.restart()
            so_far = len(confirmed)
            await until(lambda: len(confirmed) > so_far + 100)
            stop.set()
            await within(producing)
            await until(lambda: set(ran) >= set(confirmed))
            await until(lambda: is_empty(consumer.broker))
            assert consumer.is_running()
        assert set(ran) == set(confirmed)
        again = len(ran) - len(confirmed)
        assert again < 3 * 2000  # what was settled and not yet on disk, or claimed; not everything
        await manager.on_shutdown()

    async def test_an_idle_consumer_comes_back(self, start_server: StartServer) -> None:
        server = start_server()
        consumer = consumer_of(server.url)
        async with Running(consumer):
            await consumer.queue("note", n=1)
            await until(lambda: ran == [1])
            server.restart()
            await within(consumer.queue("note", n=2))
            await until(lambda: ran == [1, 2])

    async def test_shutdown_while_it_is_away(self, start_server: StartServer) -> None:
        server = start_server()
        consumer = consumer_of(server.url, stopping_grace_period=0.1)
        async with Running(consumer):
            await consumer.queue("note", n=1)
            await until(lambda: ran == [1])
            server.kill()
            start = monotonic()
            await within(consumer.shutdown(), 40)
            assert monotonic() - start < 15
        server.restart()


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


async def test_a_claim_moves_little_more_than_it_gives(broker: RedisTaskBroker) -> None:
    """What goes beyond its bytes is not popped by the hundreds to be pushed back."""

    async def pushed() -> int:
        stats: Any = await broker.redis_cli.info("commandstats")
        return int(stats.get("cmdstat_rpush", {"calls": 0})["calls"])

    payloads = [b"%03d" % n + b"x" * 1000 for n in range(900)]
    await put(broker, *payloads)
    before = await pushed()
    assert await take(broker, 1000, max_bytes=100 * 1003) == payloads[:100]
    assert await take(broker, 1000, max_bytes=5 * 1003 + 1) == payloads[100:105]
    assert await take(broker, 1000, max_bytes=1) == payloads[105:106]
    assert await pushed() - before <= 32
    assert await take(broker, 1000, max_bytes=1 << 30) == payloads[106:]


async def test_dead_connections_are_forgotten(broker: RedisTaskBroker) -> None:
    for _ in range(3):
        (await broker.client.blocking_link()).abort()
    link = await broker.client.blocking_link()
    assert broker.client._blocked == {link}


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


class TestASwallowedCancel:
    """asyncio.wait_for of Python 3.11 may give a result or an error although its caller was cancelled, and redis-py
    sends through it. Who was cancelled ends all the same, and does not try again."""

    @staticmethod
    def swallowing(began: asyncio.Event, result: Any) -> Callable[..., Awaitable[Any]]:
        async def call(*_: Any) -> Any:
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if isinstance(result, Exception):
                    raise result from None
            return result

        return call

    async def ends_cancelled(self, call: Awaitable[Any], began: asyncio.Event) -> None:
        calling = asyncio.ensure_future(call)
        await within(began.wait())
        calling.cancel()
        await asyncio.wait([calling], timeout=5)
        cancelled = calling.cancelled()
        calling.cancel()
        await asyncio.wait([calling])
        assert cancelled

    @pytest.mark.parametrize("error", [None, redis.exceptions.ConnectionError("reset"), OSError("reset")])
    async def test_while_connecting(
        self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch, error: Exception | None
    ) -> None:
        await broker.connect()
        make = broker.client.server.connection
        began = asyncio.Event()

        def connection() -> Any:
            made = make()
            if not began.is_set():  # the next one connects: it is what would wait on
                made.connect = self.swallowing(began, error)  # type: ignore[method-assign]
            return made

        monkeypatch.setattr(broker.client.server, "connection", connection)
        await self.ends_cancelled(broker.wait("a", 60), began)
        await broker.deregister("a")

    @pytest.mark.parametrize("result", [b"why", redis.exceptions.ConnectionError("reset")])
    async def test_by_redis_py(
        self, broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch, result: bytes | Exception
    ) -> None:
        await broker.connect()
        began = asyncio.Event()
        monkeypatch.setattr(broker.redis_cli, "get", self.swallowing(began, result))
        await self.ends_cancelled(broker.get_task_aborted("id"), began)


class TestConnectionsAreKilled:
    """What was queued while connections die is there once, in its order."""

    RUNS = 500  # a round

    async def queued(self, broker: TaskBroker) -> list[int]:
        found: list[int] = []
        while some := await take(broker):
            found += [json.loads(payload)["params"]["n"] for payload in some]
        return found

    async def disturb(
        self, how: Callable[[], Awaitable[Any]], rng: random.Random, stop: asyncio.Event,
        progress: Callable[[], int], most: int,
    ) -> None:  # fmt: skip
        """Kill again and again: right after the last time, or when ``most`` more got through, however long that takes
        on this machine."""
        # Not cancelled: asyncio.wait_for, which redis-py uses, may swallow that in Python 3.11.
        while not stop.is_set():
            await how()
            enough = progress() + rng.choice((0, most))
            await until(lambda enough=enough: progress() >= enough or stop.is_set())
            await asyncio.sleep(rng.uniform(0.0005, 0.01))

    async def queue_some(self, manager: TaskManager, how: str, numbers: range) -> None:
        if how == "one by one":
            for n in numbers:
                await manager.queue("note", n=n)
        elif how == "gathered":
            for first in range(0, len(numbers), 250):
                await asyncio.gather(*(manager.queue("note", n=n) for n in numbers[first : first + 250]))
        else:

            async def lane(some: range) -> None:
                for n in some:
                    await manager.queue("note", n=n)

            await asyncio.gather(*(lane(numbers[i::10]) for i in range(10)))

    @pytest.mark.parametrize("what", ["kill", "flush", "both"])
    @pytest.mark.parametrize("how", ["one by one", "gathered", "side by side"])
    async def test_each_is_queued_once(
        self, manager: TaskManager, redis_server: RedisServer, start_server: StartServer, what: str, how: str
    ) -> None:
        server = start_server()
        seed = random.randrange(1 << 32)
        print("seed", seed)
        rng = random.Random(seed)
        async with Redis.from_url(server.url) as client, TaskManager(broker_url=server.url) as manager:
            manager.register_task(note)
            kills = 0

            async def kill() -> None:
                nonlocal kills
                if what != "flush":
                    kills += await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                if what != "kill":
                    await client.script_flush()
                    kills += 1

            await manager.queue("note", n=-1)
            stop = asyncio.Event()
            batches = {"one by one": 200, "gathered": 1, "side by side": 20}[how]
            disturbing = asyncio.create_task(
                self.disturb(kill, rng, stop, lambda: manager._producer.confirmed, batches)
            )
            total = 0
            while kills < 20:  # however quick the machine is
                await self.queue_some(manager, how, range(total, total + self.RUNS))
                total += self.RUNS
            stop.set()
            await within(disturbing)
            found = await self.queued(manager.broker)
        assert sorted(found) == list(range(-1, total))
        if how == "side by side":
            for i in range(10):
                assert [n for n in found if n % 10 == i and n >= 0] == list(range(i, total, 10))
        else:
            assert found == list(range(-1, total))

    async def test_each_is_run_at_least_once(self, start_server: StartServer) -> None:
        """The consumer's connections are killed, not its lease: what it settles, it settles once."""
        server = start_server()
        rng = random.Random(5)
        consumer = consumer_of(server.url, max_concurrent_tasks=10)
        for first in range(0, 2000, 500):
            await asyncio.gather(*(consumer.queue("slow_note", n=n) for n in range(first, first + 500)))
        async with Redis.from_url(server.url) as client:

            async def kill() -> None:
                await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

            stop = asyncio.Event()
            disturbing = asyncio.create_task(self.disturb(kill, rng, stop, lambda: len(ran), 100))
            async with Running(consumer):
                await until(lambda: len(ran) >= 2000)
                stop.set()
                await within(disturbing)
                await until(lambda: is_empty(consumer.broker))
        assert sorted(ran) == list(range(2000))


async def test_a_server_that_hangs_has_its_connection_ended(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluidfast.brokers.redis.client.REPLY_SECONDS", 0.25)
    server = start_server()
    async with TaskManager(broker_url=server.url) as manager:
        manager.register_task(note)
        await manager.queue("note", n=1)
        server.pause()
        queueing = asyncio.create_task(manager.queue("note", n=2))
        await pass_time(1.0)
        assert not queueing.done()
        server.resume()
        await within(queueing)
        assert (await manager.broker.queue_length())["medium"] == 2


async def test_a_cancelled_call_leaves_no_connection_behind_the_close(start_server: StartServer) -> None:
    """However far it had come."""
    server = start_server()
    brokers: list[TaskBroker] = []
    with redis.Redis.from_url(server.url) as client:
        for turns in range(1, 60):
            broker = TaskBroker.from_url(with_options(server.url, fleet="mixed"))
            brokers.append(broker)  # else the collector ends what is left
            await broker.connect()
            call = asyncio.ensure_future(broker.acquire(limited, f"fence:m1 {turns}"))
            for _ in range(turns % 30):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await broker.close()
        await until(lambda: len(client.client_list()) == 1)


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


async def test_what_is_asked_again_after_the_broker_was_closed_leaves_no_connection(
    redis_server: RedisServer, redis_url: str
) -> None:
    """By redis-py, whose pool makes a new one."""
    with FaultProxy(redis_server.port) as proxy:
        broker = TaskBroker.from_url(proxy.url_of(redis_url))
        await broker.connect()
        proxy.stall(THERE)
        asking = asyncio.create_task(broker.queue_length())
        await until(lambda: is_held(proxy))
        await broker.close()
        proxy.flow()
        await within(asking)
        await until(lambda: not clients(proxy))


def is_held(proxy: FaultProxy) -> bool:
    return any(side.held for side in list(proxy.sides))


def clients(proxy: FaultProxy) -> list[Side]:
    return [side for side in list(proxy.sides) if side.direction == THERE]


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
