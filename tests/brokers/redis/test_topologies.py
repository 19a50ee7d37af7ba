"""Where the server may be: behind Sentinels, in a Cluster, behind TLS; and with how few rights we get by."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
from kits.broker_kit import places, with_options
from kits.manager_kit import consuming, managing, take_runs
from kits.servers import HOST, RedisServer, ServerBinary, find_servers
from kits.topology_kit import (
    Authority,
    ask,
    start_cluster,
    start_replica,
    start_sentinels,
    tls_in_front,
    tls_options,
    tls_url,
)
from kits.waiting import until, within
from redis.crc import key_slot

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.commands.target import CommandError
from fluidfast.commands.trials.chaos import check_empty
from fluidfast.errors import (
    BrokerAuthError,
    BrokerConnectionError,
    BrokerURLError,
    NotDurableError,
    TaskError,
)

Start = Callable[..., RedisServer]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


@task
async def note(ctx: TaskRun) -> None:
    """Takes anything."""


class Load:
    """A producer and a consumer at work, and what became of each run."""

    def __init__(self, url: str, **options: Any) -> None:
        self.done: Counter[int] = Counter()
        self.acked: list[int] = []
        self.errors: list[TaskError] = []
        self.longest = 0.0
        """The longest that one queue() took."""
        self.sent = 0
        self._stop = False

        @task(name="work")
        async def work(ctx: TaskRun) -> None:
            self.done[ctx.params["n"]] += 1

        self.task = work
        self.url = url
        self.options = options

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        manager = TaskManager(broker_url=self.url, **self.options)
        manager.register_task(self.task)
        async with manager, consuming(self.url, self.task) as consumer:
            self.consumer = consumer
            producing = asyncio.create_task(self._produce(manager))
            await until(lambda: len(self.acked) > 200 or producing.done())
            yield self
            self._stop = True
            await within(producing, 30)
            await until(lambda: not self.missing or self._idle(), every=0.05)
            await until(lambda: not consumer.engine.settler.leases)

    def _idle(self) -> bool:
        """Whether nothing comes any more."""
        before, self._seen = getattr(self, "_seen", (-1, 0.0)), (sum(self.done.values()), monotonic())
        if before[0] != self._seen[0]:
            return False
        self._seen = before
        return monotonic() - before[1] > 2

    async def _produce(self, manager: TaskManager) -> None:
        while not self._stop:
            begin = monotonic()
            self.sent += 1
            try:
                await manager.queue(self.task, n=self.sent)
            except TaskError as exc:
                self.errors.append(exc)
                await asyncio.sleep(0.05)
            else:
                self.acked.append(self.sent)
            self.longest = max(self.longest, monotonic() - begin)
            if self.sent % 20 == 0:
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Until so many more were confirmed."""
        end = len(self.acked) + count
        await until(lambda: len(self.acked) >= end, seconds=30)

    @property
    def missing(self) -> set[int]:
        return set(self.acked) - self.done.keys()

    @property
    def twice(self) -> list[int]:
        return [n for n, times in self.done.items() if times > 1]


# -- Sentinel


@pytest.fixture
def sentinels() -> Iterator[list[RedisServer]]:
    started: list[RedisServer] = []
    yield started
    for sentinel in started:
        sentinel.kill()
        sentinel.stop()


async def test_sentinel_failover(start_server: Start, sentinels: list[RedisServer], tmp_path: Path) -> None:
    """The primary is killed under load. Nobody gets an error; what was acknowledged and had not reached the replica may
    be lost, which is counted."""
    primary = start_server()
    replica = await start_replica(start_server, primary)
    url = await start_sentinels(primary, tmp_path, sentinels, replicas=1)
    async with Load(url).running() as load:
        before = len(load.acked)
        primary.kill()
        await load.more(500)
    assert ask(replica, "ROLE")[0] == b"master"
    assert load.errors == []
    assert load.longest < 10
    assert len(load.missing) <= 100, "what the replica had not got when the primary died: a moment's worth"
    print(
        f"acked {before}+{len(load.acked) - before}, lost {len(load.missing)}, twice "
        f"{len(load.twice)}, longest stall {load.longest:.1f} s",
    )


