"""A small project with tests of its own, run by its own pytest: the plugin is found by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fluidfast import TaskManager
from pytest_fluidfast import load

APP = """
from fastapi import FastAPI
from fluidfast import RetryPolicy, TaskManager, TaskRun, crontab, task, task_manager_fastapi

manager = TaskManager(broker_url="redis://127.0.0.1:1")     # nobody is there
manager.deps.sent = []


@task(retry=RetryPolicy(max_attempts=2, wait=60), schedule=crontab(hour=5, minute=0))
async def send(ctx: TaskRun) -> None:
    if ctx.params.get("fails"):
        raise ConnectionError("the mail server is away")
    ctx.deps.sent.append(ctx.params.get("to", "all"))


manager.register_task(send)
app = task_manager_fastapi(manager, app=FastAPI(), insecure=True)


@app.post("/register")
async def register(to: str) -> str:
    await manager.queue(send, to=to)
    return "welcome"


@app.post("/register-sync")
def register_sync(to: str) -> str:
    manager.sync.queue(send, to=to)
    return "welcome"
"""

SYNC = """
import pytest
from fastapi.testclient import TestClient
from app import app, manager, send


@pytest.mark.parametrize("route", ["register", "register-sync"])
@pytest.mark.parametrize("number", [1, 2])
def test_two_event_loops(fluidfast_consumer, number, route):
    manager.deps.sent.clear()
    with TestClient(app) as client:
        assert client.post(f"/{route}?to=grace{number}").json() == "welcome"
        fluidfast_consumer.assert_queued(send, to=f"grace{number}")
        fluidfast_consumer.sync.drain()
        assert client.post(f"/{route}?to=ada").json() == "welcome"
    assert fluidfast_consumer.queued(send) == [{"to": "ada"}]
    assert manager.deps.sent == [f"grace{number}"]


def test_eager(fluidfast_consumer):
    manager.deps.sent.clear()
    with fluidfast_consumer.eager(), TestClient(app) as client:
        client.post("/register?to=ada")
        client.post("/register-sync?to=grace")
        assert manager.deps.sent == ["ada", "grace"]


def test_schedule(fluidfast_manager, fluidfast_consumer):
    assert fluidfast_manager is manager
    fluidfast_consumer.sync.travel(86400)
    assert fluidfast_consumer.queued(send) == [{}]


def test_a_test_without_fixtures():
    assert str(manager.broker.url).startswith("redis://")
"""

ASYNC = """
from app import manager, send

MARK


async def test_drain(fluidfast_consumer):
    manager.deps.sent.clear()
    await manager.queue(send, to="grace")
    assert (await fluidfast_consumer.drain()).states == {"success": 1}
    assert manager.deps.sent == ["grace"]


async def test_retries(fluidfast_manager, fluidfast_consumer):
    await fluidfast_manager.queue(send, fails=True)
    assert (await fluidfast_consumer.drain(delayed=True)).states == {"failure": 3}


async def test_each_test_has_its_own_broker(fluidfast_consumer):
    assert fluidfast_consumer.queued_runs() == []
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Run:
    """Write a project and run its tests."""

    def run(ini: str, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "app.py").write_text(APP)
        (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = -q -p no:cacheprovider\n{WARNINGS}{ini}")
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FLUID"))}
        return subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


ASYNCIO = "asyncio_default_fixture_loop_scope = function\n"
WARNINGS = "filterwarnings =\n    error\n    ignore:Using .httpx. with .starlette\n"
WITHOUT = ("-p", "no:asyncio")
ANYIO = """
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
OPTIONS = "pythonpath = .\nfluidfast_manager = app:manager\n"


def passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mode", "mark"),
    [
        (f"{ASYNCIO}asyncio_mode = auto\n", ""),
        (f"{ASYNCIO}asyncio_mode = strict\n", "import pytest\npytestmark = pytest.mark.asyncio"),
        ("", ANYIO),
    ],
    ids=["auto", "strict", "anyio"],
)
def test_async_tests(project: Run, mode: str, mark: str) -> None:
    without = () if mode else WITHOUT
    passed(project(OPTIONS + mode, *without, test_sync=SYNC, test_async=ASYNC.replace("MARK", mark)), 10)


def test_an_overridden_fixture(project: Run) -> None:
    conftest = """
        import pytest
        import app

        @pytest.fixture
        def fluidfast_target():
            return app.manager
    """.replace("\n        ", "\n")
    passed(project("pythonpath = .\n", *WITHOUT, "-p", "no:anyio", conftest=conftest, test_sync=SYNC), 7)


def test_other_projects_do_not_import_fluidfast_and_a_test_without_a_manager_gets_a_new_one(project: Run) -> None:
    test = """
        import sys

        def test_other():
            assert "pytest_fluidfast" in sys.modules
            assert "fluidfast" not in sys.modules
            assert "msgspec" not in sys.modules

        async def test_new(fluidfast_manager, fluidfast_consumer):
            assert dict(fluidfast_manager.registry) == {}
    """.replace("\n        ", "\n")
    passed(project(f"{ASYNCIO}asyncio_mode = auto\n", test_other=test), 2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere:manager", "No module named 'nowhere'; is its folder on Python's path? Set pythonpath = . beside it"),
        ("kits.faces_app:manger", "has no attribute 'manger'"),
        ("fluidfast:task", "task() failed: TaskDecoratorError: write @task"),
        ("fluidfast:crontab", "that is of type crontab, it must be a TaskManager: write module:manager"),
        ("fluidfast", "that is of type module, it must be a TaskManager: write module:manager"),
        ("kits faces", "invalid format"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, says: str) -> None:
    with pytest.raises(pytest.UsageError) as caught:
        load(name)
    assert str(caught.value).startswith(f"fluidfast_manager = {name} (pytest's configuration): ")
    assert says in str(caught.value)


def test_a_function_that_returns_the_manager() -> None:
    assert type(load("fluidfast:TaskManager")) is TaskManager
