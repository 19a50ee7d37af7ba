"""Processes and signals: one stop is one stop, the third signal kills, nobody outlives its supervisor, and children and
descriptors are as everywhere else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits.command_kit import COMMAND, Running, environment, until

from fluidfast.commands import loops
from fluidfast.commands.loops import on_signals

APP = """
import asyncio, multiprocessing, os, signal, time
from contextlib import asynccontextmanager
from pathlib import Path
from fluidfast import TaskManager, TaskRun, task

HERE = Path(__file__).parent

def note(*words):
    with open(HERE / "notes", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

@task(timeout_seconds=600)
async def wait(ctx: TaskRun) -> None:
    note("start", os.getpid())
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    note("end", os.getpid())

@task(timeout_seconds=600)
async def stubborn(ctx: TaskRun) -> None:
    note("start", os.getpid())
    while True:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            pass

@task(timeout_seconds=600)
async def sleeps(ctx: TaskRun) -> None:
    note("start", os.getpid())
    time.sleep(60)

@task(timeout_seconds=600)
async def spins(ctx: TaskRun) -> None:
    note("start", os.getpid())
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass

@task(timeout_seconds=600)
def thread(ctx: TaskRun) -> None:
    note("start", os.getpid())
    time.sleep(60)

manager = TaskManager()
manager.register_from_dict(globals())
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def notes(app: Path, what: str) -> list[int]:
    path = app / "notes"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(what)]


def queue(app: Path, url: str, *names: str) -> None:
    for name in set(names):
        lines = b"{}\n" * names.count(name)
        subprocess.run(
            [*COMMAND, "queue", "app:manager", name, "--from", "-"],
            cwd=app, env=environment(FLUID_BROKER_URL=url), input=lines, check=True, capture_output=True, timeout=60,
        )  # fmt: skip


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


# -- one stop


@pytest.mark.parametrize(("number", "first"), [(signal.SIGTERM, "workers"), (signal.SIGINT, "supervisor")])
def test_a_signal_to_the_whole_group_is_one_stop(app: Path, redis_url: str, number: int, first: str) -> None:
    queue(app, redis_url, *["wait"] * 4)
    options = ("--processes", "2", "--concurrency", "2")
    with Running("worker", "app:manager", *options, cwd=app, FLUID_BROKER_URL=redis_url) as running:
        until(lambda: len(notes(app, "start")) == 4, "four runs")
        pids = [running.process.pid, *running.children()]
        assert len(pids) == 3
        for pid in pids if first == "supervisor" else reversed(pids):
            os.kill(pid, number)
        until(lambda: running.stderr.count("shutting down: ") == 2, "both workers to drain")
        if number == signal.SIGTERM:
            os.kill(pids[0], number)  # a second within a second
        (app / "go").touch()
        assert running.end() == 0
    assert len(notes(app, "end")) == 4
    assert len(notes(app, "start")) == 4
    assert "stopping now" not in running.stderr


def test_the_supervisor_s_third_stop_kills_workers_whose_loop_is_blocked(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "sleeps", "sleeps")
    options = ("--processes", "2", "--concurrency", "1")
    with Running("worker", "app:manager", *options, cwd=app, FLUID_BROKER_URL=redis_url) as running:
        until(lambda: len(notes(app, "start")) == 2, "both runs")
        children = running.children()
        running.signal(signal.SIGINT)
        running.wait_for("draining 2 workers")
        running.signal(signal.SIGINT)
        running.wait_for("stopping now: 2 workers")
        running.signal(signal.SIGINT)
        assert running.end(5) == -signal.SIGINT
    until(lambda: not any(map(is_alive, children)), "the end of the workers", 5)  # not after the grace period


def test_workers_that_are_still_being_imported_are_told_too(app: Path, redis_url: str) -> None:
    (app / "slow.py").write_text(
        "import os, sys\nfrom app import *\n"
        "if 'FLUIDFAST_SUPERVISED' in os.environ:\n    note('start', os.getpid())\n    time.sleep(60)\n"
        "os.environ['FLUIDFAST_SUPERVISED'] = 'yes'\n"
    )
    with Running("worker", "slow:manager", "--processes", "2", cwd=app, FLUID_BROKER_URL=redis_url) as running:
        until(lambda: len(notes(app, "start")) == 2, "both imports")
        running.signal(signal.SIGTERM)
        assert running.end(5) == 0


