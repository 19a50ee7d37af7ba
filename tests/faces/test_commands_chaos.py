"""``python -m fluidfast chaos``: on a server of the test's own, which has to be empty."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from kits.command_kit import COMMAND, Running, environment, run, until
from kits.servers import HOST, RedisServer
from kits.topology_kit import Authority, start_sentinels, tls_in_front, tls_url

from fluidfast.brokers.url import BrokerURL
from fluidfast.commands import main
from fluidfast.commands.target import url_of_its_own
from fluidfast.commands.trials import chaos_process

FAULTS = Path(__file__).parents[1] / "faults"


@pytest.fixture
def server(start_server: Callable[..., RedisServer]) -> RedisServer:
    return start_server()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


def error_of(done: Any) -> str:
    assert (done.returncode, done.stdout) == (1, ""), done
    [line] = done.stderr.splitlines()
    assert line.startswith("fluidfast: error: "), done
    return str(line)


def exit_code_of(*arguments: str) -> Any:
    """Of arguments that are refused, or answered, before there is anything to run: it needs no process."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_short_campaign_passes_and_adds_up(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    options = ("--minutes", "0.1", "--workers", "2", "--seed", "7", "--json", "result.json")
    done = run("chaos", "--broker", server.url, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["passed"] is True
    assert min(result[fault] for fault in ("kills", "pauses", "cuts", "connections_cut")) > 0
    assert result["acknowledged"] > 100
    shares = ("ok", "recovered", "duplicated", "lost", "dead", "unexpected", "open")
    assert sum(result[share] for share in shares) == result["attempted"]
    for name in ("lost", "unexpected", "unexplained", "left_on_broker"):
        assert result[name] == 0
    assert result["exits"] == []
    assert f"{result['attempted']:,}, of which {result['acknowledged']:,} acknowledged" in done.stdout
    assert client.dbsize() == 0


async def passes_at(url: str, tmp_path: Path, client: redis.Redis) -> None:
    """A short campaign through this URL."""
    options = ("--minutes", "0.06", "--workers", "2", "--seed", "7", "--json", "-")
    done = await asyncio.to_thread(run, "chaos", "--broker", url, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    result = json.loads(done.stdout)
    assert result["passed"] is True
    assert result["acknowledged"] > 0
    assert result["cuts"] > 0
    assert result["connections_cut"] > 0
    assert client.dbsize() == 0


async def test_over_tls(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    """Its processes know the authority, whose path the URL has to escape, and their cuts end TLS too.

    Where connecting takes its time: a process whose first connection ends gives up, so none is cut before it has one.
    """
    authority = Authority(tmp_path / "our authority + more")
    async with tls_in_front(server, authority.sign("server", f"IP:{HOST}"), held=1.2) as port:
        await passes_at(tls_url(port, ssl_ca_certs=authority.path), tmp_path, client)


async def test_over_sentinel(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    sentinels: list[RedisServer] = []
    try:
        await passes_at(await start_sentinels(server, tmp_path, sentinels, replicas=0), tmp_path, client)
    finally:
        for sentinel in sentinels:
            sentinel.kill()
            sentinel.stop()


@pytest.mark.soak
def test_as_many_as_it_can(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    options = ("--minutes", "0.02", "--workers", "2", "--rate", "0", "--json", "-")
    done = run("chaos", "--broker", server.url, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    result = json.loads(done.stdout)
    assert result["acknowledged"] > 600  # without the option no more than 360
    assert result["refused"] == 0  # the producer waits
    assert client.dbsize() == 0


def test_the_bar_is_for_a_terminal_and_goes_again(tmp_path: Path, server: RedisServer) -> None:
    """Also after Ctrl-C: what follows begins at the start of an empty line."""
    ours, theirs = os.openpty()
    command = [*COMMAND, "chaos", "--broker", server.url]
    chaos = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while b" cuts" not in shown:
            shown += os.read(ours, 1000)
        chaos.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end is closed
            while data := os.read(ours, 1000):
                shown += data
        assert chaos.wait(30) == 130
    finally:
        chaos.kill()
        chaos.wait()
        os.close(ours)
    assert b"faults " in shown
    assert b" kills, " in shown
    assert shown.endswith(b"\r\x1b[1A\x1b[2K")  # up to the bar's line, and clear it


def test_a_bug_is_seen(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    """Workers that settle what they claim before they run it: what a kill takes with it is lost."""
    (tmp_path / "sitecustomize.py").write_text("import plants\nplants.plant('ack-before-run')\n")
    paths = os.pathsep.join((str(tmp_path), str(FAULTS)))
    options = ("--minutes", "0.05", "--rate", "0", "--seed", "7", "--json", "-")  # no worker is idle when it is killed
    done = run("chaos", "--broker", server.url, *options, cwd=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 1, done
    result = json.loads(done.stdout)
    assert result["lost"] > 0
    assert result["passed"] is False
    assert client.dbsize() == 0


def test_ctrl_c_removes_keys_and_processes(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    with Running("chaos", "--broker", server.url, cwd=tmp_path) as chaos:
        until(lambda: next(client.scan_iter("*ff:lease:*"), None), "a lease")
        children = chaos.children()
        assert children
        chaos.signal(signal.SIGINT)
        assert chaos.end() == 130
    assert chaos.stdout.startswith("INTERRUPTED")
    assert chaos.stderr == ""
    assert client.dbsize() == 0
    assert all(map(ended, children))


def test_its_processes_die_with_it(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    """Also one that stands still."""
    with Running("chaos", "--broker", server.url, cwd=tmp_path) as chaos:
        until(lambda: next(client.scan_iter("*ff:lease:*"), None), "a lease")
        children = chaos.children()
        os.kill(children[0], signal.SIGSTOP)
        chaos.signal(signal.SIGKILL)
        chaos.end()
        until(lambda: all(map(ended, children)), "the processes have ended")


def test_a_server_with_keys_of_others(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    """Over shards: the key that says how many they are is ours, and goes too."""
    client.set("users:1", "Grace")
    client.set("users:2", "Ada")
    url = f"{server.url}?shards=2"
    line = error_of(run("chaos", "--broker", url, cwd=tmp_path))
    assert "2 keys of others ('users:1', 'users:2')" in line
    assert "--force" in line
    done = run("chaos", "--broker", url, "--minutes", "0.03", "--force", cwd=tmp_path)
    assert done.returncode == 0, done
    assert sorted(client.keys()) == [b"users:1", b"users:2"]


def test_a_user_who_may_not_look(tmp_path: Path, server: RedisServer, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "eve", "on", ">secret", "~*", "&*", "+@all", "-dbsize")
    line = error_of(run("chaos", "--broker", server.url.replace("://", "://eve:secret@"), cwd=tmp_path))
    assert "cannot check whether the server holds other keys" in line
    assert "secret" not in line


def test_what_cannot_be(tmp_path: Path) -> None:
    assert "127.0.0.1:1" in error_of(run("chaos", "--broker", "redis://:pw@127.0.0.1:1", cwd=tmp_path))
    assert "give the URL of a server" in error_of(run("chaos", "--broker", "memory://", cwd=tmp_path))
    assert "unknown scheme 'carrier'" in error_of(run("chaos", "--broker", "carrier://pigeon", cwd=tmp_path))
    bad = ("chaos", "--broker", "redis://127.0.0.1:1", "--json", "no/such.json")
    assert "no/such.json" in error_of(run(*bad, cwd=tmp_path))
    for option, value in (("--minutes", "0"), ("--rate", "-1"), ("--workers", "0")):
        assert exit_code_of("chaos", "--broker", "redis://127.0.0.1:1", option, value) == 2
    assert exit_code_of("chaos") == 2


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/redis.sock?db=1&name=other",
        "rediss://u:p%40w@host:7/1?ssl_ca_certs=%2Fa%20b",
        "redis+sentinel://a:1,b:2/main?name=other",
    ],
)
def test_a_url_is_the_same_but_for_the_name(url: str) -> None:
    found = url_of_its_own(url, "chaos", lease_seconds="2")
    assert found.partition("?")[0] == url.partition("?")[0]
    query = BrokerURL(found).query
    assert query.pop("name").startswith("chaos-")
    expected = BrokerURL(url).query
    expected.pop("name", None)
    assert query == {**expected, "lease_seconds": "2"}


def test_a_cut_ends_connections_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By TCP and by a socket of Unix; a pair of this process, such as event loops have, stays."""
    one, two = socket.socketpair()
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    by_unix = socket.socket(socket.AF_UNIX)
    by_unix.connect(str(tmp_path / "s"))
    by_tcp = socket.create_connection(tcp.getsockname())
    with one, two, unix, tcp, by_unix, by_tcp:
        ours = [str(sock.fileno()) for sock in (one, two, unix, tcp, by_unix, by_tcp)]
        monkeypatch.setattr(chaos_process.os, "listdir", lambda path: ours)
        assert chaos_process.cut_connections() == 2
        assert by_unix.recv(1) == by_tcp.recv(1) == b""
        one.sendall(b"x")
        assert two.recv(1) == b"x"
