"""What the machine and the server allow: prebuilt bytes over one raw connection, no library in between.

    python -m bench.limits [--url redis://127.0.0.1:6379] [--json]

The value that is pushed is the payload of the other measurements as fluidfast writes it. Nothing is confirmed, leased
or decoded one by one: a task queue cannot reach these rates, and how near it comes is what they are there for.
"""

import argparse
import asyncio
import secrets
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from fluidfast import TaskManager

from .common import params, resp
from .driver import new_loop, report
from .load import broker, shown
from .ours import make_task

IN_FLIGHT = 8
"""Commands on their way at a time, where they are pipelined."""
BETWEEN_SECONDS = 10e-6
"""What a program does between two calls, at least: the server falls asleep meanwhile, and has to be woken."""


class Raw(asyncio.Protocol):
    """Writes prebuilt commands and counts the bytes or lines that come back."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._count: Callable[[bytes], int] = len
        self._due = 0
        self._done: asyncio.Future[None] | None = None
        self._error: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data[:1] == b"-":
            self._error = data
        self._due -= self._count(data)
        if self._due <= 0 and self._done is not None:
            done, self._done = self._done, None
            if self._error is not None:
                done.set_exception(ConnectionError(self._error.decode(errors="replace").strip()))
            else:
                done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None:
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    def ask(self, command: bytes, due: int, count: Callable[[bytes], int]) -> "asyncio.Future[None]":
        """Write; the future is done when ``count`` of what came back has summed up to ``due``."""
        self._count, self._due = count, due
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(command)
        return self._done


def lines(data: bytes) -> int:
    """Replies of one line each."""
    return data.count(b"\n")


async def connect(url: str) -> Raw:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    _, raw = await asyncio.get_running_loop().create_connection(Raw, parts.hostname or "127.0.0.1", parts.port or 6379)
    if parts.password:
        await raw.ask(resp(b"AUTH", parts.password.encode()), 1, lines)
    return raw


async def best_of(call: Callable[[], Awaitable[int]], seconds: float) -> float:
    """Things a second, in rounds until ``seconds`` are over."""
    started, count = perf_counter(), 0
    while perf_counter() - started < seconds:
        count += await call()
    return count / (perf_counter() - started)


async def payload() -> bytes:
    """One run as fluidfast writes it."""
    manager = TaskManager(broker_url=f"memory://bench-{secrets.token_hex(4)}")
    await manager.queue(make_task("struct", lambda i: None), **params(123_456))
    claim = await manager.broker.claim(manager.manager_id, 1)
    return claim.items[0].payload


async def measure(url: str, seconds: float) -> dict[str, Any]:
    """Each limit for about ``seconds``."""
    value = await payload()
    key = f"bench-{secrets.token_hex(4)}".encode()
    raw = await connect(url)
    found: dict[str, Any] = {"mode": "limits", "value_bytes": len(value)}
    thousand = resp(b"LPUSH", key, *[value] * 1000)
    single = resp(b"LPUSH", key, value)
    size = await depth(raw, resp(b"RPOP", key, b"100"), single * 100, value)

    async def push_1000() -> int:
        await raw.ask(thousand * IN_FLIGHT, IN_FLIGHT, lines)
        return 1000 * IN_FLIGHT

    async def pipelined(by: int) -> int:
        await raw.ask(single * by, by, lines)
        return by

    async def pop_100() -> int:
        await raw.ask(resp(b"RPOP", key, b"100") * IN_FLIGHT * 10, size * IN_FLIGHT * 10, len)
        return 1000 * IN_FLIGHT

    async def one(command: bytes) -> int:
        await raw.ask(command, 1, lines)
        return 1

    async def one_awake(command: bytes, replies: int = 1) -> int:
        done = raw.ask(command, replies, lines)
        while not done.done():  # noqa: ASYNC110  # looking all the time is what is measured
            await asyncio.sleep(0)
        return 1

    async def one_busy(command: bytes, replies: int) -> int:
        until = perf_counter() + BETWEEN_SECONDS
        while perf_counter() < until:
            pass
        return await one_awake(command, replies)

    async def clean() -> None:
        await raw.ask(resp(b"UNLINK", key), 1, lines)

    async def refill_and_pop() -> float:
        # the pushing is not timed
        spent, count = 0.0, 0
        while spent < seconds:
            await raw.ask(thousand * 100, 100, lines)
            started = perf_counter()
            for _ in range(100 // IN_FLIGHT):
                count += await pop_100()
            spent += perf_counter() - started
            await clean()
        return count / spent

    await best_of(push_1000, 0.05)
    await clean()
    found["lpush_1000_values"] = await best_of(push_1000, seconds)
    await clean()
    for by in (100, 1000):
        found[f"lpush_pipelined_{by}"] = await best_of(lambda by=by: pipelined(by), seconds)  # type: ignore[misc]
        await clean()
    found["rpop_100_values"] = await refill_and_pop()
    found["round_trips_ping"] = await best_of(lambda: one(resp(b"PING")), seconds)
    found["round_trips_lpush"] = await best_of(lambda: one(single), seconds)
    await clean()
    found["round_trips_lpush_awake"] = await best_of(lambda: one_awake(single), seconds)
    await clean()
    mark = resp(b"SET", key + b"-mark", b"1", b"PX", b"60000")
    once = resp(b"MULTI") + mark + single + resp(b"EXEC")  # answered with +OK, +QUEUED, +QUEUED, *2, +OK, :1
    found["round_trips_once_awake"] = await best_of(lambda: one_awake(once, 6), seconds)
    found["round_trips_once_busy"] = await best_of(lambda: one_busy(once, 6), seconds)
    await raw.ask(resp(b"UNLINK", key, key + b"-mark"), 1, lines)
    raw.transport.close()
    return found


async def depth(raw: Raw, pop: bytes, push: bytes, value: bytes) -> int:
    """Bytes of the reply to one RPOP of 100 values."""
    size = len(b"*100\r\n") + 100 * len(b"$%d\r\n%b\r\n" % (len(value), value))
    await raw.ask(push, 100, lines)
    await raw.ask(pop, size, len)
    return size


def run_on(uvloop: bool, url: str, seconds: float) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=lambda: new_loop(uvloop)) as runner:
        return runner.run(measure(url, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.limits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", "--url", default="", help="URL; none: a server is started for this measurement")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each limit is measured")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(wire="json")
    options = parser.parse_args()

    def call() -> dict[str, Any] | None:
        with broker(options) as url:
            found = run_on(True, url, options.seconds)
            plain = run_on(False, url, min(0.3, options.seconds))
            found["round_trips_ping_asyncio"] = plain["round_trips_ping"]
        return shown(found, options.json)

    sys.exit(report(call, plain=not options.json))


if __name__ == "__main__":
    main()