async def test_sentinel_failover_with_durability(
    start_server: Start, sentinels: list[RedisServer], tmp_path: Path
) -> None:
    """The same where a replica has to have what is confirmed: nothing is lost."""
    primary = start_server()
    replicas = [await start_replica(start_server, primary) for _ in range(2)]
    url = await start_sentinels(primary, tmp_path, sentinels, replicas=2)
    url = with_options(url, durability="replica", durability_seconds=8)
    async with Load(url).running() as load:
        before = len(load.acked)
        primary.kill()
        await load.more(500)
    assert sorted(ask(replica, "ROLE")[0] for replica in replicas) == [b"master", b"slave"]
    assert [exc for exc in load.errors if not isinstance(exc, NotDurableError)] == []
    assert load.missing == set()
    assert load.longest < 15
    print(
        f"acked {before}+{len(load.acked) - before}, lost 0, twice {len(load.twice)}, "
        f"not durable {len(load.errors)}, longest stall {load.longest:.1f} s",
    )


async def test_sentinel_failover_of_shards(start_server: Start, sentinels: list[RedisServer], tmp_path: Path) -> None:
    """All shards are on the primary, and move with it."""
    primary = start_server()
    replica = await start_replica(start_server, primary)
    url = with_options(await start_sentinels(primary, tmp_path, sentinels, replicas=1), shards=3)
    async with Load(url).running() as load:
        primary.kill()
        await load.more(500)
    assert ask(replica, "ROLE")[0] == b"master"
    assert load.errors == []
    assert load.longest < 10
    assert len(load.missing) <= 100, "what the replica had not got when the primary died: a moment's worth"


async def test_a_sentinel_that_is_not_there(start_server: Start, sentinels: list[RedisServer], tmp_path: Path) -> None:
    """The next one is asked, and at once."""
    primary = start_server()
    url = await start_sentinels(primary, tmp_path, sentinels, replicas=0)
    sentinels[0].kill()
    await works(url)
    manager = TaskManager(broker_url=url)
    begin = monotonic()
    await within(manager.queue(note, n=1))
    assert monotonic() - begin < 1
    await manager.on_shutdown()


async def test_a_service_that_sentinels_do_not_know(
    start_server: Start, sentinels: list[RedisServer], tmp_path: Path
) -> None:
    primary = start_server()
    url = await start_sentinels(primary, tmp_path, sentinels, replicas=0)
    async with TaskManager(broker_url=url) as manager:
        await within(manager.queue(note, n=1))
    manager = TaskManager(broker_url=url.replace("/tasks", "/nothing"))
    with pytest.raises(BrokerConnectionError, match="nothing"):
        await within(manager.queue(note, n=1))
    await manager.on_shutdown()


# -- Cluster


async def test_cluster(start_server: Start) -> None:
    """Three brokers whose names stand on different nodes; then a slot moves to another node under load."""
    cluster = await start_cluster(start_server)

    # each name is served by its node
    names: dict[RedisServer, str] = {}
    for i in range(1000):
        names.setdefault(cluster.node_of(key_slot(f"name-{i}".encode())), f"name-{i}")
    assert len(names) == 3
    for server, name in names.items():
        url = with_options(cluster.url, name=name)
        seen: list[int] = []

        @task
        async def see(ctx: TaskRun, seen: list[int] = seen) -> None:
            seen.append(ctx.params["n"])

        async with managing(url, see) as manager:
            await manager.queue_many(see, [{"n": n} for n in range(500)])
            assert ask(server, "LLEN", f"{{{name}}}-queue-medium") == 500
            async with consuming(url, see) as consumer:
                assert str((await manager.queue_and_wait(see, n=500, timeout=20)).state) == "success"
                await until(lambda consumer=consumer: consumer.engine.finished == 501)
                await until(lambda consumer=consumer: not consumer.engine.settler.leases)
            assert sorted(seen) == list(range(501))
            for number in range(8):  # names that would stand on all of the nodes
                async with manager.broker.lock(f"tasks:see:{number}", timeout=5):
                    assert not await manager.broker.lock(f"tasks:see:{number}").acquire(blocking=False)
            assert await places(manager.broker) == {}

    # there and back again
    (one, name), (two, _), _ = names.items()
    slot = key_slot(name.encode())
    async with Load(with_options(cluster.url, name=name)).running() as load:
        await asyncio.to_thread(cluster.migrate, slot, one, two)
        await load.more(300)
        await asyncio.to_thread(cluster.migrate, slot, two, one)
        await load.more(300)
    assert load.errors == []
    assert load.missing == set()
    assert load.twice == []
    assert load.longest < 10


