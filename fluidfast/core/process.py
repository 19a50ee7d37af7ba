"""This process: its standard streams, the signals of forked children, whether it belongs to a CPU-bound run."""

import io
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = [
    "CommandLine",
    "consumer_began",
    "consumer_ended",
    "cpu_env",
    "is_in_cpu_process",
    "keep_writing",
    "open_standard_streams",
]

# -- the process of a CPU-bound run

VARIABLE = "TASK_MANAGER_SPAWN"


def is_in_cpu_process() -> bool:
    """True in a process that was started for one run of a CPU-bound task (``TASK_MANAGER_SPAWN=true``)."""
    return os.environ.get(VARIABLE) == "true"


def cpu_env() -> dict[str, str]:
    """The environment that tells a process so."""
    return {VARIABLE: "true"}


class CommandLine:
    """This process's command line, as other processes see it (Linux)."""

    def __init__(self) -> None:
        self._start = self._size = 0
        with suppress(OSError, ValueError, IndexError):
            fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
            self._start = int(fields[45])
            self._size = int(fields[46]) - self._start

    def show(self, *arguments: str) -> None:
        """Show these behind the program's name, as far as there is room for them."""
        line = b"\0".join(os.fsencode(each.replace("\0", "")) for each in (sys.argv[0], *arguments))
        if self._start and self._size > 1:
            import ctypes

            ctypes.memmove(self._start, line[: self._size - 1].ljust(self._size, b"\0"), self._size)


# -- standard streams


def open_standard_streams() -> None:
    """Open ``/dev/null`` for each of stdin, stdout and stderr that this process was started without.

    Else the next file or socket gets its number: what is printed goes there, and uvloop aborts when it closes that.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


class Forgiving(io.FileIO):
    """A file whose writes never fail. It drops data that it cannot write."""

    def write(self, data: Any, /) -> int:
        size = len(memoryview(data).cast("B"))
        try:
            return super().write(data) or size
        except OSError:
            return size


def keep_writing() -> None:
    """Have stdout and stderr drop what they cannot write: the reader may be gone, or the disk full, and no run should
    fail for that."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if not isinstance(old, io.TextIOWrapper):
            continue
        raw = Forgiving(old.fileno(), "wb", closefd=False)
        new = io.TextIOWrapper(
            raw if isinstance(old.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # raw: PYTHONUNBUFFERED
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=old.line_buffering,
            write_through=old.write_through,
        )
        setattr(sys, name, new)


# -- forked children

_consumers = 0
"""How many consumers run in this process."""
_registered = False


def consumer_began() -> None:
    """From here on a child that is forked gets the default handlers of SIGINT and SIGTERM.

    Those of an event loop, or of a server, only tell the parent's loop, which does not run in the child: it would
    ignore ``Process.terminate()``, and a ``multiprocessing.Pool`` would never end.
    """
    global _consumers, _registered
    _consumers += 1
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_forked)


def consumer_ended() -> None:
    """Undo one ``consumer_began``."""
    global _consumers
    _consumers -= 1


def _forked() -> None:
    global _consumers
    if not _consumers:
        return
    _consumers = 0
    signal.set_wakeup_fd(-1)  # it is a socket of the parent's loop
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, default)
