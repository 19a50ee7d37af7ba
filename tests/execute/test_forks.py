"""Forked and pooled CPU-bound runs: whatever a task does to its process, its run has one clear outcome, its process and
what that started end with it, and the next run goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from kits import forks_app
from kits.command_kit import ROOT
from kits.waiting import until, within

import fluidfast.execute.cpubound as cpubound
from fluidfast import TaskConsumer, TaskManager, TaskRun
from fluidfast.errors import TaskAbortedError, TaskDecoratorError, TaskRunError
from fluidfast.execute.executor import execute_plain
from fluidfast.execute.forks import Server

WAYS = ["forked", "pooled"]


@pytest.fixture
async def manager(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TaskManager]:
    """This process was started as ``forks_app.py``."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, forks_app.__file__])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    async with forks_app.made() as made:
        yield made


def server_of(manager: TaskManager) -> Server:
    (server,) = (server for key, server in manager.fork_servers._servers.items() if len(key) == 1)
    return server


def process_of(manager: TaskManager) -> int:
    """The process id of the fork server of tasks without an env, which is the parent of its children."""
    child = next(iter(server_of(manager).children.values()))
    return int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until_gone(file: Path) -> None:
    """Wait until the processes in a file are gone."""
    pids = [int(pid) for pid in file.read_text().split()]  # noqa: ASYNC240
    await until(lambda: all(map(is_gone, pids)))


async def pid_in(path: Path) -> int:
    return int(await until(lambda: path.exists() and path.read_text().partition("\n")[0]))


FAILURES = {
    "closes": "exit code 0 and has not executed|exit code 1",
    "os._exit(0)": "exit code 0 and has not executed the run",
    "os._exit(3)": "exit code 3",
    "sys.exit(4)": "exit code 4",
    "kill": "killed by SIGKILL",
    "raises": "exit code 1|ValueError: bad .x1b value",
}


@pytest.mark.parametrize("way", WAYS)
async def test_how_runs_end(way: str, manager: TaskManager, capfd: pytest.CaptureFixture[str]) -> None:
    await within(manager.execute(way))
    for how, said in FAILURES.items():
        with pytest.raises(TaskRunError, match=said):
            await within(manager.execute(way, how=how))
    assert (await within(manager.execute(way, how="abort"))).state == "aborted"
    assert (await within(manager.execute(way, how="", text="x" * 3_000_000))).state == "success"
    capfd.readouterr()
    assert (await within(manager.execute(way, how="floods"))).state == "success"
    lines = capfd.readouterr().out.split("\n")
    assert len(lines) == 200_001
    assert set(lines) == {"x" * 99, ""}
    assert (await within(manager.execute(way, how="leaves a process"))).state == "success"


async def test_isolation_and_reuse(manager: TaskManager, tmp_path: Path) -> None:
    file = tmp_path / "seen"
    for way in ("forked", "forked", "pooled", "pooled", "with_env"):
        await within(manager.execute(way, how="look", text=str(file)))
    seen = [line.split() for line in file.read_text().splitlines()]
    assert [(calls, env) for _, calls, env, _, _ in seen] == [
        ("1", "-"), ("1", "-"), ("1", "-"), ("2", "-"), ("1", "yes")
    ]  # fmt: skip
    assert len({pid for pid, *_ in seen}) == 4
    assert seen[2][0] == seen[3][0]
    assert len({number for *_, number, _ in seen}) == 5
    assert [entered for *_, entered in seen] == ["1"] * 5, "contexts are entered in the child, a pool's once"


async def test_many_at_once(manager: TaskManager, tmp_path: Path) -> None:
    file = tmp_path / "seen"
    await within(asyncio.gather(*(manager.execute("forked", how="look", text=str(file)) for _ in range(60))), 60)
    seen = [line.split() for line in file.read_text().splitlines()]
    assert len({pid for pid, *_ in seen}) == len({number for *_, number, _ in seen}) == 60


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_run_ends_what_it_started(
    way: str, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpubound, "TERM_SECONDS", 0.2)
    for how in ("sleeps", "ignores SIGTERM", "starts a process"):
        file = tmp_path / how
        running = asyncio.create_task(manager.execute(way, how=how, text=str(file)))
        pid = await pid_in(file)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(running)
        assert is_gone(pid)
        if how == "starts a process":
            await until_gone(file)
    with pytest.raises(TimeoutError):
        await within(manager.execute(f"short_{way}", how="sleeps", text=str(tmp_path / "short")))
    assert (await within(manager.execute(way))).state == "success"


