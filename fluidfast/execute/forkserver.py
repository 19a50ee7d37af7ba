"""The process that forks a child for each CPU-bound run: see ``forks``, which starts it, and whose messages these are.

It is single-threaded and runs no event loop, so that forking is safe. It has imported the application; the manager's
contexts are entered, and runs executed, in an event loop of each child.
"""

import asyncio
import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..core._run import TaskRun
from ..core.params import adapter_for, read_params
from ..core.process import CommandLine
from ..core.task import is_async
from ..errors import TaskAbortedError
from ..texts import describe, error_text
from .cpubound import (
    ABORTED_EXIT,
    FORKS,
    PARENT,
    RECORD,
    exec_line,
    expect_run,
    signal_with_parent,
)  # fmt: skip
from .executor import execute, execute_plain
from .forks import CONTROL_BYTES, ENDED, FAILED, FORK, HEAD, MESSAGE, READY, STARTED, frame

__all__ = ["Entry", "execute_in_child", "serve_forks"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry point has for runs. ``manager``: called in the child's event loop. ``run``: runs that loop.
    ``ready``: the manager, if it exists already."""

    manager: Callable[[], Any]
    run: Callable[[Coroutine[Any, Any, int]], int]
    ready: Any = None


@dataclass(frozen=True, slots=True)
class Job:
    """A run as its child reads it."""

    task: str
    record: dict[str, Any]
    word: bytes
    params: bytes

    @classmethod
    def of(cls, data: bytes) -> "Job":
        head, _, params = data.partition(b"\n")
        task, record, word = json.loads(head)
        return cls(task, record, bytes.fromhex(word), params)


def run_of(manager: Any, job: Job) -> TaskRun[Any, Any]:
    task = manager.broker.task_from_registry(job.task)
    value = read_params(adapter_for(task.params_model), job.params)
    codec, listeners = manager.broker.codec, manager.dispatcher.listeners
    run: TaskRun[Any, Any] = codec.create_with(task, None, job.record.get("id", ""), value, manager, listeners)
    return run.model_copy(update=job.record)


async def execute_in_child(manager: Any, job: Job) -> None:
    """Execute a run with a manager that was entered. Raises what the task raises."""
    run = run_of(manager, job)
    try:
        await execute(run, in_process=True)
    except TaskAbortedError as exc:
        await manager.broker.set_task_aborted(run.id, error_text(exc))
        raise


def serve_forks(entry: Entry) -> bool:
    """Fork children until the consumer is gone, if this process was started for that. Return whether it was."""
    text = os.environ.pop(FORKS, None)
    if text is None or os.environ.get(PARENT) != str(os.getppid()):  # the latter: a process of the task's has left it
        return False
    if record := os.environ.pop(RECORD, None):
        os.close(json.loads(record)[1])  # it is for a process that executes the first run
    parent = int(os.environ.pop(PARENT))
    control = socket.socket(fileno=int(text))
    control.set_inheritable(False)
    close_copies()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # the params of the first run are in it
    os.close(null)
    refusal = threads()
    control.send(MESSAGE.pack(READY, 0, 0) + refusal.encode()[: CONTROL_BYTES // 2])
    if not refusal:
        ForkServer(control, parent, entry).serve()
    return True


def close_copies() -> None:
    """Close inheritable copies of the standard streams, which uvloop leaves in a process that it starts. Processes
    that a task leaves behind would keep them open."""
    streams = [place(number) for number in range(3)]
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if number > 2 and os.get_inheritable(number) and place(number) in streams:
                os.close(number)


def place(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def threads() -> str:
    """Name the threads that would be missing in a forked child; empty if there are none."""
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if not names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of what is found here
            pid = os.fork()  # some libraries, such as OpenBLAS, end their threads before a fork
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        if (count := len(os.listdir("/proc/self/task")) - 1) > 0:
            names = [f"{count} that Python does not know"]
    return f"importing the application starts threads ({', '.join(names[:5])})" if names else ""


@dataclass(slots=True)
class ForkServer:
    control: socket.socket
    parent: int
    entry: Entry
    children: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Process id and kind of each child, by its number."""
    is_stopping: bool = False
    collects: bool = True
    handlers: dict[int, Any] = field(default_factory=dict)
    """Those that the application has set for the signals that are used here."""
    wakeup: tuple[int, int] = (-1, -1)
    line: CommandLine = field(default_factory=CommandLine)

    def serve(self) -> None:
        self.line.show("(forks the processes of CPU-bound runs)")
        gc.collect()
        gc.freeze()  # the collector of a child need not look at what was imported, and copy its pages
        self.collects = gc.isenabled()
        gc.disable()
        self.wakeup = os.pipe()
        for end in self.wakeup:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        for number, handler in (
            (signal.SIGCHLD, wake), (signal.SIGHUP, wake), (signal.SIGINT, signal.SIG_IGN),
            (signal.SIGTERM, self.stop),  # a service manager sends it to all of its processes
        ):  # fmt: skip
            self.handlers[number] = signal.signal(number, handler)
        signal_with_parent(self.parent, signal.SIGHUP)
        try:
            self.take_orders()
        finally:
            for pid, _ in self.children.values():
                send(pid, signal.SIGKILL)

    def stop(self, *_: object) -> None:
        """End when no run is left: the consumer may be draining."""
        self.is_stopping = True

    def take_orders(self) -> None:
        poll = select.poll()
        for descriptor in (self.control.fileno(), self.wakeup[0]):
            poll.register(descriptor, select.POLLIN)
        while os.getppid() == self.parent:
            if self.is_stopping and not any(kind == FORK for _, kind in self.children.values()):
                return
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self.wakeup[0] in ready:
                with suppress(BlockingIOError):
                    os.read(self.wakeup[0], CONTROL_BYTES)
                self.reap()
            if self.control.fileno() in ready and not self.obey():
                return

    def obey(self) -> bool:
        """Take one order. Return whether the consumer is still there."""
        message, descriptors, *_ = socket.recv_fds(self.control, CONTROL_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return False
        kind, number, value = MESSAGE.unpack(message)
        if not descriptors:
            if number in self.children:
                send(self.children[number][0], value)
            return True
        try:
            pid = os.fork()
        except OSError as exc:
            self.tell(FAILED, number, exc.errno or 0)
        else:
            if pid == 0:
                self.be_child(kind, *descriptors)
            self.children[number] = (pid, kind)
            self.tell(STARTED, number, pid)
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def reap(self) -> None:
        for number, (pid, _) in list(self.children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.children[number]
                self.tell(ENDED, number, os.waitstatus_to_exitcode(status))

    def tell(self, kind: bytes, number: int, value: int) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the consumer is gone, as the next look will show
            self.control.send(MESSAGE.pack(kind, number, value))

    # -- in a child

    def be_child(self, kind: bytes, channel: int, out: int, err: int) -> NoReturn:
        code = 1
        try:
            server = os.getppid()
            os.setsid()  # a session of its own, so that what the task starts is ended with it
            signal.set_wakeup_fd(-1)
            for number, handler in self.handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal_with_parent(server, signal.SIGKILL)
            if os.getppid() != server:
                os._exit(1)
            self.control.close()
            os.dup2(out, 1)
            os.dup2(err, 2)
            for descriptor in (*self.wakeup, out, err):
                os.close(descriptor)
            if self.collects:
                gc.enable()
            reseed()
            code = (run_one if kind == FORK else run_many)(self.entry, socket.socket(fileno=channel), self.line)
        except SystemExit as exc:
            code = exit_code(exc)
        except BaseException:
            traceback.print_exc()
        finally:
            leave(code)


def wake(*_: object) -> None:
    """The signal has woken the poll."""


def send(pid: int, number: int) -> None:
    """Signal a child and what it started."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with suppress(ProcessLookupError):  # it has no session of its own yet
            os.kill(pid, number)


def reseed() -> None:
    """Have the children draw different random numbers. Python does this for its own module."""
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed()


def run_one(entry: Entry, channel: socket.socket, line: CommandLine) -> int:
    data = receive(channel)
    if data is None:
        return 1
    job = Job.of(data)
    arguments = exec_line(job.task, job.record["id"])
    sys.argv[1:] = arguments
    line.show(*arguments)
    expect_run(job.record, channel.detach(), job.word)
    if entry.ready is not None and not entry.ready._needs_loop() and is_plain(entry.ready, job.task):
        return run_plain(entry, entry.ready, job)

    async def main() -> int:
        async with entry.manager()._without_consuming() as manager:
            try:
                await execute_in_child(manager, job)
            except TaskAbortedError:
                return ABORTED_EXIT
            return 0

    return entry.run(main())


def is_plain(manager: Any, name: str) -> bool:
    task = manager.registry.get(name)
    return task is not None and not is_async(task.run_executor(in_process=True))


def run_plain(entry: Entry, manager: Any, job: Job) -> int:
    """Execute a run of a plain function. To make an event loop and a thread for it takes half of a short run's time."""
    run = run_of(manager, job)
    try:
        execute_plain(run)
    except TaskAbortedError as exc:
        reason = error_text(exc)

        async def main() -> int:
            async with manager._without_consuming():
                await manager.broker.set_task_aborted(run.id, reason)
            return ABORTED_EXIT

        return entry.run(main())
    return 0


def receive(channel: socket.socket) -> bytes | None:
    """Return a frame, or None at the end."""
    parts = []
    missing = HEAD.size
    is_head = True
    while missing:
        part = channel.recv(min(missing, 1 << 20))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
        if not missing and is_head:
            missing, is_head = HEAD.unpack(b"".join(parts))[0], False
            parts.clear()
    return b"".join(parts)


def run_many(entry: Entry, channel: socket.socket, line: CommandLine) -> int:
    line.show("(a pool process for CPU-bound runs)")
    return entry.run(serve_pool(entry, channel))


async def serve_pool(entry: Entry, channel: socket.socket) -> int:
    """Execute runs until the consumer closes the channel. The contexts are entered once."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)
    async with entry.manager()._without_consuming() as manager:
        while head := await read(loop, channel, HEAD.size):
            job = Job.of(await read(loop, channel, HEAD.unpack(head)[0]))
            try:
                await execute_in_child(manager, job)
                answer = b"\0"
            except TaskAbortedError as exc:
                answer = bytes([ABORTED_EXIT]) + error_text(exc).encode()
            except Exception as exc:
                traceback.print_exc()
                answer = b"\1" + describe(exc).encode()
            await loop.sock_sendall(channel, frame(answer))
    return 0


async def read(loop: asyncio.AbstractEventLoop, channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(channel, size - len(data))
        if not part:
            return b""
        data += part
    return data


def exit_code(exc: SystemExit) -> int:
    """The exit code that Python would end with."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def leave(code: int) -> NoReturn:
    """End a child as Python ends a process, but for taking its modules apart."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)
