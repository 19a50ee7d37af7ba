"""The drivers' common part: a library is measured by three small programs, which other programs put together.

``producer`` queues tasks and says how fast; ``worker`` runs them until it is ended; ``probe`` queues one at a time
into an idle queue. ``drain`` and ``latency`` start these as processes of their own and count what ran. Each prints one
line of JSON. The standard library only, as in ``common``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import logging
import platform
import random
import resource
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic, perf_counter, process_time, sleep
from typing import Any, ClassVar, TypeVar

from .common import BenchError, Child, Marks, Memory, Server, begin, cost_in, cost_out, counters, params, percentile

T = TypeVar("T")
WINDOW = 1000
"""Tasks queued at a time by ``gather`` and ``bulk``."""
IDLE_SECONDS = 16.0
"""How long an idle worker's commands are counted: some are sent every 15 seconds only."""
WARM_UP = -1
PROGRAMS = ("producer", "worker", "probe")


class Driver:
    """One library. A subclass says how to queue and how to run; all of it in the library's fastest documented way.

    ``variant``: one of ``variants``; ``guarantees`` say of each what becomes of a task whose worker dies.
    """

    package: ClassVar[str]
    module: ClassVar[str]
    """What ``python -m`` starts."""
    variants: ClassVar[tuple[str, ...]] = ("",)
    guarantees: ClassVar[tuple[str, ...]]
    styles: ClassVar[tuple[str, ...]] = ("one", "gather", "bulk")
    """Ways of queueing: one by one, each awaited; 1000 calls at the same time; what the library has for many."""
    fastest: ClassVar[str] = "bulk"
    """The style that fills a queue."""
    concurrency: ClassVar[int] = 100
    """Tasks at a time of a worker that is at its fastest."""
    uvloop: ClassVar[bool] = True
    """Whether it works on uvloop; used where that is installed."""

    def __init__(self, url: str, variant: str = "") -> None:
        self.url = url
        self.variant = variant

    async def open(self, style: str = "one") -> None:
        """Connect, for this way of queueing."""

    async def close(self) -> None:
        """Let go."""

    async def send(self, i: int) -> None:
        """Queue one task with ``params(i)``."""
        raise NotImplementedError

    async def one(self, first: int, tasks: int) -> None:
        for i in range(first, first + tasks):
            await self.send(i)

    async def gather(self, first: int, tasks: int) -> None:
        for start in range(first, first + tasks, WINDOW):
            await asyncio.gather(*[self.send(i) for i in range(start, min(start + WINDOW, first + tasks))])

    async def bulk(self, first: int, tasks: int) -> None:
        """Queue windows of tasks with the library's call for many."""
        raise NotImplementedError

    def work(self, concurrency: int) -> None:
        """Run tasks until this process is ended."""
        raise NotImplementedError

    @classmethod
    def about(cls, variant: str) -> dict[str, str]:
        return {
            "package": cls.package,
            "variant": variant,
            "version": importlib.metadata.version(cls.package),
            "python": platform.python_version(),
            "guarantee": cls.guarantees[cls.variants.index(variant)],
        }


def new_loop(uvloop: bool) -> asyncio.AbstractEventLoop:
    if uvloop:
        try:
            return importlib.import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]
        except ImportError:
            pass
    return asyncio.new_event_loop()


def run(main: Coroutine[Any, Any, T], uvloop: bool = True) -> T:
    """``asyncio.run`` on uvloop where there is one."""
    with asyncio.Runner(loop_factory=lambda: new_loop(uvloop)) as runner:
        return runner.run(main)


# --- the three small programs ---------------------------------------------------------------------


