"""An application as its users write one, for the tests of the faces: `python faces_app.py exec NAME ...`.

Its CPU-bound tasks tell what they see to a socket of the test (`port`), and the end of that connection is the end of
their process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from fluidfast.scheduler import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.scheduler.cli import TaskManagerCLI


class Told(msgspec.Struct):
    port: int = 0
    secret: str = ""


def tell(port: int, value: Any) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(json.dumps(value).encode() + b"\n")
    return connection


def command_lines_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if text.encode() in line:
            found.append(line.decode("utf-8", "replace"))
    return found


@task(cpu_bound=True, env={"OF_THE_TASK": "yes"})
def look(ctx: TaskRun[Told]) -> None:
    """Tell what this process is."""
    print("printed by the child")
    print("complained by the child", file=sys.stderr)
    seen = {
        "pid": os.getpid(),
        "argv": sys.argv[1:],
        "secret": ctx.params.secret,
        "seen_by_others": command_lines_with(ctx.params.secret),
        "env": {name: os.environ.get(name) for name in ("TASK_MANAGER_SPAWN", "OF_THE_TASK")},
        "run": [ctx.id, str(ctx.priority), ctx.retry_attempt, ctx.from_run_id, ctx.root_run_id],
    }
    tell(ctx.params.port, seen).close()


@task(cpu_bound=True)
async def hold(ctx: TaskRun[Told]) -> None:
    """Stay until killed."""
    if ctx.params.secret == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = tell(ctx.params.port, os.getpid())
    while connection.recv(1):
        pass
    await asyncio.sleep(60)


@task(cpu_bound=True)
def give_up(ctx: TaskRun[Told]) -> None:
    """Abort."""
    ctx.abort(ctx.params.secret)


@task(cpu_bound=True)
def fail(ctx: TaskRun[Told]) -> None:
    """Fail."""
    raise RuntimeError("this one fails")


@task(cpu_bound=True)
def leave(ctx: TaskRun[Told]) -> None:
    """End the process with an exit code, or by a signal."""
    if ctx.params.port < 0:
        os.kill(os.getpid(), -ctx.params.port)
    os._exit(ctx.params.port)


@task
async def plain(ctx: TaskRun) -> None:
    """An ordinary task."""


@task(cpu_bound=True)
def quiet(ctx: TaskRun) -> None:
    """Do nothing."""


@task(cpu_bound=True)
def ends(ctx: TaskRun[Told]) -> None:
    """End the process as if all were well, or say that this run is not."""
    if ctx.params.secret == "_exit":
        os._exit(0)
    if ctx.params.secret == "exit":
        sys.exit(0)
    ctx.set_state("failure")


@task(cpu_bound=True)
def has_children(ctx: TaskRun) -> None:
    """Start a process that looks at what it has inherited, and one that stays."""
    program = """
import os
assert not {"FLUIDFAST_RUN", "FLUIDFAST_PARENT"} & set(os.environ)
for number in range(3, 100):
    try:
        os.fstat(number)
    except OSError:
        continue
    raise SystemExit(f"{number} is open")
"""
    subprocess.run([sys.executable, "-c", program], check=True, close_fds=False)
    if os.fork() == 0:
        for number in (0, 1, 2):
            os.close(number)
        time.sleep(5)
        os._exit(0)


TASKS = (look, hold, give_up, fail, leave, plain, quiet, ends, has_children)


def registered(manager: TaskManager) -> TaskManager:
    for each in TASKS:
        manager.register_task(each)
    return manager


def consumer() -> TaskManager:
    return registered(TaskConsumer())


if __name__ == "__main__":
    TaskManagerCLI(consumer)()
