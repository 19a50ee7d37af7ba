"""The run history's faces: aio-fluid's ``TaskDbPlugin``, its routes, and the ``history`` command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from kits.manager_kit import consuming
from kits.waiting import until
from pydantic import BaseModel, SecretStr, ValidationError

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.commands import cli
from fluidfast.scheduler import task_manager_fastapi
from fluidfast.scheduler.db import TaskDbPlugin, TaskHistoryQuery, TaskRunHistory, get_db_plugin


class Mail(BaseModel):
    to: str = "ann"
    token: SecretStr = SecretStr("canary-5a1e")


@task(tags=["mail"])
async def send(ctx: TaskRun[Mail]) -> None:
    """Sends."""


@task
async def plain(ctx: TaskRun[Any]) -> None:
    """Names no model."""


@task(tags=["skip_db"])
async def skipped(ctx: TaskRun[Any]) -> None:
    """Is not recorded."""


@pytest.fixture
async def consumer(tmp_path: Path) -> AsyncIterator[TaskConsumer]:
    plugin = TaskDbPlugin(f"sqlite:///{tmp_path}/history.db")
    async with consuming("memory://", send, plain, skipped) as consumer:
        consumer.with_plugin(plugin)
        for one in (send, plain, skipped):
            await consumer.queue_and_wait(one)
        assert await plugin.history.flush()
        yield consumer
        plugin.history.recorder.close()


QUERIES: list[tuple[str, Any]] = [
    ("", ["plain", "send"]),
    ("limit=1000000000&bogus=1", ["plain", "send"]),
    ("task=send&task=other", ["send"]),
    ("tags=mail&state=success&state=failure&priority=medium", ["send"]),
    ("tags=unknown", []),
    ('params={"to":"ann"}', ["send"]),
    ("params=null", ["plain", "send"]),
    ('params={"to":"%5Cu0000"}', []),
    ("start=2020-01-01&end=2999-01-01T00:00:00Z", ["plain", "send"]),
    ("end=2020-01-01", []),
    ("task=%00", []),
    ("task=' OR 1=1 --", []),
    ("cursor=zzz", 422),
    ("cursor=" + "x" * 3_000, 422),
    ("limit=0", 422),
    ("state=unknown", 422),
    ("params=[1]", 422),
    ('params={"a":NaN}', 422),
    ("params=" + "[" * 20_000, 422),
    ("start=0001-01-01T00:00:00%2B14:00", 422),
]


async def test_the_routes(consumer: TaskConsumer) -> None:
    app = task_manager_fastapi(consumer, insecure=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
        for query, answer in QUERIES:
            response = await client.get(f"/tasks-history?{query}")
            if isinstance(answer, int):
                assert response.status_code == answer, query
                continue
            assert response.status_code == 200, query
            runs = response.json()["data"]
            assert [run["task"] for run in runs] == answer, query
            for run in runs:
                assert (await client.get(f"/tasks-history/{run['id']}")).json() == run
        missing = await client.get("/tasks-history/unknown")
        assert (missing.status_code, missing.json()) == (404, {"detail": "Task run not found"})


async def test_the_plugin(consumer: TaskConsumer) -> None:
    plugin = get_db_plugin(consumer)
    page = await plugin.get_history(TaskHistoryQuery())
    assert [(run.task, run.state, run.params) for run in page.data] == [
        ("plain", "success", {}),
        ("send", "success", {"to": "ann", "token": "**********"}),
    ]
    assert page.cursor == ""
    assert page.data[0].model_dump(mode="json")["queued"].endswith("Z")
    first = await plugin.get_history(TaskHistoryQuery(limit=1))
    second = await plugin.get_history(TaskHistoryQuery(limit=1, cursor=first.cursor))
    assert [*first.data, *second.data] == page.data
    assert second.cursor == ""
    assert await plugin.get_run(page.data[0].id) == page.data[0]
    with pytest.raises(sa.exc.NoResultFound):
        await plugin.get_run("unknown")
    with pytest.raises(ValidationError, match="JSON object"):
        TaskHistoryQuery(params="[1]")
    with pytest.raises(AttributeError, match="with_plugin"):
        get_db_plugin(TaskManager(broker_url="memory://"))


async def test_routes_elsewhere_guarded_and_without_a_database(tmp_path: Path) -> None:
    plugin = TaskDbPlugin(f"sqlite:///{tmp_path}/missing/x.db", route_prefix="/past")

    def nobody() -> None:
        from fastapi import HTTPException

        raise HTTPException(401)

    manager = TaskManager(broker_url="memory://").with_plugin(plugin)
    for options, status in (({"auth": nobody}, 401), ({"insecure": True}, 503)):
        app = task_manager_fastapi(manager, **options)  # type: ignore[arg-type]
        assert app.openapi()["paths"]["/past"]["get"]["operationId"] == "get_history_past_get"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
            assert {(await client.get(path)).status_code for path in ("/past", "/past/x")} == {status}


async def test_a_database_object_like_aio_fluids(tmp_path: Path) -> None:
    """It has a URL and metadata, which get the tables."""
    metadata = sa.MetaData()
    url = sa.make_url(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    TaskDbPlugin(SimpleNamespace(url=url, metadata=metadata), table_name="runs")
    plugin = TaskDbPlugin(SimpleNamespace(url=url, metadata=metadata), table_name="runs")
    assert sorted(metadata.tables) == ["runs", "runs_attempts"]
    assert {index.name for index in metadata.tables["runs"].indexes} == {
        f"ix_runs_{column}" for column in ("name", "priority", "state", "queued", "params")
    }
    manager = TaskManager(broker_url=f"memory://{tmp_path.name}").with_plugin(plugin)
    manager.register_task(send)
    run = await manager.queue(send)
    assert await plugin.history.flush()
    assert (await plugin.get_run(run.id)).state == "queued"
    assert TaskRunHistory.model_fields.keys() == {"id", "task", "priority", "state", "queued", "start", "end", "params"}
    async with TaskConsumer.of(manager):
        await until(lambda: plugin.stats().recorded >= 2, "the run's end")
    assert (await plugin.get_run(run.id)).state == "success"
    assert len((await plugin.get_history(TaskHistoryQuery())).data) == 1
    plugin.history.recorder.close()  # once more, as reading has connected since the shutdown


def test_the_command(postgres_url: str, tmp_path: Path) -> None:
    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["history", *arguments], env=variables)
        return done.exit_code, done.output

    assert run("upgrade", postgres_url, "--table", "runs") == (0, "created runs\ncreated runs_attempts\n")
    assert run("upgrade", "--table", "runs", FLUID_HISTORY_URL=postgres_url) == (0, "runs is up to date\n")
    assert run("prune", postgres_url, "--table", "runs", "--keep", "1h") == (0, "deleted 0 rows\n")
    code, text = run("prune", f"sqlite:///{tmp_path}/x.db")
    assert code == 1
    assert "history upgrade URL creates it" in text
    code, text = run("upgrade", "postgresql://user:canary-5a1e@127.0.0.1:1/x")
    assert code == 1
    assert text.startswith("fluidfast: error: history in postgresql")
    assert "canary" not in text
    assert len(text.splitlines()) == 1


WITHOUT = """
import sys
sys.modules["sqlalchemy"] = None
for name in ("fluidfast.observe.history", "fluidfast.scheduler.db"):
    try:
        __import__(name)
    except ImportError as exc:
        print(exc)
from fluidfast.commands import main
main(["history", "upgrade", "sqlite:///x.db"])
"""


def test_without_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "the run history needs SQLAlchemy: pip install 'fluidfast[db]'",
        "fluidfast.scheduler.db needs SQLAlchemy and FastAPI: pip install 'fluidfast[db,http]'",
    ]
    assert done.stderr == "fluidfast: error: the run history needs SQLAlchemy: pip install 'fluidfast[db]'\n"
