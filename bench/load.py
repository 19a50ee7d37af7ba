"""Load for fluidfast: one measurement a call.

    python -m bench.load drain --broker redis://127.0.0.1:6379 --tasks 200000
    python -m bench.load produce --style one --tasks 20000          # starts a server of its own
    python -m bench.load e2e --broker memory:// --tasks 1000000 --json

With Redis or Valkey, producer and worker are processes of their own, and every task's runs are counted in memory that
they share: lost and duplicated are counts. ``memory://`` is one process by its nature. The broker gets a name of its
own (``?name=bench-...``) and is cleared at the end, so a server that is in use is safe, but do not expect clean numbers
from it.
"""

import argparse
import asyncio
import contextlib
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import fluidfast
from fluidfast import TaskConsumer, TaskManager
from fluidfast.errors import TaskError

from . import plot
from .common import ROOT, BenchError, Child, Marks, Memory, cost_in, counters, percentile
from .driver import (
    IDLE_SECONDS,
    PROGRAMS,
    Driver,
    drain,
    latency,
    leaf,
    leaf_parsers,
    report,
    run,
    run_leaf,
    until_marked,
    watched,
)
from .ours import KINDS, STYLES, Fluidfast
from .proxy import Proxy

# --- one process ----------------------------------------------------------------------------------


