"""Runs, task infos and the other records as pydantic models: answers of FastAPI routes, and fields of other models."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pydantic
import pytest
from fastapi import FastAPI

from fluidfast import K8sConfig, QueuedTask, RetryPolicy, TaskInfo, TaskManager, TaskManagerConfig, TaskRun, task
from fluidfast.core.params import Params, adapter_for, non_finite_field
from fluidfast.http import task_manager_fastapi
from fluidfast.scheduler.broker import TaskManagersStatus, TaskManagerStatus
from fluidfast.scheduler.models import RetryPolicyInfo, TaskState

WHEN = datetime(2024, 5, 6, 7, 8, 9, 500, tzinfo=UTC)


class Mail(pydantic.BaseModel):
    to: str
    password: pydantic.SecretStr = pydantic.SecretStr("canary")


class Parcel(msgspec.Struct):
    weight: float
    password: pydantic.SecretStr = pydantic.SecretStr("canary")


@task
async def mail(ctx: TaskRun[Mail]) -> None: ...


@task
async def parcel(ctx: TaskRun[Parcel]) -> None: ...


@task(retry=RetryPolicy(wait=2), tags=["x"], k8s_config=K8sConfig(resources={"limits": {"cpu": "1"}}))
async def anything(ctx: TaskRun) -> None: ...


@pytest.fixture
def manager() -> TaskManager:
    manager = TaskManager(broker_url=f"memory://{uuid.uuid4().hex}")
    manager.register_from_dict({"mail": mail, "parcel": parcel, "anything": anything})
    return manager


INFO = anything.info(last_run_end=WHEN, last_run_duration=timedelta(seconds=1.5), last_run_state=TaskState.success)
STATUS = TaskManagersStatus([TaskManagerStatus("task_manager", {"a": 1})], {"high": 2})
RECORDS = (
    INFO,
    K8sConfig(),
    RetryPolicyInfo(wait=1, backoff=2, max_wait=3),
    QueuedTask(run_id="a", task="b", params={"c": [1]}),
    STATUS,
    TaskManagerConfig(max_concurrent_tasks=3),
)


class Page(pydantic.BaseModel):
    run: TaskRun | None = None
    infos: list[TaskInfo] = []
    typed: TaskRun[Mail] | None = None


async def test_routes_of_ones_own(manager: TaskManager) -> None:
    """With a return type, without one, in a list and in a model: the same JSON."""
    app = FastAPI()
    runs: dict[str, TaskRun] = {
        "mail": manager.create_task_run("mail", to="you"),
        "parcel": manager.create_task_run("parcel", weight=1),
        "anything": manager.create_task_run("anything", when=WHEN, secret=pydantic.SecretStr("canary")),
    }
    for run in runs.values():
        run.set_state("running", WHEN)

    @app.get("/annotated/{name}")
    async def annotated(name: str) -> TaskRun:
        return runs[name]

    @app.get("/plain/{name}")
    async def plain(name: str):  # type: ignore[no-untyped-def]
        return runs[name]

    @app.get("/page/{name}")
    async def page(name: str) -> Page:
        return Page(run=runs[name], infos=[INFO], typed=runs["mail"])

    @app.get("/infos")
    async def infos() -> list[TaskInfo]:
        return [INFO]

    @app.get("/plain-infos")
    async def plain_infos():  # type: ignore[no-untyped-def]
        return [INFO]

    @app.get("/status")
    async def status() -> TaskManagersStatus:
        return STATUS

    @app.post("/queue")
    async def queue(wanted: QueuedTask) -> QueuedTask:
        return wanted

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        for name, run in runs.items():
            expected = json.loads(run.model_dump_json())
            assert (expected["task"], expected["start"]) == (name, "2024-05-06T07:08:09.000500Z")
            assert (await client.get(f"/annotated/{name}")).json() == expected
            assert (await client.get(f"/plain/{name}")).json() == expected
            assert (await client.get(f"/page/{name}")).json()["run"] == expected
            assert "canary" not in (await client.get(f"/page/{name}")).text
        expected = [msgspec.to_builtins(INFO)]
        assert (await client.get("/infos")).json() == (await client.get("/plain-infos")).json() == expected
        assert (await client.get("/status")).json() == msgspec.to_builtins(STATUS)
        wanted = {"run_id": "a", "task": "b", "params": {"c": 1}, "priority": "low"}
        assert (await client.post("/queue", json=wanted)).json() == wanted
        assert (await client.post("/queue", json={**wanted, "priority": "no"})).status_code == 422
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert {"TaskRun", "TaskInfo", "QueuedTask", "Page", "TaskManagersStatus"} <= schemas.keys()


async def test_openapi_of_the_manager(manager: TaskManager) -> None:
    spec = task_manager_fastapi(manager, insecure=True).openapi()
    assert spec["components"]["schemas"].keys() >= {
        "TaskInfo", "TaskRun", "TaskState", "TaskPriority", "TaskManagerStatus", "TaskManagersStatus",
        "RetryPolicyInfo", "K8sConfig", "TaskUpdate",
    }  # fmt: skip
    operations = {route["operationId"] for path in spec["paths"].values() for route in path.values()}
    assert operations - {"get_health_tasks_health_get"} == {  # generated clients name their methods by these
        "get_tasks_tasks_get",
        "get_task_status_tasks_status_get",
        "delete_queue_tasks_queue_delete",
        "delete_queue_by_priority_tasks_queue__priority__delete",
        "get_task_tasks__task_name__get",
        "patch_task_tasks__task_name__patch",
        "queue_task_tasks_mail_post",
        "queue_task_tasks_parcel_post",
        "queue_task_tasks_anything_post",
    }
    answer = spec["paths"]["/tasks/mail"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/TaskRun"}
    assert list(spec["components"]["schemas"]["TaskRun"]["properties"]) == list(TaskRun.model_fields)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records(record: Any) -> None:
    cls = type(record)
    assert cls.model_validate(record) is record
    assert cls.model_validate(record.model_dump()) == record
    assert cls.model_validate_json(record.model_dump_json()) == record
    assert dict(record) == record.model_dump(mode="json") == json.loads(record.model_dump_json())
    assert list(cls.model_fields) == list(cls.model_json_schema()["properties"]) == list(record.model_dump())
    first = next(iter(cls.model_fields))
    assert record.model_dump(include={first}).keys() == {first}
    assert None not in record.model_dump(exclude_none=True).values()
    assert record.model_copy(deep=True) == record == record.model_copy()
    assert getattr(record.model_copy(update={first: False}), first) is False
    with pytest.raises(TypeError):
        record.model_copy(update={"no": 1})
    with pytest.raises(pydantic.ValidationError):
        cls.model_validate({first: object()})


def test_runs(manager: TaskManager) -> None:
    run = manager.create_task_run("mail", to="you")
    assert TaskRun.model_validate(run) is run
    by_fields = {"id": "a", "task": mail, "priority": "low", "params": Mail(to="you"), "task_manager": manager}
    assert TaskRun.model_validate(by_fields).name_id == "mail.a"
    with pytest.raises(pydantic.ValidationError, match="a manager makes runs: create_task_run"):
        TaskRun.model_validate(run.model_dump())
    assert run.model_dump(exclude_none=True).keys() & {"queued", "start"} == set()
    assert run.model_dump(include={"params": {"to"}}) == {"params": {"to": "you"}}
    assert run.model_dump_json(include={"id"}, indent=1) == f'{{\n "id": "{run.id}"\n}}'
    assert dict(run) == run.model_dump(mode="json")
    assert "canary" not in str(dict(run))


def test_params_without_a_model(manager: TaskManager) -> None:
    params = manager.create_task_run("anything", when=WHEN, token=pydantic.SecretStr("canary"), n=None).params
    assert params.model_dump() == params
    assert params.model_dump(mode="json") == {"when": "2024-05-06T07:08:09.000500Z", "token": "*" * 10, "n": None}
    assert params.model_dump_json(include={"when"}) == '{"when":"2024-05-06T07:08:09.000500Z"}'
    assert json.loads(params.model_dump_json()) == params.model_dump(mode="json")
    assert isinstance(pydantic.TypeAdapter(Params).validate_python({"a": 1}), Params)


def test_a_password_is_not_in_json() -> None:
    config = TaskManagerConfig(broker_url="redis://user:canary@localhost")
    assert "canary" not in config.model_dump_json()
    assert config.model_dump()["broker_url"] == "redis://user:canary@localhost"


class Nested(msgspec.Struct):
    info: TaskInfo
    retry: RetryPolicyInfo | None = None


def test_a_record_among_params_is_not_taken_for_a_model() -> None:
    adapter = adapter_for(Nested)
    params = Nested(INFO, RetryPolicyInfo(wait=1, backoff=2, max_wait=3))
    assert non_finite_field(params) is None
    assert adapter.decode(adapter.encode(params)) == params
    assert adapter_for(TaskInfo).decode(adapter_for(TaskInfo).encode(INFO)) == INFO


def test_without_pydantic() -> None:
    """Nothing imports it before it is asked for, and a run's own dump never does."""
    code = """
import sys
sys.modules["pydantic"] = sys.modules["pydantic_core"] = None
from fluidfast import TaskManager, TaskRun, task
@task
async def t(ctx: TaskRun) -> None: ...
run = TaskManager(broker_url="memory://").create_task_run(t, a=1)
assert run.model_dump(mode="json", exclude={"id"})["params"] == run.params.model_dump() == {"a": 1}
for ask in (t.info().model_dump, lambda: TaskRun.model_fields, lambda: run.model_dump(exclude_none=True)):
    try:
        ask()
    except ImportError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("this needs pydantic: pip install pydantic\n" * 3, "")
