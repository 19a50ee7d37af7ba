"""Foreign text (run ids, exceptions, broker URLs) in logs, errors and reprs: escaped, cut, and without passwords."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskScheduler, task
from fluidfast.brokers.redis.servers import finder
from fluidfast.brokers.url import BrokerURL
from fluidfast.cli.logs import JsonFormatter, LineFormatter
from fluidfast.core._machine import Listeners
from fluidfast.core.config import TaskManagerConfig
from fluidfast.errors import (
    BrokerURLError,
    ParamsError,
    PayloadError,
    TaskAbortedError,
    TaskRunError,
    UnknownTaskError,
)
from fluidfast.texts import hide_password
from fluidfast.wire._codec import Codec

NASTY = "x\x1b[2J\r\n2026-01-01 CRITICAL root: FORGED \u202e\x9b"
LONG = "y" * 500_000
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ud800-\udfff]")


@task
async def succeeding(ctx: TaskRun) -> None: ...


@task
async def aborting(ctx: TaskRun) -> None:
    ctx.abort(NASTY + LONG)


@task
async def failing(ctx: TaskRun) -> None:
    raise TaskRunError(NASTY + LONG)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


@pytest.mark.parametrize("one", [aborting, failing], ids=lambda one: one.name)
@pytest.mark.parametrize("run_id", [NASTY, LONG], ids=["nasty", "long"])
async def test_what_a_consumer_logs_of_a_run(one: Any, run_id: str, logged: pytest.LogCaptureFixture) -> None:
    consumer = TaskConsumer(broker_url="memory://shown")
    consumer.register_task(one)
    await consumer.startup()
    try:
        run = await consumer.queue_and_wait(one, run_id=run_id, timeout=10)
    finally:
        await consumer.shutdown()
    assert run.id == run_id
    about = [record.getMessage() for record in logged.records if record.name == one.logger.name]
    assert about
    for text in about:
        assert not UNSAFE.search(text)
        assert len(text) < 5_000


def test_what_a_run_shows_of_its_id() -> None:
    usual = TaskRun(id="0123456789abcdef" * 2, task=succeeding)
    assert usual.shown_id is usual.id
    assert usual.shown_name == usual.name_id
    for run_id in (NASTY, LONG, "\x7f" * 32, "\x1f" * 32, "é" * 32, "\udce9"):
        run = TaskRun(id=run_id, task=succeeding)
        for text in (run.shown_id, run.shown_name, repr(run)):
            assert not UNSAFE.search(text)
            assert len(text) < 300
    assert TaskRun(id="é" * 32, task=succeeding).shown_id == "é" * 32


@pytest.mark.parametrize("name", [NASTY, LONG], ids=["nasty", "long"])
def test_what_errors_show_of_a_payload(name: str) -> None:
    import msgspec

    class Params(msgspec.Struct, forbid_unknown_fields=True):
        a: dict[str, float] = {}

    @task(name="work", params_model=Params)
    async def work(ctx: TaskRun) -> None: ...

    codec = Codec({"work": work})
    wrong: list[Any] = [
        {"task": name},
        {"task": "work", "params": {name: 1}},
        {"task": "work", "params": {"a": {name: "x"}}},
        {"task": "work", "priority": name},
        {"task": "work", "queued": name},
        {"task": "work", "rate_limit_attempt": name},
    ]
    for payload in wrong:
        with pytest.raises((PayloadError, UnknownTaskError, ParamsError)) as caught:
            codec.decode(msgspec.json.encode(payload), None)
        assert not UNSAFE.search(str(caught.value))
        assert len(str(caught.value)) < 5_000
    with pytest.raises(ParamsError) as refused:
        codec.create("work", None, "", {name: 1}, None, Listeners(0))
    assert not UNSAFE.search(str(refused.value))
    assert len(str(refused.value)) < 5_000


# --- the worker's log -----------------------------------------------------------------------------


def record_of(message: str, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "%s", (message,), None)
    vars(record).update(fields)
    return record


def raised(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError as exc:
        return type(exc), exc, exc.__traceback__


def test_one_record_is_one_line_and_its_traceback() -> None:
    formatter = LineFormatter("%(levelname)s %(message)s")
    assert formatter.format(record_of("usual\ttext é 仕")) == "INFO usual\ttext é 仕"
    for text in (NASTY, "\udce9", LONG):
        shown = formatter.format(record_of(text))
        assert not UNSAFE.search(shown)
        assert len(shown) < 40_000
        fields: dict[str, Any]
        for fields in (
            {"exc_info": raised(text)},
            {"exc_info": raised(text), "exc_text": text},  # what another handler's formatter left is not used
            {"exc_text": text},
            {"stack_info": text},
        ):
            first, *lines = formatter.format(record_of("x", **fields)).split("\n")
            assert first == "INFO x"
            assert lines
            assert not any(UNSAFE.search(line) for line in lines)
            assert not any(line.startswith("2026") and "FORGED" in line for line in lines[2:-1])
            assert sum(map(len, lines)) < 80_000
    assert "Traceback (most recent call last):\n  File" in formatter.format(record_of("x", exc_info=raised("y")))


def test_a_record_in_json_is_always_written() -> None:
    formatter = JsonFormatter()
    for text in (NASTY, "\udce9", LONG):
        line = formatter.format(record_of(text, exc_info=raised(text), stack_info=text))
        assert "\n" not in line
        assert not UNSAFE.search(line)
        assert len(line) < 250_000
        assert {"message", "exception", "stack"} <= json.loads(line).keys()
    assert json.loads(formatter.format(record_of("a\nb")))["message"] == "a\nb"


# --- half a surrogate -----------------------------------------------------------------------------


async def test_an_abort_text_with_half_a_surrogate(broker_url: str, no_leaked_keys: Any) -> None:
    @task
    async def lister(ctx: TaskRun) -> None:
        raise TaskAbortedError("cannot read caf\udce9.txt")

    manager = TaskManager(broker_url=broker_url)
    try:
        run = await manager.execute(lister)
        assert run.state == "aborted"
        assert await manager.broker.get_task_aborted(run.id) == "cannot read caf\\udce9.txt"
        await manager.broker.set_task_aborted("by-hand", "caf\udce9")
        assert await manager.broker.get_task_aborted("by-hand") == "caf\\udce9"
    finally:
        await manager.on_shutdown()
        await manager.broker.close()


async def test_an_id_with_half_a_surrogate_is_refused(broker_url: str) -> None:
    manager = TaskManager(broker_url=broker_url)
    manager.register_task(succeeding)
    try:
        for call in (manager.queue, manager.execute, manager.queue_and_wait):
            with pytest.raises(TaskRunError, match=r"cannot have the id 'caf\\udce9': it cannot be written as UTF-8"):
                await call("succeeding", run_id="caf\udce9")
            with pytest.raises(TaskRunError, match="cannot have the id"):
                await call("succeeding", run_id="caf\udce9", params={"a": 1})
        assert sum((await manager.broker.queue_length()).values()) == 0
    finally:
        await manager.on_shutdown()
        await manager.broker.close()


# --- passwords ------------------------------------------------------------------------------------

URLS = [
    "redis://me:hunter2@localhost:6379",
    "redis://:hunter2@localhost:6379/1?name=x",
    "rediss://me:hunter2@localhost?ssl_password=hunter2",
    "unix://me:hunter2@/tmp/server.sock",
    "redis+sentinel://me:hunter2@localhost:1/service?sentinel_password=hunter2",
    "redis+cluster://me:hunter2@localhost:1",
    "redis://me:hunter2@localhost?shards=2",
    "redis://me:%68unter2hunter2@localhost",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", [TaskManager, TaskConsumer, TaskScheduler])
def test_no_password_in_any_repr(url: str, kind: Any) -> None:
    manager = kind(broker_url=url)
    broker = manager.broker
    shown: list[Any] = [manager, vars(manager), manager.config, broker, vars(broker), broker.url, manager.sync]
    for shard in getattr(broker, "shards", [broker]):
        found = finder(BrokerURL(url.replace("?shards=2", "")), "name", 2)
        blocking = found.sync_client(1.0)
        shown += [shard, shard.redis_cli, vars(shard), found.client, found.client.connection_pool, found.connection()]
        shown += [blocking, blocking.connection_pool]
    for thing in shown:
        assert "hunter2" not in f"{thing!r} {thing!s} {thing}"
    assert manager.config.broker_url == url
    assert "***" in repr(manager.config)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost?password=hunter2",
        "redis://localhost?pass%77ord=hunter2",
        "redis://localhost?PASSWORD=hunter2",
        "redis://localhost?token=hunter2",
        "me:hunter2@localhost:6379",
        "redis:me:hunter2@localhost",
        "redis://me:hunter2/x@localhost",
        "redis+sentinel://me:hunter2,a/b@one:1,two:2/service",
        "nosuch://me:hunter2@localhost",
    ],
)
def test_no_password_in_the_error_about_a_url(url: str) -> None:
    with pytest.raises(BrokerURLError) as caught:
        TaskManager(broker_url=url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "hunter2" not in repr(TaskManagerConfig(broker_url=url))


def test_a_url_without_secrets_is_shown_as_it_is() -> None:
    for url in ("memory://x", "redis://localhost:6379/1?name=a&lease_seconds=5", "redis://[::1]:6379", ""):
        assert hide_password(url) == url
    config = TaskManagerConfig(broker_url="memory://x", max_queue_length=3)
    assert repr(config).startswith("TaskManagerConfig(schedule_tasks=True, ")
    assert "broker_url='memory://x'" in repr(config)
    assert "max_queue_length=3" in repr(config)
