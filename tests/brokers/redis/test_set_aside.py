"""What wakes an idle consumer starts before it is under a lease, where that is as safe; and gets there next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from hashlib import sha1
from time import monotonic
from typing import Any

import pytest
from kits.broker_kit import HIGH, LOW, MEDIUM, places, put, take, with_options
from kits.servers import RedisServer
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Claim, Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.brokers.redis.client import RedisClient
from fluidfast.brokers.redis.wakeup import MAX_STARTED, SURE_SECONDS, WakeUp
from fluidfast.commands.trials.bench_load import Load, left_on
from fluidfast.errors import BrokerConnectionError

StartServer = Callable[..., RedisServer]
GIVE_UP = 60


@pytest.fixture
async def server(start_server: StartServer) -> RedisServer:
    return start_server()


async def open_broker(server: RedisServer, **options: Any) -> RedisTaskBroker:
    broker = TaskBroker.from_url(with_options(server.url, **options))
    assert isinstance(broker, RedisTaskBroker)
    await broker.connect()
    return broker


@pytest.fixture
async def broker(server: RedisServer) -> AsyncIterator[RedisTaskBroker]:
    broker = await open_broker(server)
    yield broker
    await broker.deregister("a")
    await broker.close()


Waiting = asyncio.Task["Claim | None"]


async def waits(broker: RedisTaskBroker, *tasks: str) -> Waiting:
    """Consumer a waits, on the server too."""
    waiting = asyncio.create_task(broker.wait("a", GIVE_UP, tasks))

    async def blocks() -> bool:
        clients = await broker.redis_cli.client_list()
        return sum("b" in client["flags"] for client in clients) == 3

    await until(blocks)
    return waiting


def wakeup_of(broker: RedisTaskBroker) -> WakeUp:
    return broker._wakeups["a"]


def deaf(broker: RedisTaskBroker) -> None:
    """What the server says to the waiting of a is not read."""
    for link, _ in wakeup_of(broker).links.values():
        link._transport.pause_reading()  # type: ignore[attr-defined]


def hears(broker: RedisTaskBroker) -> None:
    for link, _ in wakeup_of(broker).links.values():
        link._transport.resume_reading()  # type: ignore[attr-defined]


async def started(broker: RedisTaskBroker, *payloads: bytes, priority: int = MEDIUM) -> Claim:
    waiting = await waits(broker)
    await put(broker, *payloads, priority=priority)
    claim = await within(waiting)
    assert claim is not None
    assert [item.payload for item in claim.items] == [payloads[0]]
    return claim  # type: ignore[no-any-return]


async def moved(broker: RedisTaskBroker, count: int = 1) -> None:
    async def is_there() -> bool:
        return (await places(broker)).get("inbox", 0) == count

    await until(is_there)


async def settled(broker: RedisTaskBroker, claim: Claim) -> bool:
    return await broker.settle(Settlement(claim.batch, whole=True))


@pytest.mark.parametrize("priority", [HIGH, MEDIUM, LOW])
async def test_what_wakes_is_given(broker: RedisTaskBroker, priority: int) -> None:
    claim = await started(broker, b"x", b"y", priority=priority)
    assert await places(broker) == {"inbox": 1, ("high", "medium", "low")[priority]: 1}
    assert claim.at > 0
    assert await take(broker, consumer="a") == [b"y"]
    assert await places(broker) == {"leased": 1}
    assert await broker.renew("a", [claim.batch]) == []
    assert await settled(broker, claim)
    assert await places(broker) == {}


async def test_a_run_that_started_out_of_an_inbox_is_counted(broker: RedisTaskBroker) -> None:
    """Else who waits until nothing is left, to measure or to go back to aio-fluid, stops while it runs."""
    claim = await started(broker, b"x")
    assert await places(broker) == {"inbox": 1}
    assert await broker.leased_length() == 1
    assert await left_on(broker) == 1
    assert await settled(broker, claim)
    assert await left_on(broker) == 0


async def test_bench_waits_for_a_run_that_started_out_of_an_inbox(broker: RedisTaskBroker) -> None:
    claim = await started(broker, b"x")
    load = Load(1, bytearray(1))
    load.expect(0)  # all of them have run, the last one is not settled
    drained = asyncio.create_task(load.drained(broker, lambda seen: None))
    counted = await broker.leased_length()
    await asyncio.wait([drained], timeout=0.05)
    assert counted == 1
    assert not drained.done()
    assert await settled(broker, claim)
    await within(drained)


async def test_it_goes_under_its_lease_before_it_is_settled_or_given_back(broker: RedisTaskBroker) -> None:
    assert await settled(broker, await started(broker, b"x"))
    assert await places(broker) == {}
    claim = await started(broker, b"w")
    assert await broker.renew("a", [claim.batch]) == []
    assert await settled(broker, claim)
    claim = await started(broker, b"y")
    assert await broker.release(claim.batch, [claim.items[0].field]) == 1
    assert await places(broker) == {"medium": 1}


async def test_nobody_gets_it_who_does_not_ask(broker: RedisTaskBroker) -> None:
    waiting = asyncio.create_task(broker.wait("a", GIVE_UP))
    await until(lambda: "a" in broker._wakeups and len(wakeup_of(broker).pending) == 3)
    await put(broker, b"x")
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"x"]


async def test_with_the_flags_of_that_moment(broker: RedisTaskBroker) -> None:
    @task
    async def off(_: Any) -> None: ...

    broker.register_task(off)
    waiting = await waits(broker, "off", "other")
    await broker.enable_task("off", False)
    await put(broker, b"x")
    claim = await within(waiting)
    assert claim.enabled == {"off": False, "other": True}
    assert await settled(broker, claim)


async def test_a_call_that_is_sent_again_asks_for_the_flags_of_today(
    broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisClient, "block_seconds", 0.2)
    waiting = await waits(broker)
    waiting.cancel()
    await asyncio.wait([waiting])
    before = list(wakeup_of(broker).pending.values())
    waiting = await waits(broker, "one")
    await until(lambda: not set(before) & set(wakeup_of(broker).pending.values()))
    await put(broker, b"x")
    claim = await within(waiting)
    assert claim.enabled == {"one": True}
    assert await settled(broker, claim)


async def moved_unheard(broker: RedisTaskBroker) -> None:
    """x is in the inbox, and the answer to the call that has moved it is not read."""
    waiting = await waits(broker)
    waiting.cancel()
    await asyncio.wait([waiting])
    deaf(broker)
    await put(broker, b"x")
    await moved(broker)


async def heard_too_late(broker: RedisTaskBroker) -> bool:
    """It is read by a consumer that waits again; whether that is given nothing."""
    waiting = asyncio.create_task(broker.wait("a", GIVE_UP, ()))
    await until(lambda: wakeup_of(broker).woken is not None)
    hears(broker)
    return await within(waiting) is None


async def test_what_a_claim_has_taken_is_not_given_again(broker: RedisTaskBroker) -> None:
    """The answer to the call that moved it comes behind that of the claim."""
    await moved_unheard(broker)
    assert await take(broker, consumer="a") == [b"x"]
    assert await heard_too_late(broker)
    assert await places(broker) == {}


async def test_nor_what_a_claim_may_have_taken_whose_answer_was_lost(broker: RedisTaskBroker) -> None:
    await moved_unheard(broker)
    await claim_and_cancel(broker)
    assert await take(broker, consumer="a") == []  # the one before has it
    assert await heard_too_late(broker)


async def claim_and_cancel(broker: RedisTaskBroker) -> None:
    claiming = asyncio.create_task(broker.claim("a", 10))
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.wait([claiming])


async def test_not_while_a_claim_may_be_on_its_way(broker: RedisTaskBroker) -> None:
    """It may take what is moved meanwhile: one that is not answered yet, and one that nobody waits for any more."""
    assert await settled(broker, await started(broker, b"before"))
    link = await broker.client.link()
    link._transport.pause_reading()  # type: ignore[attr-defined]
    claiming = asyncio.create_task(broker.claim("a", 10))
    await asyncio.sleep(0)
    waiting = await waits(broker)
    await broker.redis_cli.lpush(broker.keys.queue("medium"), b"x")  # type: ignore[misc]
    assert await within(waiting) is None
    link._transport.resume_reading()  # type: ignore[attr-defined]
    assert (await within(claiming)).items == []
    assert await take(broker, consumer="a") == [b"x"]
    await claim_and_cancel(broker)
    waiting = await waits(broker)
    await put(broker, b"y")
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"y"]
    assert await settled(broker, await started(broker, b"z"))


async def test_a_claim_that_found_its_inbox_empty_changes_nothing(broker: RedisTaskBroker) -> None:
    """As those between two waits do: the calls for the other priorities are still on their way."""
    assert await settled(broker, await started(broker, b"medium"))
    await put(broker, b"elsewhere")
    assert await take(broker, consumer="a") == [b"elsewhere"]
    assert await settled(broker, await started(broker, b"low", priority=LOW))


async def test_one_of_several_and_the_rest_is_claimed(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    deaf(broker)
    await put(broker, b"low", priority=LOW)
    await put(broker, b"high", priority=HIGH)
    await moved(broker, 2)
    hears(broker)
    claim = await within(waiting)
    assert claim is not None
    rest = await take(broker, consumer="a")
    assert sorted([*(item.payload for item in claim.items), *rest]) == [b"high", b"low"]
    assert await settled(broker, claim)


async def test_given_back_by_the_thread_before_it_was_heard_of(broker: RedisTaskBroker) -> None:
    """The event loop did not get on, and another consumer may be running it by now."""
    give_back = broker.releaser("a")
    assert give_back is not None
    waiting = await waits(broker)
    deaf(broker)
    await put(broker, b"x")
    await moved(broker)
    await asyncio.to_thread(give_back)
    assert await places(broker) == {"medium": 1}
    assert await take(broker, consumer="other") == [b"x"]
    hears(broker)
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == []
    assert await settled(broker, await started(broker, b"y"))  # and the next one as before


async def test_a_call_that_is_sent_while_the_thread_gives_back(broker: RedisTaskBroker) -> None:
    """What it moves may be given back yet."""
    assert await settled(broker, await started(broker, b"x"))
    wakeup = wakeup_of(broker)
    assert wakeup.gives_back() == ""
    waiting = asyncio.create_task(broker.wait("a", GIVE_UP, ()))
    await until(lambda: wakeup.woken is not None)
    await put(broker, b"y")
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"y"]
    wakeup.gave_back(monotonic())  # it has failed: what is moved from now on it will not give back any more
    assert await settled(broker, await started(broker, b"z"))


async def test_the_thread_comes_in_the_moment_of_the_start(
    broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes, what it gives back is not started, and what has started it leaves alone."""
    give_back = broker.releaser("a")
    assert give_back is not None
    for where in ("collect", "start"):
        waiting = await waits(broker)
        whole = getattr(WakeUp, where)

        def step(self: WakeUp, *arguments: Any, whole: Any = whole, before: bool = where == "start") -> Any:
            if before:
                give_back()
            found = whole(self, *arguments)
            if not before:
                give_back()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(WakeUp, where, step)
            await put(broker, b"x")
            claim = await within(waiting)
        there = await places(broker)
        assert there == ({"medium": 1} if claim is None else {"inbox": 1})
        assert claim is None or await settled(broker, claim)
        assert await take(broker, consumer="a") == ([b"x"] if claim is None else [])


