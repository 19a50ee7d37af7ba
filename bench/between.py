"""``await queue()`` in a loop that has some work of its own between two calls, as most have.

    python -m bench.between [--broker redis://127.0.0.1:6379] [--work-us 0 2 5 10 20 50] [--json]

A server that has answered falls asleep within microseconds, and is slower to answer then; so what a call costs depends
on what its caller does in between. Beside it, in turns: a prebuilt transaction of the same size over a raw connection
of an event loop that never sleeps, and of one that does. Medians, in microseconds a call, without the work.
"""

import argparse
import asyncio
import secrets
import statistics
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from fluidfast import TaskManager

from .common import params, resp
from .driver import new_loop, report
from .limits import connect, lines, payload
from .load import broker, shown
from .ours import make_task

ROUNDS = 7
CALLS = 2000
"""A round. What the library finds out about the server it finds out before the first."""
WARM_UP = 10_000


async def calls(call: Callable[[], Awaitable[object]], work: float, count: int) -> float:
    """Microseconds that one takes, besides ``work`` seconds after each."""
    started = perf_counter()
    for _ in range(count):
        await call()
        until = perf_counter() + work
        while perf_counter() < until:
            pass
    return ((perf_counter() - started) / count - work) * 1e6


async def measure(url: str, works: list[float]) -> dict[str, Any]:
    raw = await connect(url)
    key = f"bench-{secrets.token_hex(4)}".encode()
    mark = resp(b"SET", key + b"-mark", b"1", b"PX", b"60000")
    once = resp(b"MULTI") + mark + resp(b"LPUSH", key, await payload()) + resp(b"EXEC")
    manager = TaskManager(broker_url=url)
    noop = make_task("struct", lambda i: None)
    given = params(123_456)

    async def ours() -> None:
        await manager.queue(noop, **given)

    async def awake() -> None:
        done = raw.ask(once, 6, lines)
        while not done.done():  # noqa: ASYNC110  # looking all the time is what is measured
            await asyncio.sleep(0)

    async def asleep() -> None:
        await raw.ask(once, 6, lines)

    ways: dict[str, Callable[[], Awaitable[None]]] = {"fluidfast": ours, "raw, never sleeps": awake, "raw": asleep}
    rows = []
    async with manager:
        for work in works:
            spent: dict[str, list[float]] = {name: [] for name in ways}
            await calls(ours, work / 1e6, WARM_UP)
            for _ in range(ROUNDS):
                for name, call in ways.items():
                    spent[name].append(await calls(call, work / 1e6, CALLS))
                await raw.ask(resp(b"UNLINK", key), 1, lines)
            rows.append({"work_us": work, **{name: round(statistics.median(took), 1) for name, took in spent.items()}})
        await manager.broker.clear()
    await raw.ask(resp(b"UNLINK", key + b"-mark"), 1, lines)
    raw.transport.close()
    return {"mode": "between", "calls": CALLS, "rounds": ROUNDS, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.between", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="", help="URL; none: a server is started for this measurement")
    parser.add_argument("--work-us", type=float, nargs="+", default=[0.0, 2.0, 5.0, 10.0, 20.0, 50.0])
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(wire="json")
    options = parser.parse_args()

    def call() -> dict[str, Any] | None:
        with broker(options) as url, asyncio.Runner(loop_factory=lambda: new_loop(True)) as runner:
            found = runner.run(measure(url, options.work_us))
        return shown(found, options.json)

    sys.exit(report(call, plain=not options.json))


if __name__ == "__main__":
    main()