async def test_shards_on_the_nodes_of_a_cluster(start_server: Start) -> None:
    """One broker is on more than one node; what is queued there is run, also while a shard moves to another node."""
    cluster = await start_cluster(start_server)
    url = with_options(cluster.url, name="jobs", shards=6)
    slots = [key_slot(f"jobs:{n}".encode()) for n in range(6)]
    nodes = [cluster.node_of(slot) for slot in slots]
    assert len(set(nodes)) == 3
    ran: Counter[int] = Counter()

    @task
    async def count(ctx: TaskRun) -> None:
        ran[ctx.params["n"]] += 1

    async with managing(url, count) as manager:
        for start in range(0, 2000, 20):
            await asyncio.gather(*(manager.queue(count, n=n) for n in range(start, start + 20)))
        lengths = [ask(node, "LLEN", f"{{jobs:{n}}}-queue-medium") for n, node in enumerate(nodes)]
        assert sum(lengths) == 2000
        assert min(lengths) > 0
        async with consuming(url, count) as one, consuming(url, count) as two:
            assert str((await manager.queue_and_wait(count, n=2000, timeout=20)).state) == "success"
            await until(lambda: len(ran) == 2001)
            await until(lambda: not one.engine.settler.leases and not two.engine.settler.leases)
        assert ran == Counter(range(2001))
        assert await places(manager.broker) == {}

    async with Load(url).running() as load:
        target = next(node for node in cluster.nodes if node is not nodes[1])
        await asyncio.to_thread(cluster.migrate, slots[1], nodes[1], target)
        await load.more(300)
        await asyncio.to_thread(cluster.migrate, slots[1], target, nodes[1])
        await load.more(300)
    assert load.errors == []
    assert load.missing == set()
    assert load.twice == []
    assert load.longest < 10


async def test_the_other_nodes_are_served_while_one_stands_still(start_server: Start) -> None:
    cluster = await start_cluster(start_server)
    for node in cluster.nodes:
        ask(node, "CONFIG", "SET", "cluster-require-full-coverage", "no")
    url = with_options(cluster.url, name="jobs", shards=6)
    nodes = [cluster.node_of(key_slot(f"jobs:{n}".encode())) for n in range(6)]
    ran: Counter[int] = Counter()

    @task
    async def count(ctx: TaskRun) -> None:
        ran[ctx.params["n"]] += 1

    async with managing(url, count) as manager:
        await manager.broker.connect()
        async with consuming(url, count) as consumer:
            await until(lambda: consumer.engine.claiming.waiting)
            stands_still = nodes[0]
            stands_still.pause()
            try:
                shards = [n for n, node in enumerate(nodes) if node is not stands_still]
                for n in range(200):  # by whoever reaches these nodes
                    payload = manager.broker.codec.encode(manager.create_task_run(count, n=n))
                    shard = shards[n % len(shards)]
                    ask(nodes[shard], "LPUSH", f"{{jobs:{shard}}}-queue-medium", payload)
                await until(lambda: len(ran) == 200, f"{consumer.engine.finished}")
            finally:
                stands_still.resume()
            await manager.queue_many(count, [{"n": n} for n in range(200, 400)])
            await until(lambda: len(ran) == 400, seconds=40)
        assert ran == Counter(range(400))


