"""Row 7: clocks that are an hour off. A worker's is ahead or behind: nothing runs early by the server's clock, nothing
waits an hour for it, nothing live is taken back. The server's jumps while workers hold leases: nothing live is taken
back, although every lease looks an hour overdue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from clocks import Clock
from harness import Fleet, until
from kits.servers import RedisServer, find_servers, select_servers
from results import Figures

from fluidfast.commands.trials.ledger import ACKNOWLEDGED, FINISHED, STARTED

HOUR = 3600.0


def early(fleet: Fleet, who: str, delay_seconds: float) -> list[float]:
    """By how much runs of a producer were started before their time, which counts from when they were attempted."""
    attempted = {line.id: line.at for line in fleet.oracle.lines("A", who)}
    return [
        ahead
        for line in fleet.oracle.lines(STARTED)
        if line.id in attempted and (ahead := attempted[line.id] + delay_seconds - line.at) > 0.002
    ]


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_a_workers_clock(fleet: Fleet, tmp_path: Path, fault_seed: int, figures: Figures, hours: int) -> None:
    """Its retries and its delayed runs are due by the server's clock, whoever takes them."""
    with Clock(tmp_path, hours * HOUR) as clock:
        fleet.workers(1, env=clock.env, config={"max_concurrent_tasks": 10})
        fleet.workers(1, config={"max_concurrent_tasks": 10})
        retried = fleet.producer(count=60, task="fail")
        running = fleet.producer(count=20, ms=1500)  # longer than a lease
        delayed = fleet.producer(count=60, delay=1.0)
        for producer in (retried, running, delayed):
            producer.done()
        fleet.drain(20)
        fleet.stop()
    ahead = early(fleet, delayed.who, 1.0)
    verdict = fleet.verdict().check(seed=fault_seed, killed=())
    word = "ahead" if hours > 0 else "behind"
    figures.add(
        7, f"a worker an hour {word}", **verdict.counts(), early=len(ahead), retried=60, delayed=60,
    )  # fmt: skip
    assert not ahead
    assert verdict.ok == 140
    fleet.assert_clean()


def now_of(server: RedisServer) -> float:
    with redis.Redis.from_url(server.url) as client:
        seconds, micros = client.time()  # type: ignore[misc]
    return seconds + micros / 1e6


@pytest.fixture
def shifted(tmp_path: Path, server_kind: str, make_fleet: Callable[..., Fleet]) -> Callable[[Clock], Fleet]:
    """A fleet whose server lives under a clock of its own."""
    servers: list[RedisServer] = []

    def make(clock: Clock) -> Fleet:
        binary = select_servers(server_kind, find_servers())[server_kind]
        server = RedisServer(clock.server(binary)).start()
        servers.append(server)
        clock.set(HOUR)
        if abs(now_of(server) - time.time() - HOUR) > 60:
            pytest.skip(f"{binary} does not take its time from libc")
        clock.set(0)
        return make_fleet(server=server)

    yield make  # type: ignore[misc]
    for server in servers:
        server.stop()


@pytest.mark.parametrize("hours", [1, -1], ids=["forward", "back"])
def test_the_servers_clock_jumps(
    shifted: Callable[[Clock], Fleet], tmp_path: Path, fault_seed: int, figures: Figures, hours: int
) -> None:
    with Clock(tmp_path) as clock:
        fleet = shifted(clock)
        fleet.workers(2, note=True, config={"max_concurrent_tasks": 10})
        running = fleet.producer(count=40, ms=1300)  # longer than a lease: it lives by being renewed
        until(lambda: fleet.oracle.count(STARTED) >= 20, 20, "work is going on")
        clock.set(hours * HOUR)
        delayed = fleet.producer(count=20, delay=1.0)
        for producer in (running, delayed):
            producer.done()
        until(lambda: fleet.oracle.count(FINISHED) >= 60, 30, lambda: f"all have run; left: {fleet.places()}")
        fleet.drain(20)
        fleet.stop()
    ahead = early(fleet, delayed.who, 1.0)
    verdict = fleet.verdict().check(seed=fault_seed, killed=())
    taken = [line for line in fleet.oracle.notes() if line.id.startswith("lost ") or " no " in line.id]
    word = "forward" if hours > 0 else "back"
    figures.add(
        7,
        f"the server's clock jumps an hour {word}",
        **verdict.counts(),
        live_leases_taken=len(taken),
        early=len(ahead),
    )
    assert not taken
    assert not ahead
    assert verdict.ok == 60
    fleet.assert_clean()


def test_leases_that_look_an_hour_overdue(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    """The same without a shim: all deadlines are set an hour back in one step, again and again."""
    look_overdue(fleet, figures, fault_seed)


def look_overdue(fleet: Fleet, figures: Figures, seed: int, plant: str = "") -> None:
    fleet.workers(2, plant=plant, note=True, config={"max_concurrent_tasks": 10})
    producer = fleet.producer(count=60, ms=700)
    producer.done()
    until(lambda: fleet.oracle.count(STARTED) >= 20, 20, "work is going on")
    jumps = 0
    end = time.monotonic() + 1.9
    while time.monotonic() < end:
        age_leases(fleet)
        jumps += 1
        time.sleep(0.6)  # a sweep is every 0.5 s, a renewal every 0.33 s
    fleet.drain(20)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=())
    figures.add(7, "deadlines set an hour back under living workers", jumps=jumps, **verdict.counts())
    assert verdict.ok == fleet.oracle.count(ACKNOWLEDGED) == 60
    fleet.assert_clean()


def age_leases(fleet: Fleet) -> None:
    key = f"{fleet.prefix}-ff:leases"
    script = (
        "for _, b in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZINCRBY', KEYS[1], ARGV[1], b) end"
    )
    fleet.call("EVAL", script, 1, key, -int(HOUR * 1000))


@pytest.mark.soak
def test_clocks_jump_under_load_for_long(
    shifted: Callable[[Clock], Fleet], tmp_path: Path, fault_seed: int, figures: Figures
) -> None:
    """The server's clock jumps an hour back and forth every few seconds, one worker in three is an hour off."""
    with Clock(tmp_path) as clock, Clock(tmp_path, HOUR) as wrong:
        fleet = shifted(clock)
        fleet.workers(2, note=True, config={"max_concurrent_tasks": 10})
        fleet.workers(1, note=True, config={"max_concurrent_tasks": 10}, env=wrong.env)
        producer = fleet.producer(count=20_000, ms=30, rate=400, task="work")
        retried = fleet.producer(count=5_000, rate=100, task="fail")
        jumps = 0
        while producer.alive or retried.alive:
            time.sleep(3)
            jumps += 1
            clock.set(HOUR * (jumps % 2))
        clock.set(HOUR)
        producer.done()
        retried.done()
        fleet.drain(60)
        fleet.stop()
    verdict = fleet.verdict().check(seed=fault_seed, killed=())
    figures.add(
        7, "the server's clock jumps an hour every 3 s, a worker is an hour off", jumps=jumps, **verdict.counts()
    )
    assert verdict.ok == 25_000
