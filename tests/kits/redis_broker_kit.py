"""Tasks that note their params, and consumers of them, for the tests of the Redis broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from faults.proxy import THERE, FaultProxy, Side

from fluidfast import TaskConsumer, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from kits.broker_kit import places
from kits.servers import RedisServer
from kits.waiting import within

StartServer = Callable[..., RedisServer]


ran: list[Any] = []


@task
async def note(ctx: TaskRun[Any, Any]) -> None:
    """Notes its params."""
    ran.append(ctx.params.get("n"))


@task
async def slow_note(ctx: TaskRun[Any, Any]) -> None:
    """Notes its params after a moment."""
    await asyncio.sleep(0.002)
    ran.append(ctx.params.get("n"))


@task(max_concurrency=1)
async def limited(ctx: TaskRun[Any, Any]) -> None: ...


def consumer_of(url: str, **options: Any) -> TaskConsumer:
    consumer = TaskConsumer(broker_url=url, **{"stopping_grace_period": 5, **options})
    consumer.register_from_dict({"note": note, "slow_note": slow_note})
    return consumer


class Running:
    """A consumer within a block."""

    def __init__(self, consumer: TaskConsumer) -> None:
        self.consumer = consumer

    async def __aenter__(self) -> TaskConsumer:
        await self.consumer.startup()
        return self.consumer

    async def __aexit__(self, *exc_info: object) -> None:
        await within(self.consumer.shutdown())


async def all_promoted(broker: TaskBroker) -> bool:
    return await broker.promote() is None


async def is_empty(broker: TaskBroker) -> bool:
    return await places(broker) == {}


def is_held(proxy: FaultProxy) -> bool:
    return any(side.held for side in list(proxy.sides))


def clients(proxy: FaultProxy) -> list[Side]:
    return [side for side in list(proxy.sides) if side.direction == THERE]
