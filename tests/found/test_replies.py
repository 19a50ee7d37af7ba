"""``queue_and_wait``: each caller gets the answer of its own run, whatever the connection does, or an error that says
what it waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from faults.proxy import BACK, FaultProxy
from kits.broker_kit import with_options
from kits.manager_kit import consuming, managing
from kits.servers import RedisServer
from kits.waiting import until, within

from fluidfast import TaskManager, TaskRun, task
from fluidfast.brokers.contract import Settlement
from fluidfast.errors import BrokerAuthError


@task
async def gated(ctx: TaskRun) -> None:
    """Waits for the gate of its number."""
    ctx.deps.setdefault("started", []).append(ctx.params["n"])
    await ctx.deps["gates"][ctx.params["n"]].wait()


@task
async def other(ctx: TaskRun) -> None: ...


def gates(count: int) -> dict[str, Any]:
    return {"gates": [asyncio.Event() for _ in range(count)]}


@pytest.mark.parametrize("shards", [1, 3])
async def test_the_connection_ends_with_the_answer_on_it(
    redis_server: RedisServer, redis_url: str, shards: int
) -> None:
    deps = gates(1)
    url = with_options(redis_url, shards=shards)
    with FaultProxy(redis_server.port) as proxy:
        async with (
            consuming(url, gated, deps=deps),
            managing(proxy.url_of(url), gated) as manager,
        ):
            waiting = asyncio.create_task(manager.queue_and_wait("gated", n=0, timeout=30))
            await until(lambda: deps.get("started"))
            cut = proxy.cut(BACK, 0)
            deps["gates"][0].set()
            assert str((await within(waiting)).state) == "success"
            assert cut.happened


async def test_an_answer_is_removed_once_it_is_here(redis_server: RedisServer, redis_url: str) -> None:
    """And no key is left that does not expire, whichever way it was read."""
    async with consuming(redis_url, other), managing(redis_url, other) as manager:
        await asyncio.gather(*(manager.queue_and_wait("other", timeout=20) for _ in range(50)))
        key = manager.broker.keys.reply(manager._replies.here().address)  # type: ignore[attr-defined]
        with redis.Redis.from_url(redis_server.url) as client:
            await until(lambda: client.exists(key) == 0)


async def test_an_answer_that_nobody_takes_expires(redis_server: RedisServer, redis_url: str) -> None:
    async with managing(redis_url, other) as manager:
        await manager.queue("other")
        claim = await manager.broker.claim("c", 1)
        await manager.broker.settle(Settlement(claim.batch, whole=True, replies=[("a", b"1"), ("a", b"2")]))
        key = manager.broker.keys.reply("a")  # type: ignore[attr-defined]
        with redis.Redis.from_url(redis_server.url) as client:
            # as a reader does whose connection ends then
            assert client.execute_command("BLMOVE", key, key, "LEFT", "LEFT", 1) == b"1"
            assert 0 < client.pttl(key) <= 300_000
        assert await manager.broker.replies("a", 1) == [b"1", b"2"]
        assert await manager.broker.replies("a", 0.01) == []


async def test_two_callers_of_one_run_id(broker_url: str) -> None:
    """Each is answered by its own run, whichever ends first."""
    deps = gates(2)
    async with consuming(broker_url, gated, deps=deps), managing(broker_url, gated) as manager:
        first, second = (
            asyncio.create_task(manager.queue_and_wait("gated", run_id="job", n=n, timeout=20)) for n in range(2)
        )
        await until(lambda: len(deps.get("started", ())) == 2)
        deps["gates"][1].set()
        assert (await within(second)).params["n"] == 1
        assert not first.done()
        deps["gates"][0].set()
        assert (await within(first)).params["n"] == 0


async def test_one_caller_of_two_gives_up(broker_url: str) -> None:
    deps = gates(2)
    async with consuming(broker_url, gated, deps=deps), managing(broker_url, gated) as manager:
        first, second = (
            asyncio.create_task(manager.queue_and_wait("gated", run_id="job", n=n, timeout=20)) for n in range(2)
        )
        await until(lambda: len(deps.get("started", ())) == 2)
        first.cancel()
        deps["gates"][0].set()
        deps["gates"][1].set()
        assert (await within(second)).params["n"] == 1


@pytest.mark.parametrize("sync", [False, True])
async def test_what_a_timeout_says(broker_url: str, sync: bool) -> None:
    deps = gates(2)

    async def wait_in_vain(manager: TaskManager, n: int) -> str:
        options = {"run_id": f"r{n}", "n": n, "timeout": 0.3}
        waiting: Any = (
            asyncio.to_thread(manager.sync.queue_and_wait, "gated", **options)
            if sync
            else manager.queue_and_wait("gated", **options)
        )
        with pytest.raises(TimeoutError) as caught:
            await waiting
        return str(caught.value)

    manager = TaskManager(broker_url=broker_url)
    manager.register_task(gated)
    try:
        expected = "task gated, run r0: not finished within 0.3 s; no consumer has reported"
        assert (await wait_in_vain(manager, 0)).startswith(expected)
        async with consuming(broker_url, other) as ignorant:

            async def told() -> bool:
                return bool((await ignorant.broker.get_all_manager_statuses()).workers)

            await until(told)
            assert "the consumer that is running does not know this task" in await wait_in_vain(manager, 1)
            ignorant.register_task(gated)
            ignorant.deps = deps
            await ignorant._tell_status()
            assert "a consumer that knows this task is running" in await wait_in_vain(manager, 1)
            for gate in deps["gates"]:
                gate.set()
    finally:
        if sync:
            await asyncio.to_thread(manager.sync.close)
        else:
            await manager.on_shutdown()


async def test_a_user_who_may_not_read_answers(start_server: Any) -> None:
    """Hears so at once, and not by a timeout."""
    server = start_server(acl=["user default on >admin ~* &* +@all", "user half on >half ~* &* +@all -blmove"])
    async with managing(server.url_as("default", "admin"), other):
        manager = TaskManager(broker_url=server.url_as("half", "half"))
        manager.register_task(other)
        with pytest.raises(BrokerAuthError, match=r"(?i)blmove"):
            await within(manager.queue_and_wait("other", timeout=600))
        await manager.on_shutdown()


async def test_what_was_read_on_a_lost_connection_removes_no_later_answer(redis_url: str) -> None:
    async with managing(redis_url, other) as manager:
        broker: Any = manager.broker
        key = broker.keys.reply("here")
        await broker.redis_cli.rpush(key, "first")
        assert await within(broker.replies("here", 1)) == [b"first"]
        broker.client._reply_link.abort()
        await broker.redis_cli.delete(key)  # it has expired, or the server has lost it
        await broker.redis_cli.rpush(key, "second")
        assert await within(broker.replies("here", 1)) == [b"second"]
        await broker.redis_cli.delete(key)


async def test_one_timer_for_all_deadlines() -> None:
    async with managing("memory://one-timer", gated) as manager:
        timeouts = [30, 0.05, 0.051, 30, float("inf")]
        waiting = [
            asyncio.create_task(manager.queue_and_wait("gated", n=n, timeout=each)) for n, each in enumerate(timeouts)
        ]
        late = await within(asyncio.gather(*waiting[1:3], return_exceptions=True))
        assert [type(error) for error in late] == [TimeoutError] * 2
        inbox = manager._replies.here()
        deadlines = [call.deadline for call in inbox.expected.values()]
        assert len(deadlines) == 3
        assert inbox.timer is not None
        assert inbox.timer.when() == min(deadlines)
        for each in (waiting[0], waiting[3], waiting[4]):
            each.cancel()
        await asyncio.wait(waiting)
        assert not inbox.expected
