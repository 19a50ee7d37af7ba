"""The server's clock jumps while a worker is dead and another lives; that a whole fleet bears it is in
``test_7_clocks.py``.

An hour back: what the dead one held is not left for that hour, and nothing of the living one is taken. An hour forward:
the living one has its whole lease to renew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from clocks import Clock
from kits.broker_kit import places, put, take_all, with_options
from kits.servers import RedisServer, find_servers, select_servers
from kits.waiting import until, within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis import broker as redis_broker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.errors import BrokerFullError

HOUR = 3600.0
LEASE = 0.3


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def server(clock: Clock, server_kind: str) -> RedisServer:
    """A server that lives under the clock."""
    return RedisServer(clock.server(select_servers(server_kind, find_servers())[server_kind]))


@pytest.mark.parametrize("full", [False, True], ids=["", "full"])
async def test_what_the_dead_held_does_not_wait_the_jump_out(clock: Clock, server: RedisServer, full: bool) -> None:
    """Neither under a lease, nor in an inbox; also where the server has no room for anything."""
    with clock, server:
        url = with_options(server.url, lease_seconds=LEASE)
        dead, alive, sweeper = (TaskBroker.from_url(url) for _ in range(3))
        assert isinstance(sweeper, RedisTaskBroker)
        await put(dead, b"of the dead", b"of the living")
        assert len((await dead.claim("dead", 1)).items) == 1
        claim = await alive.claim("alive", 1)
        await dead.renew("dead", [])
        await sweeper.redis_cli.lpush(sweeper.keys.inbox("dead", "low"), b"set aside")
        await sweeper.reap()
        clock.set(-HOUR)
        with redis.Redis.from_url(server.url) as client:
            assert client.time()[0] < time.time() - HOUR / 2  # type: ignore[index]
            if full:
                client.config_set("maxmemory", "1")
                with pytest.raises(BrokerFullError):
                    await put(alive, b"x")

        async def back() -> bool:
            assert await alive.renew("alive", [claim.batch]) == []
            await sweeper.reap()
            return await places(sweeper) == {"medium": 1, "low": 1, "leased": 1}

        await until(back, every=LEASE / 10)
        await alive.release(claim.batch, [item.field for item in claim.items])
        assert sorted(await within(take_all(alive))) == [b"of the dead", b"of the living", b"set aside"]
        for broker in (dead, alive, sweeper):
            await broker.close()


async def test_a_clock_that_is_right_shortens_no_lease(start_server: Callable[..., RedisServer]) -> None:
    """A fleet may be about to get longer leases: who has shorter ones leaves the others alone."""
    server = start_server()
    longer = TaskBroker.from_url(with_options(server.url, lease_seconds=60))
    shorter = TaskBroker.from_url(with_options(server.url, lease_seconds=0.05))
    await put(longer, b"x")
    claim = await longer.claim("a", 1)
    swept = 0

    async def many() -> bool:
        nonlocal swept
        swept += 1
        assert await shorter.reap() == 0
        return swept > 20

    await until(many)
    assert await longer.release(claim.batch, [claim.items[0].field]) == 1
    for broker in (longer, shorter):
        await broker.close()


async def test_the_living_have_a_whole_lease_after_a_leap(
    start_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every deadline has passed then: a worker that renews late, but within its lease, loses nothing."""
    lease = 30.0
    server = start_server()
    url = with_options(server.url, lease_seconds=lease)
    worker, sweeper = TaskBroker.from_url(url), TaskBroker.from_url(url)
    assert isinstance(sweeper, RedisTaskBroker)
    now = time.monotonic()
    monkeypatch.setattr(redis_broker, "monotonic", lambda: now)
    await put(worker, b"of the living", b"of the dead")
    living, dead = await worker.claim("living", 1), await worker.claim("dead", 1)
    assert await sweeper.reap() == 0
    # seen from the sweeper's own clock, the server's is an hour further
    now -= HOUR
    for batch in (living.batch, dead.batch):
        await sweeper.redis_cli.zincrby(sweeper.keys.leases, -HOUR * 1000, batch)
    assert await sweeper.reap() == 0
    now += 0.9 * lease
    assert await sweeper.reap() == 0
    assert await worker.renew("living", [living.batch]) == []
    now += 0.2 * lease
    assert await sweeper.reap() == 1
    assert await places(sweeper) == {"leased": 1, "medium": 1}
    assert await worker.settle(Settlement(living.batch, whole=True))
    for broker in (worker, sweeper):
        await broker.close()
