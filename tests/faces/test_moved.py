"""An application of aio-fluid that is more than tasks: 1.x names, its own workers, options that its users set."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import uuid
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from kits.waiting import within

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import ConfigError, TaskUsageError
from fluidfast.execute.executor import retry_after_failure, retry_when_limited
from fluidfast.scheduler.broker import TaskBroker
from fluidfast.scheduler.endpoints import get_task_manger, setup_fastapi
from fluidfast.settings import get_settings
from fluidfast.tools_fastapi import WorkersDep, app_workers, get_workers_from_app
from fluidfast.utils import errors, log
from fluidfast.utils.lazy import LazyGroup
from fluidfast.utils.worker import WorkerFunction, Workers


@task(retry=RetryPolicy(wait=0.5), rate_limit_retry=RetryPolicy(wait=9))
async def job(ctx: TaskRun) -> None: ...


def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


# -- FastAPI


async def test_an_application_of_1x(caplog: pytest.LogCaptureFixture) -> None:
    consumer = TaskConsumer(broker_url=url())
    consumer.register_task(job)
    app = setup_fastapi(consumer, insecure=True)
    assert get_task_manger(app) is consumer
    beside = WorkerFunction(lambda: asyncio.sleep(0), heartbeat=60, name="beside")
    app_workers(app).add_workers(beside)

    @app.get("/workers")
    async def workers(workers: WorkersDep) -> list[str]:
        assert workers is not None
        return sorted(worker.worker_name for worker in workers.workers())

    transport = httpx.ASGITransport(app=app)
    for _ in range(2):  # a test client may start an application again
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            answer = await client.post("/tasks", json={"name": "job", "params": {"a": 1}, "priority": "low"})
            assert (answer.status_code, answer.json()["params"], answer.json()["priority"]) == (200, {"a": 1}, "low")
            assert (await client.post("/tasks", json={"name": "no"})).status_code == 404
            assert (await client.get("/workers")).json() == ["beside", "task_consumer"]
            assert consumer.is_running()
            assert consumer.running
        assert consumer.is_stopped()
        assert [worker.worker_name for worker in app_workers(app).workers()] == ["beside"]  # it leaves at its end
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []  # no end by itself
    assert get_workers_from_app(FastAPI()) is None


async def test_names_of_1x() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    @task
    async def slow(ctx: TaskRun) -> None:
        entered.set()
        await leave.wait()

    async with TaskConsumer(broker_url=url()) as consumer:
        consumer.register_task(slow)
        run = await consumer.queue(slow, a=1)
        await within(entered.wait())
        assert (consumer.num_concurrent_tasks, consumer.num_concurrent_tasks_for("slow")) == (1, 1)
        assert consumer.num_concurrent_tasks_for("job") == 0
        leave.set()
    assert run.params_dump_json() == slow.params_dump_json({"a": 1}) == '{"a":1}'


def test_redis_of_1x() -> None:
    broker: Any = TaskBroker.from_url("redis://localhost")
    assert broker.redis.redis_cli is broker.redis_cli


# -- workers of other classes


class Foreign:
    """Has the public methods of aio-fluid's workers, and nothing else of ours."""

    worker_name = "foreign"

    def __init__(self, error: Exception | None = None) -> None:
        self.told: list[str] = []
        self.error = error
        self.over = asyncio.Event()

    async def startup(self) -> None:
        self.told.append("startup")
        if self.error:
            self.over.set()

    async def shutdown(self) -> None:
        self.told.append("shutdown")
        self.over.set()

    async def wait_for_shutdown(self) -> None:
        await self.over.wait()
        if self.error:
            raise self.error

    async def status(self) -> dict[str, Any]:
        return {"mine": 1}


async def test_a_worker_of_another_library() -> None:
    consumer, worker = TaskConsumer(broker_url=url()), Foreign()
    consumer.add_workers(worker, worker)
    await consumer.startup()
    assert worker.told == ["startup"]
    assert (await consumer.status())["foreign"] == {"mine": 1}
    await consumer.shutdown()
    assert worker.told == ["startup", "shutdown"]
    with pytest.raises(TaskUsageError, match=r"object cannot be one of .*fluidfast.utils.worker.Worker"):
        consumer.add_workers(object())


class Foreign1x:
    """Has the public methods of aio-fluid 1.x's workers."""

    worker_name = "old"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.stop = asyncio.Event()

    async def run(self) -> None:
        self.told.append("run")
        await self.stop.wait()
        self.told.append("end")

    def gracefully_stop(self) -> None:
        self.stop.set()


async def test_a_worker_of_1x() -> None:
    worker = Foreign1x()
    async with Workers(worker) as group:  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert (await group.status())["old"] == {"stopping": False, "running": True}
    assert worker.told == ["run", "end"]


async def test_its_error_ends_the_group() -> None:
    group = Workers(Foreign(ValueError("mine")))  # type: ignore[arg-type]
    await group.startup()
    with pytest.raises(ValueError, match="mine"):
        await within(group.wait_for_shutdown())


# -- options


