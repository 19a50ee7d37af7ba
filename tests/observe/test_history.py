"""The run history, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from kits.waiting import until
from pydantic import BaseModel, SecretStr

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, TaskState, task
from fluidfast.core.states import TaskPriority
from fluidfast.errors import ConfigError, HistoryError
from fluidfast.observe._ends import Ends
from fluidfast.observe.history import Attempt, History, HistoryQuery, plugin, recorder
from fluidfast.observe.history import store as stores
from fluidfast.observe.history.params import masked
from fluidfast.observe.history.records import contains, cursor_of, position_of, read_keep
from fluidfast.observe.history.store import Row, Store, engine_of
from fluidfast.observe.history.tables import stored_state
from fluidfast.observe.history.upgrade import upgrade

NOW = datetime.now(UTC)
T = int(NOW.timestamp()) * 1_000_000


class Order(BaseModel):
    number: int = 1
    token: SecretStr = SecretStr("canary-5a1e")
    at: datetime = datetime(2024, 1, 1, tzinfo=UTC)


@task(tags=["shop"])
async def ship(ctx: TaskRun[Order]) -> None:
    """Ships."""


@task(tags=["shop", "fragile"], retry=RetryPolicy(max_attempts=2, wait=0.01))
async def break_twice(ctx: TaskRun[Any]) -> None:
    if ctx.retry_attempt < 2:
        raise ZeroDivisionError("on\npurpose")


@task
async def fail(ctx: TaskRun[Any]) -> None:
    raise ValueError("\x1b[31mred")


@task(batch=10, batch_wait=0.01)
async def together(runs: list[TaskRun[Any]]) -> dict[str, Exception]:
    return {run.id: KeyError("of a batch") for run in runs if run.params.get("bad")}


@task(tags=["skip_db"])
async def unrecorded(ctx: TaskRun[Any]) -> None:
    """Leaves no row."""


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL, its tables made."""
    url = f"sqlite:///{tmp_path}/history.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade(url)
    return str(url)


@pytest.fixture
def store(database: str) -> Any:
    store = Store(database, "fluid_tasks")
    yield store
    store.close()


def row(id: str, state: str = "success", *, queued: int = T, start: int = T, end: int = T, **params: Any) -> Row:
    return Row(id, "ship", "medium", state, queued, start, end, msgspec.json.encode(params))


def ids(store: Store, **query: Any) -> list[str]:
    return [run.id for run in store.page(HistoryQuery(**query)).runs]


@pytest.mark.parametrize("record", ["ended", "all"])
async def test_runs_of_a_consumer(database: str, record: str) -> None:
    history = History(database, slow=0.0, record=record)  # type: ignore[arg-type]
    tasks = (ship, break_twice, fail, together, unrecorded)
    consumer = TaskConsumer(broker_url="memory://").with_plugin(history)
    for one in tasks:
        consumer.register_task(one)
    async with consumer:
        await consumer.queue_and_wait(ship, number=7)
        await consumer.queue_and_wait(unrecorded)
        await consumer.queue_and_wait(fail, params={"id": "x", "state": "y", "model_dump_json": 1, "nul": "a\0b"})
        run = await consumer.queue(break_twice)
        await asyncio.gather(*(consumer.queue_and_wait(together, n=n, bad=n == 2) for n in range(4)))
        await until(lambda: consumer.engine.finished == 8)
        assert await history.flush()

        page = await history.page()
        assert [(found.task, found.state) for found in page.runs if found.task != "together"] == [
            ("break_twice", "success"), ("fail", "failure"), ("ship", "success")
        ]  # fmt: skip
        batch = await history.page(HistoryQuery(task=["together"]))
        assert sorted(found.state for found in batch.runs) == ["failure", "success", "success", "success"]
        shipped = page.runs[-1]
        assert shipped.params == {"number": 7, "token": "**********", "at": "2024-01-01T00:00:00Z"}
        assert shipped.start is not None
        assert shipped.end is not None
        assert shipped.queued <= shipped.start <= shipped.end
        assert shipped.queued.tzinfo is not None

        fragile = await history.page(HistoryQuery(tags=["fragile"], state=["success"], priority=["medium"]))
        assert [found.id for found in fragile.runs] == [run.id]
        [failed] = (await history.page(HistoryQuery(params={"state": "y", "nul": "a\0b"}))).runs
        detail = await history.run(failed.id)
        assert detail is not None
        assert detail.run == failed
        [attempt] = detail.attempts
        assert attempt.error == "ValueError: \\x1b[31mred"
        assert re.fullmatch(r"test_history.py:\d+", attempt.place)
        assert "raise ValueError" in attempt.traceback

        detail = await history.run(run.id)
        assert detail is not None
        assert [(one.attempt, one.state) for one in detail.attempts] == [(1, "failure"), (2, "failure"), (3, "success")]
        assert [await history.run(unknown) for unknown in ("unknown", "\0")] == [None, None]
        assert history.stats().recorded >= 7
        assert history.stats().error == ""
        assert await history.prune("1h") == 0
        assert await history.prune(0.000001) >= 7
        assert (await history.page()).runs == []


