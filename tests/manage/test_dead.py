"""Dead letters, from Python and from the command line."""

import asyncio
import json
from pathlib import Path

import pytest
from kits.command_kit import run

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskPriority, TaskRun, task
from fluidfast.brokers.contract import Settlement
from fluidfast.manage.dead import DeadLetter
from fluidfast.wire.peek import afresh

GIVES_UP = RetryPolicy(max_attempts=1, wait=0.001)
APP = """
from fluidfast import TaskManager, task

@task
async def good(ctx):
    pass

def manager():
    made = TaskManager(broker_url={url!r})
    made.register_task(good)
    return made
"""


class Switch:
    def __init__(self) -> None:
        self.good = False
        self.seen: list[int] = []


@task(retry=GIVES_UP)
async def fickle(ctx: TaskRun) -> None:
    ctx.deps.seen.append(ctx.params.n)
    if not ctx.deps.good:
        raise ValueError(f"number {ctx.params.n} is\nbad")


async def until(condition, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def bury(manager: TaskManager, payloads: list[bytes], reason: str = "why") -> None:
    """Put payloads among the dead, the first first."""
    for payload in payloads:
        if not manager.broker.push(0, payload):
            await manager.broker.redis_cli.lpush(manager.broker.task_queue_name(TaskPriority.high), payload)
        claim = await manager.broker.claim("undertaker", 1)
        assert [item.payload for item in claim.items] == [payload]
        await manager.broker.settle(Settlement(claim.batch, whole=True, dead=[(claim.items[0].field, reason)]))


@pytest.fixture
async def manager(broker_url: str):
    async with TaskManager(broker_url=broker_url) as made:
        made.register_task(fickle)
        yield made
        await made.broker.clear()


async def test_what_gave_up_can_be_seen_and_queued_again(broker_url: str) -> None:
    switch = Switch()
    consumer = TaskConsumer(broker_url=broker_url, deps=switch)
    consumer.register_task(fickle)
    await consumer.startup()
    try:
        runs = [await consumer.queue(fickle, n=n, priority="high") for n in range(3)]
        await until(lambda: counted(consumer, 3))
        letters = await consumer.dead.list()
        assert {letter.run_id for letter in letters} == {made.id for made in runs}
        letter = next(letter for letter in letters if letter.run_id == runs[1].id)
        assert (letter.task, letter.priority, letter.params, letter.attempts) == ("fickle", "high", {"n": 1}, 1)
        assert letter.reason.startswith("ValueError after 1 retries: number 1 is bad (at test_dead.py:")
        assert letter.at is not None
        assert "n" not in repr(letter).partition("header")[0]
        assert await consumer.dead.get(runs[1].id[:10]) == letter
        assert await consumer.dead.get(letter.id) == letter
        assert await consumer.dead.get("nothing like it") is None

        switch.good = True
        assert await consumer.dead.requeue([runs[0].id]) == 1
        await until(lambda: finished(consumer, 4))
        assert await consumer.dead.count() == 2
        assert await consumer.dead.requeue() == 2
        await until(lambda: finished(consumer, 6))
        assert await consumer.dead.count() == 0
        assert sorted(switch.seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    finally:
        await consumer.broker.clear()
        await consumer.shutdown()


async def counted(manager: TaskManager, number: int) -> bool:
    return await manager.dead.count() == number


async def finished(consumer: TaskConsumer, number: int) -> bool:
    return consumer.engine.finished >= number


async def test_requeued_runs_have_their_attempts_anew(manager: TaskManager) -> None:
    run_ = manager.create_task_run(fickle, n=1).model_copy(update={"retry_attempt": 3, "execute_after": 4e9})
    payload = manager.broker.codec.encode(run_)
    again = manager.broker.codec.decode(afresh(payload), manager)
    assert (again.id, again.retry_attempt, again.execute_after, again.params) == (run_.id, 0, None, {"n": 1})


@pytest.mark.parametrize("payload", [b"", b"{", b"\x00\xff", b"[1]", b"\x93\x01", b"null", b'{"id":1,"task":2}'])
async def test_what_is_no_run_keeps_its_bytes(manager: TaskManager, payload: bytes) -> None:
    await bury(manager, [payload or b" "])
    (letter,) = await manager.dead.list()
    assert letter.payload == (payload or b" ")
    assert (letter.task, letter.attempts, letter.priority) == ("", 0, "medium")
    assert await manager.dead.requeue() == 1
    claim = await manager.broker.claim("c", 1)
    if payload == b'{"id":1,"task":2}':
        assert json.loads(claim.items[0].payload) == json.loads(payload)
    else:
        assert claim.items[0].payload == (payload or b" ")
    await manager.broker.settle(Settlement(claim.batch, whole=True))


async def test_choices_and_order(manager: TaskManager) -> None:
    payloads = [b'{"id":"r%d","task":"t%d","params":{}}' % (i, i % 2) for i in range(250)]
    await bury(manager, payloads[:200], "one reason")
    await bury(manager, payloads[200:], "another reason")
    assert await manager.dead.count() == 250
    assert [letter.run_id for letter in await manager.dead.list(2)] == ["r249", "r248"]
    assert [letter.run_id for letter in await manager.dead.list(2, 248)] == ["r1", "r0"]
    seen: list[int] = []
    assert await manager.dead.purge(task="t1", reason="another", progress=seen.append) == 25
    assert seen[-1] == 25
    assert await manager.dead.purge(["r0", "r2", "none"]) == 2
    assert await manager.dead.requeue(task="t1") == 100
    claim = await manager.broker.claim("c", 1000)
    assert [json.loads(item.payload)["id"] for item in claim.items] == [f"r{i}" for i in range(1, 200, 2)]
    await manager.broker.settle(Settlement(claim.batch, whole=True))
    assert await manager.dead.purge() == 123
    assert await manager.dead.count() == 0


async def test_rate_is_kept(manager: TaskManager) -> None:
    await bury(manager, [b'{"id":"r%d","task":"t","params":{}}' % i for i in range(30)])
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await manager.dead.requeue(rate=100) == 30
    assert loop.time() - started > 0.25


async def test_an_entry_that_somebody_took_is_not_queued_twice(manager: TaskManager) -> None:
    await bury(manager, [b'{"id":"r","task":"t","params":{}}'])
    [(header, payload)] = await manager.broker.dead()
    action = (header, payload, 1, payload)
    assert await manager.broker.take_dead([action, action]) == 1
    assert await manager.broker.queue_length() == {"high": 0, "medium": 1, "low": 0}


def test_packed_entries_are_read() -> None:
    import msgspec

    packed = msgspec.msgpack.encode([bytes(16), "t", 0, {"a": 1}, 1, 1.0, None, None, 5.0, 1, 2])
    letter = DeadLetter.read("1700000000000 why", packed)
    assert (letter.run_id, letter.task, letter.priority, letter.params, letter.attempts) == (
        "0" * 32, "t", "high", {"a": 1}, 2,
    )  # fmt: skip
    assert msgspec.msgpack.decode(afresh(packed)) == [bytes(16), "t", 0, {"a": 1}, 1, 1.0, None, None, None, 0, 0]
    assert afresh(msgspec.msgpack.encode([bytes(16), "t", 0, {}])) == msgspec.msgpack.encode([bytes(16), "t", 0, {}])


async def test_the_command(tmp_path: Path, redis_url: str) -> None:
    async with TaskManager(broker_url=redis_url) as made:
        await bury(
            made, [b'{"id":"run%d","task":"lost","params":{"x":"\\u001b[31m"}}' % i for i in range(3)], "un\nknown"
        )
        (tmp_path / "app.py").write_text(APP.format(url=redis_url))

        async def command(*arguments: str):
            return await asyncio.to_thread(run, "dead", "app:manager", *arguments, cwd=tmp_path)

        listed = await command("list")
        assert listed.returncode == 0, listed.stderr
        assert listed.stdout.count("un known") == 3
        assert "3 dead on redis://" in listed.stdout
        as_json = [json.loads(line) for line in (await command("list", "--json")).stdout.splitlines()]
        assert [line["run_id"] for line in as_json] == ["run2", "run1", "run0"]
        shown = await command("show", "run1")
        assert "lost" in shown.stdout
        assert "\x1b" not in shown.stdout
        missing = await command("show", "nope")
        assert missing.returncode == 1
        assert "no entry 'nope'" in missing.stderr
        for wrong in (["requeue"], ["purge", "--all", "--task", "x"], ["requeue", "--all", "--rate", "0"]):
            refused = await command(*wrong)
            assert refused.returncode == 1
            assert "Traceback" not in refused.stderr
        assert "1 requeued" in (await command("requeue", "run0")).stdout
        assert await made.broker.queue_length() == {"high": 0, "medium": 1, "low": 0}
        partly = await command("purge", "run1", "gone")
        assert partly.returncode == 1
        assert "1 removed" in partly.stdout
        assert "1 removed" in (await command("purge", "--task", "lost")).stdout
        assert await made.dead.count() == 0
        await made.broker.clear()
