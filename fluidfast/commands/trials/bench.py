"""``bench``: queues and runs many no-op tasks, and counts what became of each."""

import asyncio
import mmap
import os
import platform
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import msgspec

from ..._version import __version__
from ...brokers.base import TaskBroker
from ...brokers.memory.broker import MemoryTaskBroker
from ...errors import TaskError
from ...manage.consumer import TaskConsumer
from ...manage.manager import TaskManager
from ...produce.bulk import QueueSummary
from ...settings import get_settings
from ..display import Progress
from ..loops import loop_name, on_signals, run_loop
from ..target import CommandError, at_least_one, check_writable, url_of_its_own, write_result
from .bench_load import DETAILS, IDLE_RUNS, TASK_NAME, Load, left_on, params_of, peak_memory_mib

__all__ = ["bench"]

WINDOW = 1000
"""Calls of ``queue`` at a time with ``--mode gather``."""
READY_SECONDS = 60.0
MODES = {
    "one-by-one": "one await queue() after the other",
    "gather": f"{WINDOW:,} concurrent calls of queue() at a time",
    "many": "one call of queue_many()",
}

DESCRIPTION = """\
Queue no-op tasks, run them, and count the outcome of each. Every run marks its number, which reveals runs that are lost
or that ran twice.

On memory:// everything happens in one process. On a server the worker is a separate process. Either way the benchmark
measures two phases: first it queues all tasks while nothing runs, then it runs them while nothing is queued. The
end-to-end rate covers both. At the end it queues some runs one by one to measure how soon an idle worker starts them.

It uses queues with a new name and removes them at the end, also after Ctrl-C.
"""

EPILOG = """\
exit codes: 0; 1 if a run was lost, or the benchmark failed; 130 after Ctrl-C

\b
examples:
  fluidfast bench
  fluidfast bench --broker redis://localhost:6379 --json result.json
"""


@click.command(
    epilog=EPILOG, help=DESCRIPTION, short_help="Queue and run many no-op tasks, and count the outcome of each."
)
@click.option("--tasks", type=at_least_one, default=1_000_000, show_default=True, metavar="N", help="How many.")
@click.option("--broker", default="memory://", show_default=True, metavar="URL", help="memory:// is in this process.")
@click.option(
    "--concurrency", type=at_least_one, metavar="N", help="Runs at the same time.  [default: max_concurrent_tasks, 5]"
)
@click.option(
    "--wire", type=click.Choice(("json", "msgpack")), default="json", show_default=True, help="Payload format."
)
@click.option(
    "--mode",
    type=click.Choice(tuple(MODES)),
    help="How to queue: "
    + "; ".join(f"{name}: {what}" for name, what in MODES.items())
    + ".  [default: one-by-one on memory://, else gather]",
)
@click.option("--json", "json_file", metavar="FILE", help="Also write the result as JSON to a file; -: only to stdout.")
@click.pass_context
def bench(
    ctx: click.Context,
    tasks: int,
    broker: str,
    concurrency: int | None,
    wire: str,
    mode: str | None,
    json_file: str | None,
) -> None:
    if json_file not in (None, "-"):
        check_writable(Path(json_file))
    result, error = run_loop(measured(broker, tasks, concurrency, wire, mode))
    write_result(result.as_dict(), result.rows(), json_file)
    if error is not None:
        raise error
    ctx.exit(130 if result.interrupted else 1 if result.lost else 0)


