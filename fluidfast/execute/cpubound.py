"""CPU-bound tasks: each run has its own process, the application's entry point with the ``exec`` command.

    ENTRY exec NAME --log --run-id ID --params -

The params go down the child's stdin, never into its argv, where every user of the machine could read them. The child's
output comes out of this process, line by line. How it ended is its exit code, for an aborted run the reason on
the broker, and for a success a word on a pipe of its own: a process that ends well without having executed its run is
a failure.

The first such process of a consumer on Linux becomes a fork server if it can, which forks a child for each run:
``forks`` is this process's side of it, ``forkserver`` its own.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

from ..core._run import TaskRun
from ..core.params import adapter_for, write_params
from ..core.process import cpu_env
from ..errors import TaskAbortedError, TaskRunError
from ..texts import printable

__all__ = ["confirm_executed", "cpu_bound_command", "exec_args", "run_in_subprocess", "strip_serve"]

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
FORKS = "FLUIDFAST_FORKS"
"""The descriptor of the socket that a fork server takes its orders from."""
PR_SET_PDEATHSIG = 1


def strip_serve(command: Sequence[str]) -> list[str]:
    """The entry point in a command line: everything before ``serve``, or all of it."""
    arguments = list(command)
    return arguments[: arguments.index("serve")] if "serve" in arguments else arguments


def exec_args(ctx: TaskRun[Any, Any]) -> list[str]:
    """Return the arguments with which an entry point executes this run; it reads the params from stdin.

    The id is there to be seen, with ``=`` as it may begin with a dash, and escaped as it may hold anything.
    """
    return exec_line(ctx.name, ctx.id)


def exec_line(name: str, run_id: str) -> list[str]:
    return ["exec", name, "--log", f"--run-id={printable(run_id)}", "--params", "-"]


def cpu_bound_command(ctx: TaskRun[Any, Any]) -> list[str]:
    """The command line of a run's process: that of this process without ``serve``, and the ``exec`` command."""
    return [*strip_serve(sys.orig_argv), *exec_args(ctx)]


async def run_in_subprocess(ctx: TaskRun[Any, Any]) -> None:
    """Execute a run in its own process, and wait for it. If cancelled, it ends the process before it returns.

    Raises:
        TaskAbortedError: the task aborted itself.
        TaskRunError: the process did not end with exit code 0; the message names the code, the output says why.
        OSError: it could not be started.
    """
    servers = getattr(ctx.task_manager, "fork_servers", None)
    if servers is None or not servers.serves(ctx.task):
        await run_spawned(ctx)
    else:
        await servers.run(ctx)


async def run_spawned(ctx: TaskRun[Any, Any]) -> None:
    """Execute a run in a process that is started for it. Raises as ``run_in_subprocess``."""
    await judge(ctx, *await spawn(ctx))


async def judge(ctx: TaskRun[Any, Any], code: int, executed: bool) -> None:
    """Raise the error of a run whose process ended with this exit code, unless it has executed the run."""
    if executed and code == 0:
        return
    reason = await ctx.task_manager.broker.get_task_aborted(ctx.id)
    if reason is not None or code == ABORTED_EXIT:
        raise TaskAbortedError(reason or "aborted in its own process")
    raise TaskRunError(how_it_ended(ctx, code))


async def spawn(ctx: TaskRun[Any, Any], forks: socket.socket | None = None) -> tuple[int, bool]:
    """Run the entry point for a run until it ends. Return its exit code, and whether it has executed the run.

    ``forks``: the socket that makes a fork server of it; it is closed here.
    """
    params = params_of(ctx)
    command = cpu_bound_command(ctx)
    word = secrets.token_bytes(8)
    read_end, write_end = os.pipe()
    try:
        try:
            env = {**child_environment(), RECORD: json.dumps([record_of(ctx), write_end, word.hex()]), **ctx.task.env}
            inherited = [write_end]
            if forks is not None:
                inherited.append(forks.fileno())
                env[FORKS] = str(forks.fileno())
            # A session of its own, so that what the task starts is ended with it.
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=inherited,
                env=env,
                start_new_session=True,
            )
        finally:
            os.close(write_end)
            if forks is not None:
                forks.close()
        await until_ended(process, params)
        return process.returncode or 0, read_now(read_end) == word
    finally:
        os.close(read_end)


async def until_ended(process: asyncio.subprocess.Process, params: bytes) -> None:
    """Feed a child, pass on what it prints, and wait for its end. Cancelled, end it."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    streams = [
        asyncio.ensure_future(feed(process.stdin, params)),
        asyncio.ensure_future(relay(process.stdout, Lines("stdout"))),
        asyncio.ensure_future(relay(process.stderr, Lines("stderr"))),
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


def read_now(pipe: int) -> bytes:
    """Return the bytes in a pipe; none if somebody may still write to it."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 100)
    except BlockingIOError:
        return b""