def test_only_later_events_replace(store: Store) -> None:
    events = [
        row("a", "queued", start=0, end=0),
        row("a", "running", start=T + 5, end=0),
        row("a", "failure", start=T + 5, end=T + 6),
        row("a", "running", start=T + 9, end=0),
        row("a", "success", start=T + 9, end=T + 10),
        row("a", "queued", queued=T + 11, start=0, end=0),
    ]
    for last, event in enumerate(events):
        for earlier in (event, *events[:last]):
            store.write([earlier], [])
        [run] = store.page(HistoryQuery()).runs
        assert run.state == event.state, f"after event {last}"
        rows, _ = recorder.merged([event, *events[:last]])
        assert rows == [event]
    assert store.prune(NOW + timedelta(seconds=1)) == 1


def test_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where many runs were queued at the same microsecond."""
    store.write([row(f"{n:03}", queued=T + n // 40) for n in range(100)], [])
    seen: list[str] = []
    cursor = ""
    while True:
        page = store.page(HistoryQuery(limit=7, cursor=cursor))
        seen += [run.id for run in page.runs]
        if not (cursor := page.cursor):
            break
    assert seen == [f"{n:03}" for n in reversed(range(100))]
    moment = datetime.fromtimestamp(T / 1e6, UTC) + timedelta(microseconds=1)
    assert len(ids(store, start=moment, end=moment)) == 40
    assert len(ids(store, start=moment.astimezone(None).astimezone(UTC).replace(tzinfo=None))) == 50
    assert ids(store, task=[]) == ids(store, task=["\0", "\ud800", "'; DROP TABLE fluid_tasks; --"]) == []
    assert ids(store, state=["no such"]) == []
    assert len(ids(store, limit=10**9)) == 100
    monkeypatch.setattr(stores, "MAX_LIMIT", 60)
    page = store.page(HistoryQuery(limit=10**9))
    assert len(page.runs) == 60
    assert page.cursor
    broken: list[dict[str, Any]] = [
        {"cursor": cursor_of(moment, "x")[:-3]}, {"cursor": "é"}, {"cursor": "x" * 5_000}, {"cursor": "e30"},
        {"limit": 0}, {"limit": "9"}, {"task": "ship"}, {"params": {"a": float("nan")}},
        {"start": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))},
    ]  # fmt: skip
    for query in broken:
        with pytest.raises(ConfigError):
            store.page(HistoryQuery(**query))
    assert position_of(cursor_of(moment, "id")) == (moment, "id")


def test_containment_is_the_same_everywhere(store: Store) -> None:
    values: list[Any] = [
        {}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": None}, {"a": "1"}, {"a": [1, 2]}, {"a": [2, {"b": 1}]}, {"a": {}},
        {"a": {"b": [1], "c": 2}}, {"a": {"b": []}}, {"a": [[1]]}, {"a": 0}, {"a": False}, {"b": 1, "a": 1}, {"a": []},
    ]  # fmt: skip
    store.write([row(f"{n:02}", **value) for n, value in enumerate(values)], [])
    for part in values:
        expected = [f"{n:02}" for n, value in enumerate(values) if contains(value, part)]
        assert sorted(ids(store, params=part)) == expected, part


def test_two_processes_write_the_same_ids(store: Store) -> None:
    """Each batch has the same ids, in another order: no deadlock."""
    stores = [Store(store.engine.url.render_as_string(hide_password=False), "fluid_tasks") for _ in range(2)]
    errors: list[Exception] = []

    def write(one: Store, step: int) -> None:
        for turn in range(8):
            entries = [row(f"{n:04}", start=T + turn, end=T + turn) for n in range(500)]
            rows, _ = recorder.merged(entries[::step])
            try:
                one.write(rows, [])
            except Exception as exc:
                errors.append(exc)

    threads = [threading.Thread(target=write, args=(one, step)) for one, step in zip(stores, (1, -1), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in stores:
        one.close()
    assert errors == []
    assert len(ids(store, limit=5_000)) == 500


async def test_database_away_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It never blocks, loses successes first, says so, and goes on."""
    monkeypatch.setattr(recorder, "MAX_ROWS", 100)
    monkeypatch.setattr(recorder, "BACKOFF_SECONDS", (0.01, 0.02))
    caplog.set_level(logging.INFO, "fluidfast.history")
    folder = tmp_path / "not-yet"
    history = History(f"sqlite:///{folder}/history.db", sample="none")
    put = history.recorder.put
    put(row("first"), 10, keep=False)
    await until(lambda: history.stats().error, "the first try")
    for n in range(200):
        put(row(f"success-{n:03}"), 10, keep=False)
    for n in range(200):
        put(row(f"failure-{n:03}", "failure"), 10, keep=True)
    assert "unable to open" in history.stats().error
    assert not await history.flush(5), "the database is away"
    with pytest.raises(HistoryError, match="unable to open"):
        await history.page()
    folder.mkdir()
    assert await history.flush(20)
    runs = (await history.page(HistoryQuery(limit=1_000))).runs
    failures = sum(run.state is TaskState.failure for run in runs)
    assert failures == 20, "the part of the inbox that successes may not take"
    assert len(runs) in (100, 101)
    assert history.stats().dropped == 401 - len(runs)
    await until(lambda: "not recorded" in caplog.text)
    history.recorder.close()
    assert "is recorded again" in caplog.text
    assert caplog.text.count("cannot be written") == 1


