"""The contract: what is under a lease is settled, given back, prolonged or taken back, and in no two of these
places."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest
from kits.broker_kit import HIGH, LOW, MEDIUM, places, put, take
from kits.waiting import pass_time, until

from fluidfast import task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Claim, Settlement

Open = Callable[..., TaskBroker]
LEASE = 0.1


@task(max_concurrency=1)
async def limited(ctx: object) -> None: ...


async def claimed(broker: TaskBroker, *payloads: bytes, priority: int = MEDIUM) -> Claim:
    await put(broker, *payloads, priority=priority)
    claim = await broker.claim("a", len(payloads))
    assert [item.payload for item in claim.items] == list(payloads)
    return claim


async def expired(broker: TaskBroker, claim: Claim) -> None:
    """Let the lease run out and be seen so, once."""
    await pass_time(LEASE * 1.5)
    assert await broker.reap() == 0
    assert await broker.leased_length() == len(claim.items)


async def reaped(broker: TaskBroker) -> int:
    """Sweep until something is taken back."""
    return int(await until(broker.reap, "a sweep takes the lease back"))


async def die(broker: TaskBroker, claim: Claim) -> None:
    """What becomes of a claim whose consumer died."""
    await expired(broker, claim)
    assert await reaped(broker) == len(claim.items)


class TestSettle:
    async def test_whole(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"a", b"b", b"c")
        assert await broker.settle(Settlement(claim.batch, whole=True))
        assert await places(broker) == {}
        assert not await broker.settle(Settlement(claim.batch, whole=True))

    async def test_part_by_part(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"a", b"b", b"c")
        fields = [item.field for item in claim.items]
        assert await broker.settle(Settlement(claim.batch, done=fields[1:2]))
        assert await places(broker) == {"leased": 2}
        assert await broker.settle(Settlement(claim.batch, done=[fields[1], fields[0]]))  # one of them again
        assert await places(broker) == {"leased": 1}
        assert await broker.settle(Settlement(claim.batch, done=fields[2:]))
        assert await places(broker) == {}
        assert not await broker.settle(Settlement(claim.batch, done=fields[2:]))

    async def test_thousand_fields(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, *(b"%d" % i for i in range(1000)))
        assert await broker.settle(Settlement(claim.batch, done=[item.field for item in claim.items[:999]]))
        assert await places(broker) == {"leased": 1}
        assert await broker.settle(Settlement(claim.batch, done=[claim.items[999].field]))
        assert await places(broker) == {}

    async def test_batches_are_apart(self, broker: TaskBroker) -> None:
        one, two = await claimed(broker, b"a"), await claimed(broker, b"b")
        assert one.batch != two.batch
        assert await broker.settle(Settlement(one.batch, whole=True))
        assert await places(broker) == {"leased": 1}
        assert await broker.settle(Settlement(two.batch, whole=True))

    async def test_retry_replaces_the_payload_and_waits(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"try 1", b"other")
        retry = (0.0, LOW, b"try 2")
        assert await broker.settle(Settlement(claim.batch, done=[claim.items[0].field], retries=[retry]))
        assert await places(broker) == {"leased": 1, "delayed": 1}
        await promoted(broker)
        assert await places(broker) == {"leased": 1, "low": 1}
        assert await take(broker) == [b"try 2"]
        assert await broker.settle(Settlement(claim.batch, whole=True))

    async def test_dead_keeps_the_bytes_and_the_reason(self, broker: TaskBroker, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        payloads = [b"not\njson\x00\xff", b"second", b"third"]
        claim = await claimed(broker, *payloads)
        fields = [item.field for item in claim.items]
        await broker.settle(
            Settlement(claim.batch, done=fields[:2], dead=[(fields[0], "it is\n  broken"), (fields[1], "é: why")])
        )
        await broker.settle(Settlement(claim.batch, whole=True, dead=[(fields[2], "x" * 5000)]))
        dead = await broker.dead()
        assert [payload for _, payload in dead] == payloads[::-1]
        assert re.fullmatch(r"\d{13} it is broken", dead[2][0])
        assert re.fullmatch(r"\d{13} é: why", dead[1][0])
        assert re.fullmatch(r"\d{13} x{900,}", dead[0][0])
        assert await broker.dead(1) == dead[:1]
        assert await broker.dead(0) == []
        assert await places(broker) == {"dead": 3}

    async def test_dead_in_the_order_that_was_said(self, broker: TaskBroker, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        claim = await claimed(broker, *(b"%d" % i for i in range(20)))
        said = [(item.field, "why") for item in claim.items]
        await broker.settle(Settlement(claim.batch, whole=True, dead=said))
        assert [payload for _, payload in await broker.dead()] == [b"%d" % i for i in range(19, -1, -1)]

    async def test_dead_that_the_lease_does_not_hold_is_nothing(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"a")
        assert await broker.settle(Settlement(claim.batch, dead=[("m77", "why")], done=["m77"]))
        assert await places(broker) == {"leased": 1}
        assert await broker.settle(Settlement(claim.batch, whole=True))

    async def test_info(self, broker: TaskBroker, keeps: list[str]) -> None:
        keeps.append("tasks")
        broker.register_task(limited)
        claim = await claimed(broker, b"a")
        end = "2026-07-01T10:20:30.123456+00:00"
        await broker.settle(Settlement(claim.batch, whole=True, info={"limited": (end, 1.25, "failure")}))
        (info,) = await broker.get_tasks_info("limited")
        assert info.last_run_end is not None
        assert info.last_run_end.isoformat() == end
        assert info.last_run_duration is not None
        assert info.last_run_duration.total_seconds() == 1.25
        assert info.last_run_state == "failure"
        assert info.enabled

    async def test_replies(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"a", b"b")
        fields = [item.field for item in claim.items]
        await broker.settle(Settlement(claim.batch, done=fields[:1], replies=[("me", b"1"), ("you", b"2")]))
        await broker.settle(Settlement(claim.batch, whole=True, replies=[("me", b"3")]))
        assert await broker.replies("me", 5) == [b"1", b"3"]
        assert await broker.replies("you", 5) == [b"2"]
        assert await broker.replies("me", 0.01) == []

    async def test_slots(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"a")
        assert await broker.acquire(limited, "run-1")
        assert not await broker.acquire(limited, "run-2")
        await broker.settle(Settlement(claim.batch, whole=True, slots=[("limited", "run-1"), ("limited", "gone")]))
        assert await broker.current_task_runs("limited") == 0
        assert await broker.acquire(limited, "run-2")
        claim = await claimed(broker, b"b")
        await broker.settle(Settlement(claim.batch, whole=True, slots=[("limited", "run-2")]))


class TestFence:
    """A batch that has lost its lease settles nothing."""

    async def test_nothing_is_settled_after_the_lease_was_taken_back(
        self, quick: TaskBroker, open_broker: Open
    ) -> None:
        quick.register_task(limited)
        claim = await claimed(quick, b"a", b"b")
        await die(quick, claim)
        assert await open_broker().acquire(limited, "run-1")
        fields = [item.field for item in claim.items]
        before = await places(quick)
        assert before == {"medium": 2}
        stale = Settlement(
            claim.batch,
            done=fields,
            retries=[(0.0, MEDIUM, b"again")],
            dead=[(fields[0], "why")],
            info={"limited": ("2026-07-01T10:20:30+00:00", 1.0, "success")},
            replies=[("me", b"reply")],
            slots=[("limited", "run-1")],
            survived=fields,
        )
        assert not await quick.settle(stale)
        stale.whole = True
        assert not await quick.settle(stale)
        assert await places(quick) == before
        assert (await quick.get_tasks_info("limited"))[0].last_run_state is None
        assert await quick.replies("me", 0.01) == []
        assert await quick.current_task_runs("limited") == 1
        # and the strike that it has from this death is not forgotten
        again = await quick.claim("b", 10)
        assert [item.strikes for item in again.items] == [1, 1]
        end = Settlement(again.batch, whole=True, survived=fields, slots=[("limited", "run-1")])
        assert await quick.settle(end)

    async def test_nor_while_another_consumer_has_the_runs(self, quick: TaskBroker) -> None:
        claim = await claimed(quick, b"a", b"b")
        await die(quick, claim)
        other = await quick.claim("b", 10)
        assert other.batch != claim.batch
        assert not await quick.settle(Settlement(claim.batch, whole=True))
        assert await quick.release(claim.batch, [item.field for item in claim.items]) == 0
        assert await places(quick) == {"leased": 2}
        assert await quick.settle(Settlement(other.batch, whole=True, survived=[i.field for i in other.items]))

    async def test_a_batch_that_never_was(self, broker: TaskBroker) -> None:
        assert not await broker.settle(Settlement("nobody", whole=True, retries=[(0.0, MEDIUM, b"again")]))
        assert await broker.release("nobody", ["m1"]) == 0
        assert await broker.renew("a", ["nobody"]) == ["nobody"]
        await broker.deregister("a")
        assert await places(broker) == {}


class TestRelease:
    @pytest.mark.usefixtures("one_shard")
    async def test_in_order_to_where_it_came_from(self, broker: TaskBroker) -> None:
        await put(broker, b"h1", priority=HIGH)
        await put(broker, b"m1", b"m2", b"m3", b"m4")
        claim = await broker.claim("a", 4)
        fields = {item.payload: item.field for item in claim.items}
        assert await broker.release(claim.batch, [fields[b"h1"], fields[b"m2"], fields[b"m3"]]) == 3
        assert await places(broker) == {"high": 1, "medium": 3, "leased": 1}
        assert await take(broker) == [b"h1", b"m2", b"m3", b"m4"]
        assert await broker.settle(Settlement(claim.batch, done=[fields[b"m1"]]))

    async def test_twice(self, broker: TaskBroker) -> None:
        claim = await claimed(broker, b"a", b"b")
        fields = [item.field for item in claim.items]
        assert await broker.release(claim.batch, fields[1:]) == 1
        assert await broker.release(claim.batch, fields) == 1
        assert await broker.release(claim.batch, fields) == 0
        assert not await broker.settle(Settlement(claim.batch, whole=True))  # it holds nothing any more
        assert await take(broker) == [b"a", b"b"]

    async def test_is_no_strike(self, broker: TaskBroker) -> None:
        await put(broker, b"a")
        for _ in range(5):
            claim = await broker.claim("a", 10)
            assert [(item.payload, item.strikes) for item in claim.items] == [(b"a", 0)]
            await broker.release(claim.batch, [item.field for item in claim.items])
        assert await take(broker) == [b"a"]


class TestLease:
    async def test_lives_as_long_as_it_is_renewed(self, open_broker: Open) -> None:
        worker, sweeper = open_broker(lease_seconds=0.2), open_broker(lease_seconds=0.2)
        claim = await claimed(worker, b"a")
        for _ in range(12):
            assert await worker.renew("a", [claim.batch]) == []
            assert await sweeper.reap() == 0
            await pass_time(0.05)
        assert await worker.settle(Settlement(claim.batch, whole=True))
        await worker.deregister("a")

    async def test_the_first_sweep_takes_nothing(self, quick: TaskBroker) -> None:
        claim = await claimed(quick, b"a")
        await expired(quick, claim)
        assert await places(quick) == {"leased": 1}
        assert await reaped(quick) == 1
        assert await quick.leased_length() == 0
        again = await quick.claim("b", 1)
        assert await quick.settle(Settlement(again.batch, whole=True, survived=[again.items[0].field]))

    async def test_one_that_is_renewed_between_two_sweeps_is_not_taken(self, quick: TaskBroker) -> None:
        claim = await claimed(quick, b"a")
        for _ in range(3):
            await expired(quick, claim)
            assert await quick.renew("a", [claim.batch]) == []
        assert await quick.settle(Settlement(claim.batch, whole=True))
        await quick.deregister("a")

    async def test_one_that_is_settled_between_two_sweeps_is_not_taken(self, quick: TaskBroker) -> None:
        claim = await claimed(quick, b"a")
        await expired(quick, claim)
        assert await quick.settle(Settlement(claim.batch, whole=True))
        await pass_time(LEASE)
        assert await quick.reap() == 0
        assert await places(quick) == {}

    async def test_a_renewal_says_what_was_lost(self, quick: TaskBroker) -> None:
        lost, kept = await claimed(quick, b"a"), await claimed(quick, b"b")
        await pass_time(LEASE * 1.5)
        assert await quick.renew("a", [kept.batch]) == []
        assert await quick.reap() == 0

        async def sweep() -> int:
            assert await quick.renew("a", [kept.batch]) == []
            return await quick.reap()

        assert await until(sweep) == 1
        assert await quick.renew("a", [lost.batch, kept.batch]) == [lost.batch]
        assert await quick.settle(Settlement(kept.batch, whole=True))
        again = await quick.claim("b", 1)
        assert await quick.settle(Settlement(again.batch, whole=True, survived=[again.items[0].field]))
        await quick.deregister("a")

    async def test_only_what_was_not_settled_is_taken_back(self, quick: TaskBroker) -> None:
        claim = await claimed(quick, b"a", b"b", b"c")
        assert await quick.settle(Settlement(claim.batch, done=[claim.items[1].field]))
        await pass_time(LEASE * 1.5)
        await quick.reap()
        assert await reaped(quick) == 2
        again = await quick.claim("b", 10)
        assert [item.payload for item in again.items] == [b"a", b"c"]
        assert await quick.settle(Settlement(again.batch, whole=True, survived=[i.field for i in again.items]))


class TestStrikes:
    @pytest.mark.usefixtures("one_shard")
    async def test_first_back_to_the_end_it_came_from_in_order(self, quick: TaskBroker) -> None:
        await put(quick, b"h1", priority=HIGH)
        await put(quick, b"m1", b"m2", b"m3")
        await put(quick, b"l1", priority=LOW)
        claim = await quick.claim("a", 3)
        await die(quick, claim)
        assert await quick.queue_length() == {"high": 1, "medium": 3, "low": 1}
        claim = await quick.claim("b", 10)
        assert [(item.payload, item.strikes) for item in claim.items] == [
            (b"h1", 1),
            (b"m1", 1),
            (b"m2", 1),
            (b"m3", 0),
            (b"l1", 0),
        ]
        assert not claim.alone
        struck = [item.field for item in claim.items if item.strikes]
        assert await quick.settle(Settlement(claim.batch, whole=True, survived=struck))

    async def test_many_at_once_keep_their_order(self, quick: TaskBroker) -> None:
        payloads = [b"%04d" % i for i in range(600)]
        await die(quick, await claimed(quick, *payloads))
        claim = await quick.claim("b", 1000)
        assert [item.payload for item in claim.items] == payloads
        struck = [item.field for item in claim.items]
        assert await quick.settle(Settlement(claim.batch, whole=True, survived=struck))

    @pytest.mark.usefixtures("one_shard")
    async def test_second_makes_it_a_suspect_that_runs_alone(self, quick: TaskBroker) -> None:
        await die(quick, await claimed(quick, b"poison"))
        await die(quick, await quick.claim("b", 10))
        await put(quick, b"good")
        busy = await quick.claim("c", 10, idle=False)
        assert [item.payload for item in busy.items] == [b"good"]
        assert busy.suspects == 1
        assert not busy.alone
        assert await quick.settle(Settlement(busy.batch, whole=True))
        await put(quick, b"good too")
        idle = await quick.claim("c", 10, idle=True)
        assert [(item.payload, item.strikes) for item in idle.items] == [(b"poison", 2)]
        assert idle.alone
        assert idle.suspects == 0
        assert await quick.settle(Settlement(idle.batch, whole=True, survived=[idle.items[0].field]))
        assert await take(quick) == [b"good too"]

    async def test_suspects_come_one_at_a_time_in_order(self, quick: TaskBroker) -> None:
        await die(quick, await claimed(quick, b"a", b"b", b"c"))
        await die(quick, await quick.claim("b", 10))
        for left, payload in ((2, b"a"), (1, b"b"), (0, b"c")):
            claim = await quick.claim("c", 10)
            assert [item.payload for item in claim.items] == [payload]
            assert claim.alone
            assert claim.suspects == left
            assert await quick.settle(Settlement(claim.batch, whole=True, survived=[claim.items[0].field]))

    async def test_third_buries_it_with_its_bytes(self, quick: TaskBroker, keeps: list[str]) -> None:
        keeps.append("ff:dead")
        poison = b"\x00poi\nson\xff"
        await die(quick, await claimed(quick, poison, priority=HIGH))
        await die(quick, await quick.claim("b", 10))
        await die(quick, await quick.claim("c", 10))
        assert await places(quick) == {"dead": 1}
        ((head, payload),) = await quick.dead()
        assert payload == poison
        assert re.fullmatch(r"\d{13} its worker died 3 times while holding it", head)

    async def test_a_suspect_that_is_given_back_stays_one(self, quick: TaskBroker) -> None:
        """On its queue it would run beside others, and a good run among them would be blamed for a third death."""
        await die(quick, await claimed(quick, b"poison", b"more", priority=HIGH))
        await die(quick, await quick.claim("b", 10))
        claim = await quick.claim("c", 10)
        assert await quick.release(claim.batch, [claim.items[0].field]) == 1
        assert await quick.queue_length() == {"high": 0, "medium": 0, "low": 0}
        for payload in (b"poison", b"more"):
            claim = await quick.claim("c", 10)
            assert [(item.payload, item.field[0], item.strikes) for item in claim.items] == [(payload, "h", 2)]
            assert claim.alone
            assert await quick.settle(Settlement(claim.batch, whole=True, survived=[claim.items[0].field]))

    async def test_survival_wipes_them_out(self, quick: TaskBroker) -> None:
        await die(quick, await claimed(quick, b"a"))
        claim = await quick.claim("b", 1)
        assert claim.items[0].strikes == 1
        retry = (0.0, MEDIUM, b"a")
        await quick.settle(Settlement(claim.batch, whole=True, retries=[retry], survived=[claim.items[0].field]))
        await promoted(quick)
        claim = await quick.claim("b", 1)
        assert claim.items[0].strikes == 0
        assert await quick.settle(Settlement(claim.batch, whole=True))


async def promoted(broker: TaskBroker) -> None:
    """Promote until nothing is delayed."""

    async def all_promoted() -> bool:
        return await broker.promote() is None

    await until(all_promoted)


class TestSlots:
    async def test_no_more_than_the_limit(self, broker: TaskBroker) -> None:
        two = limited._replace(max_concurrency=2)
        assert [await broker.acquire(two, f"run-{i}") for i in range(4)] == [True, True, False, False]
        assert await broker.acquire(two, "run-0")  # it has one
        assert await broker.current_task_runs("limited") == 2
        assert await broker.current_task_runs("other") == 0
        assert await broker.acquire(two._replace(name="other"), "run-9")
        claim = await claimed(broker, b"x")
        slots = [("limited", "run-0"), ("limited", "run-1"), ("other", "run-9")]
        await broker.settle(Settlement(claim.batch, whole=True, slots=slots))

    async def test_the_slot_of_a_dead_worker_is_free_after_its_lease(self, quick: TaskBroker) -> None:
        assert await quick.acquire(limited, "dead")
        assert not await quick.acquire(limited, "next")

        async def free() -> bool:
            return await quick.current_task_runs("limited") == 0

        await until(free)
        assert await quick.acquire(limited, "next")
        assert await quick.renew("a", (), [("limited", "dead")]) == []  # too late, and it makes none
        assert await quick.current_task_runs("limited") == 1
        claim = await claimed(quick, b"x")
        await quick.settle(Settlement(claim.batch, whole=True, slots=[("limited", "next")]))
        await quick.deregister("a")

    async def test_a_slot_lives_as_long_as_it_is_renewed(self, open_broker: Open) -> None:
        worker = open_broker(lease_seconds=0.2)
        assert await worker.acquire(limited, "run-1")
        for _ in range(8):
            await worker.renew("a", (), [("limited", "run-1")])
            assert not await worker.acquire(limited, "run-2")
            await pass_time(0.05)
        claim = await claimed(worker, b"x")
        await worker.settle(Settlement(claim.batch, whole=True, slots=[("limited", "run-1")]))
        await worker.deregister("a")


@pytest.mark.parametrize("how", ["settle", "release", "reap"])
async def test_a_lease_that_holds_nothing_is_gone(quick: TaskBroker, how: str) -> None:
    claim = await claimed(quick, b"a")
    field = claim.items[0].field
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "settle": lambda: quick.settle(Settlement(claim.batch, done=[field])),
        "release": lambda: quick.release(claim.batch, [field]),
        "reap": lambda: die(quick, claim),
    }
    await ways[how]()
    assert await quick.renew("b", [claim.batch]) == [claim.batch]
    await quick.deregister("b")
    if how != "settle":
        claim = await quick.claim("b", 1)
        assert await quick.settle(Settlement(claim.batch, whole=True, survived=[claim.items[0].field]))
