"""The harness itself: what it starts can be relied on, and nothing that it starts stays."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from kits.servers import (
    HOST,
    OVERRIDE,
    RedisServer,
    ServerBinary,
    ServerNotFound,
    ServerStartError,
    find_servers,
    kind_of,
    leaked_keys,
    select_servers,
)

Start = Callable[..., RedisServer]


@contextmanager
def client_of(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True, socket_timeout=10) as client:
        yield client


def test_it_answers_on_loopback_and_is_the_process_it_says(start_server: Start) -> None:
    server = start_server()
    with client_of(server.url) as client:
        assert client.ping()
        assert client.info("server")["process_id"] == server.pid
        assert client.config_get("bind")["bind"] == HOST
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"


def test_stop_leaves_no_process_no_listener_and_no_directory(start_server: Start) -> None:
    server = start_server()
    pid, directory = server.pid, server.directory
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError), socket.create_connection((HOST, server.port), timeout=5):
        pass
    assert not directory.exists()
    assert not server.is_running
    server.stop()  # twice is harmless


@pytest.mark.parametrize("end", [RedisServer.kill, lambda server: None], ids=["killed", "asked to go"])
def test_restart_keeps_port_and_aof_data(start_server: Start, end: Callable[[RedisServer], None]) -> None:
    server = start_server(appendonly="always")
    port, pid = server.port, server.pid
    with client_of(server.url) as client:
        client.rpush("queue", *range(1000))
    end(server)
    server.restart()
    assert server.port == port
    assert server.pid != pid
    with client_of(server.url) as client:
        assert client.llen("queue") == 1000


def test_without_persistence_a_restart_is_empty(start_server: Start) -> None:
    server = start_server()
    with client_of(server.url) as client:
        client.set("key", "value")
    server.restart()
    with client_of(server.url) as client:
        assert client.dbsize() == 0


def test_a_paused_server_keeps_its_connections_and_says_nothing_until_resumed(start_server: Start) -> None:
    server = start_server()
    with socket.create_connection((HOST, server.port), timeout=10) as connection:
        server.pause()
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(64)
        server.resume()
        connection.settimeout(10)
        assert connection.recv(64) == b"+PONG\r\n"


def test_a_paused_server_can_be_stopped(start_server: Start) -> None:
    server = start_server()
    server.pause()
    server.stop()
    assert not server.is_running


def test_password_acl_maxmemory_and_socket(start_server: Start) -> None:
    secret = 'p@ss "word"\\/:?'
    server = start_server(requirepass=secret, maxmemory="64mb", unixsocket=True, extra=["maxclients 77"])
    for url in (server.url, server.unix_url):
        with client_of(url) as client:
            assert client.config_get("maxmemory")["maxmemory"] == str(64 * 1024 * 1024)
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            assert client.config_get("maxclients")["maxclients"] == "77"
    with client_of(server.url_as("", "wrong")) as client, pytest.raises(redis.AuthenticationError):
        client.ping()

    server = start_server(acl=["user default off", "user worker on >secret ~* +@all -@admin"])
    with client_of(server.url_as("worker", "secret")) as client:
        assert client.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.config_get("maxmemory")


def test_a_failed_start_shows_the_log_and_leaves_nothing(start_server: Start) -> None:
    with pytest.raises(ServerStartError, match="no-such-directive"):
        start_server(extra=["no-such-directive 1"])


def test_a_fixed_port_that_is_taken_is_an_error_and_not_a_server_of_somebody_else(start_server: Start) -> None:
    first = start_server()
    with pytest.raises(ServerStartError, match=f"port {first.port}"):
        start_server(port=first.port)
    with client_of(first.url) as client:
        assert client.ping()


def test_a_port_that_is_lost_in_the_race_is_replaced(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start_server()
    offers = [first.port, first.port]
    free = sys.modules["kits.servers"].free_port
    monkeypatch.setattr("kits.servers.free_port", lambda: offers.pop() if offers else free())
    second = start_server()
    assert not offers
    assert second.port != first.port


def test_it_outlives_the_thread_that_started_it(start_server: Start) -> None:
    started: list[RedisServer] = []
    thread = threading.Thread(target=lambda: started.append(start_server()))
    thread.start()
    thread.join()
    with client_of(started[0].url) as client:
        assert client.ping()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_it_dies_with_a_killed_parent(paused: bool) -> None:
    program = (
        "import sys; from kits.servers import RedisServer\n"
        "server = RedisServer().start()\n"
        f"server.pause() if {paused} else None\n"
        "print(server.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        with socket.create_connection((HOST, port), timeout=20) as connection:
            parent.send_signal(signal.SIGKILL)
            # The end of the connection is the end of the server; a reset where a paused one had not accepted it.
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_find_servers_takes_the_override_first_and_refuses_what_is_none(tmp_path: Path) -> None:
    here = find_servers({})
    for binary in here.values():
        overridden = find_servers({OVERRIDE: binary.path})
        assert next(iter(overridden.values())) == binary
        assert set(overridden) == set(here)
    impostor = tmp_path / "redis-server"
    impostor.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(ServerNotFound, match=f"{OVERRIDE}.*does not run"):
        find_servers({OVERRIDE: str(impostor)})
    impostor.chmod(0o755)
    with pytest.raises(ServerNotFound, match=f"{OVERRIDE}.*hello"):
        find_servers({OVERRIDE: str(impostor)})


def test_kinds() -> None:
    servers = [("Valkey", "7.2.5"), ("Valkey", "8.1.8"), ("Valkey", "9.1.2"), ("Redis", "6.2.14"), ("Redis", "8.2.1")]
    assert [kind_of(*server) for server in servers] == ["valkey", "valkey", "valkey9", "redis6", "redis8"]


def test_select_servers_never_leaves_out_what_was_asked_for() -> None:
    found = {kind: ServerBinary(kind, f"/{kind}", "1.2.3") for kind in ("valkey", "redis7")}
    assert list(select_servers("default", found)) == ["valkey"]
    assert list(select_servers("all", found)) == ["valkey", "redis7"]
    assert list(select_servers("redis7, valkey", found)) == ["redis7", "valkey"]
    with pytest.raises(ServerNotFound, match=r"redis6.*found: valkey 1\.2\.3, redis7 1\.2\.3"):
        select_servers("redis7,redis6", found)
    for wanted, servers in (("", found), ("default", {}), ("all", {})):
        with pytest.raises(ServerNotFound):
            select_servers(wanted, servers)


def test_leaked_keys_sees_what_never_expires_under_one_name(redis_server: RedisServer, redis_url: str) -> None:
    name = redis_url.partition("?name=")[2]
    with client_of(redis_server.url) as client:
        try:
            client.set(f"{{{name}}}-leaked", 1)
            client.set(f"{{{name}:1}}-leaked-of-a-shard", 1)
            client.set(f"{{{name}}}-tasks-add", 1)
            client.set(f"{{{name}}}-expires", 1, ex=60)
            client.set("{another}-key", 1, ex=60)
            assert leaked_keys(client, name, ["*-tasks-*"]) == [f"{{{name}:1}}-leaked-of-a-shard", f"{{{name}}}-leaked"]
        finally:
            client.delete(*client.scan_iter(match=f"*{name}*"))
        assert leaked_keys(client, name) == []


def test_every_test_has_a_name_of_its_own(redis_url: str, broker_url: str, no_leaked_keys: object) -> None:
    names = {url.rpartition("?name=" if "?" in url else "//")[2] for url in (redis_url, broker_url)}
    assert len(names) == 2


async def test_async_tests_run_on_the_loop_that_was_asked_for(
    pytestconfig: pytest.Config, loop_factory: Callable[[], object]
) -> None:
    asked = "uvloop" if pytestconfig.getoption("--loop") == "uvloop" else "asyncio"
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == asked