def test_a_row_that_the_database_refuses(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A table of aio-fluid's, which has no room for a long id: that row is lost, and no other."""
    engine = engine_of(postgres_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(AIO_FLUIDS)
    engine.dispose()
    assert upgrade(postgres_url) == ["adopted fluid_tasks", "created fluid_tasks_attempts"]
    assert upgrade(postgres_url) == []
    history = History(postgres_url)
    for n in range(50):
        history.recorder.put(row("x" * 33 if n == 17 else f"{n}"), 10, keep=False)
    assert history.recorder.flush(20)
    history.recorder.put(row("nul\0"), 10, keep=False)
    history.recorder.put(row("surrogate\ud800"), 10, keep=False)
    assert history.recorder.flush(20)
    assert (history.stats().recorded, history.stats().refused) == (49, 3)
    assert "ALTER COLUMN id TYPE varchar(255)" in caplog.text
    assert len(ids(history.store, limit=100)) == 49
    history.recorder.close()
    assert stored_state("cancelled") == "aborted"


AIO_FLUIDS = """
CREATE TYPE taskstate AS ENUM (
    'init', 'queued', 'running', 'success', 'failure', 'aborted', 'rate_limited', 'interrupted'
);
CREATE TABLE fluid_tasks (
    id varchar(32) PRIMARY KEY, name varchar(64) NOT NULL, priority varchar(64) NOT NULL, state taskstate NOT NULL,
    queued timestamptz NOT NULL, start timestamptz, "end" timestamptz, params jsonb
);
"""


def test_tables_that_are_not_there(postgres_url: str) -> None:
    store = Store(postgres_url, "runs_of_shop")
    with pytest.raises(HistoryError, match=r"history upgrade URL --table runs_of_shop creates it"):
        store.page(HistoryQuery())
    history = History(postgres_url)
    history.recorder.put(row("early"), 10, keep=False)
    assert not history.recorder.flush(20)
    assert "history upgrade URL creates it" in history.stats().error
    upgrade(postgres_url)
    assert history.recorder.flush(20)
    assert ids(history.store) == ["early"]
    history.recorder.close()
    store.close()


def test_huge_params(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_BYTES", 4 << 20)
    history = History(store.engine)
    params = masked({"text": "x" * 1_000_000})
    for n in range(10):
        history.recorder.put(row(f"{n}")._replace(params=params), len(params), keep=True)
    assert history.stats().dropped > 0, "4 MB at most wait"
    assert history.recorder.flush(60)
    assert history.stats().recorded + history.stats().dropped == 10
    history.recorder.close()


class Odd:
    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"a": Odd()}, {"a": "odd"}),
        ({"a": "\ud800"}, {"a": "\ufffd"}),
        ({"a": 2**70}, {"a": 2**70}),
        ({"a": float("inf")}, {"a": None}),
        ({"a\0": ["\0"], "b": "\\u0000"}, {"a\ufffd": ["\ufffd"], "b": "\\u0000"}),
        (Order(number=2), {"number": 2, "token": "**********", "at": "2024-01-01T00:00:00Z"}),
        ({"a": SecretStr("canary-5a1e")}, {"a": "**********"}),
        ([1], {"params": [1]}),
        (3, {"params": 3}),
    ],
)
def test_params_as_they_are_stored(params: Any, expected: Any) -> None:
    assert json.loads(masked(params)) == expected


