"""An application whose CPU-bound tasks treat their process badly: ``python forks_app.py exec NAME ...``."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from fluidfast import TaskManager, TaskRun, task
from fluidfast.cli import TaskManagerCLI

if "FORKS_APP_THREAD" in os.environ and sys.argv[1:2] == ["exec"]:
    threading.Thread(target=threading.Event().wait, name="metrics", daemon=True).start()

calls = entered = 0


class What(msgspec.Struct):
    how: str = ""
    text: str = ""


class Context:
    async def __aenter__(self) -> None:
        global entered
        entered += 1

    async def __aexit__(self, *exc_info: object) -> None: ...


def look(file: str) -> None:
    global calls
    calls += 1
    with Path(file).open("a") as out:
        out.write(f"{os.getpid()} {calls} {os.environ.get('OF_THE_TASK', '-')} {random.random()} {entered}\n")


def treat(ctx: TaskRun[What]) -> None:
    how, text = ctx.params.how, ctx.params.text
    if how == "closes":
        os.closerange(0, 1000)
    elif how == "os._exit(0)":
        os._exit(0)
    elif how == "os._exit(3)":
        os._exit(3)
    elif how == "sys.exit(4)":
        sys.exit(4)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "raises":
        raise ValueError("bad \x1b value")
    elif how == "abort":
        ctx.abort("as it was asked to")
    elif how == "floods":
        sys.stdout.write(("x" * 99 + "\n") * 200_000)
    elif how == "leaves a process":
        if os.fork() == 0:
            for number in (0, 1, 2):
                os.close(number)
            time.sleep(5)
            os._exit(0)
    elif how == "look":
        look(text)
    elif how in ("sleeps", "ignores SIGTERM"):
        Path(text).write_text(f"{os.getpid()}\n")
        time.sleep(60)
    elif how == "starts a process":
        with subprocess.Popen(["sleep", "60"]) as process:
            Path(text).write_text(f"{os.getpid()}\n{process.pid}\n")


@task(cpu_bound=True)
async def forked(ctx: TaskRun[What]) -> None:
    if ctx.params.how == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    treat(ctx)


@task(cpu_bound="pool")
async def pooled(ctx: TaskRun[What]) -> None:
    if ctx.params.how == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    treat(ctx)


@task(cpu_bound=True, timeout_seconds=0.3)
def short_forked(ctx: TaskRun[What]) -> None:
    treat(ctx)


@task(cpu_bound="pool", timeout_seconds=0.3)
def short_pooled(ctx: TaskRun[What]) -> None:
    treat(ctx)


@task(cpu_bound="spawn")
def spawned(ctx: TaskRun[What]) -> None:
    treat(ctx)


@task(cpu_bound=True, env={"OF_THE_TASK": "yes"})
def with_env(ctx: TaskRun[What]) -> None:
    treat(ctx)


def made() -> TaskManager:
    manager = TaskManager(broker_url="memory://forks")
    manager.register_from_dict(globals())
    manager.add_async_context_manager(Context())
    return manager


async def hold(folder: str) -> None:
    """Have a run of each kind hang; they write process ids to files of their names."""
    async with made() as manager:
        await asyncio.gather(
            *(manager.execute(name, how="starts a process", text=f"{folder}/{name}") for name in ("forked", "pooled"))
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        sys.orig_argv[:] = sys.orig_argv[: sys.orig_argv.index("hold")]
        asyncio.run(hold(sys.argv[2]))
    else:
        TaskManagerCLI(made)()