async def test_a_server_that_dies(manager: TaskManager, tmp_path: Path) -> None:
    files = [tmp_path / way for way in WAYS]
    await within(manager.execute("forked"))
    running = [
        asyncio.create_task(manager.execute(file.name, how="starts a process", text=str(file))) for file in files
    ]
    await until(lambda: all(file.exists() and len(file.read_text().split()) == 2 for file in files))
    os.kill(process_of(manager), signal.SIGKILL)
    for each, file in zip(running, files, strict=True):
        with pytest.raises(TaskRunError, match="fork server that had started it, which was killed by SIGKILL while"):
            await within(each)
        await until_gone(file)
    for way in WAYS:
        assert (await within(manager.execute(way))).state == "success"


async def test_a_server_that_does_not_answer(
    manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpubound, "TERM_SECONDS", 0.1)
    monkeypatch.setattr("fluidfast.execute.forks.LISTENS", 0.2)
    file = tmp_path / "pid"
    running = asyncio.create_task(manager.execute("pooled", how="sleeps", text=str(file)))
    pid = await pid_in(file)
    server = process_of(manager)
    os.kill(server, signal.SIGSTOP)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(running)
    await until(lambda: is_gone(server) and is_gone(pid))


async def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    files = [tmp_path / name for name in WAYS]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    worker = await asyncio.create_subprocess_exec(sys.executable, forks_app.__file__, "hold", str(tmp_path), env=env)
    try:
        await until(lambda: all(file.exists() and len(file.read_text().split()) == 2 for file in files))
    finally:
        worker.kill()
        await worker.wait()
    for file in files:
        await until_gone(file)


async def test_threads_that_importing_starts(
    manager: TaskManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FORKS_APP_THREAD", "yes")
    for way in ("spawned", *WAYS):
        assert (await within(manager.execute(way))).state == "success"
        told = [record.getMessage() for record in caplog.records if "imports the application anew" in record.message]
        assert len(told) == (way != "spawned")
    assert "importing the application starts threads (metrics)" in told[0]


def test_only_these_ways() -> None:
    with pytest.raises(TaskDecoratorError, match="cpu_bound is 'thread', it must be True, False, 'spawn' or 'pool'"):
        forks_app.task(cpu_bound="thread")(print)  # type: ignore[call-overload]


def test_the_way_is_an_option() -> None:
    made = {name: task.cpu_process for name, task in forks_app.made().registry.items() if task.cpu_bound}
    assert made["forked"] == "fork"
    assert made["pooled"] == "pool"
    assert made["spawned"] == "spawn"


async def later() -> None:
    await asyncio.sleep(0)


def rows(ctx: TaskRun[Any]) -> Any:
    yield 1


def stops(ctx: TaskRun[Any]) -> None:
    raise StopIteration


PLAIN: list[tuple[Callable[[TaskRun[Any]], Any], str, type[Exception] | None]] = [
    (lambda ctx: None, "success", None),
    (lambda ctx: later(), "success", None),
    (lambda ctx: rows(ctx), "failure", TaskRunError),
    (stops, "failure", RuntimeError),
    (lambda ctx: ctx.abort("enough"), "aborted", TaskAbortedError),
    (lambda ctx: ctx.set_state("failure"), "failure", TaskRunError),
]


@pytest.mark.parametrize(("function", "state", "error"), PLAIN)
def test_a_plain_function_without_an_event_loop(
    function: Callable[[TaskRun[Any]], Any], state: str, error: type[Exception] | None
) -> None:
    manager = TaskManager(broker_url="memory://plain")
    run = manager.create_task_run(forks_app.task(name="plain", cpu_bound=True)(function))
    with nullcontext() if error is None else pytest.raises(error):
        execute_plain(run)
    assert run.state == state


def test_what_needs_an_event_loop() -> None:
    consumer = TaskConsumer(broker_url="memory://plain")
    assert not consumer._needs_loop()
    consumer.register_async_handler("success", later)  # type: ignore[arg-type]
    assert consumer._needs_loop()
    assert forks_app.made()._needs_loop()
    assert not TaskManager(broker_url="memory://plain")._needs_loop()