async def produce(driver: Driver, style: str, first: int, tasks: int) -> dict[str, Any]:
    """Queue tasks and wait until all are confirmed. One is queued before, so that a connection stands."""
    await driver.open(style)
    await driver.send(WARM_UP)
    call = getattr(driver, style)
    started, cpu = perf_counter(), process_time()
    at = monotonic()
    await call(first, tasks)
    seconds, cpu = perf_counter() - started, process_time() - cpu
    await driver.close()
    return {
        "style": style,
        "tasks": tasks,
        "started": at,
        "seconds": seconds,
        "rate": tasks / seconds,
        "cpu_us_per_task": cpu / tasks * 1e6,
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


async def probe(driver: Driver, probes: int, seed: int) -> dict[str, Any]:
    """Queue one task at a time, each after the one before has started and the worker has been idle for a while.

    Most pauses are 5 to 30 ms; every 25th is 1.1 s, longer than the time for which most libraries block or poll.
    """
    marks = Marks.of_environment()
    if marks is None:
        raise BenchError("probes need marks")
    pauses = random.Random(seed)
    await driver.open()
    end = monotonic() + 30
    for i in range(probes):
        marks.sent[i] = monotonic()
        await driver.send(i)
        while not marks.counts[i]:
            if monotonic() > end:
                raise BenchError(f"probe {i} was not started within 30 s")
            await asyncio.sleep(0.001)
        end = monotonic() + 30
        await asyncio.sleep(1.1 if i % 25 == 24 else pauses.uniform(0.005, 0.03))
    await driver.close()
    return {"probes": probes}


# --- put together ---------------------------------------------------------------------------------


def leaf(cls: type[Driver], program: str, url: str, variant: str, *more: object) -> list[str]:
    """The command of one of the small programs."""
    return [sys.executable, "-m", cls.module, program, "--url", url, f"--variant={variant}", *map(str, more)]


def until_marked(marks: Marks, wanted: int, worker: Child, timeout: float, memory: Memory) -> dict[str, Any]:
    """Wait until the first ``wanted`` tasks have run; the rate between the first look that saw some and the last.

    What has run before, of another worker, is not counted.
    """
    begun = monotonic()
    low = marks.low(wanted)
    near = (low, min(wanted, low + 4096))  # queues are first in, first out
    before = marks.ran(*near)
    first: tuple[float, int] | None = None
    while True:
        now = monotonic()
        if first is None:
            if marks.ran(*near) > before:
                first = now, marks.ran(0, wanted)
        elif marks.reached(wanted):
            break
        worker.check()
        if now - begun > timeout:
            raise BenchError(f"{marks.ran(0, wanted)} of {wanted} tasks ran within {timeout:.0f} s")
        memory.tick()
        sleep(0.002)
    seconds = now - first[0]
    if wanted == first[1]:
        raise BenchError(f"{wanted} tasks are too few to measure: they ran in less than 2 ms")
    return {
        "rate": (wanted - first[1]) / seconds,
        "seconds": seconds,
        "startup_seconds": first[0] - begun,
        "first": first[0],
        "last": now,
    }


def watched(command: list[str], timeout: float) -> dict[str, Any]:
    """The result of a producer, with its memory over time."""
    with Child(command) as producer:
        memory = Memory(producer.process.pid)
        end = monotonic() + timeout
        while producer.process.poll() is None and monotonic() < end:
            memory.tick()
            sleep(0.02)
        return {**producer.result(1.0), "memory": memory.report()}


def drain(
    cls: type[Driver],
    url: str,
    variant: str,
    tasks: int,
    *,
    style: str = "",
    concurrency: int = 0,
    timeout: float = 120.0,
) -> dict[str, Any]:
    """Queue ``tasks`` with one process, then let one worker run them. Counts what ran."""
    with Marks.create(tasks) as marks, counters(url) as server:
        before = server and server.snapshot()
        command = leaf(cls, "producer", url, variant, "--tasks", tasks, "--style", style or cls.fastest)
        produced = watched(command, timeout)
        queued = server and server.snapshot()
        command = leaf(cls, "worker", url, variant, "--concurrency", concurrency or cls.concurrency)
        with Child(command, marks.environment) as worker:
            memory = Memory(worker.process.pid)
            found = until_marked(marks, tasks, worker, timeout, memory)
            # Settling is behind running, and a task that is delivered twice may come late.
            sleep(0.3)
            after = server and server.snapshot()
            worker.stop(timeout=10.0)
        costs: dict[str, Any] = {}
        if before and queued and after:
            costs = {**cost_in(before, queued, tasks + 1), **cost_out(queued, after, tasks + 1)}
        return {
            "mode": "drain",
            **cls.about(variant),
            "tasks": tasks,
            "concurrency": concurrency or cls.concurrency,
            **found,
            "lost": tasks - marks.ran(),
            "duplicated": marks.duplicated(),
            **costs,
            "memory": memory.report(),
            "produce": produced,
        }


def latency(
    cls: type[Driver],
    url: str,
    variant: str,
    probes: int,
    *,
    concurrency: int = 0,
    idle_seconds: float = IDLE_SECONDS,
    background: Sequence[object] = (),
) -> dict[str, Any]:
    """From enqueue to start, with a worker that has nothing else to do; and what it asks of the server when idle.

    ``background``: arguments of a ``flood`` program that runs at the same time instead, for a worker under load.
    """
    with Marks.create(probes, times=True) as marks, counters(url) as server:
        command = leaf(cls, "worker", url, variant, "--concurrency", concurrency or cls.concurrency)
        flood: Child | None = None
        with Child(command, marks.environment) as worker:
            if background:
                flood = Child(leaf(cls, "flood", url, variant, *background), marks.environment)
            try:
                before = server and server.snapshot()
                with Child(leaf(cls, "probe", url, variant, "--tasks", probes), marks.environment) as prober:
                    while prober.process.poll() is None:
                        worker.check()
                        sleep(0.05)
                    prober.result(1.0)
                flooded = flood.result(30.0) if flood is not None else None
            finally:
                if flood is not None:
                    flood.stop()
            found = server and server.snapshot()
            idle: dict[str, float] = {}
            if server and idle_seconds and not background:
                sleep(0.3)  # the last probe's settling is no idling
                with Server(url) as watcher:
                    sent, within = watcher.watch(idle_seconds)
                idle = {
                    "idle_seconds": idle_seconds,
                    "idle_commands_per_second": sent / idle_seconds,
                    "idle_commands_in_scripts_per_second": within / idle_seconds,
                }
        waits = [(marks.started[i] - marks.sent[i]) * 1e3 for i in range(1, probes)]  # the first found no worker yet
        return {
            "mode": "latency",
            **cls.about(variant),
            "probes": len(waits),
            "p50_ms": percentile(waits, 0.5),
            "p90_ms": percentile(waits, 0.9),
            "p99_ms": percentile(waits, 0.99),
            "max_ms": max(waits),
            **idle,
            "commands_per_probe": sum(found.commands_since(before).values()) / probes if found and before else None,
            "lost": probes - marks.ran(),
            "duplicated": marks.duplicated(),
            **({"flood": flooded} if flooded else {}),
        }


# --- the command line -----------------------------------------------------------------------------


def common_arguments(parser: argparse.ArgumentParser, cls: type[Driver]) -> None:
    parser.add_argument("--url", required=True)
    parser.add_argument("--variant", default=cls.variants[0], choices=cls.variants)


def leaf_parsers(commands: Any, cls: type[Driver]) -> list[argparse.ArgumentParser]:
    """The parsers of the three small programs."""
    found = []
    for program in PROGRAMS:
        parser = commands.add_parser(program)
        common_arguments(parser, cls)
        found.append(parser)
        if program == "worker":
            parser.add_argument("--concurrency", type=int, default=cls.concurrency)
            continue
        parser.add_argument("--tasks", type=int, default=1000)
        if program == "producer":
            parser.add_argument("--style", choices=cls.styles, default=cls.fastest)
            parser.add_argument("--first", type=int, default=0, help="user_id of the first; negative: not counted")
        else:
            parser.add_argument("--seed", type=int, default=1)
    return found


def run_leaf(driver: Driver, options: argparse.Namespace) -> dict[str, Any] | None:
    if options.program == "worker":
        driver.work(options.concurrency)
        return None
    if options.program == "probe":
        return run(probe(driver, options.tasks, options.seed), driver.uvloop)
    return run(produce(driver, options.style, options.first, options.tasks), driver.uvloop)


def report(call: Callable[[], dict[str, Any] | None], plain: bool = False) -> int:
    """Print what ``call`` returns, or why it could not, as one line of JSON. Gives the exit code.

    ``plain``: the reason for a person, on stderr.
    """
    begin()
    logging.basicConfig(level=logging.ERROR)
    try:
        found = call()
    except BenchError as exc:
        why = str(exc)
    except Exception as exc:
        traceback.print_exc()
        why = f"{type(exc).__name__}: {exc}"[:400]
    else:
        if found is not None:
            print(json.dumps(found))
        return 0
    if plain:
        print(f"failed: {why}", file=sys.stderr)
    else:
        print(json.dumps({"failed": why}))
    return 1


def main(cls: type[Driver]) -> int:
    """The command line of a peer's driver. Gives the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {cls.module}", description=__doc__)
    commands = parser.add_subparsers(dest="program", required=True)
    leaf_parsers(commands, cls)
    for program in ("produce", "drain", "latency"):
        sub = commands.add_parser(program)
        common_arguments(sub, cls)
        sub.add_argument("--tasks", type=int, default=1000)
        sub.add_argument("--concurrency", type=int, default=cls.concurrency)
        sub.add_argument("--timeout", type=float, default=120.0)
        if program != "latency":
            sub.add_argument("--style", choices=cls.styles, default=cls.fastest)
        else:
            sub.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds in which commands are counted")
    local = getattr(cls, "local", None)
    if local is not None:
        commands.add_parser("local").add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args()

    def call() -> dict[str, Any] | None:
        if local is not None and options.program == "local":
            return {"mode": "local", **cls.about(cls.variants[0]), "tasks": options.tasks, **local(options.tasks)}
        if options.program == "drain":
            return drain(
                cls, options.url, options.variant, options.tasks, style=options.style,
                concurrency=options.concurrency, timeout=options.timeout,
            )  # fmt: skip
        if options.program == "produce":
            command = leaf(cls, "producer", options.url, options.variant, "--tasks", options.tasks)
            with Child([*command, "--style", options.style]) as producer:
                return {"mode": "produce", **cls.about(options.variant), **producer.result(options.timeout)}
        if options.program == "latency":
            return latency(
                cls, options.url, options.variant, options.tasks,
                concurrency=options.concurrency, idle_seconds=options.idle,
            )  # fmt: skip
        return run_leaf(cls(options.url, options.variant), options)

    return report(call)


__all__ = ["WINDOW", "Driver", "drain", "latency", "main", "params", "produce", "run"]