@pytest.mark.parametrize("shards", [1, 3])
async def test_keys_of_others_on_any_node_of_a_cluster(start_server: Start, shards: int) -> None:
    """Chaos loads them all, so none may have keys of others."""
    cluster = await start_cluster(start_server)
    broker = TaskBroker.from_url(with_options(cluster.url, name="jobs", shards=shards))
    for node in cluster.nodes:
        await check_empty(broker)
        key = next(f"users:{n}" for n in range(1000) if cluster.node_of(key_slot(f"users:{n}".encode())) is node)
        ask(node, "SET", key, "Grace")
        with pytest.raises(CommandError, match=f"holds 1 key of others .'{key}'"):
            await check_empty(broker)
        ask(node, "DEL", key)
    for n, node in enumerate(cluster.nodes):
        ask(
            node,
            "SET",
            next(f"{n}:{m}" for m in range(1000) if cluster.node_of(key_slot(f"{n}:{m}".encode())) is node),
            1,
        )
    with pytest.raises(CommandError, match="holds 3 keys of others"):
        await check_empty(broker)
    await broker.close()


async def test_what_is_asked_while_a_slot_moves(start_server: Start) -> None:
    """It waits for the end of the move, as the scripts do: max_queue_length, say, asks how many runs wait."""
    cluster = await start_cluster(start_server)
    async with managing(cluster.url, note) as manager:
        await manager.queue(note, n=1)
        slot = key_slot(manager.broker.name.encode())
        source = cluster.node_of(slot)
        target = next(node for node in cluster.nodes if node is not source)
        cluster.begin(slot, source, target)
        asking = asyncio.create_task(manager.broker.queue_length())
        try:
            await asyncio.wait([asking], timeout=0.3)
        finally:
            await asyncio.to_thread(cluster.migrate, slot, source, target)
        assert await within(asking) == {"high": 0, "medium": 1, "low": 0}


async def test_no_script_runs_while_a_slot_moves(start_server: Start) -> None:
    """Not even one whose keys are all there: in the middle of it one may be gone, and come again at the other node."""
    cluster = await start_cluster(start_server)
    broker = RedisTaskBroker(cluster.url)
    await broker.delay([(0.0, 1, b"delayed")])
    for priority in range(3):
        await broker.push_once(f"{priority}", 60, priority, b"%d" % priority)
    slot = key_slot(broker.name.encode())
    source = cluster.node_of(slot)
    target = next(node for node in cluster.nodes if node is not source)
    cluster.begin(slot, source, target)
    promoting = asyncio.create_task(broker.promote())
    try:
        with redis.Redis.from_url(source.url) as node:
            await asyncio.wait([promoting], timeout=0.3)
            assert node.zcard(broker.keys.delayed) == 1
            assert not promoting.done()
    finally:
        await asyncio.to_thread(cluster.migrate, slot, source, target)
    assert await within(promoting) is None
    assert await broker.queue_length() == {"high": 1, "medium": 2, "low": 1}
    assert await broker.delayed_length() == 0
    await broker.close()


async def test_a_cluster_node_that_is_not_there(start_server: Start) -> None:
    """One of those in the URL is enough."""
    cluster = await start_cluster(start_server)
    gone = start_server()
    gone.kill()
    url = cluster.url.replace("://", f"://{HOST}:{gone.port},")
    await works(url)
    async with managing(url, note) as manager:
        begin = monotonic()
        await within(manager.queue(note, n=1))
        assert monotonic() - begin < 1
        assert len(await take_runs(manager)) == 1
    manager = TaskManager(broker_url=f"redis+cluster://{HOST}:{gone.port}")
    with pytest.raises(BrokerConnectionError):
        await within(manager.queue(note, n=1))
    await manager.on_shutdown()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1,b:2",
        "redis+sentinel://a:1/tasks/0/more",
        "redis+sentinel://a:x/tasks",
        "redis+cluster://a:1/2",
        "redis+cluster://a:1?db=1",
        "redis+cluster://a:1,,b:2",
        "redis://a?ssl_nothing=1",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(BrokerURLError):
        TaskManager(broker_url=url)


# -- TLS

WITH_TLS = [binary for binary in find_servers().values() if binary.kind == "redis7"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "our authority + more")  # a path that a URL has to escape


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "another")


