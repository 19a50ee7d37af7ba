"""Each script says in its header which keys it gets and who calls it; and it gets every key that it touches."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
from kits.broker_kit import Sender, with_options
from kits.declared import TALLY, only_declared_keys

from fluidfast.brokers.contract import MAX_CLAIM, Settlement
from fluidfast.brokers.redis import broker, channel, dead, scripts, wakeup
from fluidfast.brokers.redis.broker import RedisTaskBroker, arguments_of, parts
from fluidfast.brokers.redis.keys import Keys, ScriptKeys
from fluidfast.brokers.redis.scripts import MAX_ARGUMENTS, NAMES, command
from fluidfast.brokers.redis.wakeup import MAX_FLAGS, renewals
from fluidfast.core.states import TaskPriority
from fluidfast.core.task import task
from fluidfast.errors import BrokerError

HIGH, MEDIUM, LOW = TaskPriority.high, TaskPriority.medium, TaskPriority.low
HERE = (broker, channel, dead, wakeup)

DECLARE = ScriptKeys(Keys("jobs"))
FIXED: dict[str, Callable[[], tuple[str | bytes, ...]]] = {
    "enqueue": lambda: DECLARE.enqueue("p"),
    "delay": lambda: DECLARE.delay("call"),
    "promote": DECLARE.promote,
    "claim": lambda: DECLARE.claim("c", "b"),
    "peek": lambda: DECLARE.peek("c", HIGH),
    "adopt": lambda: DECLARE.adopt("c", "b", HIGH),
    "settle": lambda: DECLARE.settle(Settlement("b")),
    "release": lambda: DECLARE.release("b"),
    "renew": DECLARE.renew,
    "reap": DECLARE.reap,
    "acquire": lambda: DECLARE.acquire("t", "b:m1 id"),
    "free": DECLARE.free,
    "deregister": lambda: DECLARE.deregister("c"),
    "sift": lambda: DECLARE.sift("dead"),
    "take_dead": lambda: DECLARE.take_dead("dead"),
    "fire": lambda: DECLARE.fire("m", HIGH),
}
"""KEYS of each script of which there is nothing that it may have any number of."""


def header(name: str) -> dict[str, str]:
    """The parts of a script's header: KEYS, ARGV, returns, called by."""
    text = resources.files("fluidfast.brokers.redis.lua").joinpath(f"{name}.lua").read_text()
    lines = re.match(r"(?:--.*\n)+", text)[0].splitlines()  # type: ignore[index]
    found: dict[str, str] = {}
    part = ""
    for line in lines[lines.index("--") + 1 :]:
        if match := re.match(r"-- (KEYS|ARGV|returns|called by) +(.*)", line):
            part, rest = match.groups()
            found[part] = rest
        elif line.startswith("--  "):
            found[part] += " " + line[2:].strip()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_header_is_true(name: str) -> None:
    parts = header(name)
    assert list(parts) == ["KEYS", "ARGV", "returns", "called by"]
    numbers = [int(number) for number in re.findall(r"\b\d+\b", parts["KEYS"].partition(" then ")[0])]
    assert numbers == list(range(1, len(FIXED[name]()) + 1)), "the fixed KEYS"
    for caller in parts["called by"].split(", "):
        owner, _, method = caller.partition(".")
        cls = next(found for module in HERE if (found := getattr(module, owner, None)) is not None)
        source = inspect.getsource(vars(cls)[method])
        assert re.search(rf'"{name}"', source), f"{caller} does not call {name}"
        assert re.search(rf"\bdeclare(d|\.{name})\b|_declare\.{name}\b", source), f"{caller} declares no keys"