async def local(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """``produce``, ``drain``, ``e2e``, ``latency`` and ``backlog`` on ``memory://``, in this process."""
    tasks = options.tasks
    with Marks.create(tasks, times=options.mode == "latency") as marks:
        counts = marks.counts

        def hit(i: int) -> None:
            if i >= 0:
                counts[i] += 1
                if marks.times:
                    marks.started[i] = monotonic()

        driver = Fluidfast(url, options.params)
        consumer = TaskConsumer(broker_url=url, max_concurrent_tasks=options.concurrency)
        driver.use(consumer, hit)
        found: dict[str, Any] = {"mode": options.mode, **Fluidfast.about(options.params), "tasks": tasks}
        try:
            if options.mode == "latency":
                await consumer.startup()
                for i in range(tasks):
                    marks.sent[i] = monotonic()
                    await driver.send(i)
                    await asyncio.sleep(0.005)
                waits = [(marks.started[i] - marks.sent[i]) * 1e3 for i in range(tasks)]
                shares = (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("max_ms", 1.0))
                found.update({name: percentile(waits, share) for name, share in shares})
            elif options.mode == "backlog":
                found["levels"] = [await local_level(options, driver, consumer, w, marks) for w in options.waiting]
                return found
            else:
                if options.mode == "e2e":
                    await consumer.startup()
                queued = await local_produce(driver, consumer, options.style, tasks)
                found["produce"] = queued
                if options.mode == "produce":
                    return {**found, **queued, "bytes_per_task": None}
                started = monotonic()
                if options.mode == "drain":
                    await consumer.startup()
                while not marks.reached(tasks):
                    await asyncio.sleep(0.001)
                    if monotonic() - started > options.timeout:
                        raise BenchError(f"{marks.ran()} of {tasks} tasks ran within {options.timeout:.0f} s")
                seconds = monotonic() - (started if options.mode == "drain" else queued["started"])
                found.update(rate=tasks / seconds, seconds=seconds)
            found.update(lost=tasks - marks.ran(), duplicated=marks.duplicated())
        finally:
            if consumer.is_running():
                await consumer.shutdown()
            await consumer.broker.clear()
        return found


async def local_produce(driver: Driver, consumer: TaskManager, style: str, tasks: int) -> dict[str, Any]:
    call = getattr(driver, "one" if style == "buffered" else style)
    at, started = monotonic(), perf_counter()
    await call(0, tasks)
    seconds = perf_counter() - started
    return {"style": style, "started": at, "seconds": seconds, "rate": tasks / seconds}


async def local_level(
    options: argparse.Namespace, driver: Driver, consumer: TaskConsumer, waiting: int, marks: Marks
) -> dict[str, Any]:
    """Push and pop on a queue that holds ``waiting``, by the broker's own verbs: a consumer would empty it."""
    broker, tasks = consumer.broker, options.tasks
    await driver.many(-2 - waiting, waiting)  # type: ignore[attr-defined]
    started = perf_counter()
    await driver.many(0, tasks)  # type: ignore[attr-defined]
    produced = perf_counter()
    left = tasks
    while left:
        claim = await broker.claim(consumer.manager_id, min(1000, left))
        left -= len(claim.items)
        await broker.settle(fluidfast.brokers.contract.Settlement(claim.batch, whole=True))
    claimed = perf_counter()
    await broker.clear()
    return {
        "waiting": waiting,
        "produce_rate": tasks / (produced - started),
        "claim_and_settle_rate": tasks / (claimed - produced),
    }


# --- several processes ----------------------------------------------------------------------------


def e2e(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """Producer and worker at the same time: from the first ``queue`` to the last run."""
    tasks, kind = options.tasks, options.params
    with Marks.create(tasks + 1) as marks:
        worker_command = leaf(Fluidfast, "worker", url, kind, "--concurrency", options.concurrency)
        with Child(worker_command, marks.environment) as worker:
            ready = leaf(Fluidfast, "producer", url, kind, "--style", "one", "--tasks", 1, "--first", tasks)
            with Child(ready) as producer:
                producer.result(30)
            while not marks.counts[tasks]:
                worker.check()
                sleep(0.01)
            memory = Memory(worker.process.pid)
            with Child(leaf(Fluidfast, "producer", url, kind, "--style", options.style, "--tasks", tasks)) as producer:
                producer_memory = Memory(producer.process.pid)
                begun = monotonic()
                while producer.process.poll() is None and not marks.reached(tasks):
                    worker.check()
                    memory.tick()
                    producer_memory.tick()
                    if monotonic() - begun > options.timeout:
                        raise BenchError(f"{marks.ran(0, tasks)} of {tasks} tasks ran within {options.timeout:.0f} s")
                    sleep(0.002)
                produced = producer.result(30)
                while not marks.reached(tasks):
                    worker.check()
                    memory.tick()
                    if monotonic() - begun > options.timeout:
                        raise BenchError(f"{marks.ran(0, tasks)} of {tasks} tasks ran within {options.timeout:.0f} s")
                    sleep(0.002)
                seconds = monotonic() - produced["started"]
            sleep(0.3)
        produced["memory"] = producer_memory.report()
        return {
            "mode": "e2e",
            **Fluidfast.about(kind),
            "tasks": tasks,
            "rate": tasks / seconds,
            "seconds": seconds,
            "lost": tasks - marks.ran(0, tasks),
            "duplicated": marks.duplicated(tasks),
            "memory": memory.report(),
            "produce": produced,
        }


def produce_alone(options: argparse.Namespace, url: str, style: str = "") -> dict[str, Any]:
    """Queue, and count what then waits."""
    tasks = options.tasks
    with counters(url) as server:
        before = server and server.snapshot()
        command = leaf(Fluidfast, "producer", url, options.params, "--tasks", tasks, "--style", style or options.style)
        produced = watched(command, options.timeout)
        after = server and server.snapshot()
    waiting = run(queue_length(url))
    return {
        "mode": "produce",
        **Fluidfast.about(options.params),
        **produced,
        "lost": tasks + 1 - waiting,
        **(cost_in(before, after, tasks + 1) if before and after else {}),
    }


async def queue_length(url: str) -> int:
    manager = TaskManager(broker_url=url)
    try:
        return sum((await manager.broker.queue_length()).values())
    finally:
        await manager.on_shutdown()


TURNS = 7
"""How often each length of a backlog has its turn."""
AHEAD = 10_000
"""Runs that a worker may have done beyond those of its turn, until it is ended."""


class Level:
    """A backlog of one length, under a name of its own, so that several can be measured in turns.

    ``turns``: for how many of them it is filled. What is measured are the first ``tasks`` that wait in each.
    """

    def __init__(self, options: argparse.Namespace, url: str, waiting: int, turns: int) -> None:
        base, _, query = url.partition("?")
        fields = dict(parse_qsl(query))
        fields["name"] = f"{fields['name']}-{waiting}"
        self.url = f"{base}?{urlencode(fields)}"
        self.options, self.waiting, self.turns = options, waiting, turns
        self.rates: list[tuple[float, float]] = []
        self.cost: dict[str, Any] | None = None

    def turn(self, marks: Marks) -> None:
        """Queue on top of what waits; run what waits longest. A level that was filled for one turn is filled anew."""
        if self.turns == 1:
            run(clear(self.url))
            self.fill(marks)
        produced = self._queue(self.options.tasks, -2 - self.options.tasks)
        options = self.options
        command = leaf(Fluidfast, "worker", self.url, options.params, "--concurrency", options.concurrency)
        with Child(command, marks.environment) as worker:
            self.memory = Memory(worker.process.pid)
            wanted = marks.low(marks.tasks) + options.tasks
            found = until_marked(marks, wanted, worker, options.timeout, self.memory)
        self.rates.append((produced["rate"], found["rate"]))

    def fill(self, marks: Marks) -> None:
        with counters(self.url) as server:
            empty = server and server.snapshot()
            self._queue(marks.tasks, 0)
            self.filled = self._queue(self.waiting, -2 - self.waiting)
            full = server and server.snapshot()
        if self.cost is None:  # later the server may still be freeing what was cleared
            self.cost = cost_in(empty, full, self.waiting + marks.tasks + 2) if empty and full else {}

    def _queue(self, tasks: int, first: int) -> dict[str, Any]:
        options = self.options
        command = leaf(Fluidfast, "producer", self.url, options.params, "--tasks", tasks, "--first", first)
        return watched(command, options.timeout)

    def report(self) -> dict[str, Any]:
        return {
            "waiting": self.waiting,
            "produce_rate": median(rate for rate, _ in self.rates),
            "drain_rate": median(rate for _, rate in self.rates),
            "fill_rate": self.filled["rate"],
            **(self.cost or {}),
            "worker_memory": self.memory.report(),
            "producer_memory": self.filled["memory"],
        }


def backlog(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """Rates of queueing and running with ``waiting`` tasks waiting behind those that are measured.

    The longest stands on the server all the time and is measured in turns with the others, so a machine that is slow
    for a while is slow for each.
    """
    tasks, longest = options.tasks, max(options.waiting)
    levels = [Level(options, url, waiting, TURNS if waiting == longest else 1) for waiting in options.waiting]
    with Marks.create((tasks + AHEAD) * TURNS) as marks:
        try:
            for level in levels:
                if level.turns > 1:
                    level.fill(marks)
            for _ in range(TURNS):
                for level in levels:
                    if level.turns > 1:
                        level.turn(marks)
                        continue
                    with Marks.create(tasks) as fresh:
                        level.turn(fresh)
            found = [level.report() for level in levels]
        finally:
            for level in levels:
                run(clear(level.url))
    return {"mode": "backlog", **Fluidfast.about(options.params), "tasks": tasks, "levels": found}


def rtt(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """Every way of queueing, and draining, with a server that is ``delay-ms`` away in each direction."""
    rows = []
    given = options.tasks
    for milliseconds in options.delay_ms:
        delay = Proxy(url, milliseconds / 1e3, milliseconds / 1e3) if milliseconds else contextlib.nullcontext()
        with delay as proxy:
            target = proxy.url if proxy is not None else url
            row: dict[str, Any] = {
                "delay_ms": milliseconds,
                "round_trip_ms": proxy.round_trip() if proxy is not None else None,
            }
            for style in STYLES:
                options.tasks = min(given, 500) if style == "one" and milliseconds else given
                row[style] = produce_alone(options, target, style)["rate"]
                run(clear(url))
            drained = drain(
                Fluidfast, target, options.params, given, concurrency=options.concurrency, timeout=options.timeout
            )
            row["drain"] = drained["rate"]
            row["lost"], row["duplicated"] = drained["lost"], drained["duplicated"]
            rows.append(row)
            run(clear(url))
    return {"mode": "rtt", **Fluidfast.about(options.params), "tasks": given, "rows": rows}


SHAPES = {
    # streaQ's benchmark: https://github.com/tastyware/streaq/tree/master/benchmarks
    "20,000 no-ops, 10 slots": (20_000, 10, 0.0),
    # sidekiq's bin/sidekiqload, which puts 1 ms between the server and the worker, on the way back
    "sidekiqload: 500,000 no-ops, 10 slots": (500_000, 10, 0.0),
    "sidekiqload: 500,000 no-ops, 10 slots, 1 ms away": (500_000, 10, 0.001),
}


def shapes(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """The public shapes: what other libraries publish numbers of. ``--scale`` shrinks them."""
    rows = []
    for name, (tasks, slots, back) in SHAPES.items():
        count = max(1000, int(tasks * options.scale))
        with Proxy(url, 0.0, back) if back else contextlib.nullcontext() as proxy:
            target = proxy.url if proxy is not None else url
            drained = drain(Fluidfast, target, options.params, count, concurrency=slots, timeout=options.timeout)
            rows.append(
                {
                    "shape": name,
                    "tasks": count,
                    "queue_seconds": drained["produce"]["seconds"],
                    "run_seconds": drained["seconds"],
                    "rate": drained["rate"],
                    "lost": drained["lost"],
                    "duplicated": drained["duplicated"],
                }
            )
        run(clear(url))
    return {"mode": "shapes", **Fluidfast.about(options.params), "scale": options.scale, "rows": rows}


async def clear(url: str) -> None:
    manager = TaskManager(broker_url=url)
    try:
        await manager.broker.clear()
    finally:
        await manager.on_shutdown()


# --- the command line -----------------------------------------------------------------------------

MODES = {
    "produce": "queue tasks: one by one, gathered, buffered, or with queue_many",
    "drain": "queue tasks, then run them with one worker",
    "e2e": "queue and run at the same time",
    "latency": "from enqueue to start of a worker that is idle, or (--load) under load",
    "backlog": "rates with so many tasks waiting behind",
    "rtt": "rates with a round trip of milliseconds to the server",
    "shapes": "the public shapes: 20,000 no-ops with 10 slots, sidekiqload's 500,000",
}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m bench.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = main.add_subparsers(dest="mode", required=True)
    for mode, text in MODES.items():
        sub = commands.add_parser(mode, help=text, description=text)
        sub.add_argument("--broker", default="", help="URL; none: a server is started for this measurement")
        sub.add_argument("--wire", choices=("json", "msgpack"), default="json")
        sub.add_argument("--params", choices=KINDS, default="struct", help="the kind of params model")
        sub.add_argument("--concurrency", type=int, default=Fluidfast.concurrency, help="slots of the worker")
        sub.add_argument("--timeout", type=float, default=600.0, help="seconds that a phase may take")
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.add_argument("--plot", type=Path, metavar="FILE.svg", help="memory over time, of drain and e2e")
        default = {"latency": 200, "rtt": 20_000, "shapes": 0}.get(mode, 100_000)
        sub.add_argument("--tasks", type=number, default=default)
        if mode in ("produce", "drain", "e2e"):
            sub.add_argument("--style", choices=STYLES, default="many")
        if mode == "latency":
            sub.add_argument("--load", type=float, default=0.0, help="tasks a second that are queued meanwhile")
            sub.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds in which commands are counted")
        if mode == "backlog":
            sub.add_argument("--waiting", type=number, nargs="+", default=[10_000, 10_000_000])
        if mode == "rtt":
            sub.add_argument("--delay-ms", type=float, nargs="+", default=[0.0, 1.0, 2.0])
        if mode == "shapes":
            sub.add_argument("--scale", type=float, default=1.0)
    return main


def number(text: str) -> int:
    return int(float(text.replace("_", "").replace(",", "")))


@contextlib.contextmanager
def broker(options: argparse.Namespace) -> Iterator[str]:
    """The URL to measure, with a name of its own and the wire asked for; on a server of our own if none was given."""
    with contextlib.ExitStack() as stack:
        given = options.broker
        if not given:
            sys.path.insert(0, str(ROOT / "tests"))
            from kits.servers import RedisServer

            given = stack.enter_context(RedisServer()).url
        parts = urlsplit(given)
        query = dict(parse_qsl(parts.query))
        if parts.scheme == "memory":
            given = f"memory://bench-{secrets.token_hex(4)}"
            parts = urlsplit(given)
        else:
            query.setdefault("name", f"bench-{secrets.token_hex(4)}")
        query.setdefault("wire", options.wire)
        url = f"{given.partition('?')[0]}?{urlencode(query)}"
        try:
            yield url
        finally:
            if parts.scheme != "memory" and options.broker:
                with contextlib.suppress(TaskError):  # what the measurement itself met is the one to tell
                    run(clear(url))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with broker(options) as url:
        scheme = urlsplit(url).scheme
        started = monotonic()
        if scheme != "memory":
            run(queue_length(url))  # a wrong URL, or no server, is said now
        if scheme == "memory":
            if options.mode in ("rtt", "shapes"):
                raise BenchError(f"{options.mode} needs a server")
            found = run(local(options, url))
        elif options.mode == "produce":
            found = produce_alone(options, url)
        elif options.mode == "drain":
            found = drain(
                Fluidfast, url, options.params, options.tasks, style=options.style,
                concurrency=options.concurrency, timeout=options.timeout,
            )  # fmt: skip
        elif options.mode == "latency":
            load = ("--rate", options.load, "--seconds", 60) if options.load else ()
            found = latency(
                Fluidfast, url, options.params, options.tasks,
                concurrency=options.concurrency, idle_seconds=options.idle, background=load,
            )  # fmt: skip
        else:
            found = {"e2e": e2e, "backlog": backlog, "rtt": rtt, "shapes": shapes}[options.mode](options, url)
        return {**found, "broker": scheme, "wire": options.wire, "measured_seconds": round(monotonic() - started, 1)}


def table(found: dict[str, Any], indent: str = "") -> Iterator[str]:
    """The result for a person to read."""
    for name, value in found.items():
        if name in ("samples", "started", "first", "last", "commands_in", "commands_out"):
            continue
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            yield f"{label}:"
            yield from table(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{label}:"
            for entry in value:
                yield from table(entry, indent + "  ")
                yield ""
        elif isinstance(value, float):
            yield f"{label:<36}{value:,.0f}" if value >= 1000 else f"{label:<36}{value:,.3g}"
        else:
            yield f"{label:<36}{value:,}" if isinstance(value, int) else f"{label:<36}{value}"


def shown(found: dict[str, Any], as_json: bool) -> dict[str, Any] | None:
    """What is left for ``report`` to print: the result as JSON, or nothing, since it has been printed as a table."""
    if as_json:
        return found
    print("\n".join(table(found)))
    return None


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in (*PROGRAMS, "flood"):
        sys.exit(small_program())
    options = parser().parse_args()

    def call() -> dict[str, Any] | None:
        try:
            found = measure(options)
        except TaskError as exc:
            raise BenchError(str(exc)) from exc
        if options.plot:
            plot.memory(found, options.plot)
        return shown(found, options.json)

    sys.exit(report(call, plain=not options.json))


def small_program() -> int:
    """What the measurements start: ``producer``, ``worker``, ``probe`` (see ``driver``) and ``flood``."""
    main = argparse.ArgumentParser()
    commands = main.add_subparsers(dest="program", required=True)
    leaf_parsers(commands, Fluidfast)
    flood = commands.add_parser("flood")
    flood.add_argument("--url", required=True)
    flood.add_argument("--variant", choices=KINDS, required=True)
    flood.add_argument("--rate", type=float, required=True)
    flood.add_argument("--seconds", type=float, required=True)
    options = main.parse_args()
    driver = Fluidfast(options.url, options.variant)
    if options.program == "flood":
        return report(lambda: run(driver.flood(options.rate, options.seconds)))
    return report(lambda: run_leaf(driver, options))


if __name__ == "__main__":
    main()
