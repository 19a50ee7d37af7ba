"""URLs of a Redis broker, and what a server refuses."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from time import monotonic

import pytest
from kits.broker_kit import MEDIUM, put, take, with_options
from kits.redis_broker_kit import StartServer, consumer_of, note
from kits.servers import RedisServer
from kits.waiting import within

from fluidfast import TaskManager
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.errors import BrokerAuthError, BrokerConnectionError, BrokerError, BrokerURLError


class TestURL:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("nonesuch://localhost", "Invalid broker nonesuch://localhost"),
            ("localhost:6379", "Invalid broker"),
            ("redis://localhost?lease_secs=3", "unknown option 'lease_secs'"),
            ("redis://localhost?lease_seconds=0", "lease_seconds='0'"),
            ("redis://localhost?lease_seconds=nan", "lease_seconds='nan'"),
            ("redis://localhost?lease_seconds=soon", "lease_seconds='soon'"),
            ("redis://localhost?queues=high,urgent", "queues='high,urgent'"),
            ("redis://localhost?wire=pickle", "wire='pickle'"),
            ("redis://localhost?max_payload_bytes=-1", "max_payload_bytes='-1'"),
            ("redis://localhost?max_payload_bytes=0.5", "max_payload_bytes='0.5'"),
            ("redis://localhost:port", "redis://localhost:port"),
            ("redis://localhost:99999", "redis://localhost:99999"),
            ("redis://[::1", "redis://"),
            ("redis://localhost?db=first", "db"),
            ("memory://?lease_secs=3", "unknown option 'lease_secs'"),
        ],
    )
    def test_errors(self, url: str, message: str) -> None:
        with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
            TaskManager(broker_url=url)
        assert isinstance(caught.value, BrokerURLError)

    def test_options(self) -> None:
        broker = TaskBroker.from_url(
            "redis://localhost?name=a&lease_seconds=1.5&wire=msgpack&max_payload_bytes=1000&queues=low&name=b"
        )
        assert broker.name == "b"
        assert broker.options.lease_seconds == 1.5
        assert broker.options.queues == ("low",)
        assert broker.options.max_payload_bytes == 1000
        assert broker.codec.msgpack

    def test_config_over_url(self) -> None:
        manager = TaskManager(broker_url="redis://localhost?lease_seconds=1.5", lease_seconds=7, max_payload_bytes=99)
        assert manager.broker.options.lease_seconds == 7
        assert manager.broker.codec.max_bytes == 99

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://localhost:6379/1?name=a", "redis://localhost:6379/1?name=a"),
            ("redis://localhost:6379/1?name=a@b", "redis://localhost:6379/1?name=a@b"),
            ("redis://:hunter2@localhost:6379/1?name=a", "redis://:***@localhost:6379/1?name=a"),
            ("redis://me:hunter2@localhost", "redis://me:***@localhost"),
            ("redis://me:hunter2@[::1]:1/0", "redis://me:***@[::1]:1/0"),
            ("redis://me@localhost", "redis://me@localhost"),
            # characters that should have been escaped
            ("redis://me:hun/ter2@localhost:6379/1", "redis://me:***@localhost:6379/1"),
            ("redis://me:hun#ter2@localhost", "redis://me:***@localhost"),
            ("redis://:hun?ter2@localhost?name=a", "redis://:***@localhost?name=a"),
            ("redis://:hunt@er2@localhost", "redis://:***@localhost"),
            ("redis://:h[unter2@localhost", "redis://:***@localhost"),
            ("redis+sentinel://me:hunter2@a:1,b:2/main", "redis+sentinel://me:***@a:1,b:2/main"),
            (
                "rediss://localhost?ssl_keyfile_password=hunter2&name=a",
                "rediss://localhost?ssl_keyfile_password=***&name=a",
            ),
            ("redis+sentinel://a/main?sentinel_password=hunter2", "redis+sentinel://a/main?sentinel_password=***"),
        ],
    )
    def test_no_password_is_shown(self, url: str, shown: str) -> None:
        text = self.shown(url)
        assert shown in text
        # The traceback shows source lines of this test; the url is in none of them.
        for part in ("hunter2", "ter2", "hunt", "hun/", "h[un", "'hun'"):
            assert part not in text

    def shown(self, url: str) -> str:
        """All that is said of a broker with this url."""
        try:
            broker = TaskBroker.from_url(url)
        except BrokerURLError as exc:
            return "".join(traceback.format_exception(exc))
        return f"{broker.url} {broker.url!r} {broker!r}"

    async def test_unix_socket(self, start_server: StartServer) -> None:
        server = start_server(unixsocket=True, requirepass="p/w")
        broker = TaskBroker.from_url(with_options(server.unix_url, name="u"))
        assert "p/w" not in str(broker.url)
        assert "p%2Fw" not in str(broker.url)
        await put(broker, b"x")
        assert await take(broker) == [b"x"]
        waiting = asyncio.create_task(broker.wait("a", 60))
        await put(broker, b"y")
        await within(waiting)
        await broker.deregister("a")
        await broker.clear()
        await broker.close()

    async def test_database(self, redis_server: RedisServer, redis_url: str) -> None:
        other = redis_url.replace("/0?", "/5?")
        zero, five = TaskBroker.from_url(redis_url), TaskBroker.from_url(other)
        await put(zero, b"zero")
        await put(five, b"five")
        assert await take(zero) == [b"zero"]
        assert await take(five) == [b"five"]
        await zero.close()
        await five.close()


class TestRefused:
    SECRET = "hun@ter/2 é"

    async def everything(self, url: str) -> list[BrokerError]:
        """The errors of all that a manager may first say to its server."""
        errors: list[BrokerError] = []
        for say in (
            lambda m: m.queue("note", n=1),
            lambda m: m.broker.connect(),
            lambda m: m.broker.queue_length(),
            lambda m: m.broker.claim("a", 1),
            lambda m: m.broker.delay([(1.0, MEDIUM, b"x")]),
            lambda m: m.queue_and_wait("note", timeout=5),
            lambda m: m.broker.wait("a", 1),
            lambda m: m.broker.lock("a").acquire(),
        ):
            manager = TaskManager(broker_url=url)
            manager.register_task(note)
            with pytest.raises(BrokerConnectionError) as caught:
                await within(say(manager))
            assert isinstance(caught.value, RuntimeError)
            errors.append(caught.value)
            await manager.on_shutdown()
        return errors

    async def test_no_server(self) -> None:
        start = monotonic()
        for error in await self.everything("redis://127.0.0.1:1"):
            assert "redis://127.0.0.1:1" in str(error)
            assert not isinstance(error, BrokerAuthError)
        assert monotonic() - start < 10

    async def test_no_server_for_a_consumer(self) -> None:
        consumer = consumer_of("redis://127.0.0.1:1", connect_seconds=0.1)
        with pytest.raises(BrokerConnectionError, match=r"redis://127\.0\.0\.1:1"):
            await within(consumer.startup())
        assert consumer.is_stopped()

    @pytest.mark.parametrize("login", ["", ":wrong@", "nobody:{secret}@", "{secret}@"])
    async def test_wrong_password(
        self, start_server: StartServer, login: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server = start_server(requirepass=self.SECRET)
        from urllib.parse import quote

        login = login.replace("{secret}", quote(self.SECRET, safe=""))
        url = f"redis://{login}127.0.0.1:{server.port}/0"
        for error in await self.everything(url):
            assert isinstance(error, BrokerAuthError)
            text = "".join(traceback.format_exception(error))
            for secret in (self.SECRET, quote(self.SECRET, safe="")):
                if ":" in login:
                    assert secret not in text
                    assert secret not in caplog.text
        good = TaskBroker.from_url(server.url)
        await good.connect()
        await good.close()

    async def test_user_without_rights(self, start_server: StartServer) -> None:
        server = start_server(acl=["user default on nopass ~* +@all", "user weak on >pw ~* +ping +client +select"])
        broker = TaskBroker.from_url(server.url_as("weak", "pw"))
        with pytest.raises(BrokerAuthError) as caught:
            await broker.connect()
        assert "pw" not in str(caught.value)
        await broker.close()

    async def test_wrong_type_under_our_key(self, broker: RedisTaskBroker) -> None:
        await broker.redis_cli.set(broker.task_queue_names[1], b"not a list")
        with pytest.raises(BrokerError, match="WRONGTYPE") as caught:
            await put(broker, b"x")
        assert not isinstance(caught.value, BrokerConnectionError)
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await broker.claim("a", 1)
        await broker.redis_cli.delete(broker.task_queue_names[1])
        await put(broker, b"x")
        assert await take(broker) == [b"x"]
