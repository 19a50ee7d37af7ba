"""A TCP proxy on loopback that cuts, delays and stalls; in a thread of its own, so that it works while a test blocks.

    with FaultProxy(server.port) as proxy:
        url = proxy.url_of(server.url)
        cut = proxy.cut(THERE, 17)      # from now on 17 more bytes pass to the server, then every connection ends
        ...
        cut.happened                    # whether they did
        proxy.cut(BACK, 0, reset=True)  # not one byte of the next answer passes; the ends see a RST
        proxy.every(THERE, 5000, jitter=random.Random(seed))   # again and again, at random distances around 5000 bytes
        proxy.stall(); proxy.flow()     # nothing passes, nobody is told; and again (of one direction: stall(BACK))
        proxy.stall(THERE, 100)         # after 100 more bytes
        proxy.delay_seconds = 0.05      # each way

Bytes are counted over all connections of one direction, from the moment of the call. A cut ends the connection that
carried the last byte (``everything=True``: all of them), after what was allowed has been handed to the other end.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

THERE, BACK = "there", "back"


class Cut:
    """A cut that was ordered."""

    def __init__(self, direction: str, after: int, reset: bool, everything: bool, stalls: bool = False) -> None:
        self.stalls = stalls  # it does not end the connection: nothing more passes
        self.direction = direction
        self.left = after
        self.reset = reset
        self.everything = everything
        self.happened = False


class Side(asyncio.Protocol):
    """One end of a connection. What it receives goes to ``other``."""

    def __init__(self, proxy: FaultProxy, direction: str) -> None:
        self.proxy = proxy
        self.direction = direction
        self.transport: Any = None
        self.other: Side | None = None
        self.held: list[bytes] = []  # until the other end is connected, or while nothing flows

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.proxy.sides.add(self)

    def data_received(self, data: bytes) -> None:
        if self.proxy.delay_seconds:
            self.proxy.loop.call_later(self.proxy.delay_seconds, self.take, data)
        else:
            self.take(data)

    def take(self, data: bytes) -> None:
        if self.direction in self.proxy.stalled or self.other is None or self.other.transport is None:
            self.held.append(data)
        else:
            self.proxy.pass_on(self, data)

    def flow(self) -> None:
        held, self.held = self.held, []
        for data in held:
            self.take(data)

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.proxy.sides.discard(self)
        if self.other is not None and self.other.transport is not None and self.direction not in self.proxy.stalled:
            self.other.transport.close()

    def end(self, reset: bool) -> None:
        if self.transport is None:
            return
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends RST
            self.transport.abort()
        else:
            self.transport.close()


class FaultProxy:
    """In front of ``127.0.0.1:port``, for the time of a ``with``. Methods may be called from any thread."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.delay_seconds = 0.0
        self.stalled: set[str] = set()
        self.cuts = 0
        """How many connections were cut so far."""
        self.connections = 0
        """How many were accepted so far."""
        self.passed = {THERE: 0, BACK: 0}
        """Bytes so far."""
        self.sides: set[Side] = set()
        self.loop = asyncio.new_event_loop()
        self._armed: dict[str, Cut | None] = {THERE: None, BACK: None}
        self._repeat: dict[str, tuple[int, random.Random | None, bool] | None] = {THERE: None, BACK: None}
        self._thread = threading.Thread(target=self.loop.run_forever, name="fault-proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        async def end() -> None:
            self._server.close()
            for side in list(self.sides):
                side.end(True)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def url_of(self, url: str) -> str:
        """A broker's url, through here."""
        parts = urlsplit(url)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return parts._replace(netloc=f"{login}127.0.0.1:{self.port}").geturl()

    def _do(self, action: Any) -> Any:
        """In the proxy's thread; waits for it."""

        async def call() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    # -- faults

    def cut(self, direction: str, after: int, *, reset: bool = False, everything: bool = False) -> Cut:
        """Let ``after`` more bytes pass in this direction, then cut. One cut a direction may be on order.

        With ``after`` 0 a cut happens when the next byte comes, and that byte does not pass.
        """
        cut = Cut(direction, after, reset, everything)
        self._do(lambda: self._armed.__setitem__(direction, cut))
        return cut

    def forget(self) -> None:
        """Take back the cuts that are on order, and ``every``."""

        def action() -> None:
            self._armed = {THERE: None, BACK: None}
            self._repeat = {THERE: None, BACK: None}

        self._do(action)

    def every(self, direction: str, mean: int, *, jitter: random.Random | None = None, reset: bool = False) -> None:
        """Cut again and again, each time after ``mean`` bytes, or with ``jitter`` after 0 to 2 * mean at random."""

        def action() -> None:
            self._repeat[direction] = (mean, jitter, reset)
            self._arm_again(direction)

        self._do(action)

    def _arm_again(self, direction: str) -> None:
        if (repeat := self._repeat[direction]) is not None:
            mean, jitter, reset = repeat
            self._armed[direction] = Cut(direction, jitter.randint(0, 2 * mean) if jitter else mean, reset, False)

    def cut_all(self, *, reset: bool = False) -> int:
        """End every connection now. Gives how many there were."""

        def action() -> int:
            sides = list(self.sides)
            for side in sides:
                side.end(reset)
            return len(sides) // 2

        return int(self._do(action))

    def stall(self, direction: str | None = None, after: int = 0) -> None:
        """Nothing passes (in this direction; after so many bytes more), and the ends are not told."""

        def action() -> None:
            if after and direction is not None:
                self._armed[direction] = Cut(direction, after, False, False, stalls=True)
            else:
                self.stalled |= {THERE, BACK} if direction is None else {direction}

        self._do(action)

    def flow(self, direction: str | None = None) -> None:
        """What was held passes, and all that follows."""

        def action() -> None:
            self.stalled -= {THERE, BACK} if direction is None else {direction}
            for side in list(self.sides):
                side.flow()

        self._do(action)

    # -- passing

    def pass_on(self, side: Side, data: bytes) -> None:
        other = side.other
        assert other is not None
        cut = self._armed[side.direction]
        if cut is None or cut.left >= len(data):
            # a cut after exactly these bytes waits for the next one: only then is it known that there is one
            if cut is not None:
                cut.left -= len(data)
            self.passed[side.direction] += len(data)
            other.write(data)
            return
        if cut.left:
            other.write(data[: cut.left])
        self.passed[side.direction] += cut.left
        self._armed[side.direction] = None
        cut.happened = True
        if cut.stalls:
            self.stalled.add(side.direction)
            side.held.insert(0, data[cut.left :])
            return
        self.cuts += 1
        # What was allowed has to arrive before the end does: so it is a FIN behind data, and a RST only towards the
        # side that sent, unless nothing was to pass.
        for each in list(self.sides) if cut.everything else [side, other]:
            each.end(cut.reset and (each is side or not cut.left))
        self._arm_again(side.direction)

    async def _listen(self) -> asyncio.Server:
        return await self.loop.create_server(self._accept, "127.0.0.1", 0)

    def _accept(self) -> Side:
        near = Side(self, THERE)
        self.connections += 1
        task = self.loop.create_task(self._connect(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return near

    async def _connect(self, near: Side) -> None:
        far = Side(self, BACK)
        far.other = near
        try:
            await self.loop.create_connection(lambda: far, "127.0.0.1", self.target)
        except OSError:
            near.end(True)
            return
        near.other = far
        if near.transport is not None and near.transport.is_closing():
            far.end(False)
            return
        near.flow()