def test_sampling() -> None:
    """10,000 successes at once, then about 1,000 a second, spread evenly; every failure, slow run, and retried run."""

    def run(task: Any, end: int, state: str = "success", **fields: Any) -> TaskRun[Any]:
        return TaskRun(id="", task=task, state=state, params={}, start=(end - 10) / 1e6, end=end / 1e6, **fields)

    recorded: list[TaskRun[Any]] = []
    ends = Ends(recorded.append, slow_us=1_000_000, samples=True, skip_tag="skip_db")
    for n in range(50_000):  # 100,000 in a second
        ends(run(ship, T + n * 10))
    assert ends.every == 100
    assert 10_250 <= len(recorded) <= 11_500
    assert ends.left_out == 50_000 - len(recorded), recorded

    del recorded[:]
    for n in range(50_000):
        ends(run(ship, T + 500_000 + n * 10))
    assert 400 <= len(recorded) <= 600

    del recorded[:]
    end = T + 2_000_000
    kept = [
        run(ship, end, "failure"), run(ship, end, "aborted"), run(ship, end, retry_attempt=1),
        TaskRun(id="", task=ship, state="success", params={}, start=T / 1e6, end=T / 1e6 + 2),
    ]  # fmt: skip
    for found in kept:
        ends(found)
    assert recorded == kept
    ends(run(unrecorded, end, "failure"))
    assert recorded == kept
    for n in range(100):  # a quiet second
        ends(run(ship, end + 1_000_000 + n))
    assert ends.every == 1
    assert len(recorded) == len(kept) + 100


def test_options() -> None:
    assert [read_keep(keep) for keep in ("14d", " 1.5 h", "3m", 7, timedelta(1), None)] == [
        1_209_600, 5_400, 180, 7, 86_400, None
    ]  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"keep": "14"}, {"keep": 0}, {"keep": True}, {"keep": "1y"}, {"record": "none"}, {"sample": 3}, {"slow": "1"},
        {"table": "a b"}, {"table": "x" * 41}, {"table": 'a";'},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigError):
            History("sqlite:///x.db", **options)
    for database in ("sqlite://", "sqlite:///:memory:", "mysql://host/name", "nonsense", 7, None):
        with pytest.raises(ConfigError):
            History(database)
    url = engine_of("postgres://user:secret@host/name?ssl=true&prepared_statement_cache_size=0").url
    assert url.render_as_string() == "postgresql+psycopg://user:***@host/name?sslmode=require"