def test_each_key_is_the_one_that_others_use() -> None:
    keys = Keys("jobs")
    plain = {name: [key if isinstance(key, str) else key.decode() for key in made()] for name, made in FIXED.items()}
    assert {declared[0] for declared in plain.values()} == {"{jobs}-ff:nothing"}
    queues = [keys.queue(priority) for priority in (HIGH, MEDIUM, LOW)]
    inboxes = [keys.inbox("c", priority) for priority in (HIGH, MEDIUM, LOW)]
    assert plain["enqueue"][1:] == [keys.producer("p"), *queues]
    assert plain["claim"][1:4] == [keys.lease("b"), keys.leases, keys.consumers]
    assert plain["deregister"][1:] == [keys.consumers, keys.consumer_leases, *inboxes, *queues]
    assert plain["acquire"][1:] == [keys.slots("t"), keys.task_run("t", "id")]
    claim = DECLARE.claim("c", "b", (LOW, HIGH), ("t", "u"))
    assert [key if isinstance(key, str) else key.decode() for key in claim[7:]] == [
        inboxes[2], inboxes[0], queues[2], queues[0], keys.task("t"), keys.task("u"),
    ]  # fmt: skip
    assert DECLARE.claim("c", "b", (), ("v",))[7:] == (keys.task("v").encode(),)
    reap = DECLARE.reap([b"b1", b"b2"], [b"c"])
    assert reap[-5:] == tuple(key.encode() for key in (keys.lease("b1"), keys.lease("b2"), *inboxes))


# -- they touch nothing else


@task(max_concurrency=1)
async def limited(ctx: Any) -> None: ...


async def every_script(b: RedisTaskBroker) -> None:
    """A life in which each script does something, and each part of ``settle``."""
    sender = Sender(b)
    await b.delay([(0.0, 1, b"later")])
    await b.promote()
    await b.push_once("once", 60, 0, b"once")
    await b.push_after("mark", 0, 1, 60, 2, b"fired")
    await sender.send([b"h"], [b"%d" % n for n in range(8)], [b"l"])
    claim = await b.claim("a", 12, idle=True, waits=True, tasks=("t",))
    field = [item.field for item in claim.items]
    assert len(field) == 12
    assert await b.acquire(limited, f"{claim.batch}:{field[0]} id")
    await b.renew("a", [claim.batch], [("limited", f"{claim.batch}:{field[0]} id")])
    assert await b.acquire(limited, "other:m1 other") is False
    await b.redis_cli.zadd(b.keys.slots("limited"), {f"{claim.batch}:{field[0]} id": 1})
    assert await b.acquire(limited, "other:m1 other") is True
    assert await b.redis_cli.exists(b.keys.task_run("limited", "id")) == 0
    await b.free([("limited", "other:m1 other")])
    assert await b.release(claim.batch, field[10:]) == 2
    settled = Settlement(
        claim.batch,
        done=field[:5],
        retries=[(60.0, 1, b"again")],
        dead=[(field[1], "why")],
        failed=[(field[2], "why")],
        info={"t": ("2026-01-01T00:00:00Z", 1.0, "success")},
        replies=[("address", b"reply")],
        slots=[("limited", "other:m1 other")],
        survived=[field[3]],
    )
    mark = hashlib.sha1(claim.items[3].payload, usedforsecurity=False).hexdigest()
    await b.redis_cli.hset(b.keys.strikes, mark, 1)  # type: ignore[misc]
    await b.redis_cli.zadd(b.keys.slots("limited"), {"other:m1 other": 9e15})
    await b.redis_cli.set(b.keys.task_run("limited", "other"), "other")
    assert await b.settle(settled)
    there = await b.redis_cli.exists(b.keys.strikes, b.keys.slots("limited"), b.keys.task_run("limited", "other"))
    assert there == 0
    assert await b.redis_cli.hlen(b.keys.task("t")) == 3  # type: ignore[misc]
    assert await b.redis_cli.lrange(b.keys.reply("address"), 0, -1) == [b"reply"]  # type: ignore[misc]
    assert await b.delayed_length() == 1
    for kind in ("dead", "failed"):
        async with b.sifter(kind) as sifter:  # type: ignore[arg-type]
            [(head, payload)] = await sifter.turn()
            assert await sifter.take([(head, payload, 1, payload)]) == 1
    await b.wait("a", 0.05, ("t",))
    await b.redis_cli.lpush(b.keys.inbox("a", "low"), b"started", b"moved")  # type: ignore[misc]
    b.inboxes.adoptions["adopted"] = wakeup.Adoption("adopted", "a", "l", b"started")
    await b.inboxes.adopt()
    held = await b.leased_length()
    assert held >= 5 + 1 + 1, "under two leases, and in an inbox"
    await b.redis_cli.zadd(b.keys.leases, dict.fromkeys(await b.redis_cli.zrange(b.keys.leases, 0, -1), 1))
    await b.redis_cli.zadd(b.keys.consumers, {"a": 1})
    await b.reap()
    for seen in (b._seen_expired, b._seen_silent):
        for name in seen:
            seen[name] = seen[name]._replace(confirmed_at=0)
    assert await b.reap() == held
    await b.deregister("a")
    suspects = (await b.claim("a", 1, idle=True)).suspects
    assert suspects == 0


