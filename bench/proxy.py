"""A loopback TCP proxy that delays what passes: a server on another machine, as far as round trips go."""

import asyncio
import selectors
import threading
from collections import deque
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from .common import BenchError, Server, percentile

HELD_BYTES = 4 << 20
"""What one direction of one connection may hold back before its reading is paused."""


class Side(asyncio.Protocol):
    """One end of a connection: what it receives goes to the other end, ``delay`` seconds later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self._loop = loop
        self._delay = delay
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self.transport: Any = None
        self.other: Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._held.append((self._loop.time() + self._delay, data))
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES and self.transport is not None:
            self.transport.pause_reading()
        if self._timer is None:
            self._pass_on()

    def _pass_on(self) -> None:
        self._timer = None
        now = self._loop.time()
        target = self.other.transport if self.other is not None else None
        if target is None:  # it is being connected, and will call again
            return
        while self._held and self._held[0][0] <= now:
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            if not target.is_closing():
                target.write(data)
        if self._held:
            self._timer = self._loop.call_at(self._held[0][0], self._pass_on)
        elif self._ended:
            target.close()
        if self._held_bytes < HELD_BYTES // 2 and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._timer is None:
            self._pass_on()


class Proxy:
    """In a thread of its own, for the time of a ``with``; ``url`` is the given one through the proxy.

    ``there`` and ``back``: seconds that each direction is delayed; ``round_trip`` says what they come to.
    """

    def __init__(self, url: str, there: float, back: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "redis":
            raise BenchError(f"a proxy in front of {parts.scheme}:// is not possible")
        self._target = parts.hostname or "127.0.0.1", parts.port or 6379
        self._there, self._back = there, back
        self._parts = parts
        # select() takes microseconds; epoll and libuv round a timer up to whole milliseconds
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        port = self._server.sockets[0].getsockname()[1]
        login = f"{self._parts.netloc.rpartition('@')[0]}@" if "@" in self._parts.netloc else ""
        self.url = self._parts._replace(netloc=f"{login}127.0.0.1:{port}").geturl()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(self._accept, "127.0.0.1", 0)

    def _accept(self) -> Side:
        near = Side(self._loop, self._there)
        self._loop.create_task(self._connect(near))
        return near

    async def _connect(self, near: Side) -> None:
        far = Side(self._loop, self._back)
        far.other = near
        try:
            await self._loop.create_connection(lambda: far, *self._target)
        except OSError:
            if near.transport is not None:
                near.transport.abort()
            return
        near.other = far
        near._pass_on()

    def round_trip(self, samples: int = 50) -> float:
        """Median milliseconds of a PING through the proxy."""
        times = []
        with Server(self.url) as server:
            for _ in range(samples):
                started = self._loop.time()
                server.command("PING")
                times.append((self._loop.time() - started) * 1e3)
        return percentile(times, 0.5)
