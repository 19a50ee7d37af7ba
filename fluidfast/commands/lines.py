"""Lines of a file or of a pipe, as they come, in bounded memory."""

import asyncio
import threading
import zlib
from collections.abc import AsyncIterator, Callable

__all__ = ["CHUNK_BYTES", "LineReader"]

CHUNK_BYTES = 1 << 17
AHEAD = 2
"""Chunks that are read ahead."""


class LineReader:
    """Iterate: gives lists of (number, line), numbers from 1, a line without its end; None: longer than ``max_bytes``.

    ``read``: gives some bytes, none at the end. It is called in a thread, so that a pipe that is silent keeps nothing
    else from going on. ``bytes_read``: so far. After ``stop`` the iteration ends.
    """

    def __init__(self, read: Callable[[], bytes], *, max_bytes: int) -> None:
        self.read = read
        self.max_bytes = max_bytes
        self.bytes_read = 0
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._stopped = False
        # a daemon, and no buffered reader: neither holds up the end of the process while the pipe is silent
        threading.Thread(target=self._read, name="lines", daemon=True).start()

    def _read(self) -> None:
        chunk: bytes | OSError | None = b""
        while chunk is not None and not isinstance(chunk, OSError):
            self._room.acquire()
            try:
                chunk = self.read() or None
            except (OSError, EOFError, zlib.error) as exc:  # of a file, and of one that is compressed
                chunk = exc if isinstance(exc, OSError) else OSError(None, str(exc))
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:  # the loop is closed: nobody reads on
                return

    def stop(self) -> None:
        """Give nothing more."""
        self._stopped = True
        self._chunks.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, bytes | None]]]:
        number = 0
        rest = b""
        skipping = False  # within a line that is too long
        while True:
            chunk = await self._chunks.get()
            if self._stopped:
                return
            if isinstance(chunk, OSError):
                raise chunk
            if chunk is None:
                if rest or skipping:
                    yield [(number + 1, None if skipping else rest)]
                return
            self._room.release()
            self.bytes_read += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            lines: list[tuple[int, bytes | None]] = []
            for line in whole:
                number += 1
                lines.append((number, None if skipping or len(line) > self.max_bytes else line))
                skipping = False
            if len(rest) > self.max_bytes:
                skipping, rest = True, b""
            elif skipping:
                rest = b""
            if lines:
                yield lines