def params_of(ctx: TaskRun[Any, Any]) -> bytes:
    """The params of a run, as its process reads them."""
    return write_params(adapter_for(ctx.task.params_model), ctx.params)


def record_of(ctx: TaskRun[Any, Any]) -> dict[str, Any]:
    """What a run is beside its params, for ``record_of_this_process``."""
    return {
        "id": ctx.id,
        "priority": str(ctx.priority),
        "rate_limit_attempt": ctx.rate_limit_attempt,
        "retry_attempt": ctx.retry_attempt,
        "from_run_id": ctx.from_run_id,
        "root_run_id": ctx.root_run_id,
    }


def child_environment() -> dict[str, str]:
    """This process's environment, and what says that it is a child."""
    # unbuffered: its lines are relayed as they come
    return {"PYTHONUNBUFFERED": "1", **os.environ, **cpu_env(), PARENT: str(os.getpid())}


def how_it_ended(ctx: TaskRun[Any, Any], code: int) -> str:
    name = ctx.shown_name
    if code < 0:
        try:
            return f"the process of {name} was killed by {signal.Signals(-code).name} (exit code {code})"
        except ValueError:
            return f"the process of {name} was killed by signal {-code} (exit code {code})"
    if code == 0:
        return (
            f"the process of {name} ended with exit code 0 and has not executed the run: its entry point has to "
            "execute it when it is called with exec (TaskManagerCLI does), and the task must not end the process, nor "
            "close descriptors that it has not opened"
        )
    hint = "; is its entry point a TaskManagerCLI, which has the exec command?" if code == 2 else ""
    return f"the process of {name} ended with exit code {code}{hint}"


async def feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    """Write all of it and close. A child that does not read is one that says so by its exit code."""
    try:
        stdin.write(data)
        await stdin.drain()
        stdin.close()
        await stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        pass


class Lines:
    """Passes output of a child on to ``sys.stdout`` or ``sys.stderr``, whole lines at a time (long ones in pieces)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""

    def put(self, chunk: bytes) -> None:
        lines, newline, rest = (self._rest + chunk).rpartition(b"\n")
        if newline or len(rest) > LINE_BYTES:
            self._write(lines + newline if newline else rest)
            rest = rest if newline else b""
        self._rest = rest

    def close(self) -> None:
        """Pass on the last line, which did not end."""
        if self._rest:
            self._write(self._rest)
        self._rest = b""

    def _write(self, data: bytes) -> None:
        try:
            out = getattr(sys, self._name)
            out.write(data.decode("utf-8", "replace"))
            out.flush()
        except (OSError, ValueError, AttributeError):  # ours is closed, or there is none: the child need not care
            pass


async def relay(stream: asyncio.StreamReader, lines: Lines) -> None:
    try:
        while chunk := await stream.read(LINE_BYTES):
            lines.put(chunk)
    finally:
        lines.close()


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
    """Return the fields of the run that the parent gave beside its params, for ``model_copy``."""
    text = os.environ.pop(RECORD, None)
    if text is None:
        return {}
    record, pipe, word = json.loads(text)
    return expect_run(record, pipe, bytes.fromhex(word))


def expect_run(record: dict[str, Any], descriptor: int, word: bytes) -> dict[str, Any]:
    """This process is that of one run, and confirms it on this descriptor with this word. Return the record."""
    global _confirmation
    try:
        os.set_inheritable(descriptor, False)  # what the task starts has no part in it
        place = os.fstat(descriptor).st_ino
    except OSError:  # something between us and the parent has closed it
        place = 0
    _confirmation = (printable(record["id"]), descriptor, place, word)
    return dict(record)


_confirmation: tuple[str, int, int, bytes] | None = None
"""The id of this process's run, the descriptor and its inode, and the word to confirm it with."""


def confirm_executed(run_id: str) -> None:
    """Tell the parent that this process's run was executed. Of other runs it is told nothing."""
    record_of_this_process()
    if _confirmation is None or _confirmation[0] != printable(run_id):
        return
    _, descriptor, place, word = _confirmation
    try:
        if os.fstat(descriptor).st_ino == place:  # else the task has closed it, and the number is another file's
            os.write(descriptor, word)
    except OSError:  # closed, or the parent is gone
        pass


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process get a signal when the one that started it ends (Linux): its run is somebody else's then."""
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        signal_with_parent(int(parent), number)


@cache  # by a fork server, so that its children need not make it
def prctl() -> Callable[..., int]:
    import ctypes

    return cast("Callable[..., int]", ctypes.CDLL(None).prctl)


def signal_with_parent(parent: int, number: int) -> None:
    """Have this process get a signal when its parent ends (Linux), or end it if the parent has ended."""
    if not sys.platform.startswith("linux"):
        return
    try:
        prctl()(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        os.kill(parent, 0)
    except ProcessLookupError:  # it was gone before we had asked
        os._exit(1)
    except (ImportError, OSError, AttributeError):
        pass
