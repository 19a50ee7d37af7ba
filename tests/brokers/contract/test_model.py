"""A state machine drives a broker and a plain model of it side by side: each payload is in exactly one place, always.

The places are the three queues, the leases, the delayed, the suspects and the dead. Time does not pass here: a lease
runs out when a rule says so, and what is delayed is due at once, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kits.broker_kit import half_a_lease_later, put, with_options

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.memory.broker import MemoryTaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.sharded import ShardedRedisBroker
from fluidfast.core.states import LETTERS

T = TypeVar("T")
Item = tuple[int, bytes]
"""Priority number and payload."""
NEVER = 10_000.0


@dataclass
class Model:
    queues: list[list[bytes]] = field(default_factory=lambda: [[], [], []])
    leases: dict[str, dict[str, Item]] = field(default_factory=dict)
    due: list[Item] = field(default_factory=list)
    far: list[Item] = field(default_factory=list)
    suspects: list[Item] = field(default_factory=list)
    dead: list[bytes] = field(default_factory=list)
    strikes: dict[bytes, int] = field(default_factory=dict)

    def claim(self, limit: int, max_bytes: int, idle: bool) -> tuple[list[Item], bool]:
        if idle and self.suspects:
            return [self.suspects.pop(0)], True
        taken: list[Item] = []
        left = max_bytes
        for priority, queue in enumerate(self.queues):
            while queue and len(taken) < limit and left > 0:
                left -= len(queue[0])
                if left < 0 and taken:
                    return taken, False
                taken.append((priority, queue.pop(0)))
        return taken, False

    def reap(self, batch: str) -> None:
        held = list(self.leases.pop(batch).values())
        for priority, payload in reversed(held):
            self.strikes[payload] = self.strikes.get(payload, 0) + 1
            if self.strikes[payload] == 1:
                self.queues[priority].insert(0, payload)
        for priority, payload in held:
            if self.strikes[payload] == 2:
                self.suspects.append((priority, payload))
            elif self.strikes[payload] == 3:
                self.dead.append(payload)
                del self.strikes[payload]


class BrokerMachine(RuleBasedStateMachine):
    """Expects of its subclass what only the broker at hand can do."""

    def __init__(self, runner: asyncio.Runner, broker: TaskBroker, sweeper: TaskBroker) -> None:
        super().__init__()
        self.runner = runner
        self.broker = broker
        self.sweeper = sweeper
        self.model = Model()
        self.gone: list[str] = []
        self.made = 0
        self.deadlines = 0

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def new_payload(self, size: int) -> bytes:
        self.made += 1
        return b"%06d" % self.made + b"." * size

    async def expire(self, batch: str, deadline: int) -> None:
        """Let a lease run out; each deadline is another one."""
        raise NotImplementedError

    async def check(self) -> None:
        """Compare the places with the model."""
        raise NotImplementedError

    async def sweep(self) -> int:
        taken = await self.sweeper.reap()
        half_a_lease_later(self.sweeper)
        return taken

    def some_lease(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model.leases, key=list(self.model.leases).index)))

    def some_fields(self, data: st.DataObject, batch: str) -> list[str]:
        fields = list(self.model.leases[batch])
        chosen = data.draw(st.lists(st.sampled_from(fields), min_size=1, unique=True))
        return [name for name in fields if name in chosen]

    def forget_lease(self, batch: str) -> None:
        del self.model.leases[batch]
        self.gone.append(batch)

    # -- rules

    @rule(priority=st.integers(0, 2), sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6))
    def enqueue(self, priority: int, sizes: list[int]) -> None:
        payloads = [self.new_payload(size) for size in sizes]
        self.do(put(self.broker, *payloads, priority=priority))
        self.model.queues[priority] += payloads

    @rule(limit=st.integers(1, 8), max_bytes=st.sampled_from([1, 30, 60, 1 << 20]), idle=st.booleans())
    def claim(self, limit: int, max_bytes: int, idle: bool) -> None:
        claim = self.do(self.broker.claim("worker", limit, max_bytes=max_bytes, idle=idle))
        expected, alone = self.model.claim(limit, max_bytes, idle)
        got = [(LETTERS.index(item.field[0]), item.payload) for item in claim.items]
        assert got == expected
        assert claim.alone == alone
        assert claim.suspects == len(self.model.suspects)
        assert [item.strikes for item in claim.items] == [self.model.strikes.get(p, 0) for _, p in expected]
        if expected:
            self.model.leases[claim.batch] = {
                item.field: place for item, place in zip(claim.items, expected, strict=True)
            }

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        batch = self.some_lease(data)
        held = self.model.leases[batch]
        fields = self.some_fields(data, batch)
        settlement = Settlement(batch, done=fields)
        for name in fields:
            priority, payload = held.pop(name)
            if payload in self.model.strikes:
                settlement.survived.append(name)
                del self.model.strikes[payload]
            outcome = data.draw(st.sampled_from(["success", "success", "retry", "later", "dead"]))
            if outcome == "dead":
                settlement.dead.append((name, "why"))
                self.model.dead.append(payload)
            elif outcome in ("retry", "later"):
                again = self.new_payload(len(payload) % 7)
                settlement.retries.append((0.0 if outcome == "retry" else NEVER, priority, again))
                (self.model.due if outcome == "retry" else self.model.far).append((priority, again))
        if not held:
            self.forget_lease(batch)
            if data.draw(st.booleans()):
                settlement.whole, settlement.done = True, []
        assert self.do(self.broker.settle(settlement))

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        batch = self.some_lease(data)
        fields = self.some_fields(data, batch)
        assert self.do(self.broker.release(batch, fields)) == len(fields)
        for name in reversed(fields):
            priority, payload = self.model.leases[batch].pop(name)
            if self.model.strikes.get(payload, 0) >= 2:
                self.model.suspects.insert(0, (priority, payload))
            else:
                self.model.queues[priority].insert(0, payload)
        if not self.model.leases[batch]:
            self.forget_lease(batch)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        batches = data.draw(st.permutations([*self.model.leases, *self.gone[-3:]]))
        lost = self.do(self.broker.renew("worker", batches))
        assert sorted(lost) == sorted(set(self.gone[-3:]))

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), renewed=st.booleans())
    def run_out(self, data: st.DataObject, renewed: bool) -> None:
        """A lease runs out; after the first sweep its worker comes back, or does not."""
        batch = self.some_lease(data)
        self.deadlines += 1

        async def run_out() -> int:
            await self.expire(batch, self.deadlines)
            assert await self.sweep() == 0
            if renewed:
                assert await self.broker.renew("worker", [batch]) == []
            return await self.sweep() + await self.sweep()

        taken = self.do(run_out())
        if renewed:
            assert taken == 0
        else:
            assert taken == len(self.model.leases[batch])
            self.model.reap(batch)
            self.gone.append(batch)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def settle_too_late(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.gone))
        again = self.new_payload(0)
        stale = Settlement(batch, done=["h1", "m1", "l1"], retries=[(0.0, 1, again)], dead=[("m1", "why")])
        stale.whole = data.draw(st.booleans())
        assert not self.do(self.broker.settle(stale))
        assert self.do(self.broker.release(batch, ["h1", "m1", "l1"])) == 0

    @rule()
    def promote(self) -> None:
        async def promote() -> float | None:
            while (left := await self.broker.promote()) is not None and left < NEVER / 2:
                pass
            return left

        assert (self.do(promote()) is None) == (not self.model.far)
        for priority, payload in self.model.due:
            self.model.queues[priority].append(payload)
        self.model.due.clear()

    # -- what always holds

    @invariant()
    def each_payload_is_in_one_place(self) -> None:
        async def check() -> None:
            assert await self.broker.queue_length() == {
                name: len(queue) for name, queue in zip(("high", "medium", "low"), self.model.queues, strict=True)
            }
            assert await self.broker.leased_length() == sum(map(len, self.model.leases.values()))
            assert await self.broker.delayed_length() == len(self.model.due) + len(self.model.far)
            assert sorted(p for _, p in await self.broker.dead(1000)) == sorted(self.model.dead)
            await self.check()

        self.do(check())

    def teardown(self) -> None:
        async def drain() -> None:
            for expected in (self.model.claim(10_000, 1 << 30, False)[0],):
                got: list[bytes] = []
                while (claim := await self.broker.claim("drain", 1000, idle=False)).items:
                    got += [item.payload for item in claim.items]
                    assert await self.broker.settle(Settlement(claim.batch, whole=True))
                assert got == [payload for _, payload in expected]
            await self.broker.deregister("worker")
            await self.broker.clear()

        self.do(drain())


class MemoryMachine(BrokerMachine):
    async def expire(self, batch: str, deadline: int) -> None:
        assert isinstance(self.broker, MemoryTaskBroker)
        self.broker.store.leases[batch].deadline = -float(deadline)

    async def check(self) -> None:
        assert isinstance(self.broker, MemoryTaskBroker)
        store = self.broker.store
        held = {batch: list(lease.held.items()) for batch, lease in store.leases.items()}
        assert held == {b: [(f, payload) for f, (_, payload) in h.items()] for b, h in self.model.leases.items()}
        assert list(store.suspects) == self.model.suspects
        assert store.strikes == self.model.strikes
        store.queue.check_invariant()


class RedisMachine(BrokerMachine):
    def part(self) -> RedisTaskBroker:
        """Where the keys are."""
        assert isinstance(self.broker, RedisTaskBroker)
        return self.broker

    def name(self, batch: str) -> str:
        """What a batch is called there."""
        return batch

    async def expire(self, batch: str, deadline: int) -> None:
        await self.part().redis_cli.zadd(self.part().keys.leases, {self.name(batch): deadline})

    async def check(self) -> None:
        keys = self.part().keys
        pipe = self.part().redis_cli.pipeline()
        for name in ("high", "medium", "low"):
            pipe.lrange(keys.queue(name), 0, -1)
        pipe.zrange(keys.delayed, 0, -1).lrange(keys.suspect, 0, -1).hvals(keys.strikes).zrange(keys.leases, 0, -1)
        for batch in self.model.leases:
            pipe.hgetall(keys.lease(self.name(batch)))
        high, medium, low, delayed, suspects, strikes, leases, *held = await pipe.execute()
        assert [queue[::-1] for queue in (high, medium, low)] == self.model.queues
        in_delayed = [LETTERS[priority].encode() + payload for priority, payload in self.model.due + self.model.far]
        assert sorted(delayed) == sorted(in_delayed)
        assert suspects[::-1] == [LETTERS[priority].encode() + payload for priority, payload in self.model.suspects]
        assert sorted(map(int, strikes)) == sorted(self.model.strikes.values())
        assert sorted(leases) == sorted(self.name(batch).encode() for batch in self.model.leases)
        for found, expected in zip(held, self.model.leases.values(), strict=True):
            assert found == {name.encode(): payload for name, (_, payload) in expected.items()}


class ShardedMachine(RedisMachine):
    """Three shards, of which one gets everything: the model knows an order, which holds within a shard."""

    def part(self) -> RedisTaskBroker:
        assert isinstance(self.broker, ShardedRedisBroker)
        return self.broker.shards[1]

    def name(self, batch: str) -> str:
        number, _, name = batch.partition(":")
        assert number == "1"
        return name


@pytest.mark.parametrize(("machine", "examples"), [(MemoryMachine, 60), (RedisMachine, 25), (ShardedMachine, 10)])
def test_each_payload_is_in_exactly_one_place(
    machine: type[BrokerMachine],
    examples: int,
    request: pytest.FixtureRequest,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    url = "memory://model" if machine is MemoryMachine else request.getfixturevalue("redis_url")
    if machine is ShardedMachine:
        request.getfixturevalue("one_shard")
        url = with_options(url, shards=3)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        broker = TaskBroker.from_url(with_options(url, lease_seconds=100_000))
        sweeper = TaskBroker.from_url(with_options(url, lease_seconds=30))
        try:
            run_state_machine_as_test(
                lambda: machine(runner, broker, sweeper),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                ),
            )
        finally:
            runner.run(broker.close())
            runner.run(sweeper.close())
