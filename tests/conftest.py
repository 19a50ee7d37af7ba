"""What every test may ask for: a server that the run started itself, a broker name of its own, a choice of loop.

pytest                          everything, on the default server
pytest tests/brokers --servers=all
pytest --servers=redis6,redis7  the contract suite on each, everything else on the first
pytest --loop=uvloop
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from kits.declared import only_declared_keys
from kits.servers import RedisServer, ServerBinary, ServerNotFound, find_servers, leaked_keys, select_servers

if TYPE_CHECKING:
    from kits.postgres import PostgresServer

FOUND = pytest.StashKey[dict[str, ServerBinary]]()
SHARDED = "-sharded"
CONTRACT = Path(__file__).parent / "brokers" / "contract"
"""Run on a broker over several shards, and with scripts that may touch declared keys only, too."""
DECLARED = "-declared"
SELECTED = pytest.StashKey[dict[str, ServerBinary]]()


def pytest_configure() -> None:
    # A run that a script has put into the background ignores Ctrl-C, and so would all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests start hundreds of processes that import the package: each would compile all of it, which doubles its start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # How long an example takes, or is drawn for, says something about the machine only.
    settings.register_profile("any machine", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
    settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fluidfast")
    group.addoption(
        "--servers",
        default="default",
        metavar="KINDS",
        help="default, all, or a list of kinds (valkey, valkey9, redis8 ...); a kind that is not here fails the run",
    )
    group.addoption("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop of async tests")


def loop_factory_of(config: pytest.Config) -> Callable[[], asyncio.AbstractEventLoop]:
    if config.getoption("--loop") == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def pytest_asyncio_loop_factories(config: pytest.Config) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {config.getoption("--loop"): loop_factory_of(config)}


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    try:
        found = find_servers()
        selected = select_servers(config.getoption("--servers"), found)
    except ServerNotFound as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[FOUND] = found
    config.stash[SELECTED] = selected


def pytest_report_header(config: pytest.Config) -> list[str]:
    selected = ", ".join(map(str, config.stash[SELECTED].values()))
    here = ", ".join(map(str, config.stash[FOUND].values()))
    return [f"servers: {selected} (found: {here})", f"loop: {config.getoption('--loop')}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.getoption("markexpr"):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_url" not in metafunc.fixturenames:
        return
    for marker in metafunc.definition.iter_markers("parametrize"):
        names = marker.args[0]
        if "broker_url" in (names.replace(" ", "").split(",") if isinstance(names, str) else names):
            return
    kinds = ["memory", *metafunc.config.stash[SELECTED]]
    if metafunc.definition.path.is_relative_to(CONTRACT):
        kinds += [f"{kinds[1]}{SHARDED}", f"{kinds[1]}{DECLARED}"]
    metafunc.parametrize("broker_url", kinds, indirect=True)


class Servers:
    """The servers of the session, each started when it is first asked for."""

    def __init__(self, binaries: dict[str, ServerBinary]) -> None:
        self.binaries = binaries
        self.running: dict[str, RedisServer] = {}
        self.watched: list[tuple[str, str, str, tuple[str, ...]]] = []  # kind, name, test, allowed globs

    def __getitem__(self, kind: str) -> RedisServer:
        if kind not in self.running:
            self.running[kind] = RedisServer(self.binaries[kind]).start()
        return self.running[kind]

    def leaks(self) -> list[str]:
        lines = []
        for kind, server in self.running.items():
            with redis.Redis.from_url(server.url) as client:
                for watched_kind, name, test, allowed in self.watched:
                    if watched_kind == kind:
                        lines += [f"{test}: {key}" for key in leaked_keys(client, name, allowed)]
        return lines


@pytest.fixture(scope="session")
def session_servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    servers = Servers(pytestconfig.stash[SELECTED])
    try:
        yield servers
        leaks = servers.leaks()
    finally:
        for server in servers.running.values():
            server.stop()
    if leaks:
        pytest.fail("keys without a TTL are left:\n" + "\n".join(leaks), pytrace=False)


@pytest.fixture(scope="session")
def server_kind(pytestconfig: pytest.Config) -> str:
    """The kind of `redis_server`: the first of those selected."""
    return next(iter(pytestconfig.stash[SELECTED]))


@pytest.fixture(scope="session")
def redis_server(session_servers: Servers, server_kind: str) -> RedisServer:
    """The server that the session shares. Do not stop, pause or flush it: `start_server` gives one to maltreat."""
    return session_servers[server_kind]


@pytest.fixture
def start_server(pytestconfig: pytest.Config, server_kind: str) -> Iterator[Callable[..., RedisServer]]:
    """Start servers of the test's own, of the kind of `redis_server`, with the options of RedisServer."""
    binary = pytestconfig.stash[SELECTED][server_kind]
    started: list[RedisServer] = []

    def start(**options: Any) -> RedisServer:
        server = RedisServer(binary, **options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the session shares, without fsync."""
    from kits.postgres import PostgresServer  # which imports psycopg: most runs need neither

    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database of this test's alone."""
    import psycopg

    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.url_of(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def issued_names() -> list[tuple[str, str]]:
    """(kind of server, name of broker) of every url that this test was given."""
    return []


@pytest.fixture
def redis_url(redis_server: RedisServer, server_kind: str, issued_names: list[tuple[str, str]]) -> str:
    """A url of the shared server with a broker name that is this test's alone."""
    return _named(redis_server, server_kind, issued_names)


@pytest.fixture
def broker_url(request: pytest.FixtureRequest, issued_names: list[tuple[str, str]]) -> Iterator[str]:
    """memory:// and each server that --servers selects, in turn, with a broker name that is this test's alone. In the
    contract suite also the first server with three shards, and with scripts that may touch declared keys only."""
    if request.param == "memory":
        yield f"memory://{_unique_name()}"
        return
    servers: Servers = request.getfixturevalue("session_servers")
    kind = request.param.removesuffix(SHARDED).removesuffix(DECLARED)
    url = _named(servers[kind], kind, issued_names)
    with only_declared_keys() if request.param.endswith(DECLARED) else contextlib.nullcontext():
        yield url + "&shards=3" if request.param.endswith(SHARDED) else url


@pytest.fixture(scope="session")
def loop_factory(pytestconfig: pytest.Config) -> Callable[[], asyncio.AbstractEventLoop]:
    """The loop of --loop, for a test that is not async and runs one of its own."""
    return loop_factory_of(pytestconfig)


class LeakCheck:
    def __init__(self) -> None:
        self.allowed: list[str] = ["*}-ff:shards", "*-ff:failed"]  # a broker keeps its number of shards, failed runs

    def allow(self, *globs: str) -> None:
        """Keys that are meant to stay, such as "*-tasks-*", the registry of tasks."""
        self.allowed += globs


@pytest.fixture
def no_leaked_keys(
    request: pytest.FixtureRequest, session_servers: Servers, issued_names: list[tuple[str, str]]
) -> Iterator[LeakCheck]:
    """At the end of the session, no key of this test's broker may be left that never expires.

    At the end of the session, and not of the test, since it is the fixtures of the test that close its broker.
    """
    check = LeakCheck()
    yield check
    test = request.node.nodeid
    session_servers.watched += [(kind, name, test, tuple(check.allowed)) for kind, name in issued_names]


def _unique_name() -> str:
    return f"t-{uuid.uuid4().hex}"


def _named(server: RedisServer, kind: str, issued: list[tuple[str, str]]) -> str:
    name = _unique_name()
    issued.append((kind, name))
    return f"{server.url}?name={name}"
