"""A server of the test's own, and a producer on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kits.lone_kit import StartServer
from kits.servers import RedisServer

from fluidfast.brokers.base import TaskBroker
from fluidfast.produce.producer import Producer


@pytest.fixture
async def server(start_server: StartServer) -> RedisServer:
    return start_server(acl=["user default on nopass ~* &* +@all", "user eve on >pw ~* &* +@all"])


@pytest.fixture
async def producer(server: RedisServer) -> AsyncIterator[Producer]:
    broker = TaskBroker.from_url(server.url)
    producer = Producer(broker)
    yield producer
    await producer.close()
    await broker.close()
