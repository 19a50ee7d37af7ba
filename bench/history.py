"""What run history costs: rows a second into each database, and CPU microseconds a run of a worker that records.

    python -m bench.history [--broker redis://127.0.0.1:6379] [--postgres URL] [--rows 100000] [--tasks 100000]
                            [--rounds 5] [--json]

Rows: ``Recorder`` (from the handler to the commit) and ``Store.write`` (a batch of 5,000) beside the plain baseline, in
turns, each into an empty table with all indexes: ``executemany`` of an INSERT in SQLite, COPY in PostgreSQL, which both
do without a check for rows that exist. Then a worker that drains runs that do nothing: without history, with it
(``sample="auto"``), and with a row for every run (``sample="none"``). Medians, and the median ratio to the first of the
same round.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import psycopg

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.observe.history import History
from fluidfast.observe.history.store import Row, Store
from fluidfast.observe.history.upgrade import upgrade

from .common import ROOT, BenchError, Child, begin, params
from .driver import report, run
from .load import broker

BATCH = 5_000
CONCURRENCY = 32
ASKED = "FLUIDFAST_BENCH_HISTORY"
"""Environment variable: what the worker is to do, as JSON."""
TIMEOUT_SECONDS = 300.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# -- rows


def rows(count: int) -> list[Row]:
    now = time.time_ns() // 1000
    return [
        Row(uuid.uuid4().hex, "send", "medium", "success", now + i, now + i + 50, now + i + 90, as_json(i))
        for i in range(count)
    ]


def as_json(i: int) -> bytes:
    return json.dumps(params(i)).encode()


def batches(found: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(found), BATCH):
        yield sorted(found[start : start + BATCH])


def moment(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


def plain_sqlite(store: Store, found: list[Row]) -> None:
    connection = sqlite3.connect(str(store.engine.url.database))
    connection.execute("PRAGMA synchronous = NORMAL")
    for batch in batches(found):
        with connection:
            connection.executemany(
                "INSERT INTO fluid_tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*row[:4], *(moment(at).isoformat(" ") for at in row[4:7]), row.params.decode()) for row in batch],
            )
    connection.close()


def plain_postgres(store: Store, found: list[Row]) -> None:
    url = store.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        for batch in batches(found):
            with connection.cursor().copy("COPY fluid_tasks FROM STDIN") as copy:
                for row in batch:
                    copy.write_row((*row[:4], *map(moment, row[4:7]), row.params.decode()))
            connection.commit()


def by_store(store: Store, found: list[Row]) -> None:
    for batch in batches(found):
        store.write(batch, [])


def by_recorder(store: Store, found: list[Row]) -> None:
    history = History(store.engine, sample="none", keep=None)
    for row in found:
        while history.recorder.waiting > 50_000:
            time.sleep(0.001)
        history.recorder.put(row, len(row.params), keep=False)
    if not history.recorder.flush(TIMEOUT_SECONDS):
        raise BenchError(history.stats().error)
    history.recorder.close()


def row_rates(url: str, count: int, rounds: int) -> list[dict[str, Any]]:
    store = Store(url, "fluid_tasks")
    plain = plain_postgres if store.is_postgres else plain_sqlite
    baseline = "COPY" if store.is_postgres else "executemany"
    ways: dict[str, Callable[[Store, list[Row]], None]] = {
        baseline: plain, "Store.write": by_store, "Recorder": by_recorder
    }  # fmt: skip
    rates: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, write in ways.items():
            empty(store)
            found = rows(count)
            began, used = perf_counter(), process_time()
            write(store, found)
            rates[way].append(count / (perf_counter() - began))
            cpu[way].append((process_time() - used) / count * 1e6)
    store.close()
    database = "PostgreSQL" if store.is_postgres else "SQLite"
    return [
        {
            "way": f"{database}, {way}",
            "rows_per_second": round(statistics.median(found)),
            "cpu_us": round(statistics.median(cpu[way]), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(found, rates[baseline], strict=True)), 3),
        }
        for way, found in rates.items()
    ]


def empty(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE fluid_tasks" if store.is_postgres else "DELETE FROM fluid_tasks")


# -- a worker


@task
async def noop(ctx: TaskRun) -> None:  # type: ignore[type-arg]
    """Does nothing."""


def consumer() -> TaskConsumer:
    """Return the consumer of the worker that is measured."""
    asked = json.loads(os.environ[ASKED])
    found = TaskConsumer(broker_url=asked["url"])
    found.register_task(noop)
    if asked["database"]:
        found.with_plugin(History(asked["database"], sample=asked["sample"], keep=None))
    found.add_async_context_manager(measured(found, asked))
    return found


@asynccontextmanager
async def measured(found: TaskConsumer, asked: dict[str, Any]) -> AsyncIterator[None]:
    for plugin in found.plugins:  # the first connection takes 0.2 s, once
        await plugin.page()  # type: ignore[attr-defined]
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
    if found.plugins:
        await found.plugins[0].flush(TIMEOUT_SECONDS)  # type: ignore[attr-defined]
    took = (process_time() - cpu) / (tasks - began) * 1e6
    recorded = found.plugins[0].stats().recorded if found.plugins else 0  # type: ignore[attr-defined]
    Path(asked["result"]).write_text(json.dumps([took, recorded]))  # noqa: ASYNC240  # it has been measured
    found.gracefully_stop()


async def fill(url: str, tasks: int) -> None:
    async with TaskManager(broker_url=url) as manager:
        manager.register_task(noop)
        await manager.queue_many(noop, (params(i) for i in range(tasks)))


def cost(url: str, database: str, sample: str, tasks: int) -> tuple[float, int]:
    """CPU microseconds of a worker, a run, and how many it recorded."""
    run(fill(url, tasks))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        asked = {"url": url, "tasks": tasks, "database": database, "sample": sample, "result": str(result)}
        command = [sys.executable, "-m", "fluidfast", "worker", "bench.history:consumer"]
        command += ["--concurrency", str(CONCURRENCY), "--log-level", "WARNING"]
        child = Child(command, {ASKED: json.dumps(asked)})
        try:
            code = child.process.wait(TIMEOUT_SECONDS)
            if code or not result.exists():
                raise BenchError(f"the worker ended with {code}: {child.why()}")
            took, recorded = json.loads(result.read_text())
            return took, recorded
        finally:
            child.stop()


def worker_costs(url: str, databases: dict[str, str], tasks: int, rounds: int) -> list[dict[str, Any]]:
    ways = {"no history": ("", "auto")}
    for name, database in databases.items():
        ways |= {f"{name}, sample auto": (database, "auto"), f"{name}, every run": (database, "none")}
    took: dict[str, list[float]] = {way: [] for way in ways}
    recorded: dict[str, int] = {}
    for _ in range(rounds):
        for way, (database, sample) in ways.items():
            found, recorded[way] = cost(url, database, sample, tasks)
            took[way].append(found)
    base = took["no history"]
    return [
        {
            "way": way,
            "cpu_us": round(statistics.median(found), 2),
            "recorded": recorded[way],
            "ratio": round(statistics.median(a / b for a, b in zip(found, base, strict=True)), 3),
        }
        for way, found in took.items()
    ]


@contextmanager
def postgres(url: str) -> Iterator[str]:
    """The server at this URL, or one that is started for this measurement, with fsync."""
    if url:
        yield url
        return
    sys.path.append(str(ROOT / "tests"))
    from kits.postgres import PostgresServer

    with PostgresServer(durable=True) as server:
        yield server.url


def measure(options: argparse.Namespace, url: str, postgres_url: str, folder: str) -> dict[str, Any]:
    databases = {"SQLite": f"sqlite:///{folder}/history.db", "PostgreSQL": postgres_url}
    for database in databases.values():
        upgrade(database)
    rates = [row for database in databases.values() for row in row_rates(database, options.rows, options.rounds)]
    worker = worker_costs(url, databases, options.tasks, options.rounds)
    return {"mode": "history", "rounds": options.rounds, "rates": rates, "worker": worker}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.history", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="", help="URL; none: a server is started for this measurement")
    parser.add_argument("--postgres", default="", help="URL of an empty database; none: a server is started")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(wire="json")
    options = parser.parse_args()

    def call() -> dict[str, Any] | None:
        begin()
        with broker(options) as url, postgres(options.postgres) as database, tempfile.TemporaryDirectory() as folder:
            found = measure(options, url, database, folder)
        if options.json:
            return found
        print(f"{'rows':<36}{'rows/s':>12}{'CPU us a row':>14}{'ratio':>8}")
        for row in found["rates"]:
            print(f"{row['way']:<36}{row['rows_per_second']:>12,}{row['cpu_us']:>14.2f}{row['ratio']:>8.2f}")
        print(f"\n{'a worker':<36}{'recorded':>12}{'CPU us a run':>14}{'ratio':>8}")
        for row in found["worker"]:
            print(f"{row['way']:<36}{row['recorded']:>12,}{row['cpu_us']:>14.2f}{row['ratio']:>8.2f}")
        return None

    sys.exit(report(call, plain=not options.json))


if __name__ == "__main__":
    main()