async def works(url: str) -> None:
    """A manager, a consumer and its keeper get through."""
    url = with_options(url, lease_seconds=1)
    go_on = asyncio.Event()

    @task
    async def hold(ctx: TaskRun) -> None:
        await within(go_on.wait())

    async with managing(url, hold) as manager, consuming(url, hold) as consumer:
        waiting = asyncio.create_task(manager.queue_and_wait(hold, timeout=20))
        await until(lambda: consumer.engine.settler.leases)
        [batch] = consumer.engine.settler.leases
        key = f"{{{manager.broker.name}}}-ff:leases"
        # it may have started out of the inbox, and goes under its lease next
        deadline = await until(lambda: manager.broker.redis_cli.zscore(key, batch))  # type: ignore[attr-defined]

        async def prolonged() -> bool:
            now = await manager.broker.redis_cli.zscore(key, batch)  # type: ignore[attr-defined]
            assert now is not None, "the lease was lost"
            return bool(now > deadline)

        await until(prolonged)
        go_on.set()
        assert str((await within(waiting)).state) == "success"


async def test_tls(redis_server: RedisServer, authority: Authority) -> None:
    certificate = authority.sign("server", f"IP:{HOST}", "DNS:localhost")
    async with tls_in_front(redis_server, certificate) as port:
        await works(tls_url(port, name="tls-1", ssl_ca_certs=authority.path))
        await works(tls_url(port, "localhost", name="tls-2", ssl_ca_certs=authority.path))


@pytest.mark.parametrize("binary", WITH_TLS, ids=str)
async def test_tls_of_the_server(binary: ServerBinary, authority: Authority) -> None:
    """Where the server speaks TLS itself, and wants certificates of its clients."""
    options = tls_options(authority.sign("server", f"IP:{HOST}"), authority, clients=True)
    certificate, key = authority.sign("client", "DNS:client")
    with RedisServer(binary, extra=options["extra"]):
        await works(
            tls_url(options["tls_port"], ssl_ca_certs=authority.path, ssl_certfile=certificate, ssl_keyfile=key)
        )
        await refused(tls_url(options["tls_port"], ssl_ca_certs=authority.path))


async def refused(url: str, match: str = ".") -> None:
    manager = TaskManager(broker_url=url)
    with pytest.raises(BrokerConnectionError, match=match):
        await within(manager.queue(note, n=1))
    await manager.on_shutdown()


async def test_certificates_are_verified(
    redis_server: RedisServer, authority: Authority, other_authority: Authority
) -> None:
    """By default, and the host's name too."""
    certificate = authority.sign("server", "DNS:somewhere.else")
    async with tls_in_front(redis_server, certificate) as port:
        await refused(tls_url(port), "certificate verify failed")
        await refused(tls_url(port, ssl_ca_certs=other_authority.path), "certificate verify failed")
        await refused(tls_url(port, ssl_ca_certs=authority.path), "mismatch")
        await refused(tls_url(port, "localhost", ssl_ca_certs=authority.path), "mismatch")
        await refused(tls_url(port, ssl_ca_certs=authority.folder / "nothing.pem"))
        # whoever says so
        await works(tls_url(port, name="tls-3", ssl_ca_certs=authority.path, ssl_check_hostname="false"))
        await works(tls_url(port, name="tls-4", ssl_cert_reqs="none"))


async def test_tls_with_a_client_certificate(
    redis_server: RedisServer, authority: Authority, other_authority: Authority
) -> None:
    server = authority.sign("server", f"IP:{HOST}")
    async with tls_in_front(redis_server, server, clients=authority.path) as port:
        certificate, key = authority.sign("client", "DNS:client")
        common = {"ssl_ca_certs": authority.path, "name": "tls-5"}
        await works(tls_url(port, ssl_certfile=certificate, ssl_keyfile=key, **common))
        encrypted = authority.folder / "encrypted.key"
        authority._openssl("ec", "-in", str(key), "-aes256", "-passout", "pass:a&b +%", "-out", str(encrypted))
        await works(tls_url(port, ssl_certfile=certificate, ssl_keyfile=encrypted, ssl_password="a&b +%", **common))
        await refused(tls_url(port, **common))
        certificate, key = other_authority.sign("client", "DNS:client")
        await refused(tls_url(port, ssl_certfile=certificate, ssl_keyfile=key, **common))