async def test_a_script_touches_declared_keys_only(redis_url: str) -> None:
    with only_declared_keys(tally=True):
        b = RedisTaskBroker(redis_url)
        await b.redis_cli.delete(TALLY)
        await every_script(b)
        assert await b.redis_cli.smembers(TALLY) == {name.encode() for name in NAMES}  # type: ignore[misc]
        await b.redis_cli.delete(TALLY)
        await b.clear()
        await b.close()


async def test_a_key_that_is_not_declared_is_refused(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it has to be for the test before, and the contract suite, to show anything."""
    for touching in ("'GET', 'another'", "'EXISTS', KEYS[1], 'another'"):
        text = f"return redis.call({touching})".encode()
        with monkeypatch.context() as patch:
            patch.setattr(scripts, "read", lambda name, text=text: text)
            with only_declared_keys():
                b = RedisTaskBroker(redis_url)
                with pytest.raises(BrokerError, match=r"(GET|EXISTS) of the undeclared key another"):
                    await b.free([("task", "f id")])
                await b.close()


# -- however much there is


def test_a_call_that_is_too_long_is_refused_before_it_is_sent() -> None:
    command("free", (b"k",) * MAX_ARGUMENTS)
    with pytest.raises(BrokerError, match="script free: 4000 keys and arguments"):
        command("free", (b"k",) * MAX_ARGUMENTS, 1)


async def test_a_settlement_of_any_length(redis_url: str) -> None:
    """1000 runs, each of which had strikes, held a slot, is waited for, and is tried again or gives up."""
    b = RedisTaskBroker(redis_url)
    payloads = [b"%d" % n for n in range(MAX_CLAIM)]
    await Sender(b).send([], payloads)
    claim = await b.claim("a", MAX_CLAIM)
    slots = [("limited", f"{claim.batch}:{item.field} {n}") for n, item in enumerate(claim.items)]
    await b.redis_cli.zadd(b.keys.slots("limited"), dict.fromkeys([slot for _, slot in slots], 9e15))
    await b.redis_cli.mset({b.keys.task_run("limited", str(n)): n for n in range(MAX_CLAIM)})
    fields = [item.field for item in claim.items]
    settlement = Settlement(
        claim.batch,
        done=fields,
        retries=[(60.0, 1, payload) for payload in payloads[:300]],
        dead=[(field, "why") for field in fields[300:600]],
        failed=[(field, "why") for field in fields[600:]],
        info={f"t{n}": ("2026-01-01T00:00:00Z", 1.0, "success") for n in range(1100)},
        replies=[(f"address {n % 3}", payload) for n, payload in enumerate(payloads)],
        slots=slots,
        survived=fields,
    )
    gone = Settlement("gone", settlement.whole, *[getattr(settlement, name) for name in (
        "done", "retries", "dead", "info", "replies", "slots", "survived", "failed")])  # fmt: skip
    assert not await b.settle(gone)
    assert await b.redis_cli.zcard(b.keys.slots("limited")) == MAX_CLAIM
    assert await b.settle(settlement)
    assert [await b.delayed_length(), await b.dead_length("dead"), await b.dead_length("failed")] == [300, 300, 400]
    assert await b.leased_length() == 0
    assert await b.redis_cli.exists(b.keys.slots("limited"), b.keys.leases) == 0
    assert [key async for key in b.redis_cli.scan_iter(f"{b.prefix}-task-run-*")] == []
    assert sorted([await b.redis_cli.llen(b.keys.reply(f"address {n}")) for n in range(3)]) == [333, 333, 334]  # type: ignore[misc]
    assert len([key async for key in b.redis_cli.scan_iter(f"{b.prefix}-tasks-t*", 5000)]) == 1100
    await b.clear()
    await b.close()


def test_only_the_last_part_of_a_settlement_moves_runs() -> None:
    long = Settlement("b", done=["m1"], retries=[(0, 1, b"x")], replies=[("a", b"r")] * 5000, survived=["m1"])
    *records, last = parts(long)
    assert all(arguments_of(part) <= MAX_ARGUMENTS for part in (*records, last))
    assert not any(part.done or part.whole or part.retries or part.dead or part.failed for part in records)
    assert (last.done, last.retries, last.replies) == (long.done, long.retries, [])
    assert sum(len(part.replies) for part in records) == 5000


async def test_as_many_renewals_slots_and_delayed_runs_as_there_are(redis_url: str) -> None:
    b = RedisTaskBroker(redis_url)
    batches = [f"{n}-30000" for n in range(5000)]
    slots = [("limited", f"f {n}") for n in range(2000)]
    assert [len(some) + 3 * len(held) for some, held in renewals(batches, slots)] == [3900, 1100, 3900, 2100]
    await b.redis_cli.zadd(b.keys.leases, dict.fromkeys(batches[1:], 1))
    await b.redis_cli.zadd(b.keys.slots("limited"), dict.fromkeys([slot for _, slot in slots], 1))
    assert await b.renew("a", batches, slots) == batches[:1]
    assert b.renewer("a")(batches, slots) == batches[:1]
    assert await b.redis_cli.zcount(b.keys.leases, 2, "+inf") == 4999
    assert await b.redis_cli.zcount(b.keys.slots("limited"), 2, "+inf") == 2000
    await b.free(slots)
    assert await b.redis_cli.exists(b.keys.slots("limited")) == 0
    await b.delay([(60.0, 1, b"%d" % n) for n in range(5000)])
    assert await b.delayed_length() == 5000
    await b.clear()
    await b.close()


async def test_as_many_tasks_as_there_are(redis_url: str) -> None:
    b = RedisTaskBroker(redis_url)
    names = [f"t{n}" for n in range(MAX_FLAGS + 100)]
    await b.redis_cli.hset(b.keys.task("t1"), "enabled", "false")  # type: ignore[misc]
    await b.redis_cli.hset(b.keys.task(names[-1]), "enabled", "false")  # type: ignore[misc]
    claim = await b.claim("a", 1, waits=True, tasks=names)
    assert [name for name, enabled in claim.enabled.items() if not enabled] == ["t1", names[-1]]
    assert len(claim.enabled) == len(names)
    waiting = b.wait("a", 10, names)
    await Sender(b).send([b"x"])
    assert await waiting is None  # a claim says it all
    assert [item.payload for item in (await b.claim("a", 1, tasks=names)).items] == [b"x"]
    await b.clear()
    await b.close()


async def test_slots_of_any_number_of_dead_workers(redis_url: str) -> None:
    """A mixed fleet too, in which aio-fluid's keys name them all, and more."""
    b = RedisTaskBroker(with_options(redis_url, fleet="mixed"))
    dead_slots = {f"dead:m1 {n}": 1 for n in range(2500)}
    await b.redis_cli.zadd(b.keys.slots("limited"), dead_slots)
    await b.redis_cli.mset({b.keys.task_run("limited", str(n)): n for n in range(7000)})
    many = limited._replace(max_concurrency=4501)
    assert await b.acquire(many, "f:m1 new") is True
    assert await b.acquire(many, "f:m1 newer") is False  # 4500 of aio-fluid's run, and one of ours
    assert await b.redis_cli.zcard(b.keys.slots("limited")) == 1
    await b.clear()
    await b.close()
