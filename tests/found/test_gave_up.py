"""Runs that gave up, and runs that failed without a retry: kept, bounded, shown, requeued and purged, each once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from kits.waiting import until

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.manage.dead import DeadLetters

NONE = RetryPolicy(max_attempts=0)


class NoText(Exception):
    def __str__(self) -> str:
        return self.missing  # type: ignore[attr-defined,no-any-return]


def raises(what: Callable[[], BaseException], **options: Any) -> Any:
    @task(name="fails", **options)
    async def fails(ctx: TaskRun) -> None:
        raise what()

    return fails


@contextlib.asynccontextmanager
async def consuming(url: str, *tasks: Any, **options: Any) -> AsyncIterator[TaskConsumer]:
    consumer = TaskConsumer(broker_url=url, **options)
    for one in tasks:
        consumer.register_task(one)
    await consumer.startup()
    try:
        yield consumer
    finally:
        await consumer.broker.clear()
        await consumer.shutdown()


@pytest.fixture
async def broker(broker_url: str) -> AsyncIterator[TaskBroker]:
    made = TaskBroker.from_url(broker_url)
    yield made
    await made.clear()
    await made.close()


async def give_up(broker: TaskBroker, *payloads: bytes, kind: str = "dead", reason: str = "why") -> None:
    """Have runs end in one of the lists, the first first."""
    for payload in payloads:
        await broker.queue_payload(1, payload)
    left = len(payloads)
    while left:
        claim = await broker.claim("undertaker", 500)
        left -= len(claim.items)
        settlement = Settlement(claim.batch, whole=True)
        getattr(settlement, kind).extend((item.field, reason) for item in claim.items)
        assert await broker.settle(settlement)


async def payloads(broker: TaskBroker, kind: Any = "dead") -> list[bytes]:
    return [payload for _, payload in await broker.dead(10_000, kind=kind)]


async def noted(broker: TaskBroker, kind: str) -> int:
    """The bytes that the broker thinks are in a list."""
    if isinstance(broker, RedisTaskBroker):
        return int(await broker.redis_cli.hget(broker.keys.kept, f"{kind}:bytes") or 0)
    return int(getattr(broker.store, kind).bytes)  # type: ignore[attr-defined]


async def real(broker: TaskBroker, kind: Any) -> int:
    return sum(len(head) + 1 + len(payload) for head, payload in await broker.dead(10_000, kind=kind))


# -- a failure leaves a trace


@pytest.mark.parametrize("shards", ["", "&shards=3"])
async def test_a_failed_run_without_a_retry_is_kept_marked_and_can_be_requeued(redis_url: str, shards: str) -> None:
    await kept_marked_and_requeued(redis_url + shards)


async def test_a_failed_run_is_kept_in_memory() -> None:
    await kept_marked_and_requeued("memory://kept-marked")


async def kept_marked_and_requeued(url: str) -> None:
    good: list[bool] = []

    @task
    async def fragile(ctx: TaskRun) -> None:
        if not good:
            raise KeyError(ctx.params.row)

    @task(retry=NONE)
    async def retried(ctx: TaskRun) -> None:
        if not good:
            raise ValueError("no")

    async with consuming(url, fragile, retried) as consumer:
        run = await consumer.queue("fragile", row=7)
        await consumer.queue("retried", row=8)

        async def both() -> bool:
            return await consumer.dead.count() == 2

        await until(both)
        letters = {letter.kind: letter for letter in await consumer.dead.list()}
        assert {kind: letter.task for kind, letter in letters.items()} == {"failed": "fragile", "dead": "retried"}
        failed = letters["failed"]
        assert (failed.run_id, failed.params, failed.attempts) == (run.id, {"row": 7}, 0)
        assert failed.reason.startswith("KeyError: 7 (at test_gave_up.py:")
        assert letters["dead"].reason.startswith("ValueError after 0 retries: no (at test_gave_up.py:")
        assert [letter.kind for letter in await consumer.dead.list(kind="failed")] == ["failed"]
        assert await consumer.dead.get(run.id) == failed
        good.append(True)
        assert await consumer.dead.requeue(kind="failed") == 1
        await until(lambda: consumer.engine.finished == 3)
        assert await consumer.dead.count("failed") == 0
        assert await consumer.dead.purge() == 1
        assert await consumer.dead.count() == 0


async def test_every_way_to_fail_for_good_leaves_a_trace(broker_url: str) -> None:
    @task
    async def sets(ctx: TaskRun) -> None:
        ctx.set_state("failure")

    @task(timeout_seconds=0.05)
    async def slow(ctx: TaskRun) -> None:
        await asyncio.sleep(60)

    @task
    async def cancels(ctx: TaskRun) -> None:
        raise asyncio.CancelledError("mine")

    @task
    def threaded(ctx: TaskRun) -> None:
        raise OSError("in a thread")

    @task(batch=3, batch_wait=0.01)
    async def batched(runs: list[TaskRun]) -> dict[str, Exception]:
        return {run.id: LookupError(run.params.n) for run in runs if run.params.n == 1}

    tasks = [sets, slow, cancels, threaded, batched]
    async with consuming(broker_url, *tasks) as consumer:
        for name in ("sets", "slow", "cancels", "threaded"):
            await consumer.queue(name)
        for n in range(2):
            await consumer.queue("batched", n=n)
        await until(lambda: consumer.engine.finished == 6)

        async def all_of_them() -> bool:
            return await consumer.dead.count("failed") == 5

        await until(all_of_them)
        reasons = {letter.task: letter.reason for letter in await consumer.dead.list()}
        assert reasons["slow"] == "TimeoutError: it took longer than 0.05 s"
        assert reasons["threaded"].startswith("OSError: in a thread (at test_gave_up.py:")
        assert reasons["batched"] == "LookupError: 1"
        assert reasons["cancels"].startswith("CancelledError")
        assert reasons["sets"].startswith("TaskRunError")


@pytest.mark.parametrize("retry", [None, NONE, RetryPolicy(max_attempts=1, wait=0.001)])
async def test_an_exception_without_a_text_is_kept_all_the_same(broker_url: str, retry: RetryPolicy | None) -> None:
    async with consuming(broker_url, raises(NoText, retry=retry)) as consumer:
        await consumer.queue("fails")
        await until(consumer.dead.list)
        (letter,) = await consumer.dead.list()
        assert "NoText" in letter.reason
        assert "its text is not available: __str__ raised AttributeError" in letter.reason
        again = await consumer.queue_and_wait("fails", timeout=10)  # its slot lives
        assert again.is_done


@pytest.mark.parametrize("retry", [None, NONE])
async def test_a_reason_is_one_bounded_line_and_says_where(broker_url: str, retry: RetryPolicy | None) -> None:
    text = "one\ntwo \x1b[31m \u202e" + "x" * 5_000_000
    async with consuming(broker_url, raises(lambda: ValueError(text), retry=retry)) as consumer:
        await consumer.queue("fails")
        await until(consumer.dead.list)
        (letter,) = await consumer.dead.list()
        assert len(letter.reason) <= 1000
        assert "one two \\x1b[31m \\u202exxx" in letter.reason
        assert "(at test_gave_up.py:" in letter.reason


async def test_only_our_timeout_is_logged_as_one(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    @task(timeout_seconds=0.05)
    async def slow(ctx: TaskRun) -> None:
        await asyncio.sleep(60)

    theirs = raises(lambda: TimeoutError("it took longer than 3 s"))
    async with consuming(broker_url, theirs, slow) as consumer:
        with caplog.at_level(logging.ERROR):
            await consumer.queue("fails")
            await consumer.queue("slow")
            await until(lambda: consumer.engine.finished == 2)
    by_task = {record.name.rpartition(".")[2]: record for record in caplog.records}
    assert by_task["fails"].exc_info is not None
    assert by_task["slow"].exc_info is None
    assert by_task["slow"].getMessage().endswith("error=TimeoutError: it took longer than 0.05 s")


async def test_a_line_of_a_failure_cannot_be_forged(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with consuming(broker_url, raises(lambda: ValueError("x"), retry=NONE)) as consumer:
        with caplog.at_level(logging.ERROR):
            await consumer.queue("fails", run_id="a\nERROR all is lost\x1b[2J")
            await until(lambda: consumer.engine.finished == 1)
    [message] = [record.getMessage() for record in caplog.records if "run failed" in record.getMessage()]
    assert message.startswith("run failed: task=fails run=a\\nERROR all is lost\\x1b[2J attempt=1/1 after=")


# -- the lists are bounded


@pytest.mark.parametrize("kind", ["dead", "failed"])
async def test_so_many_are_kept_the_newest(broker: TaskBroker, kind: Any) -> None:
    broker.use(**{f"max_{kind}": 5})
    await give_up(broker, *(b"%d" % n for n in range(12)), kind=kind)
    assert await payloads(broker, kind) == [b"%d" % n for n in range(11, 6, -1)]
    assert await broker.dead_length(kind) == 5
    assert await broker.dead_trimmed(kind) == 7
    other: Any = {"dead": "failed", "failed": "dead"}[kind]
    assert (await broker.dead_length(other), await broker.dead_trimmed(other)) == (0, 0)
    assert await noted(broker, kind) == await real(broker, kind)


@pytest.mark.parametrize("kind", ["dead", "failed"])
async def test_so_many_bytes_are_kept(broker: TaskBroker, kind: Any) -> None:
    broker.use(**{f"max_{kind}_bytes": 10_000})
    await give_up(broker, *(b"%03d" % n + b"x" * 900 for n in range(30)), kind=kind)
    kept = await payloads(broker, kind)
    assert 9 <= len(kept) <= 11
    assert kept[0][:3] == b"029"
    assert await broker.dead_trimmed(kind) == 30 - len(kept)
    assert await noted(broker, kind) == await real(broker, kind) <= 10_000
    assert len(kept) == await broker.take_dead([(*entry, None, b"") for entry in await broker.dead(kind=kind)], kind)
    assert await noted(broker, kind) == 0


@pytest.mark.parametrize("bounds", [{"max_dead": 0, "max_failed": 0}, {"max_dead_bytes": 0, "max_failed_bytes": 0}])
async def test_none_are_kept(broker: TaskBroker, bounds: dict[str, int]) -> None:
    broker.use(**bounds)
    for kind in ("dead", "failed"):
        await give_up(broker, b"a", b"b", kind=kind)
        assert await broker.dead_length(kind) == 0  # type: ignore[arg-type]
        assert await broker.dead_trimmed(kind) == 2  # type: ignore[arg-type]


async def test_one_that_kills_its_workers_is_counted_too(broker_url: str) -> None:
    options = "lease_seconds=0.05&max_dead=1"
    broker = TaskBroker.from_url(f"{broker_url}{'&' if '?' in broker_url else '?'}{options}")
    try:
        for payload in (b"first", b"second"):
            await broker.queue_payload(1, payload)
            for strike in range(3):
                claim = await broker.claim(f"dies-{payload!r}-{strike}", 1)
                assert [item.payload for item in claim.items] == [payload]
                await until(broker.reap, every=0.03)
        assert await payloads(broker) == [b"second"]
        assert await broker.dead_trimmed() == 1
    finally:
        await broker.clear()
        await broker.close()


async def test_shards_share_the_bounds(redis_url: str) -> None:
    broker = TaskBroker.from_url(f"{redis_url}&shards=3&max_failed=6")
    try:
        await give_up(broker, *(b"%d" % n for n in range(60)), kind="failed")
        assert await broker.dead_length("failed") == 6
        assert await broker.dead_trimmed("failed") == 54
        assert len(await broker.dead(kind="failed")) == 6
    finally:
        await broker.clear()
        await broker.close()


async def test_a_manager_sets_them(broker_url: str) -> None:
    async with TaskManager(broker_url=broker_url, max_dead=7, max_failed_bytes=9) as manager:
        assert manager.broker.options.bounds("dead") == (7, 256 << 20)
        assert manager.broker.options.bounds("failed") == (100_000, 9)
    with pytest.raises(Exception, match="max_dead"):
        TaskManager(broker_url=broker_url, max_dead=-1)


async def test_a_list_of_an_older_release_is_measured_and_shrinks_in_slices(redis_url: str) -> None:
    broker = RedisTaskBroker(redis_url)
    try:
        for n in range(5000):
            await broker.redis_cli.lpush(broker.keys.dead, b"1796000000000 why\n%04d" % n)
        broker.use(max_dead=100)
        await give_up(broker, b"new")
        length = await broker.dead_length()
        assert 3900 < length < 4100  # one step does not do all of it
        assert abs(await noted(broker, "dead") - length * 22) < length
        for n in range(4):
            await give_up(broker, b"new %d" % n)
        assert await broker.dead_length() == 100
        assert (await payloads(broker))[0] == b"new 3"
    finally:
        await broker.clear()
        await broker.close()


async def test_a_list_that_somebody_deleted_begins_anew(redis_url: str) -> None:
    broker = RedisTaskBroker(redis_url)
    try:
        broker.use(max_dead_bytes=1000)
        await give_up(broker, b"x" * 900)
        await broker.redis_cli.delete(broker.keys.dead)
        await give_up(broker, b"a", b"b")
        assert await payloads(broker) == [b"b", b"a"]
    finally:
        await broker.clear()
        await broker.close()


async def test_failures_do_not_keep_a_server_full(start_server: Callable[..., Any]) -> None:
    """They are let go of for newer ones there, and no settlement is refused."""
    server = start_server()
    broker = RedisTaskBroker(f"{server.url}?name=full")
    cli = broker.redis_cli
    try:
        await give_up(broker, *(b"old %03d" % n + b"x" * 10_000 for n in range(200)), kind="failed")
        before = await noted(broker, "failed")
        runs = [b"new %03d" % n + b"y" * 10_000 for n in range(100)]
        for run in runs:
            await broker.queue_payload(1, run)
        claims = []
        while sum(len(claim.items) for claim in claims) < 100:
            claims.append(await broker.claim("c", 10))
        await cli.config_set("maxmemory", "1mb")  # far less than there is
        for claim in claims:
            await broker.settle(Settlement(claim.batch, whole=True, failed=[(i.field, "why") for i in claim.items]))
        assert (await payloads(broker, "failed"))[0] == runs[-1]
        assert await noted(broker, "failed") < before
        # and room is made by letting go of what gave up
        there = await broker.dead_length("failed")
        assert await DeadLetters(broker).purge() == there
        assert await broker.dead_length("failed") == 0
    finally:
        await cli.config_set("maxmemory", "0")
        await broker.close()