async def test_tls_and_its_absence(
    redis_server: RedisServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluidfast.brokers.redis.servers.CONNECT_SECONDS", 0.5)  # such a server waits for more
    await refused(tls_url(redis_server.port, ssl_ca_certs=authority.path))
    async with tls_in_front(redis_server, authority.sign("server", f"IP:{HOST}")) as port:
        await refused(f"redis://{HOST}:{port}")


# -- rights

ACL_LINES = (
    # A producer: queue, queue_many, queue_and_wait, delayed runs, max_queue_length, durability.
    # The scripts run with the rights of their caller, so what they call has to be listed; each parenthesis is a
    # selector, which ties commands to keys (Redis from 7, Valkey). NAME is the broker's name, redis-task-broker by
    # default. A server before 7.2 knows neither client|setinfo nor waitaof: leave them out there.
    "user fluidfast-producer on >PASSWORD resetkeys resetchannels -@all "
    "+client|setinfo +info +multi +exec +script|load +time +wait +waitaof "
    # the keys that its scripts declare; what they call has to be allowed besides
    "(~{NAME}-ff:nothing ~{NAME}-queue-* ~{NAME}-ff:producer:* ~{NAME}-ff:delayed +evalsha) "
    "(%W~{NAME}-queue-* +lpush +llen) "  # puts in, and cannot read what waits
    "(%R~{NAME}-queue-* +memory|usage) "  # max_queue_bytes
    "(%W~{NAME}-ff:delayed +zadd) "
    "(~{NAME}-ff:producer:* +get +set +del +pexpire +watch) "  # what makes sending twice the same as once
    "(~{NAME}-ff:reply:* +blmove +lrange +lpop) "  # queue_and_wait
    "(%R~{NAME}-ff:consumers +zrange) (%R~{NAME}-manager-* +get) "  # which says who runs the task
    "(~{BARE}-ff:shards +get +set) "  # all give the same number of shards
    "(%R~{BARE}-ff:layout +get)",  # and know the layout of the keys
    # A worker: consumes, and what its tasks may do through ``ctx``: queue, queue_and_wait, lock (keys tasks:*).
    "user fluidfast-worker on >PASSWORD resetkeys resetchannels -@all "
    "~{NAME}-* ~tasks:* "
    "+client|setinfo +info +client|id +client|unblock +multi +exec +watch +script|load "
    "+evalsha +eval +time +wait +waitaof +get +set +del +unlink +exists +pexpire "
    "+lindex +llen +lrange +lpush +rpush +lpop +rpop +blmove "
    "+hget +hset +hdel +hgetall +hincrby "
    "+zadd +zrem +zscore +zcard +zrange +zrangebyscore "
    "(~{BARE}-ff:shards +get +set) (%R~{BARE}-ff:layout +get)",
    # A dashboard: sees tasks, managers, queues' lengths and dead letters (with their params), and changes nothing. It
    # finds managers by SCAN, which tells the names of all keys of the database, whoever's they are.
    "user fluidfast-dashboard on >PASSWORD resetkeys resetchannels -@all "
    "%R~{NAME}-* "
    "+client|setinfo +scan +time +llen +lrange +hget +hgetall +mget +get +zcard +zcount +memory|usage",
)


def test_security_md_has_these_lines() -> None:
    text = (Path(__file__).parents[3] / ".github" / "SECURITY.md").read_text()
    assert re.findall(r"^user fluidfast-.*$", text, re.M) == [line.replace("{BARE}", "{NAME}") for line in ACL_LINES]


def acl_lines(name: str, password: str, version: tuple[int, ...]) -> list[str]:
    names = {"{NAME}": f"{{{name}}}", "{BARE}": f"{{{name.removesuffix(':*')}}}", "PASSWORD": password}
    lines = [re.sub("|".join(names), lambda found: names[found[0]], line) for line in ACL_LINES]
    if version < (7, 2):
        lines = [line.replace("+client|setinfo ", "").replace("+waitaof ", "") for line in lines]
    return ["user default on >admin ~* &* +@all", *lines]


@pytest.mark.parametrize("shards", [1, 3])
async def test_the_least_rights(
    start_server: Start, server_kind: str, caplog: pytest.LogCaptureFixture, shards: int
) -> None:
    """A producer and a worker do all that they do with the rights above, and are refused nothing."""
    version = find_servers()[server_kind].version_info
    if version < (7,):
        pytest.skip("selectors came with 7.0")
    names = "jobs" if shards == 1 else "jobs:*"
    server = start_server(acl=acl_lines(names, "secret", version), appendonly="always")
    producer_url, worker_url = (
        with_options(server.url_as(f"fluidfast-{role}", "secret"), name="jobs", lease_seconds=0.3, shards=shards)
        for role in ("producer", "worker")
    )
    slow = asyncio.Event()
    ended: Counter[str] = Counter()

    @task
    async def parent(ctx: TaskRun) -> None:
        await ctx.queue(child, "low", n=ctx.params["n"])

    @task
    async def child(ctx: TaskRun) -> None:
        ended["child"] += 1

    @task(retry=RetryPolicy(max_attempts=1, wait=0.01))
    async def failing(ctx: TaskRun) -> None:
        raise LookupError("no")

    @task(max_concurrency=1, rate_limit_retry=RetryPolicy(wait=0.02))
    async def limited(ctx: TaskRun) -> None:
        async with ctx.lock(timeout=5):
            await asyncio.sleep(0.01)

    @task
    async def waits(ctx: TaskRun) -> None:
        ended["waits"] += 1
        await slow.wait()

    @task(batch=5, batch_wait=0.05)
    async def batch(runs: list[TaskRun]) -> None: ...

    tasks = (parent, child, failing, limited, waits, batch)
    producer = TaskManager(broker_url=producer_url, max_queue_length=100_000, max_queue_bytes=1 << 30)
    for one in tasks:
        producer.register_task(one)
    async with producer:
        async with consuming(worker_url, *tasks) as one:
            await producer.queue(parent, n=1)
            await producer.queue_many(parent, [{"n": n} for n in range(1000)])
            assert str((await producer.queue_and_wait(failing, timeout=20)).state) == "failure"
            await producer.queue_many(limited, [{} for _ in range(4)])
            await producer.queue_many(batch, [{} for _ in range(7)])
            await producer.intake.send(producer.create_task_run(child, n=0), 0.05)
            assert str((await one.queue_and_wait(child, n=0, timeout=20)).state) == "success"
            await until(lambda: one.engine.finished == 2016)
            # a silent consumer's lease is taken back: with its keeper and its settling gone, as if it had been killed
            await producer.queue(waits)
            await until(lambda: ended["waits"] == 1)
            one.engine.settler.leases.clear()
            await until(lambda: ended["waits"] >= 2)
            slow.set()
            await until(lambda: not one.engine.settler.leases)
        durable = TaskManager(broker_url=with_options(producer_url, durability="fsync"))
        async with durable:
            if version >= (7, 2):
                await durable.queue(child, n=0)
    with redis.Redis.from_url(server.url_as("default", "admin")) as admin:
        denied = [(entry["username"], entry["object"], entry["context"]) for entry in admin.acl_log()]
    assert denied == []
    told = [record.getMessage() for record in caplog.records if record.name.startswith("fluidfast.brokers.redis")]
    assert [line for line in told if "took back 1 runs" not in line] == []


async def test_a_dashboard_sees_and_changes_nothing(start_server: Start, server_kind: str) -> None:
    version = find_servers()[server_kind].version_info
    if version < (7,):
        pytest.skip("selectors came with 7.0")
    server = start_server(acl=acl_lines("jobs", "secret", version))
    consumer_url, url = (
        with_options(server.url_as(user, password), name="jobs")
        for user, password in (("default", "admin"), ("fluidfast-dashboard", "secret"))
    )

    @task(retry=RetryPolicy(max_attempts=0))
    async def failing(ctx: TaskRun) -> None:
        raise LookupError("no")

    seeing = TaskManager(broker_url=url)
    for each in (failing, note):
        seeing.register_task(each)
    async with seeing, consuming(consumer_url, failing) as one:
        await one.queue(failing, n=1)
        await until(lambda: one.engine.finished == 1)
        await until(seeing.broker.dead_length)
        assert {info.name for info in await seeing.broker.get_tasks_info()} == {"failing", "note"}
        assert await seeing.broker.queue_length() == {"high": 0, "medium": 0, "low": 0}
        assert await seeing.broker.queue_bytes() >= 0
        assert await seeing.broker.delayed_length() == 0
        assert await seeing.broker.current_task_runs("note") == 0
        assert [letter.task for letter in await seeing.dead.list()] == ["failing"]
        await until(lambda: workers_of(seeing))
        for change in (
            lambda: seeing.queue(note, n=1),
            lambda: seeing.broker.enable_task("note", False),
            lambda: seeing.broker.clear_queue(),
            lambda: seeing.dead.purge(),
        ):
            with pytest.raises(BrokerAuthError):
                await change()


async def workers_of(manager: TaskManager) -> list[Any]:
    return (await manager.broker.get_all_manager_statuses()).workers


REFUSED = r"(?i)permission|can't run this command"
"""What a server says of a command within a script."""


async def test_rights_that_are_missing(start_server: Start, server_kind: str) -> None:
    """A producer can neither read nor take what waits; who has no right is told so."""
    version = find_servers()[server_kind].version_info
    if version < (7,):
        pytest.skip("selectors came with 7.0")
    server = start_server(acl=acl_lines("jobs", "secret", version))
    url = with_options(server.url_as("fluidfast-producer", "secret"), name="jobs")
    async with TaskManager(broker_url=url) as manager:
        await manager.queue(note, n=1)
    with redis.Redis.from_url(server.url_as("fluidfast-producer", "secret")) as client:
        queue = "{jobs}-queue-medium"
        for command in (
            ("LRANGE", queue, 0, -1),
            ("LPOP", queue),
            ("RPOP", queue),
            ("DEL", queue),
            ("SET", queue, "x"),
            ("LPUSH", "{other}-queue-medium", "x"),
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("EVAL", "return redis.call('RPOP', KEYS[1])", 1, queue),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
        sha = client.execute_command("SCRIPT", "LOAD", "return redis.call('RPOP', '{jobs}-queue-medium')")
        with pytest.raises(redis.exceptions.ResponseError, match=REFUSED):
            client.execute_command("EVALSHA", sha, 1, "{jobs}-queue-medium")
    # another broker's name, a consumer with a producer's rights, a wrong password
    for wrong in (
        with_options(server.url_as("fluidfast-producer", "secret"), name="other"),
        with_options(server.url_as("fluidfast-producer", "wrong"), name="jobs"),
        with_options(server.url_as("nobody", "secret"), name="jobs"),
    ):
        manager = TaskManager(broker_url=wrong)
        with pytest.raises(BrokerAuthError) as caught:
            await within(manager.queue(note, n=1))
        assert "secret" not in str(caught.value)
        assert "wrong@" not in str(caught.value)
        await manager.on_shutdown()
    consumer = TaskConsumer(broker_url=url)
    with pytest.raises(BrokerAuthError, match=REFUSED):
        await within(consumer.broker.claim("me", 1))
    # what goes through redis-py
    with pytest.raises(BrokerAuthError, match=REFUSED):
        await within(consumer.broker.dead_length())
    await consumer.on_shutdown()


async def test_rights_that_a_script_misses(broker_url: str) -> None:
    """Each server says it in words of its own."""
    if broker_url.startswith("memory"):
        pytest.skip("it has no users")
    with redis.Redis.from_url(broker_url.partition("?")[0]) as admin:
        admin.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all")
        try:
            place = broker_url.partition("://")[2].rpartition("@")[2]
            for command in ("lpush", "set"):
                admin.execute_command("ACL", "SETUSER", "reader", "+@all", f"-{command}")
                manager = TaskManager(broker_url=f"redis://reader:secret@{place}")
                with pytest.raises(BrokerAuthError, match=REFUSED) as caught:
                    await within(manager.queue(note, n=1))
                assert "secret" not in str(caught.value)
                await manager.broker.clear()
                await manager.on_shutdown()
        finally:
            admin.execute_command("ACL", "DELUSER", "reader")