async def test_the_thread_leaves_alone_what_has_started(broker: RedisTaskBroker) -> None:
    give_back = broker.releaser("a")
    assert give_back is not None
    waiting = await waits(broker)
    await put(broker, b"x")
    claim = await within(waiting)
    assert claim is not None
    async with asyncio.timeout(10):
        await put(broker, b"low", priority=LOW)
        await moved(broker, 2)
    await asyncio.to_thread(give_back)
    assert await places(broker) == {"inbox": 1, "low": 1}
    assert await settled(broker, claim)
    assert await places(broker) == {"low": 1}


async def test_not_when_it_may_be_taken_for_dead(broker: RedisTaskBroker) -> None:
    """As after its process was stopped for a while."""
    waiting = await waits(broker)
    wakeup_of(broker).lives_at -= broker.options.lease_seconds + 1
    await put(broker, b"x")
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"x"]


async def test_nor_when_it_may_have_been_taken_for_dead_and_lives_again(broker: RedisTaskBroker) -> None:
    """What a call has moved before that may have been taken, and be running elsewhere."""
    waiting = await waits(broker)
    renew = broker.renewer("a")
    for silent, is_started in ((broker.options.lease_seconds + 1, False), (broker.options.lease_seconds - 1, True)):
        wakeup_of(broker).lives_at -= silent
        assert await asyncio.to_thread(renew, (), ()) == []
        await put(broker, b"x")
        claim = await within(waiting)
        assert (claim is not None) == is_started
        if claim is None:
            assert await take(broker, consumer="a") == [b"x"]
            waiting = await waits(broker)
        else:
            assert await settled(broker, claim)


