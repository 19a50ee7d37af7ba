"""What the server says, or would say, of how it is set up reaches whoever connects."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable

import pytest
import redis
from kits.broker_kit import with_options
from kits.manager_kit import managing
from kits.servers import HOST, RedisServer
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.errors import BrokerConnectionError, BrokerFullError, BrokerURLError

Start = Callable[..., RedisServer]


@task
async def note(ctx: TaskRun) -> None: ...


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [text for text in texts if "maxmemory-policy" in text]


@pytest.mark.parametrize("role", ["producer", "consumer"])
@pytest.mark.parametrize(
    ("policy", "words"),
    [("allkeys-lru", "evicts any key, queues with their runs"), ("volatile-ttl", "evicts keys that expire")],
)
async def test_a_server_that_evicts_is_warned_of_once(
    start_server: Start, caplog: pytest.LogCaptureFixture, role: str, policy: str, words: str
) -> None:
    server = start_server()
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", policy)
    for name in ("one", "two"):
        url = with_options(server.url, name=name, shards=3)
        if role == "producer":
            async with managing(url, note) as manager:
                await manager.queue(note)
                await manager.queue(note)
        else:
            consumer = TaskConsumer(broker_url=url)
            await consumer.startup()
            await until(lambda: warnings_of(caplog))
            await consumer.shutdown()
    [warning] = warnings_of(caplog)
    assert f"maxmemory-policy {policy}: " in warning
    assert words in warning
    assert "noeviction" in warning


async def test_a_server_that_evicts_nothing_is_not(start_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start_server()
    async with managing(server.url, note) as manager:
        await manager.queue(note)
    assert warnings_of(caplog) == []


async def test_who_may_not_know_the_policy_asks_once(start_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start_server()
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "+@all", "-info")
        for _ in range(2):
            async with managing(server.url.replace("://", "://worker:secret@"), note) as manager:
                await manager.queue(note)
        assert [entry["object"] for entry in admin.acl_log()] == ["info"]
        assert warnings_of(caplog) == []


@pytest.mark.parametrize("policy", ["volatile-lru", "noeviction", ""])
async def test_a_full_server_names_its_policy(start_server: Start, policy: str) -> None:
    server = start_server()
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", policy or "noeviction")
        admin.execute_command(
            "ACL", "SETUSER", "worker", "on", ">secret", "~*", "+@all", *([] if policy else ["-info"])
        )
        async with managing(server.url.replace("://", "://worker:secret@"), note) as manager:
            await manager.queue(note)
            admin.config_set("maxmemory", 1)
            with pytest.raises(BrokerFullError) as caught:
                await manager.queue(note)
            admin.config_set("maxmemory", 0)
    assert "evicts nothing" not in str(caught.value)
    assert ("noeviction" in str(caught.value)) == (policy == "noeviction")
    assert f"(maxmemory-policy {policy})" in str(caught.value) or not policy


async def test_a_server_with_no_room_for_another_client_says_so(start_server: Start) -> None:
    server = start_server()
    with redis.Redis.from_url(server.url) as admin, contextlib.ExitStack() as held:
        admin.config_set("maxclients", 4)
        for _ in range(3):
            sock = held.enter_context(socket.create_connection((HOST, server.port)))
            sock.sendall(b"PING\r\n")
            assert sock.recv(64) == b"+PONG\r\n"
        for _ in range(3):
            manager = TaskManager(broker_url=server.url)
            manager.register_task(note)
            with pytest.raises(BrokerConnectionError, match="max number of clients reached"):
                await within(manager.queue(note))
            await manager.on_shutdown()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://a?ssl_cert_reqs=none", "ssl_cert_reqs is an option of TLS.* write rediss://"),
        ("unix:///tmp/a?ssl_ca_certs=x", "ssl_ca_certs is an option of TLS"),
        ("redis+sentinel://a/tasks?ssl_keyfile=x", r"ssl_keyfile is an option of TLS.* write rediss\+sentinel://"),
        ("redis+cluster://a?ssl_check_hostname=1", r"ssl_check_hostname is .* write rediss\+cluster://"),
        ("redis://a?sentinel_password=secret", "sentinel_password is for Sentinels"),
        ("rediss+cluster://a?sentinel_username=x", "sentinel_username is for Sentinels"),
        ("rediss://a?ssl_cert_reqs=perhaps", "(?i)certificate requirements|perhaps"),
        ("redis://a?db=first", "db"),
    ],
)
def test_an_option_that_does_not_fit_the_url_is_named(url: str, words: str) -> None:
    for options in ("", "&shards=2"):
        with pytest.raises(BrokerURLError, match=words) as caught:
            TaskBroker.from_url(url + options)
        assert "secret" not in str(caught.value)