# -- the third signal


@pytest.mark.parametrize(
    ("name", "number"), [("stubborn", signal.SIGINT), ("sleeps", signal.SIGTERM), ("spins", signal.SIGINT)]
)
def test_the_third_signal_kills(app: Path, redis_url: str, name: str, number: int) -> None:
    queue(app, redis_url, name)
    with Running("worker", "app:manager", cwd=app, FLUID_BROKER_URL=redis_url) as running:
        until(lambda: notes(app, "start"), "the run")
        sent = 0
        deadline = time.monotonic() + 10
        while running.process.poll() is None and time.monotonic() < deadline:
            running.signal(number)
            sent += 1
            time.sleep(0.2)  # they are to be apart, and a blocked loop says nothing
        assert running.process.poll() == -number
        assert sent >= 3


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    before = [signal.getsignal(number) for number in loops.STOP_SIGNALS]
    monkeypatch.setattr(loops, "monotonic", clock)
    yield clock
    for number, handler in zip(loops.STOP_SIGNALS, before, strict=True):
        signal.signal(number, handler)


TERM, BOTH = [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize(
    ("to_groups", "sent", "steps"),
    [
        # a worker
        ([], [("INT", 0), ("INT", 0.1), ("INT", 0.1)], ["drain", "hurry", "kill"]),
        ([], [("TERM", 0), ("INT", 0.1), ("TERM", 0.1)], ["drain", "hurry", "kill"]),
        # a supervisor
        (TERM, [("TERM", 0), ("TERM", 0.9)], ["drain"]),
        (TERM, [("TERM", 0), ("TERM", 1.1), ("TERM", 0.9)], ["drain", "hurry"]),
        (TERM, [("TERM", 0), ("TERM", 1.1), ("TERM", 1.1)], ["drain", "hurry", "kill"]),
        (TERM, [("INT", 0), ("INT", 0.4), ("INT", 0.4)], ["drain", "hurry", "kill"]),
        # a supervised worker
        (BOTH, [("order 1", 0), ("TERM", 0.5), ("order 1", 9)], ["drain"]),
        (BOTH, [("order 1", 0), ("INT", 0.5)], ["drain"]),
        (BOTH, [("TERM", 0), ("order 1", 5), ("TERM", 0.1)], ["drain", "hurry"]),
        (BOTH, [("TERM", 0), ("order 2", 0.1), ("TERM", 0.1)], ["drain", "hurry"]),
        (BOTH, [("order 2", 0)], ["drain", "hurry"]),
        (BOTH, [("TERM", 0), ("INT", 1.1), ("TERM", 1.1)], ["drain", "hurry", "kill"]),
    ],
)
async def test_which_signal_is_which_step(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, to_groups: list[int], sent: list[tuple[str, float]], steps: list[str]
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(loops.os, "kill", lambda pid, number: taken.append("kill"))
    signals = on_signals(
        lambda: taken.append("drain"),
        lambda: taken.append("hurry"),
        to_groups=to_groups,
        before_kill=lambda: taken.append("before kill"),
    )
    for what, later in sent:
        clock.now += later
        if what.startswith("order"):
            signals.go_to(int(what[-1]))
        else:
            signal.raise_signal(getattr(signal, f"SIG{what}"))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [step for step in taken if step != "before kill"] == steps
    assert ("before kill" in taken) == ("kill" in steps)


# -- without a supervisor


def test_workers_without_supervisor_end_whatever_they_run(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "sleeps", "spins", "thread", "stubborn")
    options = ("--processes", "4", "--concurrency", "1")
    variables = {"FLUID_BROKER_URL": redis_url, "FLUID_STOPPING_GRACE_PERIOD": "0.1"}
    with Running("worker", "app:manager", *options, cwd=app, **variables) as running:
        until(lambda: len(notes(app, "start")) == 4, "all runs")
        children = running.children()
        assert sorted(children) == sorted(notes(app, "start"))
        running.process.kill()
        running.process.wait()
        until(lambda: not any(map(is_alive, children)), "the end of the workers", 15)


# -- forked children

FORKS = """
import multiprocessing, os, signal, sys, time
from fluidfast import TaskConsumer, TaskManager, TaskRun, task

fork = multiprocessing.get_context("fork")

def kinds(pipe):
    pipe.send([
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        signal.set_wakeup_fd(-1) == -1,
    ])
    time.sleep(60)

def try_all(where):
    ours, theirs = fork.Pipe()
    child = fork.Process(target=kinds, args=(theirs,))
    child.start()
    print(where, "sees", ours.recv(), flush=True)
    child.terminate()
    child.join(5)
    print(where, "terminated", child.exitcode, flush=True)
    with fork.Pool(2) as pool:
        pool.apply_async(time.sleep, (60,))
        print(where, "pools", pool.map(abs, [-1, -2]), flush=True)
    print(where, "done", flush=True)

@task(timeout_seconds=20)
async def in_loop(ctx: TaskRun) -> None:
    try_all("loop")

@task(timeout_seconds=20)
def in_thread(ctx: TaskRun) -> None:
    try_all("thread")

kind = TaskConsumer if "main" in sys.argv else TaskManager
manager = kind(broker_url="memory://")
manager.register_from_dict({"in_loop": in_loop, "in_thread": in_thread})

class Queue:
    async def __aenter__(self):
        for name in ("in_loop", "in_thread"):
            await manager.queue(name)

    async def __aexit__(self, *_):
        pass

manager.add_async_context_manager(Queue())

async def main():
    import asyncio
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, manager.gracefully_stop)
    await manager.startup()
    await manager.wait_for_shutdown()

if __name__ == "__main__":
    import asyncio
    asyncio.run(main())
"""


@pytest.mark.parametrize("program", ["worker", "program of one's own"])
def test_children_of_a_task_end_by_signals(tmp_path: Path, program: str) -> None:
    (tmp_path / "forks.py").write_text(FORKS)
    command = [*COMMAND, "worker", "forks:manager"] if program == "worker" else [sys.executable, "forks.py", "main"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(PYTHONWARNINGS="ignore"),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        until(lambda: log.read_text().count("done") == 2 or process.poll() is not None, "both tasks")
        process.terminate()  # it has its own handlers still
        assert process.wait(15) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    for where in ("loop", "thread"):
        assert f"{where} sees [True, True, True]" in log.read_text()
        assert f"{where} terminated -15" in log.read_text()
        assert f"{where} pools [1, 2]" in log.read_text()


# -- standard streams

PRINTS = """
import os, sys
from pathlib import Path
from fluidfast import TaskManager, TaskRun, task

@task
async def speak(ctx: TaskRun) -> None:
    for stream in (sys.stdout, sys.stderr):
        print("x" * 100_000, file=stream, flush=True)
    sys.stdin.read()
    ctx.logger.warning("said")
    os.system("echo a child speaks")
    print("not flushed")
    Path(os.environ["MARK"]).touch()

manager = TaskManager()
manager.register_task(speak)

class Queue:
    async def __aenter__(self):
        await manager.queue("speak")

    async def __aexit__(self, *_):
        pass

manager.add_async_context_manager(Queue())
"""


def test_streams_that_are_closed_or_full_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    worker = f'exec "{sys.executable}" -m fluidfast worker prints:manager'
    unread, unread_end = os.pipe()
    streams = {
        "none": "<&- >&- 2>&-",
        "no stdin": "<&-",
        "no stdout": ">&-",
        "no stderr": "2>&-",
        "no stdout, no stderr": ">&- 2>&-",
        "full": "</dev/null >/dev/full 2>&1",
        "nobody reads": "2>&1",
    }
    workers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, redirection in streams.items():
            out = unread_end if name == "nobody reads" else subprocess.DEVNULL
            workers[name] = subprocess.Popen(
                ["sh", "-c", f"{worker} {redirection}"],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                env=environment(MARK=str(tmp_path / name)),
            )
        os.close(unread)
        for name, process in workers.items():
            until(lambda name=name: (tmp_path / name).exists(), f"the run: {name}")  # type: ignore[misc]
            process.terminate()
        assert {name: process.wait(15) for name, process in workers.items()} == dict.fromkeys(streams, 0)
    finally:
        os.close(unread_end)
        for process in workers.values():
            process.kill()
            process.wait()