PROGRAM = """
import asyncio, os, sys, warnings
from fluidfast import TaskConsumer, task
from fluidfast.observe.history import History
from fluidfast.observe.history.store import Row

@task
async def work(ctx): pass

history = History(sys.argv[1], keep=None)

def put(id):
    history.recorder.put(Row(id, "work", "low", "success", 1, 1, 1, b"{}"), 2, keep=False)

async def main():
    consumer = TaskConsumer(broker_url="memory://").with_plugin(history)
    consumer.register_task(work)
    await consumer.startup()
    await consumer.queue_and_wait(work)  # and the loop ends without a shutdown

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread, which is the point
asyncio.run(main())
put("before the fork")
assert history.recorder.flush(20)
put("perhaps while it forks")
if not (pid := os.fork()):
    put("child")
    assert history.recorder.flush(20)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
asyncio.run(main())
put("at exit")
"""


def test_loops_that_end_and_forks(database: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, database], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    store = Store(database, "fluid_tasks")
    named = {"before the fork", "perhaps while it forks", "child", "at exit"}
    assert named <= set(ids(store))
    assert len(ids(store)) == len(named) + 2
    store.close()


def test_an_attempt_is_replaced_by_a_later_one(store: Store) -> None:
    def attempt(end: datetime, error: str) -> Attempt:
        return Attempt(
            run_id="a", attempt=1, task="ship", worker="w", state="failure", start=NOW, end=end, error=error
        )  # fmt: skip

    store.write([row("a", "failure")], [attempt(NOW + timedelta(seconds=2), "second")])
    store.write([], [attempt(NOW + timedelta(seconds=1), "first")])
    detail = store.run("a")
    assert detail is not None
    assert [one.error for one in detail.attempts] == ["second"]
    assert detail.run.priority is TaskPriority.medium


def test_a_recorder_goes_on_after_it_was_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that is closed, and used again. Also if a row comes while it closes."""
    history = History(f"sqlite:///{tmp_path}/history.db")
    join = threading.Thread.join

    def join_and_put(thread: threading.Thread, timeout: float | None = None) -> None:
        join(thread, timeout)
        if thread.name == "fluidfast-history":
            monkeypatch.undo()
            history.recorder.put(row("while it closes"), 2, keep=False)

    monkeypatch.setattr(threading.Thread, "join", join_and_put)
    history.recorder.put(row("before"), 2, keep=False)
    history.recorder.close()
    assert history.recorder.flush(20)
    assert history.stats().recorded == 2
    history.recorder.close()
    history.recorder.put(row("after"), 2, keep=False)
    assert history.recorder.flush(20)
    assert history.stats().recorded == 3
    history.recorder.close()


async def test_old_rows_are_deleted(broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the worker, while it runs. Runs that have not ended long enough ago stay."""
    monkeypatch.setattr(plugin, "PRUNE_SECONDS", 0.01)
    monkeypatch.setattr(stores, "SLICE", 10)
    url = f"sqlite:///{tmp_path}/history.db"
    old = T - 15 * 86_400_000_000
    store = Store(url, "fluid_tasks")
    attempt = Attempt(
        run_id="old", attempt=1, task="ship", worker="w", state="failure", start=NOW, end=NOW - timedelta(days=15)
    )
    rows = [row(f"{n}", queued=old, start=old, end=old) for n in range(25)]
    store.write([*rows, row("delayed", queued=old)], [attempt])
    history = History(url)
    manager = TaskManager(broker_url=broker_url).with_plugin(history)
    async with TaskConsumer.of(manager):
        await until(lambda: ids(store) == ["delayed"])
        await until(lambda: not count_of(store, store.attempts))
    store.close()


def count_of(store: Store, table: sa.Table) -> int:
    with store.engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