@dataclass
class Result:
    """The figures of one trial. None: the trial did not get that far."""

    broker: str
    tasks: int
    mode: str
    wire: str
    concurrency: int
    workers: str
    queued: int = 0
    queue_seconds: float | None = None
    ran: int = 0
    run_seconds: float | None = None
    lost: int | None = None
    duplicated: int | None = None
    left_on_broker: int | None = None
    wait_ms: dict[str, float | None] = field(default_factory=dict)
    peak_memory_mib: dict[str, float] = field(default_factory=dict)
    server: str = ""
    delivery: str = ""
    interrupted: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def per_second(self, count: int, seconds: float | None) -> float | None:
        return round(count / seconds, 1) if count and seconds else None

    @property
    def total_seconds(self) -> float | None:
        if self.queue_seconds is None or self.run_seconds is None:
            return None
        return self.queue_seconds + self.run_seconds

    def count(self, marks: "bytearray | mmap.mmap", *, drained: bool) -> None:
        """How often each run that was queued has run. A run that has not is lost, if nothing was left to be run."""
        marked = bytes(marks[: self.queued])
        missing = marked.count(0)
        self.lost = missing if drained else None
        self.duplicated = len(marked) - missing - marked.count(1)
        self.ran = len(marked) - missing

    def as_dict(self) -> dict[str, Any]:
        values = dict(vars(self))
        values["queued_per_second"] = self.per_second(self.queued, self.queue_seconds)
        values["run_per_second"] = self.per_second(self.ran, self.run_seconds)
        values["total_seconds"] = self.total_seconds
        values["end_to_end_per_second"] = self.per_second(self.ran, self.total_seconds)
        return values

    def rows(self) -> list[tuple[str, str]]:
        values = self.as_dict()

        def rate(name: str, seconds: float | None, note: str = "") -> str:
            value = values[name]
            return "-" if value is None or seconds is None else f"{value:>11,.0f} /s {seconds:>9.2f} s   {note}"

        def waits(kind: str, note: str) -> str:
            p50, p99 = self.wait_ms.get(f"{kind}p50"), self.wait_ms.get(f"{kind}p99")
            return "-" if p50 is None or p99 is None else f"p50 {p50:,.2f} ms, p99 {p99:,.2f} ms   {note}"

        def count(value: int | None) -> str:
            return "-" if value is None else f"{value:,}"

        memory = ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in self.peak_memory_mib.items())
        stride = max(1, self.tasks // 20_000)
        rows = [
            ("broker", self.broker),
            ("tasks", f"{self.tasks:,} ({DETAILS})"),
            ("queued", rate("queued_per_second", self.queue_seconds, MODES[self.mode])),
            ("run", rate("run_per_second", self.run_seconds, f"{self.workers}, until settled")),
            ("end to end", rate("end_to_end_per_second", self.total_seconds, "one phase after the other")),
            ("wait, in the backlog", waits("", f"queued to start, one run in {stride:,}")),
            ("wait, idle worker", waits("idle_", f"queued to start, {IDLE_RUNS} runs, one at a time")),
            ("peak memory", memory),
            ("lost", count(self.lost)),
            ("duplicated", count(self.duplicated)),
            ("delivery", self.delivery),
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
            ("server", self.server),
            ("machine", ", ".join(f"{name} {value}" for name, value in self.machine.items())),
        ]
        if self.left_on_broker:
            rows.insert(10, ("left on the broker", count(self.left_on_broker)))
        if self.interrupted:
            rows.insert(0, ("INTERRUPTED", f"{self.queued:,} of {self.tasks:,} were queued, {self.ran:,} have run"))
        return rows


async def measured(
    url: str, tasks: int, concurrency: int | None, wire: str, mode: str | None
) -> tuple[Result, Exception | None]:
    """Measure. Gives what was measured, and the error that ended it before its time."""
    own_url = url_of_its_own(url, "bench", wire=wire)
    concurrency = concurrency or int(get_settings().max_concurrent_tasks) or 1
    manager = TaskConsumer(broker_url=own_url, max_concurrent_tasks=concurrency)
    broker = manager.broker
    local = isinstance(broker, MemoryTaskBroker)
    await broker.connect()
    result = Result(
        broker=str(broker.url),
        tasks=tasks,
        mode=mode or ("one-by-one" if local else "gather"),
        wire=wire,
        concurrency=concurrency,
        workers=f"{'this process' if local else 'one worker process'}, concurrency {concurrency}",
        machine={
            "cpus": os.cpu_count(),
            "load before": round(os.getloadavg()[0], 2),
            "system": f"{platform.system()} {platform.machine()}",
        },
        versions={"fluidfast": __version__, "Python": platform.python_version(), "loop": loop_name()},
    )
    await describe_server(broker, result)
    measuring = asyncio.create_task(measure(manager, result, None if local else own_url))
    on_signals(measuring.cancel)
    error: Exception | None = None
    try:
        await measuring
    except asyncio.CancelledError:
        result.interrupted = True
    except Exception as exc:
        error = exc
    try:
        await broker.clear()
        await manager.on_shutdown()
    except TaskError as exc:
        error = error or CommandError(f"{exc}; keys of {broker.name!r} may remain on the server")
    return result, error


async def describe_server(broker: TaskBroker, result: Result) -> None:
    """Which server it is, and what its guarantee is worth."""
    client = getattr(broker, "redis_cli", None)
    if client is None:
        result.server = "none, it is gone with this process"
        result.delivery = "at least once, within this process; gone with it"
        return
    try:
        info = await client.info()
    except Exception as exc:  # an ACL may forbid it
        info = {"redis_version": f"unknown ({type(exc).__name__})"}
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = info.get("valkey_version") or info.get("redis_version") or "?"
    kept = "with an append-only file" if info.get("aof_enabled") else "without an append-only file"
    result.server = f"{name} {version} {kept}"
    result.delivery = f"at least once, leases of {broker.options.lease_seconds:g} s, each queue() confirmed"


async def measure(manager: TaskConsumer, result: Result, url: str | None) -> None:
    size = result.tasks + IDLE_RUNS
    if url is None:
        marks = bytearray(size)
        try:
            await measure_here(manager, Load(result.tasks, marks), result)
        finally:
            result.count(marks, drained=result.left_on_broker == 0)
            result.peak_memory_mib = {"this process": peak_memory_mib()}
        return
    with tempfile.NamedTemporaryFile(prefix="fluidfast-bench-") as file:
        file.truncate(size)
        marked = Load.file_of_marks(Path(file.name), size)
        try:
            await measure_apart(manager, Path(file.name), result, url)
        finally:
            result.count(marked, drained=result.left_on_broker == 0)
            result.peak_memory_mib = {"this process": peak_memory_mib()} | result.peak_memory_mib


async def measure_here(consumer: TaskConsumer, load: Load, result: Result) -> None:
    """Queue, then run, in this process."""
    consumer.register_task(load.task())
    load.expect(result.tasks)
    await queue_all(consumer, result)
    progress = Progress("run   ", result.tasks)
    started = perf_counter()
    await consumer.startup()
    try:
        await load.drained(consumer.broker, progress.show)
        result.run_seconds = perf_counter() - started
        progress.clear()
        load.expect(result.tasks + IDLE_RUNS)
        await queue_apart(consumer, result)
        await load.drained(consumer.broker, lambda seen: None)
        result.wait_ms = load.percentiles()
        result.left_on_broker = await left_on(consumer.broker)
    finally:
        result.run_seconds = result.run_seconds or perf_counter() - started
        progress.clear()
        await consumer.shutdown()


async def measure_apart(manager: TaskManager, marks: Path, result: Result, url: str) -> None:
    """Queue here, then run in another process."""
    manager.register_task(Load(result.tasks, bytearray()).task())
    await queue_all(manager, result)
    request = {"url": url, "tasks": result.tasks, "marks": str(marks), "concurrency": result.concurrency}
    async with WorkerProcess.started(request, result) as worker:
        progress = Progress("run   ", result.tasks)
        try:
            answer = await worker.expect(result.tasks, progress.show)
        finally:
            progress.clear()
        result.run_seconds = answer["seconds"]
        answer_later = asyncio.ensure_future(worker.expect(result.tasks + IDLE_RUNS, lambda seen: None))
        try:
            await queue_apart(manager, result)
            answer = await answer_later
        finally:
            answer_later.cancel()
        result.wait_ms = answer["waits_ms"]
        result.peak_memory_mib["worker"] = answer["peak_memory_mib"]
        result.left_on_broker = await left_on(manager.broker)


async def queue_all(manager: TaskManager, result: Result) -> None:
    queue = manager.queue
    progress = Progress("queue ", result.tasks)

    def confirmed(summary: QueueSummary) -> None:
        result.queued = summary.queued
        progress.show(summary.queued)

    started = perf_counter()
    try:
        if result.mode == "many":
            await manager.queue_many(TASK_NAME, map(params_of, range(result.tasks)), progress=confirmed)
            return
        for first in range(0, result.tasks, WINDOW):
            numbers = range(first, min(first + WINDOW, result.tasks))
            if result.mode == "gather":
                await asyncio.gather(*[queue(TASK_NAME, **params_of(number)) for number in numbers])
            else:
                for number in numbers:
                    await queue(TASK_NAME, **params_of(number))
                await asyncio.sleep(0)  # on memory:// nothing above waits
            result.queued = numbers.stop
            progress.show(result.queued)
    finally:
        result.queue_seconds = perf_counter() - started
        progress.clear()


async def queue_apart(manager: TaskManager, result: Result) -> None:
    """Queue the last runs one at a time, when the worker is idle."""
    for number in range(result.tasks, result.tasks + IDLE_RUNS):
        await asyncio.sleep(0.003)
        await manager.queue(TASK_NAME, **params_of(number))
        result.queued += 1


class WorkerProcess:
    """The other process, seen from here. If it ends early, that is an error which says so."""

    def __init__(self, process: asyncio.subprocess.Process, result: Result) -> None:
        self.process = process
        self.result = result
        self.errors: deque[bytes] = deque(maxlen=20)
        self.reading = asyncio.create_task(self.read_errors())

    @classmethod
    @asynccontextmanager
    async def started(cls, request: dict[str, Any], result: Result) -> AsyncIterator["WorkerProcess"]:
        """Start it, wait until it is ready; end it at the end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fluidfast.commands.trials.bench_worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        worker = cls(process, result)
        try:
            worker.say(request)
            async with asyncio.timeout(READY_SECONDS):
                await worker.hear()
            yield worker
        finally:
            await worker.end()

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(message) + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The next message. Raises CommandError if the process has ended instead."""
        assert self.process.stdout is not None
        if line := await self.process.stdout.readline():
            return msgspec.json.decode(line, type=dict[str, Any])
        raise CommandError(await self.obituary())

    async def expect(self, runs: int, progress: Callable[[int], object]) -> dict[str, Any]:
        """Have it run until that many different runs have come."""
        self.say({"expect": runs})
        while "seconds" not in (message := await self.hear()):
            progress(message["seen"])
        return message

    async def obituary(self) -> str:
        code = await self.process.wait()
        await asyncio.wait([self.reading], timeout=1)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = b" ".join(self.errors).decode(errors="replace")
        return f"the worker process (pid {self.process.pid}) {how} before it was done" + (f": {last}" if last else "")

    async def read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.errors.append(line.strip())

    async def end(self) -> None:
        """Let it shut down; kill it if it does not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(20):
                while await self.drop_output():
                    pass
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        self.reading.cancel()

    async def drop_output(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.read(1 << 16)
