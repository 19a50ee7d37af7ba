"""What a worker's log costs: CPU microseconds a run of ``python -m fluidfast worker``, runs that do nothing.

    python -m bench.logs [--broker redis://127.0.0.1:6379] [--tasks 100000] [--rounds 5] [--json]

In turns: at WARNING and at INFO; with ``--log-runs`` as text and as JSON; a task that logs one line of its own at INFO,
with the fields of its run. Beside them the baseline: two lines a run through ``logging``, as a worker wrote before. All
lines go to a file. Medians, and the median ratio to WARNING of the same round.
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import process_time
from typing import Any

from fluidfast import TaskConsumer, TaskManager, TaskRun, task

from .common import BenchError, Child, begin
from .driver import report, run
from .load import broker

WAYS: dict[str, tuple[str, ...]] = {
    "WARNING": ("--log-level", "WARNING"),
    "INFO": ("--log-level", "INFO"),
    "INFO, --log-runs": ("--log-level", "INFO", "--log-runs"),
    "INFO, --log-runs, JSON": ("--log-level", "INFO", "--log-runs", "--log-format", "json"),
    "INFO, a line of the task's own": ("--log-level", "INFO"),
    "INFO, two lines a run by logging": ("--log-level", "INFO"),
}
LINES = {"INFO, a line of the task's own": 1, "INFO, two lines a run by logging": 2}
CONCURRENCY = 32
ASKED = "FLUIDFAST_BENCH_LOGS"
"""Environment variable: what the worker is to do, as JSON."""
TIMEOUT_SECONDS = 300.0

# -- in the worker


@task
async def noop(ctx: TaskRun) -> None:  # type: ignore[type-arg]
    """Does nothing."""


@task(name="noop")
async def one_line(ctx: TaskRun) -> None:  # type: ignore[type-arg]
    """Logs a line."""
    ctx.logger.info("at work")


@task(name="noop")
async def two_lines(ctx: TaskRun) -> None:  # type: ignore[type-arg]
    """Logs the two lines that a worker logged for each run."""
    ctx.logger.info("%s - start", ctx.shown_id)
    ctx.logger.info("%s - end - %s - milliseconds - %s", ctx.shown_id, "success", 0.01)


def consumer() -> TaskConsumer:
    """Return the consumer of the worker that is measured. Its log is that of the worker, or, for the baseline, the
    StreamHandler that it was."""
    asked = json.loads(os.environ[ASKED])
    if asked["lines"] == 2:
        logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.INFO)
    found = TaskConsumer(broker_url=asked["url"])
    found.register_task((noop, one_line, two_lines)[asked["lines"]])
    found.add_async_context_manager(measured(found, asked))
    return found


@asynccontextmanager
async def measured(found: TaskConsumer, asked: dict[str, Any]) -> AsyncIterator[None]:
    watching = asyncio.create_task(watch(found, asked))
    yield
    watching.cancel()


async def watch(found: TaskConsumer, asked: dict[str, Any]) -> None:
    """Write down what the runs took, without the first tenth, and end the worker."""
    tasks, engine = asked["tasks"], found.engine
    while engine.finished < tasks // 10:  # noqa: ASYNC110  # an event would cost each run
        await asyncio.sleep(0.002)
    began, cpu = engine.finished, process_time()
    while engine.finished < tasks:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    took = (process_time() - cpu) / (tasks - began) * 1e6
    Path(asked["result"]).write_text(json.dumps(took))  # noqa: ASYNC240  # it has been measured
    found.gracefully_stop()


# -- beside it


async def fill(url: str, tasks: int) -> None:
    async with TaskManager(broker_url=url) as manager:
        manager.register_task(noop)
        await manager.queue_many(noop, ({} for _ in range(tasks)))


def cost(url: str, way: str, tasks: int) -> float:
    """CPU microseconds of a worker, a run."""
    run(fill(url, tasks))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        asked = {"url": url, "tasks": tasks, "lines": LINES.get(way, 0), "result": str(result)}
        command = [sys.executable, "-m", "fluidfast", "worker", "bench.logs:consumer"]
        command += ["--concurrency", str(CONCURRENCY), *WAYS[way]]
        child = Child(command, {ASKED: json.dumps(asked)})
        try:
            code = child.process.wait(TIMEOUT_SECONDS)
            if code or not result.exists():
                raise BenchError(f"the worker ended with {code}: {child.why()}")
            return float(result.read_text())
        finally:
            child.stop()


def measure(url: str, tasks: int, rounds: int) -> dict[str, Any]:
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in took.items():
            found.append(cost(url, way, tasks))
    base = took["WARNING"]
    rows = [
        {
            "way": way,
            "cpu_us": round(statistics.median(found), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(found, base, strict=True)), 3),
        }
        for way, found in took.items()
    ]
    return {"mode": "logs", "tasks": tasks, "rounds": rounds, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.logs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="", help="URL; none: a server is started for this measurement")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(wire="json")
    options = parser.parse_args()

    def call() -> dict[str, Any] | None:
        begin()
        with broker(options) as url:
            found = measure(url, options.tasks, options.rounds)
        if options.json:
            return found
        print(f"{'the log of the worker':<36}{'CPU us a run':>14}{'ratio':>8}")
        for row in found["rows"]:
            print(f"{row['way']:<36}{row['cpu_us']:>14.2f}{row['ratio']:>8.2f}")
        return None

    sys.exit(report(call, plain=not options.json))


if __name__ == "__main__":
    main()
