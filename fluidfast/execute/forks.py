"""A consumer's side of its fork servers: processes that forked children execute CPU-bound runs in.

The first CPU-bound run starts the application's entry point as for a process of its own (see ``cpubound``). An entry
point of ours then becomes a fork server (``forkserver``): it has imported the application, and forks a child for each
run. Any other executes that run, as does each further one.

Messages to and from a server are MESSAGE; a child's descriptors go with the first. The run goes down the child's own
socket, so that no server ever holds the params of a run.
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ..core._run import TaskRun
from ..core._time import keep_for_good
from ..core.task import Task
from ..errors import TaskAbortedError, TaskRunError
from ..texts import printable
from . import cpubound
from .cpubound import LINE_BYTES, Lines, how_it_ended, judge, params_of, record_of, run_spawned

__all__ = ["CONTROL_BYTES", "MESSAGE", "ForkServers", "ServerGone"]

logger = logging.getLogger(__name__)

MESSAGE = struct.Struct("=cQq")
"""Kind, number of the child, value."""
FORK, POOL, SIGNAL = b"F", b"P", b"S"
"""To the server: fork a child for one run, or for many; send it a signal (value)."""
READY, STARTED, ENDED, FAILED = b"R", b"B", b"E", b"X"
"""From the server: it serves (or not: why, in a text behind the message); a child's process id; its exit code; why it
cannot be forked (errno)."""
CONTROL_BYTES = 4096
HEAD = struct.Struct("=I")
"""Before each frame on a child's socket: its length in bytes."""
STARTING = 8
"""Forks that one server is asked for at a time. Descriptors on their way are limited."""
READY_SECONDS = 10.0
"""How long other runs wait for a server that is starting, before they get a process of their own."""
TRIES = 3
"""Servers that may be lost under a run before it has begun."""
LISTENS = 5.0
"""Seconds in which a server answers. One that does not is killed."""


class ServerGone(Exception):
    """The server ended before the run began."""


def frame(data: bytes) -> bytes:
    return HEAD.pack(len(data)) + data


def described(ctx: TaskRun[Any, Any], word: bytes) -> bytes:
    """A run, as ``forkserver.Job`` reads it."""
    return frame(json.dumps([ctx.name, record_of(ctx), word.hex()]).encode() + b"\n" + params_of(ctx))


class ForkServers:
    """The fork servers of one manager: one for each event loop and each ``env`` of its tasks."""

    def __init__(self) -> None:
        self._servers: dict[Any, Server] = {}
        self._told: set[str] = set()

    def serves(self, task: Task[Any]) -> bool:
        """Whether the runs of a task get a forked child. Only on Linux a child dies with its server."""
        return sys.platform.startswith("linux") and task.cpu_process != "spawn"

    async def run(self, ctx: TaskRun[Any, Any]) -> None:
        """Execute a run in a child of a fork server. Raises as ``cpubound.run_in_subprocess``."""
        loop = asyncio.get_running_loop()
        key = (loop, *sorted(ctx.task.env.items()))
        for _ in range(TRIES):
            server = self._servers.get(key)
            if server is None:
                server = self._servers[key] = Server(loop, partial(self._forget, key))
                if await server.start(ctx):
                    return
            if not server.ready.done():
                await asyncio.wait((server.ready,), timeout=READY_SECONDS)
            if not server.ready.done() or server.refusal is not None:
                self._tell(server.refusal)
                await run_spawned(ctx)
                return
            try:
                await (server.run_in_pool if ctx.task.cpu_process == "pool" else server.run)(ctx)
                return
            except ServerGone:
                await asyncio.sleep(0)
        raise TaskRunError(f"{TRIES} fork servers in a row ended before {ctx.shown_name} began")

    def _forget(self, key: Any, server: "Server") -> None:
        if self._servers.get(key) is server:
            del self._servers[key]

    def _tell(self, refusal: str | None) -> None:
        """Warn once of what keeps a server from forking."""
        if refusal and refusal not in self._told:
            self._told.add(refusal)
            logger.warning(
                "each CPU-bound run gets a process that imports the application anew, which is slow: %s. Start threads "
                'when a task runs, not on import; or set cpu_bound="spawn"', refusal,
            )  # fmt: skip

    def forked(self) -> None:
        """Drop the servers in the child of a fork: they belong to the parent."""
        keep_for_good(self._servers)
        self._servers = {}

    async def close(self) -> None:
        """End the servers of this event loop, and what they run."""
        loop = asyncio.get_running_loop()
        for key, server in list(self._servers.items()):
            if key[0] is loop or key[0].is_closed():
                self._servers.pop(key, None)
                await server.close()