async def test_its_renewals_say_that_it_lives(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    wakeup = wakeup_of(broker)
    wakeup.lives_at -= broker.options.lease_seconds - 1
    before = wakeup.lives_at
    assert await asyncio.to_thread(broker.renewer("a"), (), ()) == []
    assert wakeup.lives_at > before + broker.options.lease_seconds - 2
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_not_what_workers_died_holding(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    await broker.redis_cli.hset(broker.keys.strikes, sha1(b"x").hexdigest(), "1")  # type: ignore[misc]
    await put(broker, b"x")
    assert await within(waiting) is None
    claim = await broker.claim("a", 10)
    assert [(item.payload, item.strikes) for item in claim.items] == [(b"x", 1)]
    assert await settled(broker, claim)
    assert await settled(broker, await started(broker, b"y"))  # the strike is still there, and concerns only the other
    await broker.redis_cli.delete(broker.keys.strikes)


async def test_not_while_a_suspect_waits(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    await broker.redis_cli.lpush(broker.keys.suspect, b"mx")  # type: ignore[misc]
    await put(broker, b"y")
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"x"]
    assert await take(broker, consumer="a") == [b"y"]


async def test_what_is_in_its_inbox_unheard_of_is_found(
    broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of a connection that was lost has moved it: seen when another call has run out."""
    monkeypatch.setattr(RedisClient, "block_seconds", 0.2)
    waiting = await waits(broker)
    await broker.redis_cli.lpush(broker.keys.inbox("a", "low"), b"x")  # type: ignore[misc]
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"x"]


async def test_what_comes_when_the_waiting_is_over_is_claimed(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    assert broker.look_seconds("a") > 10
    waiting.cancel()
    await asyncio.wait([waiting])
    await put(broker, b"x")
    wakeup = wakeup_of(broker)
    await until(lambda: any(blocked.end.done() for blocked in wakeup.pending.values()))
    wakeup.collect()
    assert broker.look_seconds("a") == 0
    assert await take(broker, consumer="a") == [b"x"]
    assert broker.look_seconds("a") > 10


async def test_one_asks_for_all(broker: RedisTaskBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many have something to say at once, what has started is put under its lease once."""
    script = broker.client.script
    asked: list[str] = []

    async def noted(name: str, *arguments: Any) -> Any:
        asked.append(name)
        return await script(name, *arguments)

    claim = await started(broker, b"x")
    monkeypatch.setattr(broker.client, "script", noted)
    first = asyncio.create_task(broker.renew("a", [claim.batch]))
    await asyncio.sleep(0)
    first.cancel()  # whoever asked first
    assert await asyncio.gather(*(broker.renew("a", [claim.batch]) for _ in range(3))) == [[]] * 3
    assert asked == ["adopt", "renew", "renew", "renew"]
    assert await settled(broker, claim)


async def test_closed_while_it_is_asked(broker: RedisTaskBroker) -> None:
    await started(broker, b"x")
    asking = asyncio.create_task(broker.inboxes.adopt())
    await asyncio.sleep(0)
    await broker.close()
    with pytest.raises(BrokerConnectionError):
        await within(asking)


async def test_what_an_old_connection_moves_is_looked_for(server: RedisServer) -> None:
    """The server does not know yet that it was lost, and its call is first in line."""
    broker = await open_broker(server)
    assert broker.look_seconds("a") < 10  # it has not waited yet
    waiting = await waits(broker)
    assert broker.look_seconds("a") > 10
    for link, _ in wakeup_of(broker).links.values():
        link.abort()
    await within(waiting)
    assert await take(broker, consumer="a") == []
    assert 0 < broker.look_seconds("a") < 10
    wakeup_of(broker).lost_at -= broker.client.block_seconds + SURE_SECONDS
    assert broker.look_seconds("a") > 10
    await broker.deregister("a")
    await broker.close()


async def test_not_what_is_large(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    await put(broker, b"x" * (MAX_STARTED + 1))
    assert await within(waiting) is None
    assert len((await take(broker, consumer="a"))[0]) == MAX_STARTED + 1


async def test_a_suspect_wakes_who_waits(server: RedisServer) -> None:
    """It is on no queue: who waits finds it when a call has run out."""
    broker = await open_broker(server, lease_seconds=1)
    waiting = await waits(broker)
    await broker.redis_cli.lpush(broker.keys.suspect, b"mx")  # type: ignore[misc]
    assert await within(waiting) is None
    claim = await broker.claim("a", 10)
    assert claim.alone
    assert await settled(broker, claim)
    await broker.deregister("a")
    await broker.close()


async def test_a_server_that_does_not_know_the_script(broker: RedisTaskBroker) -> None:
    waiting = await waits(broker)
    await broker.redis_cli.script_flush()
    await broker.redis_cli.lpush(broker.keys.queue("medium"), b"x")  # type: ignore[misc]
    assert await within(waiting) is None
    assert await take(broker, consumer="a") == [b"x"]
    assert await settled(broker, await started(broker, b"y"))


async def test_the_connection_is_lost_before_it_is_under_its_lease(broker: RedisTaskBroker) -> None:
    claim = await started(broker, b"x")
    link = await broker.client.link()
    link.abort()
    assert await take(broker, consumer="a") == []
    assert await places(broker) == {"leased": 1}
    assert await settled(broker, claim)


async def test_a_broker_that_was_closed_says_nothing_of_it(broker: RedisTaskBroker) -> None:
    """It is with a consumer that is gone, and comes back as all that it had set aside."""
    await started(broker, b"x")
    await broker.close()
    assert await take(broker, consumer="other") == []
    assert await places(broker) == {"inbox": 1}


async def test_another_consumer_has_it(broker: RedisTaskBroker) -> None:
    """It was taken back, as a server does whose consumer fell silent: nothing said of it here counts."""
    claim = await started(broker, b"x")
    await broker.redis_cli.rename(broker.keys.inbox("a", "medium"), broker.keys.queue("medium"))
    assert await take(broker, consumer="other") == [b"x"]
    assert await broker.renew("a", [claim.batch]) == [claim.batch]
    assert not await settled(broker, claim)


async def test_it_is_sought_among_others(broker: RedisTaskBroker) -> None:
    claim = await started(broker, b"x")
    await broker.redis_cli.lpush(broker.keys.inbox("a", "medium"), b"y")  # type: ignore[misc]
    await broker.redis_cli.rpush(broker.keys.inbox("a", "medium"), b"w")  # type: ignore[misc]
    await broker.inboxes.adopt()
    assert await places(broker) == {"inbox": 2, "leased": 1}
    assert await take(broker, consumer="a") == [b"w", b"y"]
    assert await settled(broker, claim)


async def test_what_ends_its_worker_at_once_is_found(server: RedisServer) -> None:
    """It has started, and is under no lease when its worker dies: that counts all the same."""
    alive = await open_broker(server, lease_seconds=0.1)

    dying = await open_broker(server, lease_seconds=1)
    await started(dying, b"x")
    await dying.close()  # it does not deregister

    async def taken_back() -> bool:
        return bool(await alive.reap())

    await until(taken_back)
    assert await alive.redis_cli.hvals(alive.keys.strikes) == [b"1"]  # type: ignore[misc]
    claim = await alive.claim("other", 1)
    assert [(item.payload, item.strikes) for item in claim.items] == [(b"x", 1)]
    assert await alive.settle(Settlement(claim.batch, whole=True, survived=[claim.items[0].field]))
    assert await places(alive) == {}
    await alive.close()


async def test_an_idle_consumer_asks_for_next_to_nothing(server: RedisServer) -> None:
    """While nothing is delayed, looking for what is due is one command; what waits does not claim."""
    broker = await open_broker(server)
    assert await broker.promote() is None
    before = await broker.redis_cli.info("commandstats")
    for _ in range(3):
        assert await broker.promote() is None
    after = await broker.redis_cli.info("commandstats")
    calls = {
        name.removeprefix("cmdstat_"): stat["calls"] - before.get(name, {"calls": 0})["calls"]
        for name, stat in after.items()
    }
    assert {name: n for name, n in calls.items() if n and name != "info"} == {"zrange": 3}
    await broker.delay([(0.0, MEDIUM, b"x"), (30.0, MEDIUM, b"y")])
    due = await broker.promote()
    assert due is not None
    assert 29 < due <= 30
    assert await take(broker) == [b"x"]
    await broker.redis_cli.delete(broker.keys.delayed)
    assert await broker.promote() is None
    await broker.close()


class TestConsumer:
    """The same, with all that a consumer does."""

    async def test_runs_one_by_one(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[int] = []
        given: list[bytes] = []
        start = WakeUp.start

        def noted(self: WakeUp, *arguments: Any) -> Claim | None:
            claim = start(self, *arguments)
            if claim is not None:
                given.append(claim.items[0].payload)
            return claim

        monkeypatch.setattr(WakeUp, "start", noted)

        @task
        async def one(ctx: TaskRun) -> None:
            ran.append(ctx.params["n"])

        consumer = TaskConsumer(broker_url=server.url)
        manager = TaskManager(broker_url=server.url)
        for each in (consumer, manager):
            each.register_task(one)
        async with consumer, manager:
            await consumer.startup()
            for n in range(50):
                run = await manager.queue_and_wait(one, n=n, priority=("high", "medium", "low")[n % 3], timeout=20)
                assert str(run.state) == "success"
            assert ran == list(range(50))
            await until(lambda: not consumer.engine.settler.leases)
            await consumer.shutdown()
            assert await places(manager.broker) == {}
        assert len(given) > 10

    async def test_a_disabled_task_does_not_run(self, server: RedisServer) -> None:
        ran: list[int] = []

        @task
        async def one(ctx: TaskRun) -> None:
            ran.append(ctx.params["n"])

        consumer = TaskConsumer(broker_url=server.url)
        consumer.register_task(one)
        async with consumer:
            await consumer.startup()
            for n in range(6):
                await consumer.broker.enable_task("one", n % 2 == 0)
                # the calls for the other priorities were sent when the task was not known yet
                priority = ("medium", "high", "medium", "low", "medium", "high")[n]
                run = await consumer.queue_and_wait(one, n=n, priority=priority, timeout=20)
                assert str(run.state) == ("success" if n % 2 == 0 else "aborted")
            await consumer.shutdown()
        assert ran == [0, 2, 4]

    async def test_switched_off_while_it_waits(self, server: RedisServer) -> None:
        """What it is woken by is for others."""
        ran: list[str] = []

        @task
        async def one(ctx: TaskRun) -> None:
            ran.append("here")

        consumer = TaskConsumer(broker_url=server.url)
        consumer.register_task(one)
        async with consumer:
            await consumer.startup()
            await consumer.queue_and_wait(one, timeout=20)
            broker = consumer.broker
            assert isinstance(broker, RedisTaskBroker)
            await until(lambda: broker._wakeups and broker._wakeups[consumer.manager_id].woken is not None)
            consumer.config.consume_tasks = False
            await consumer.queue(one)
            other = await open_broker(server)

            async def is_back() -> bool:
                return await places(other) == {"medium": 1}

            await until(is_back)
            await until(lambda: not broker._wakeups[consumer.manager_id].pending)
            assert await places(other) == {"medium": 1}
            assert ran == ["here"]
            assert len(await take(other)) == 1
            await other.close()
            await consumer.shutdown()
