"""``worker --processes N``: keeps N worker processes alive, and ends them together.

A worker that dies is replaced, logged and counted. Workers notice the end of the supervisor (a pipe that only it holds
open closes) and drain, so none is left behind, however it ends.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from .loops import on_signals
from .target import CommandError, first_of

__all__ = ["NOT_STARTED", "die_with_supervisor", "supervise"]

logger = logging.getLogger("fluidfast.supervisor")

PIPE = "FLUIDFAST_SUPERVISOR_FD"
NOT_STARTED = 78
"""Exit code of a supervised worker that could not start (EX_CONFIG of sysexits.h)."""
FAILURES = 3
"""So many of these in a row mean that none will start."""
QUICK_SECONDS = 3.0
"""After a worker that ended sooner than this, the next one waits for longer."""
MAX_PAUSE_SECONDS = 5.0


class Supervisor:
    """Runs ``count`` processes of one command."""

    def __init__(self, command: Sequence[str], count: int) -> None:
        self.command = command
        self.count = count
        self.replaced = 0
        self.failures = 0  # in a row
        self.codes: list[int] = []
        self.children: set[asyncio.subprocess.Process] = set()
        self.stopping = asyncio.Event()
        self.read_end, self.write_end = os.pipe()

    async def run(self) -> int:
        """Until all processes have ended. Gives 0 if all that were told to stop did so cleanly."""
        on_signals(lambda: self.tell("draining"), lambda: self.tell("hurrying"))
        logger.info("supervising %d worker processes", self.count)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(1, self.count + 1):
                    tasks.create_task(self.keep(number))
        except ExceptionGroup as group:  # before Python 3.11.4 except* makes a group of what is raised in it
            raise first_of(group, CommandError) or group from None
        finally:
            os.close(self.write_end)
            os.close(self.read_end)
        logger.info("all workers have ended; %d had been replaced", self.replaced)
        return 1 if any(self.codes) else 0

    def tell(self, doing: str) -> None:
        """Pass a signal on."""
        self.stopping.set()
        logger.info("%s %d workers", doing, len(self.children))
        for child in self.children:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    async def keep(self, number: int) -> None:
        """Keep one process alive."""
        pause = 0.1
        while not self.stopping.is_set():
            started = monotonic()
            child = await asyncio.create_subprocess_exec(
                *self.command,
                pass_fds=(self.read_end,),
                env={**os.environ, PIPE: str(self.read_end)},
                start_new_session=True,  # a terminal's Ctrl-C is for us, and we pass it on once
            )
            self.children.add(child)
            try:
                code = await child.wait()
            except asyncio.CancelledError:
                with suppress(ProcessLookupError):
                    child.terminate()
                await child.wait()
                raise
            finally:
                self.children.discard(child)
            if self.stopping.is_set():
                self.codes.append(code)
                return
            quick = monotonic() - started < QUICK_SECONDS
            self.failures = self.failures + 1 if code == NOT_STARTED else 0
            if self.failures >= FAILURES:
                raise CommandError("workers cannot start; see what they say above")
            self.replaced += 1
            pause = min(MAX_PAUSE_SECONDS, pause * 2) if quick else 0.1
            logger.warning(
                "worker %d (process %d) %s; replacing it in %.1f s (%d so far)",
                number, child.pid, ending(code), pause, self.replaced,
            )  # fmt: skip
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()


def ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


async def supervise(count: int, arguments: Sequence[str]) -> int:
    """Run ``count`` processes of ``python -m fluidfast ARGUMENTS`` until a signal ends them."""
    return await Supervisor((sys.executable, "-m", "fluidfast", *arguments), count).run()


def die_with_supervisor() -> bool:
    """In a worker: drain when the supervisor is gone. False, and nothing, if there is none."""
    text = os.environ.pop(PIPE, None)
    if text is None:
        return False
    pipe = int(text)
    os.set_inheritable(pipe, False)

    def watch() -> None:
        with suppress(OSError):
            os.read(pipe, 1)  # nothing is ever written: it ends when nobody holds the other end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="fluidfast-supervisor-watch", daemon=True).start()
    return True
