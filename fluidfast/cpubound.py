"""CPU-bound tasks: each run has a process of its own, the application's entry point with the ``exec`` command.

    ENTRY exec NAME --log --run-id ID --params -

The params go down the child's stdin, never into its argv, where every user of the machine could read them. What the
child
prints comes out of this process, line by line. How it ended is its exit code, and for an aborted run the reason on the
broker.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ._run import TaskRun
from .common import cpu_env
from .errors import TaskAbortedError, TaskRunError
from .params import adapter_for

__all__ = ["cpu_bound_command", "exec_args", "run_in_subprocess", "strip_serve"]

ABORTED_EXIT = 79
"""Exit code of a child whose task aborted itself; the reason is on the broker, if that is one that outlives
a process."""
TERM_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
DRAIN_SECONDS = 1.0
"""How long output is awaited when the child is gone (something that it started may keep its end open)."""
LINE_BYTES = 1 << 16
RECORD = "FLUIDFAST_RUN"
PARENT = "FLUIDFAST_PARENT"
PR_SET_PDEATHSIG = 1


def strip_serve(command: Sequence[str]) -> list[str]:
    """The entry point in a command line: everything before ``serve``, or all of it."""
    arguments = list(command)
    return arguments[: arguments.index("serve")] if "serve" in arguments else arguments


def exec_args(ctx: TaskRun[Any, Any]) -> list[str]:
    """What makes an entry point execute this run. The params are not among it, they are read from stdin."""
    return ["exec", ctx.name, "--log", "--run-id", ctx.id, "--params", "-"]


def cpu_bound_command(ctx: TaskRun[Any, Any]) -> list[str]:
    """The command line of a run's process: that of this process without ``serve``, and the ``exec`` command."""
    return [*strip_serve(sys.orig_argv), *exec_args(ctx)]


async def run_in_subprocess(ctx: TaskRun[Any, Any]) -> None:
    """Execute a run in a process of its own, and wait for it. Cancelled, it ends the process before it returns.

    Raises:
        TaskAbortedError: the task aborted itself.
        TaskRunError: the process did not end with exit code 0; the message names the code, the output says why.
        OSError: it could not be started.
    """
    params = adapter_for(ctx.task.params_model).encode(ctx.params)
    command = cpu_bound_command(ctx)
    # A session of its own, so that what the task starts is ended with it.
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(ctx),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    streams = [
        asyncio.ensure_future(feed(process.stdin, params)),
        asyncio.ensure_future(relay(process.stdout, lambda: sys.stdout)),
        asyncio.ensure_future(relay(process.stderr, lambda: sys.stderr)),
    ]
    try:
        await process.wait()
        await asyncio.wait(streams, timeout=DRAIN_SECONDS)
    finally:
        try:
            if process.returncode is None:
                await stop(process)
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
    reason = await ctx.task_manager.broker.get_task_aborted(ctx.id)
    if reason is not None or process.returncode == ABORTED_EXIT:
        raise TaskAbortedError(reason or "aborted in its own process")
    if process.returncode:
        raise TaskRunError(how_it_ended(ctx, process.returncode))


def child_environment(ctx: TaskRun[Any, Any]) -> dict[str, str]:
    """This process's environment, what says that it is a child, what the run is beside its params, and the task's
    own."""
    record = {
        "priority": str(ctx.priority),
        "rate_limit_attempt": ctx.rate_limit_attempt,
        "retry_attempt": ctx.retry_attempt,
        "from_run_id": ctx.from_run_id,
        "root_run_id": ctx.root_run_id,
    }
    env = {"PYTHONUNBUFFERED": "1", **os.environ}  # unbuffered: its lines are relayed as they come
    return {**env, **cpu_env(), RECORD: json.dumps(record), PARENT: str(os.getpid()), **ctx.task.env}


def how_it_ended(ctx: TaskRun[Any, Any], code: int) -> str:
    if code < 0:
        try:
            return f"the process of {ctx.name_id} was killed by {signal.Signals(-code).name} (exit code {code})"
        except ValueError:
            return f"the process of {ctx.name_id} was killed by signal {-code} (exit code {code})"
    hint = "; is its entry point a TaskManagerCLI, which has the exec command?" if code == 2 else ""
    return f"the process of {ctx.name_id} ended with exit code {code}{hint}"


async def feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    """Write all of it and close. A child that does not read is one that says so by its exit code."""
    try:
        stdin.write(data)
        await stdin.drain()
        stdin.close()
        await stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        pass


async def relay(stream: asyncio.StreamReader, target: Callable[[], Any]) -> None:
    """Pass what a child prints on to ``sys.stdout`` or ``sys.stderr``, whole lines at a time (long ones in pieces)."""

    def write(data: bytes) -> None:
        try:
            out = target()
            out.write(data.decode("utf-8", "replace"))
            out.flush()
        except (OSError, ValueError, AttributeError):  # ours is closed, or there is none: the child need not care
            pass

    rest = b""
    try:
        while chunk := await stream.read(LINE_BYTES):
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline or len(rest) > LINE_BYTES:
                write(lines + newline if newline else rest)
                rest = rest if newline else b""
    finally:
        if rest:
            write(rest)


async def stop(process: asyncio.subprocess.Process) -> None:
    """End a child and what it started, and wait for it. To be cancelled here is not to wait before SIGKILL."""
    send(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(TERM_SECONDS):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        send(process, signal.SIGKILL)
        await process.wait()


def send(process: asyncio.subprocess.Process, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


# -- in the child


def record_of_this_process() -> dict[str, Any]:
    """What the parent said about the run beside its params: fields of the run, for ``model_copy``."""
    return dict(json.loads(os.environ.pop(RECORD, "{}")))


def die_with_parent() -> None:
    """Have this process killed when the one that started it is (Linux): its run is somebody else's then."""
    parent = os.environ.pop(PARENT, "")
    if not sys.platform.startswith("linux") or not parent.isdecimal():
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.kill(int(parent), 0)
    except ProcessLookupError:  # it was gone before we had asked
        os._exit(1)
    except (ImportError, OSError, AttributeError):
        pass
