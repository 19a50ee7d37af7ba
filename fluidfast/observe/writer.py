"""Writes the lines of a log in a thread, so that a slow reader of it costs lines and never the event loop."""

import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic, sleep

__all__ = ["LineHandler", "LineWriter"]

WRITE_SECONDS = 0.1
"""How long a line may wait for others before it is written."""
REST_SECONDS = 0.002
"""How long the thread rests when it has written, so that many lines take one wake-up and one write together."""
CHUNK_LINES = 1_000
"""Lines that are put together at most."""
MAX_LINES = 100_000
"""Lines that may wait for a reader; more are counted and dropped."""
MAX_BYTES = 64 << 20
"""The same in characters."""
FLUSH_SECONDS = 10.0
"""How long the end of the process waits for a slow reader."""
STUCK_SECONDS = 1.0
"""... and for one that reads nothing."""
PIPE_BYTES = 4096
"""The kernel writes this much to a pipe in one piece, so lines of several workers do not mix."""
FILE_BYTES = 1 << 20
"""Bytes per write to anything else."""


class LineWriter:
    """Writes lines to a file descriptor, for as long as the process lives.

    ``put`` may be called from any thread, also in a signal handler.

    ``most_lines``, ``most_bytes``: the most that may wait to be written. Further lines are dropped, and their number is
    written when the reader goes on. ``lost`` makes that line of the number. ``direct``: write in the thread that calls
    ``put``, without one of its own.

    Attributes: ``dropped``: how many lines have been dropped so far.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        lost: Callable[[int], str] = "{} lines of the log were dropped, its reader is too slow".format,
        most_lines: int = MAX_LINES,
        most_bytes: int = MAX_BYTES,
        direct: bool = False,
    ) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._lost = lost
        self._most_lines = most_lines
        self._most_bytes = most_bytes
        self._most_at_once = PIPE_BYTES if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else FILE_BYTES
        self._told = 0  # how many of the dropped are told
        self._bytes = 0  # about: threads may count at the same time
        self._lines: deque[str | threading.Event] = deque()
        self._bell: SimpleQueue[bool] = SimpleQueue()  # True: do not wait for more lines
        self._rung = False
        self._hurries = False  # and not to wait for more lines
        self._progress = False  # something was written since the last look
        self._direct = direct  # without a thread
        if direct:
            return
        self._thread = threading.Thread(target=self._serve, name="fluidfast-log", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=self._forked)

    def put(self, line: str, *, now: bool = True) -> None:
        """Write a line, at once (within 2 ms of others) or together with those that come within 0.1 s."""
        if self._direct:
            self._write(f"{line}\n".encode(errors="backslashreplace"))
            return
        if len(self._lines) >= self._most_lines or self._bytes > self._most_bytes:
            self.dropped += 1
            return
        self._bytes += len(line)
        self._lines.append(line)
        if not self._rung or (now and not self._hurries):
            self._ring(now)

    def flush(self, seconds: float = FLUSH_SECONDS, stuck_seconds: float = STUCK_SECONDS) -> bool:
        """Wait until the lines so far are written. Return False if they are not within so many seconds, or if nothing
        is written for ``stuck_seconds``."""
        if self._direct or not (self._lines or self._rung):
            return True
        if threading.current_thread() is self._thread:
            return False
        written = threading.Event()
        self._lines.append(written)
        self._ring(True)
        end = monotonic() + seconds
        while not written.wait(max(0.0, min(stuck_seconds, end - monotonic()))):
            before, self._progress = self._progress, False
            if not before or monotonic() > end:
                return False
        return True

    def _ring(self, now: bool) -> None:
        self._rung = True
        self._hurries = self._hurries or now
        self._bell.put(now)

    def _serve(self) -> None:
        bell = self._bell
        while True:
            now = bell.get()
            if not now:
                try:
                    bell.get(timeout=WRITE_SECONDS)
                except Empty:
                    pass
            self._rung = self._hurries = False  # first: a line that comes from here on rings again
            self._drain()
            sleep(REST_SECONDS)

    def _drain(self) -> None:
        lines = self._lines
        while lines:
            taken: list[str] = []
            waiters: list[threading.Event] = []
            while lines and len(taken) < CHUNK_LINES and not waiters:
                line = lines.popleft()
                if isinstance(line, str):
                    taken.append(line)
                else:
                    waiters.append(line)
            for piece in pieces(taken, self._most_at_once):
                self._write(piece)
            self._bytes -= sum(map(len, taken))
            if (dropped := self.dropped) > self._told:
                self._write(f"{self._lost(dropped - self._told)}\n".encode())
                self._told = dropped
            for waiter in waiters:
                waiter.set()
        self._bytes = 0

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
                self._progress = True
            except BlockingIOError:  # somebody has made it non-blocking
                sleep(0.01)
            except OSError:  # the reader is gone, or the disk full: no run should fail for that
                return

    def _forked(self) -> None:
        """Write at once, in the child of a fork: it has no thread, and the lines that wait are the parent's."""
        self._lines = deque()
        self._direct = True


class LineHandler(logging.Handler):
    """A handler of ``logging`` that gives its lines to a ``LineWriter``."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.put(self.format(record))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait for what is not written yet, up to 10 s. ``logging`` does this when the process ends."""
        self.writer.flush()


def pieces(lines: list[str], size: int) -> list[bytes]:
    """Return lines as bytes, as many together as fit in ``size`` bytes; a longer line by itself."""
    whole = "".join([f"{line}\n" for line in lines]).encode(errors="backslashreplace")
    found: list[bytes] = []
    at = 0
    while len(whole) - at > size:
        end = whole.rfind(b"\n", at, at + size) + 1 or whole.index(b"\n", at + size) + 1
        found.append(whole[at:end])
        at = end
    if at < len(whole):
        found.append(whole[at:])
    return found
