"""``worker --processes N``: keeps N worker processes alive, and ends them together.

A worker that dies is replaced, logged and counted. Workers take orders through a pipe of their own that only the
supervisor holds open. When that closes, the supervisor is gone, however it ended: they drain, and end after the grace
period whatever they run.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep

from ..observe.filters import WORKER
from .loops import StopSignals, on_signals
from .target import CommandError, first_of

__all__ = ["NOT_STARTED", "Orders", "Supervisor", "orders_of_a_supervisor", "supervisor_of"]

logger = logging.getLogger("fluidfast.supervisor")

PIPE = "FLUIDFAST_SUPERVISOR_FD"
REPORT = "FLUIDFAST_REPORT_FD"
REPORT_BYTES = 4096
NOT_STARTED = 78
"""Exit code of a supervised worker that could not start (EX_CONFIG of sysexits.h)."""
FAILURES = 3
"""So many of these in a row mean that none will start."""
QUICK_SECONDS = 3.0
"""After a worker that ended sooner than this, the next one waits for longer."""
MAX_PAUSE_SECONDS = 5.0
DRAIN, HURRY = 1, 2
"""Orders, and the steps of ``on_signals`` that they mean."""
END_SECONDS = 3.0
"""How long a worker without a supervisor may take to end after its grace period."""
ENDED_EARLY = (-signal.SIGTERM, -signal.SIGINT, 130)
"""How a worker ends that is told to stop before it has begun."""


class Supervisor:
    """Runs ``count`` processes of one command.

    ``reloads``: a process that ends is started again by ``restart`` only. ``reports``: one of each process that gave it
    before it ended; such a process is not replaced.
    """

    def __init__(self, command: Sequence[str], count: int, *, reloads: bool = False) -> None:
        self.command = command
        self.count = count
        self.reloads = reloads
        self.replaced = 0
        self.failures = 0  # in a row
        self.codes: list[int] = []
        self.children: dict[asyncio.subprocess.Process, int] = {}  # with the write end of each one's pipe
        self.order = 0
        self.stopping = asyncio.Event()
        self.changes = 0
        self.changed = asyncio.Event()
        self.reports: list[bytes] = []

    async def run(self) -> int:
        """Until all processes have ended. Gives 0 if all that were told to stop did so cleanly."""
        on_signals(
            lambda: self.tell(DRAIN, "draining"),
            lambda: self.tell(HURRY, "stopping now:"),
            to_groups=[signal.SIGTERM],
            before_kill=self.kill,
        )
        logger.info("supervising %d worker processes", self.count)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(1, self.count + 1):
                    tasks.create_task(self.keep(number))
        except ExceptionGroup as group:  # before Python 3.11.4 except* makes a group of what is raised in it
            raise first_of(group, CommandError) or group from None
        logger.info("all workers have ended; %d had been replaced", self.replaced)
        return 1 if any(self.codes) else 0

    def tell(self, order: int, doing: str) -> None:
        """Give an order to all workers, and to those that are just being started."""
        self.order = order
        self.stopping.set()
        logger.info("%s %d workers", doing, len(self.children))
        for write_end in self.children.values():
            send(write_end, order)

    def restart(self, why: str) -> None:
        """Have all workers drain, and start them again."""
        logger.info("%s: draining and restarting %d workers", why, self.count)
        self.changes += 1
        self.changed.set()
        for write_end in self.children.values():
            send(write_end, DRAIN)

    def kill(self) -> None:
        """Kill all workers."""
        for child in self.children:
            with suppress(ProcessLookupError):
                child.kill()

    async def keep(self, number: int) -> None:
        """Keep one process alive."""
        pause = 0.1
        while not self.stopping.is_set():
            started = monotonic()
            changes = self.changes
            code, pid, report = await self.live(number)
            if report:
                self.reports.append(report)
            if self.stopping.is_set() or report:
                self.codes.append(0 if code in ENDED_EARLY else code)
                return
            if self.reloads:
                await self.until_changed(changes, f"worker {number} (process {pid}) {ending(code)}")
                continue
            quick = monotonic() - started < QUICK_SECONDS
            self.failures = self.failures + 1 if code == NOT_STARTED else 0
            if self.failures >= FAILURES:
                raise CommandError("workers cannot start; see their errors above")
            self.replaced += 1
            pause = min(MAX_PAUSE_SECONDS, pause * 2) if quick else 0.1
            logger.warning(
                "worker %d (process %d) %s; replacing it in %.1f s (%d so far)",
                number, pid, ending(code), pause, self.replaced,
            )  # fmt: skip
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()

    async def until_changed(self, changes: int, what: str) -> None:
        """Wait until ``restart`` has been called since there were so many changes."""
        if self.changes == changes:
            logger.warning("%s; waiting for a change of a file", what)
        while self.changes == changes and not self.stopping.is_set():
            self.changed.clear()
            waiting = [asyncio.ensure_future(event.wait()) for event in (self.changed, self.stopping)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()

    async def live(self, number: int) -> tuple[int, int, bytes]:
        """Run one process, which knows its number, until it ends. Gives its exit code, its id and its report."""
        read_end, write_end = os.pipe()
        report_end, said_end = os.pipe()
        os.set_blocking(report_end, False)
        try:
            try:
                child = await asyncio.create_subprocess_exec(
                    *self.command,
                    pass_fds=(read_end, said_end),
                    env={**os.environ, PIPE: str(read_end), REPORT: str(said_end), WORKER: str(number)},
                    start_new_session=True,  # a terminal's Ctrl-C is for us, and we pass it on once
                )
            finally:
                os.close(read_end)
                os.close(said_end)
            self.children[child] = write_end
            try:
                if self.order:
                    send(write_end, self.order)
                code = await child.wait()
            finally:
                del self.children[child]
            with suppress(BlockingIOError):  # something that it started holds the other end
                return code, child.pid, os.read(report_end, REPORT_BYTES)
            return code, child.pid, b""
        finally:
            os.close(report_end)
            os.close(write_end)  # if the process lives, it ends by itself now


def send(write_end: int, order: int) -> None:
    with suppress(BrokenPipeError):  # it has just ended
        os.write(write_end, bytes([order]))


def ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def supervisor_of(count: int, *, reloads: bool = False) -> Supervisor:
    """Return the supervisor of ``count`` processes of this process's command line, which know that they are
    supervised."""
    return Supervisor((sys.executable, *sys.orig_argv[1:]), count, reloads=reloads)


class Orders:
    """In a worker: follows the supervisor's orders from a thread, which works on while a handler blocks the loop."""

    def __init__(self, pipe: int, report: int) -> None:
        self.pipe = pipe
        self._report = report
        self.signals: StopSignals | None = None
        self.grace_seconds = 0.0
        threading.Thread(target=self.follow, name="fluidfast-supervisor-watch", daemon=True).start()

    def obeyed_by(self, signals: StopSignals, grace_seconds: float) -> None:
        """From here on orders are steps of these, and until then what ends this process."""
        self.grace_seconds = grace_seconds
        self.signals = signals

    def report(self, data: bytes) -> None:
        """Tell the supervisor what this worker did, so that it is not replaced: less than REPORT_BYTES."""
        os.write(self._report, data)

    def follow(self) -> None:
        with suppress(OSError):
            while order := os.read(self.pipe, 1):
                self.obey(order[0])
        # nobody holds the other end: the supervisor is gone
        self.obey(DRAIN)
        sleep(self.grace_seconds + END_SECONDS)
        os._exit(1)  # what still runs blocks the loop, or ignores that it was cancelled: its lease runs out

    def obey(self, order: int) -> None:
        signals = self.signals
        if signals is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            with suppress(RuntimeError):  # the loop is closed, and this process about to end
                signals.loop.call_soon_threadsafe(signals.go_to, order)


def orders_of_a_supervisor() -> Orders | None:
    """In a worker: follow the supervisor's orders from here on. None if there is no supervisor."""
    text = os.environ.pop(PIPE, None)
    if text is None:
        return None
    pipe, report = int(text), int(os.environ.pop(REPORT))
    for descriptor in (pipe, report):
        os.set_inheritable(descriptor, False)
    return Orders(pipe, report)
