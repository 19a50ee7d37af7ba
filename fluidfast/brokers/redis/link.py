"""One connection that writes prebuilt commands and hands replies to futures in order, nothing else.

redis-py finds the server, checks its certificate, authenticates and selects the database; then its transport gets this
protocol. A round trip costs a fifth of what redis-py's own does, and commands that are written together travel
together.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection

from ._lane import SHORT_BYTES, Direct

__all__ = ["Link", "LinkLost", "ServerReply", "Sink", "Transaction", "give"]

POLL_MISSES = 4
POLL_PAUSE = 0.1
"""After so many late answers in a row, the link stops polling for so many seconds."""
LOOK_SECONDS = 0.001
"""Seconds that one await may poll, at most: meanwhile the event loop does nothing else."""


def several_cores() -> bool:
    """Whether this process may run on a core beside the server's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


class ServerReply(Exception):
    """An error that the server answered. The command had no effect unless its own text says otherwise."""


class LinkLost(ConnectionError):
    """The connection went away before a reply came: whether the command took effect is unknown."""


Sink = Callable[[Any, Exception | None], None]
"""Gets a reply and None, or None and what came instead of one: ServerReply or LinkLost."""


class Link(Direct, asyncio.Protocol):
    """A connection to one server. Lives in the event loop that made it."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._reader = hiredis.Reader(protocolError=LinkLost, replyError=ServerReply)
        self._waiting: deque[asyncio.Future[Any] | Sink] = deque()
        self._polling = False
        self._poll_from = inf
        self._loop = asyncio.get_running_loop()
        writer = connection._writer
        reader = connection._reader
        if writer is None or reader is None or reader.at_eof() or writer.transport.is_closing():
            raise LinkLost("the connection was closed while it was made")
        # The transport is ours from here on. The writer is kept, since it ends its transport when it is collected.
        self._writer = writer
        connection._reader = connection._writer = None
        self._transport = writer.transport
        self.peer = self._transport.get_extra_info("peername")
        sock = self._transport.get_extra_info("socket")
        if sock is not None and self._transport.get_extra_info("ssl_object") is None:
            self._fd = sock.fileno()
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    @property
    def waiting(self) -> int:
        """Replies that are due."""
        return len(self._waiting)

    def stalled(self, seconds: float) -> bool:
        """Whether a reply has been due for that long without any byte from the server."""
        return bool(self._waiting) and monotonic() - self._oldest > seconds

    def call(self, command: bytes) -> "asyncio.Future[Any]":
        """Write a packed command; the future gets its reply.

        The future raises ServerReply for an error reply, LinkLost if the connection ends first.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._write(command, future)
        return future

    def calls(self, commands: bytes, count: int) -> "list[asyncio.Future[Any]]":
        """Write packed commands in one; a future for each gets its reply, as that of ``call``."""
        futures: list[asyncio.Future[Any]] = [self._loop.create_future() for _ in range(count)]
        self._write(commands, *futures)
        return futures

    def send(self, command: bytes, *sinks: Sink) -> None:
        """Write a packed command, or several in a row; each of ``sinks`` is called with the reply to one, straight out
        of the event loop's reading. A ``Transaction`` takes those to several."""
        self._write(command, *sinks)

    def sent(self, came: bytes, *sinks: Sink) -> None:
        """As ``send``, of a command that has been written past the transport. ``came``: of the answer, already."""
        self._write(b"", *sinks)
        if came:
            self.data_received(came)

    def _write(self, command: bytes, *takers: "asyncio.Future[Any] | Sink") -> None:
        if self.closed or self._transport.is_closing():  # the latter: it broke, and we are about to be told
            for taker in takers:  # not from within: the caller has not seen our return yet
                self._loop.call_soon(give, taker, None, LinkLost("the connection is closed"))
            return
        if not self._waiting:
            self._oldest = monotonic()
        self._waiting.extend(takers)
        if command and self.begun:
            self._transport.write(memoryview(command)[1:])
            self.begun = False
        elif command:
            self._transport.write(command)
        if not self._polling and self._oldest >= self._poll_from and len(command) < SHORT_BYTES:
            self._polling = True
            self._loop.call_soon(self._poll)

    def busy_poll(self, seconds: float) -> None:
        """From here on, look that long for the answer to a short command before the event loop may sleep.

        A core that falls asleep takes tens of microseconds to wake up, which is longer than a server nearby takes to
        answer, and costs as much CPU as looking. A server that is farther away is found out and left alone.
        """
        self._poll_seconds = seconds
        self._look_seconds = min(seconds, LOOK_SECONDS)
        self._poll_from = 0.0 if seconds and several_cores() else inf

    def _poll(self) -> None:
        if not self._waiting:
            self._polling = False
            self._poll_misses = 0
        elif (now := monotonic()) - self._oldest < self._poll_seconds:
            self._loop.call_soon(self._poll)
        else:
            self._polling = False
            self._poll_misses += 1
            if self._poll_misses >= POLL_MISSES:
                self._poll_misses = 0
                self._poll_from = now + POLL_PAUSE

    def data_received(self, data: bytes) -> None:
        self._oldest = monotonic()
        reader = self._reader
        waiting = self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                taker = waiting[0]
                if type(taker) is Transaction and taker.goes_on(reply):
                    continue
                del waiting[0]
                if isinstance(reply, ServerReply):
                    give(taker, None, reply)
                else:
                    give(taker, reply, None)
        except (LinkLost, IndexError) as exc:  # not RESP, or more replies than commands
            self.abort()
            self.connection_lost(LinkLost(f"the server's answer is not understood: {exc}"))

    def connection_lost(self, exc: BaseException | None) -> None:
        self.closed = True
        waiting, self._waiting = self._waiting, deque()
        for taker in waiting:
            give(taker, None, LinkLost(str(exc or "the server closed the connection")))

    def abort(self) -> None:
        """End the connection now."""
        self.closed = True
        self._transport.abort()

    async def close(self) -> None:
        """End the connection after what was written is out."""
        self.closed = True
        self._transport.close()


class Transaction:
    """Takes the replies to a transaction and gives one of them.

    ``replies``: how many commands it is, MULTI and EXEC with them. ``sink`` gets what the last one answers, or the
    first error of all.
    """

    __slots__ = ("due", "error", "sink")

    def __init__(self, sink: Sink, replies: int) -> None:
        self.sink = sink
        self.due = replies
        self.error: Exception | None = None

    def goes_on(self, reply: Any) -> bool:
        """Whether this was not the last of them, which is to be given."""
        self.due -= 1
        if self.error is None and isinstance(reply, ServerReply):
            self.error = reply
        return self.due > 0

    def __call__(self, reply: Any, exc: Exception | None) -> None:
        error = self.error or exc
        if error is None:
            error = next((part for part in reply or () if isinstance(part, ServerReply)), None)
        self.sink(None if error is not None else reply, error)


def give(taker: "asyncio.Future[Any] | Sink", reply: Any, exc: Exception | None) -> None:
    """Hand a reply, or what came in its place, to who waits for it."""
    if not isinstance(taker, asyncio.Future):
        taker(reply, exc)
    elif taker.done():  # its caller was cancelled
        return
    elif exc is None:
        taker.set_result(reply)
    else:
        taker.set_exception(exc)
        taker.exception()  # a caller that is gone is no reason for a warning
