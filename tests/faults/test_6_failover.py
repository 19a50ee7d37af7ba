"""Row 6, the measured long form: Sentinel failovers, and a Cluster slot that moves, again and again under load.

The short forms are in ``tests/brokers/redis/test_topologies.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from harness import Fleet, until
from kits.servers import HOST, RedisServer
from kits.topology_kit import ask, start_cluster, start_replica, start_sentinels
from redis.crc import key_slot
from results import Figures

from fluidfast.commands.trials.ledger import ACKNOWLEDGED, FINISHED

pytestmark = pytest.mark.soak

FAILOVERS = 8
MIGRATIONS = 30
RATE = 400
Start = Callable[..., RedisServer]


def longest_gap(fleet: Fleet, word: str, start: float) -> float:
    times = sorted(line.at for line in fleet.oracle.lines(word) if line.at >= start)
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


@pytest.fixture
def started() -> Iterator[list[RedisServer]]:
    servers: list[RedisServer] = []
    yield servers
    for server in servers:
        server.stop()


def begin(fleet: Fleet, url: str, durability: str, seconds: float) -> tuple[list[Any], float]:
    fleet.url = f"{url}?name={fleet.name}&lease_seconds=4&durability={durability}&durability_seconds=5"
    fleet.workers(2, config={"max_concurrent_tasks": 20})
    producers = [
        fleet.producer(count=int(seconds * RATE / 2), rate=RATE / 2, window=100, ms=2, exit_after=120) for _ in range(2)
    ]
    until(lambda: fleet.oracle.count(FINISHED) > RATE, 20, "work is going on")
    return producers, time.monotonic()


@pytest.mark.parametrize("durability", ["none", "replica"])
async def test_sentinel_failovers(
    start_server: Start,
    started: list[RedisServer],
    make_fleet: Callable[..., Fleet],
    tmp_path: Path,
    fault_seed: int,
    figures: Figures,
    durability: str,
) -> None:
    quick = "repl-diskless-sync-delay 0"  # a replica that comes back does not wait for others
    primary = start_server(extra=(quick,))
    nodes = [primary, *[await start_replica(start_server, primary, extra=(quick,)) for _ in range(2)]]
    url = await start_sentinels(primary, tmp_path, started, replicas=2)
    fleet = make_fleet(server=primary)
    producers, at = begin(fleet, url, durability, FAILOVERS * 20)
    with redis.Redis(port=started[0].port) as sentinel:

        def named() -> int:
            return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "tasks")[1])

        def current() -> RedisServer:
            port = named()
            return next(node for node in nodes if node.port == port)

        for _ in range(FAILOVERS):
            old = current()
            old.kill()
            until(lambda old=old: current() is not old and role(current()) == "master", 40, "a failover")
            fleet.look_at(current())
            seen = fleet.oracle.count(FINISHED)
            until(lambda seen=seen: fleet.oracle.count(FINISHED) > seen + RATE / 4, 30, "work goes on")
            old.restart()
            # its file says what it was: Sentinels put that right as well, after a while
            ask(old, "REPLICAOF", HOST, current().port)
            # Sentinels may have changed their mind meanwhile
            until(lambda: replicas_of(current()) == 2, 60, lambda: f"both replicate: {replication(current())}")
            # and one that has not heard of this failover would not see the next one
            until(lambda: agree(started, current()), 60, lambda: f"they agree: {[s.state() for s in started]}")
            fleet.look_at(current())
            assert not fleet.exits()
    stop(fleet, producers)
    verdict = fleet.verdict()
    figures.add(
        6, f"Sentinel failover by kill -9, durability {durability}", failovers=FAILOVERS, **verdict.counts(),
        longest_gap_in_acks_s=longest_gap(fleet, ACKNOWLEDGED, at), worker_exits=len(fleet.exits()),
    )  # fmt: skip
    assert not verdict.unexpected
    if durability == "replica":
        assert not verdict.lost
    fleet.assert_clean()


def agree(sentinels: list[Any], primary: RedisServer) -> bool:
    """Whether all of them take it for the primary, and none is about to change that."""
    states = [sentinel.state() for sentinel in sentinels]
    return all((state["port"], state["flags"]) == (str(primary.port), "master") for state in states)


def replication(server: RedisServer) -> dict[str, Any]:
    with redis.Redis(port=server.port) as client:
        return dict(client.info("replication"))


def role(server: RedisServer) -> str:
    return str(replication(server)["role"])


def replicas_of(server: RedisServer) -> int:
    found = replication(server).values()
    return sum(1 for value in found if isinstance(value, dict) and value.get("state") == "online")


def stop(fleet: Fleet, producers: list[Any]) -> None:
    for producer in producers:
        producer.terminate()
        producer.done(60)
    fleet.drain(60)
    fleet.stop()


async def test_cluster_slot_moves(
    start_server: Start, make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures
) -> None:
    cluster = await start_cluster(start_server)
    fleet = make_fleet(server=cluster.nodes[0])
    slot = key_slot(fleet.name.encode())
    holder = cluster.node_of(slot)
    fleet.look_at(holder)
    producers, at = begin(fleet, cluster.url, "none", MIGRATIONS * 3)
    moved = 0
    for _ in range(MIGRATIONS):
        target = next(node for node in cluster.nodes if node is not holder)
        moved += await asyncio.to_thread(cluster.migrate, slot, holder, target)
        holder = target
        fleet.look_at(holder)
        seen = fleet.oracle.count(FINISHED)
        until(lambda seen=seen: fleet.oracle.count(FINISHED) > seen + RATE / 4, 30, "work goes on")
        assert not fleet.exits()
    stop(fleet, producers)
    verdict = fleet.verdict()
    figures.add(
        6, "Cluster slot moves under load", migrations=MIGRATIONS, keys_moved=moved, **verdict.counts(),
        longest_gap_in_acks_s=longest_gap(fleet, ACKNOWLEDGED, at), worker_exits=len(fleet.exits()),
    )  # fmt: skip
    verdict.check(seed=fault_seed)
    fleet.assert_clean()