def test_retry_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    def delays(**config: Any) -> tuple[float, float]:
        run = TaskManager(**config).create_task_run(job)
        failed, limited = retry_after_failure(run, ValueError(), 0), retry_when_limited(run, 0)
        assert failed is not None
        assert limited is not None
        assert failed.run.execute_after.timestamp() == failed.delay  # type: ignore[union-attr]
        return failed.delay, limited.delay

    assert delays(broker_url="memory://") == (0.5, 9)
    assert delays(broker_url="memory://?retry_floor=5") == (5, 9)
    assert delays(broker_url="memory://?retry_floor=5", retry_floor=20) == (20, 20)
    monkeypatch.setenv("FLUID_RETRY_FLOOR", "7")
    get_settings.cache_clear()
    assert delays(broker_url="memory://") == (7, 9)
    assert delays(broker_url="memory://", retry_floor=0) == (0.5, 9)
    with pytest.raises(ConfigError, match="retry_floor"):
        TaskManager(broker_url="memory://", retry_floor=-1)
    monkeypatch.undo()
    get_settings.cache_clear()


async def test_a_failing_handler_stops_the_consumer_if_it_is_told_to() -> None:
    async def broken(run: TaskRun) -> None:
        raise ValueError("cannot write the history")

    for choice in ("log", "stop"):
        consumer = TaskConsumer(broker_url=url(), on_handler_error=choice)  # type: ignore[arg-type]
        consumer.register_task(job)
        consumer.register_async_handler("success", broken)
        await consumer.startup()
        await consumer.queue_and_wait(job, timeout=5)
        if choice == "stop":
            with pytest.raises(ValueError, match="cannot write the history"):
                await within(consumer.wait_for_shutdown())
        else:
            await consumer.queue_and_wait(job, timeout=5)
            await consumer.shutdown()
    with pytest.raises(ConfigError, match="on_handler_error"):
        TaskConsumer(broker_url=url(), on_handler_error="raise")  # type: ignore[arg-type]


async def test_a_caller_in_a_mixed_fleet_is_told_why_no_result_came() -> None:
    for fleet, told in (("own", False), ("mixed", True)):
        async with TaskManager(broker_url=f"{url()}?fleet={fleet}") as manager:
            manager.register_task(job)
            with pytest.raises(TimeoutError) as error:
                await manager.queue_and_wait(job, timeout=0.01)
            assert ("a worker of aio-fluid sends no result" in str(error.value)) is told


# -- a broker of one's own


def test_a_broker_of_aio_fluid_is_refused_in_one_sentence() -> None:
    class ListBroker(TaskBroker):
        async def queue_task(self, task_run: Any) -> None: ...

    TaskBroker.register_broker("list", ListBroker)
    with pytest.raises(
        ConfigError, match=r"broker list://:\*\*\*@x: its class has no \w+\(\) and \d+ more methods.*guide"
    ) as told:
        TaskConsumer(broker_url="list://:password@x")
    assert "password" not in str(told.value)


# -- what stands beside the scheduler


@pytest.mark.parametrize("name", ["scheduler.k8s_job", "db", "db.crud", "utils.http_client"])
def test_what_is_not_here_says_where_it_is(name: str) -> None:
    with pytest.raises(ImportError, match=r"fluidfast.* has no .*aio-fluid"):
        importlib.import_module(f"fluidfast.{name}")


@pytest.mark.parametrize(("missing", "message"), [("fastapi", r"pip install 'fluidfast\[http\]'"), ("anyio", "anyio")])
def test_only_the_missing_extra_is_explained(monkeypatch: pytest.MonkeyPatch, missing: str, message: str) -> None:
    """A library that an installed FastAPI misses is not taken for FastAPI."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("fastapi", "starlette", "anyio")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("fluidfast.http", "fluidfast.http.workers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=message) as told:
        importlib.import_module("fluidfast.http")
    assert ("fluidfast[http]" in str(told.value)) is (missing == "fastapi")


def test_utils() -> None:
    assert issubclass(errors.ValidationError, errors.FluidValueError)
    mistake = errors.ValidationError("age", value=-1)
    assert (mistake.field, str(mistake), mistake.value) == ("age", "validation error", -1)
    assert log.get_logger("x").name == "x"
    assert log.get_logger("x", prefix=True).name == "fluid.x"
    assert log.get_level_num("debug") == 10
    settings = importlib.import_module("fluidfast.settings")
    assert (settings.ENV, settings.LOG_HANDLER, settings.REDIS_DEFAULT_URL) == (
        "dev",
        "plain",
        "redis://localhost:6379",
    )


@click.command()
def hello() -> None:
    print("hello")


def test_lazy_group() -> None:
    group = LazyGroup(lazy_subcommands={"hello": f"{__name__}:hello", "no": f"{__name__}:url"})
    assert CliRunner().invoke(group, ["hello"]).output == "hello\n"
    assert group.list_commands(click.Context(group)) == ["hello", "no"]
    with pytest.raises(ValueError, match=r"'no'.* is a function, not a click command"):
        group.get_command(click.Context(group), "no")
    assert CliRunner().invoke(group, ["nonesuch"]).exit_code == 2