class Server:
    """A fork server, from its start to its end, and what runs in its children."""

    def __init__(self, loop: asyncio.AbstractEventLoop, forget: "Callable[[Server], object]") -> None:
        self.loop = loop
        self.forget = partial(forget, self)
        self.ready: asyncio.Future[None] = loop.create_future()
        self.refusal: str | None = None
        """Why it forks no children, if it does not; ``""``: the entry point is none of ours."""
        self.children: dict[int, Child] = {}
        self._number = 0
        self._starting = 0
        self._waiting: deque[Child] = deque()
        self._idle: list[Child] = []
        self._life: asyncio.Task[tuple[int, bool]] | None = None
        self._end = ""
        """How it ended."""
        self._closing = False
        self._control: socket.socket | None = None

    # -- its life

    async def start(self, ctx: TaskRun[Any, Any]) -> bool:
        """Start the process, as one for this run. Return whether it has executed the run, and is no server.

        Raises as ``cpubound.run_spawned``.
        """
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self.forget()
            self._refuse("")
            raise
        self._control.setblocking(False)
        self.loop.add_reader(self._control.fileno(), self._read)
        self._life = self.loop.create_task(cpubound.spawn(ctx, theirs), name="fluidfast-fork-server")
        self._life.add_done_callback(self._ended)
        try:
            await asyncio.wait((self._life, self.ready), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self.ready.done():
                await self.close()
            raise
        if self.is_ready() or self.refusal:
            return False
        await judge(ctx, *self._life.result())
        return True

    def _refuse(self, why: str) -> None:
        self.refusal = why
        self.ready.set_result(None)

    def is_ready(self) -> bool:
        return self.ready.done() and self.refusal is None

    def _ended(self, life: "asyncio.Task[tuple[int, bool]]") -> None:
        """Tell all runs that the process has ended, and how."""
        self._hang_up()
        code = -signal.SIGKILL if life.cancelled() or life.exception() else life.result()[0]
        self._end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code or self.is_ready():  # else it is an entry point of another kind, as will be the next one
            self.forget()
        if self.is_ready() and not self._closing and not life.cancelled():
            logger.warning("the fork server of CPU-bound runs %s; the next run starts another one", self._end)
        if not self.ready.done():
            self._refuse("")
        self._waiting.clear()
        for child in list(self.children.values()):
            if child.pid:
                with suppress(ProcessLookupError, PermissionError):  # the child is gone; what it has started is not
                    os.killpg(child.pid, signal.SIGKILL)
            child.over(None)

    def _hang_up(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            if not self.loop.is_closed():
                self.loop.remove_reader(control.fileno())
            control.close()

    async def close(self) -> None:
        """End the process, and what runs in its children. Pool processes may leave their contexts first."""
        self.forget()
        self._closing = True
        idle, self._idle = self._idle, []
        for child in idle:
            child.hang_up()
        if idle:
            await asyncio.wait([child.ended for child in idle], timeout=cpubound.TERM_SECONDS)
        self._hang_up()  # which ends it
        for child in idle:
            child.close_ends()
        life = self._life
        if life is None or life.done():
            return
        if self.is_ready():
            await asyncio.wait((life,), timeout=LISTENS)
        life.cancel()
        await asyncio.wait((life,))

    def kill(self) -> None:
        """End the process, which does not answer: SIGTERM, then SIGKILL."""
        if self._life is not None:
            self._life.cancel()

    # -- messages

    def _read(self) -> None:
        while self._control is not None:
            try:
                message = self._control.recv(CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._hang_up()
                return
            kind, number, value = MESSAGE.unpack_from(message)
            if kind == READY:
                self._is_ready(printable(message[MESSAGE.size :].decode(errors="replace")))
            elif (child := self.children.get(number)) is not None:
                if kind == STARTED:
                    child.pid = value
                elif kind == FAILED:
                    child.fail(OSError(value, os.strerror(value)))
                else:
                    child.over(value)
                if kind != ENDED:
                    self._starting -= 1
                    self._ask()

    def _is_ready(self, refusal: str) -> None:
        if not self.ready.done():
            self.refusal = refusal or None
            self.ready.set_result(None)

    def _ask(self) -> None:
        """Ask for the forks that wait, as many at a time as may."""
        while self._waiting and self._starting < STARTING and self._control is not None:
            child = self._waiting.popleft()
            if child.number not in self.children:
                continue
            try:
                with child.for_it() as (first, second, third):
                    socket.send_fds(self._control, [MESSAGE.pack(child.kind, child.number, 0)], [first, second, third])
                child.asked = True
                self._starting += 1
            except BlockingIOError:
                self._waiting.appendleft(child)
                self.loop.call_later(0.01, self._ask)
                return
            except OSError as exc:
                child.fail(exc)

    def signal(self, child: "Child", number: int) -> None:
        """Have the server signal a child and what that started; it knows whether the process still exists."""
        if self._control is not None:
            with suppress(OSError):
                self._control.send(MESSAGE.pack(SIGNAL, child.number, number))

    # -- runs

    def fork(self, kind: bytes) -> "Child":
        """Ask for a child."""
        if self._life is None or self._life.done():
            raise ServerGone
        self._number += 1
        child = self.children[self._number] = Child(self, self._number, kind)
        self._waiting.append(child)
        self._ask()
        return child

    async def run(self, ctx: TaskRun[Any, Any]) -> None:
        """Execute a run in a child of its own. Raises ServerGone if it has not begun."""
        word = secrets.token_bytes(8)
        child = self.fork(FORK)
        try:
            await child.send(described(ctx, word))
            code = await child.wait()
            await child.drain()
            executed = child.receive() == word
        finally:
            await child.close()
        if code is None:
            raise TaskRunError(self.how_it_was_lost(ctx))
        await judge(ctx, code, executed)

    async def run_in_pool(self, ctx: TaskRun[Any, Any]) -> None:
        """Execute a run in a process that has executed others. Raises ServerGone if it has not begun."""
        child = self._idle.pop() if self._idle else self.fork(POOL)
        answer = b""
        try:
            answer = await child.ask(described(ctx, b""))
        finally:
            if not answer or len(self._idle) >= (os.cpu_count() or 1):
                await child.close()
            else:
                self._idle.append(child)
        if not answer:
            code = child.ended.result()
            raise TaskRunError(self.how_it_was_lost(ctx) if code is None else how_it_ended(ctx, code))
        code, text = answer[0], answer[1:].decode()
        if code == cpubound.ABORTED_EXIT:
            raise TaskAbortedError(text)
        if code:
            raise TaskRunError(f"{ctx.shown_name} failed in its pool process: {text}")

    def how_it_was_lost(self, ctx: TaskRun[Any, Any]) -> str:
        return (
            f"the process of {ctx.shown_name} was ended with the fork server that had started it, which {self._end} "
            "while the task ran"
        )

    def retire(self, child: "Child") -> None:
        """A child has ended; no run waits for that of a pool."""
        self.children.pop(child.number, None)
        if child in self._idle:
            self._idle.remove(child)
            child.close_ends()


class Output:
    """A pipe that a child prints to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lines: Lines) -> None:
        self._loop = loop
        self._lines = lines
        self.closed: asyncio.Future[None] = loop.create_future()
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        loop.add_reader(self.read_end, self.read)

    def read(self) -> bool:
        """Pass a chunk on. Return whether there may be more of them now."""
        if self.closed.done():
            return False
        try:
            chunk = os.read(self.read_end, LINE_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self.close()
            return False
        self._lines.put(chunk)
        return True

    def close(self) -> None:
        self.give_away()
        if not self.closed.done():
            self.closed.set_result(None)
            self._loop.remove_reader(self.read_end)
            os.close(self.read_end)
            self._lines.close()

    def give_away(self) -> None:
        """Close the end that the child has."""
        write_end, self.write_end = self.write_end, -1
        if write_end >= 0:
            os.close(write_end)


class Child:
    """A child of a fork server. ``ended``: its exit code, or None if the server has ended."""

    def __init__(self, server: Server, number: int, kind: bytes) -> None:
        self.server = server
        self.number = number
        self.kind = kind
        self.pid = 0
        self.asked = False
        self.ended: asyncio.Future[int | None] = server.loop.create_future()
        self._answer: asyncio.Future[bytes] | None = None
        self._got = bytearray()
        self._outputs: list[Output] = []
        self._channel, self._theirs = socket.socketpair()
        self._channel.setblocking(False)
        try:
            for name in ("stdout", "stderr"):
                self._outputs.append(Output(server.loop, Lines(name)))
        except OSError:
            self.close_ends()
            raise

    def for_it(self) -> "Handover":
        return Handover(self)

    def over(self, code: int | None) -> None:
        """It has ended."""
        self.server.retire(self)
        if self.ended.done():
            return
        if code is None and not self.asked:
            self.fail(ServerGone())
        else:
            self.ended.set_result(code)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(b"")

    def fail(self, exc: Exception) -> None:
        """It cannot be started."""
        self.server.retire(self)
        if not self.ended.done():
            self.ended.set_exception(exc)
            self.ended.exception()  # its run may have been cancelled
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(b"")

    async def wait(self) -> int | None:
        """Wait for its end. To be cancelled here leaves ``ended`` as it is."""
        await asyncio.wait((self.ended,))
        return self.ended.result()

    async def send(self, data: bytes) -> None:
        """Write to its socket. A child that does not read is one that says so by its exit code."""
        with suppress(BrokenPipeError, ConnectionResetError):
            try:
                sent = self._channel.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                await self.server.loop.sock_sendall(self._channel, memoryview(data)[sent:])

    def receive(self) -> bytes:
        """Return the bytes that it has written; none if there are none."""
        try:
            return self._channel.recv(100)
        except OSError:
            return b""

    async def ask(self, data: bytes) -> bytes:
        """Send a run to a pool process. Return its answer, empty if the process has ended."""
        if not self.ended.done():
            self._answer = self.server.loop.create_future()
            self.server.loop.add_reader(self._channel.fileno(), self._listen)
            try:
                await self.send(data)
                answer = await self._answer
            finally:
                self.server.loop.remove_reader(self._channel.fileno())
                self._answer = None
            if answer:
                return answer
        await self.wait()
        return b""

    def _listen(self) -> None:
        try:
            data = self._channel.recv(LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.server.loop.remove_reader(self._channel.fileno())  # it ends, which the server will say
            return
        self.read_output()
        got = self._got
        got += data
        if len(got) >= HEAD.size and len(got) >= HEAD.size + HEAD.unpack_from(got)[0]:
            answer = bytes(got[HEAD.size :])
            got.clear()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    def read_output(self) -> None:
        """Pass on what it has printed so far."""
        for output in self._outputs:
            while output.read():
                pass

    async def drain(self) -> None:
        """Pass on the rest. Processes that it has started may hold its ends, so wait DRAIN_SECONDS at most."""
        self.read_output()
        waiting = [output.closed for output in self._outputs if not output.closed.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=cpubound.DRAIN_SECONDS)

    def hang_up(self) -> None:
        """Have a pool process end: there are no more runs for it."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """End it, if it has not ended, and close what is open."""
        try:
            if not self.ended.done():
                await self._stop()
        finally:
            self.close_ends()

    async def _stop(self) -> None:
        """As ``cpubound.stop``. To be cancelled here is not to wait before SIGKILL."""
        if not self.asked:
            self.over(0)
            return
        self.server.signal(self, signal.SIGTERM)
        try:
            await asyncio.wait((self.ended,), timeout=cpubound.TERM_SECONDS)
        finally:
            self.server.signal(self, signal.SIGKILL)  # also what it has started
            while not self.ended.done():
                await asyncio.wait((self.ended,), timeout=LISTENS)
                if not self.ended.done():  # the server is stopped, or worse
                    self.server.kill()

    def close_ends(self) -> None:
        for output in self._outputs:
            output.close()
        for each in (self._channel, self._theirs):
            each.close()


class Handover:
    """The child's descriptors, which are closed here once they are with the server."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def __enter__(self) -> tuple[int, int, int]:
        out, err = self._child._outputs
        return self._child._theirs.fileno(), out.write_end, err.write_end

    def __exit__(self, kind: Any, *exc_info: object) -> None:
        if kind is None:
            self._child._theirs.close()
            for output in self._child._outputs:
                output.give_away()
