"""The HTTP routes."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import uuid
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
import msgspec
import pydantic
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from kits.waiting import within

import fluidfast
from fluidfast import TaskConsumer, TaskManager, TaskManagerPlugin, TaskRun, TaskScheduler, every, task
from fluidfast.core.workers import WorkerFunction
from fluidfast.errors import BrokerConnectionError, BrokerFullError
from fluidfast.scheduler import RetryPolicy, TaskState
from fluidfast.scheduler.endpoints import (
    TaskCreate,
    TaskManagerDep,
    TaskUpdate,
    get_router,
    get_task_manager,
    get_task_manager_from_request,
    task_manager_fastapi,
)

CANARY = "canary-5a1e"


class Mail(pydantic.BaseModel):
    to: str
    copies: int = pydantic.Field(default=1, ge=1)
    password: pydantic.SecretStr = pydantic.SecretStr("")


class Address(msgspec.Struct):
    city: str


class Parcel(msgspec.Struct):
    weight: float
    address: Address
    run_id: str = ""
    params: list[int] = []


@dataclass
class Note:
    text: str


@task(tags=["mail", "night"], schedule=every(timedelta(seconds=5)), retry=RetryPolicy(max_attempts=3))
async def mail(ctx: TaskRun[Mail]) -> None:
    """Send a mail

    To somebody."""


@task(priority="high")
async def parcel(ctx: TaskRun[Parcel]) -> None:
    """Send a parcel"""


@task
async def note(ctx: TaskRun[Note]) -> None:
    """Leave a note"""


@task
async def anything(ctx: TaskRun) -> None:
    """Takes any params"""


TASKS = (mail, parcel, note, anything)


def a_manager(cls: type[TaskManager] = TaskManager, **options: Any) -> TaskManager:
    manager = cls(broker_url=f"memory://{uuid.uuid4().hex}", **options)
    for each in TASKS:
        manager.register_task(each)
    return manager


def client_of(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, **options), base_url="http://test")


@pytest.fixture
def manager() -> TaskManager:
    return a_manager()


@pytest.fixture
async def client(manager: TaskManager) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(task_manager_fastapi(manager, insecure=True)) as client:
        yield client


async def queued(manager: TaskManager) -> dict[str, int]:
    return {name: count for name, count in (await manager.broker.queue_length()).items() if count}


# -- reading


async def test_tasks(client: httpx.AsyncClient) -> None:
    response = await client.get("/tasks")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert [info["name"] for info in response.json()] == ["mail", "parcel", "note", "anything"]
    assert {**response.json()[0], "tags": sorted(response.json()[0]["tags"])} == {
        "enabled": True,
        "last_run_end": None,
        "last_run_duration": None,
        "last_run_state": None,
        "name": "mail",
        "short_description": "Send a mail",
        "description": "Send a mail\n\nTo somebody.",
        "module": "test_http",
        "priority": "medium",
        "cpu_bound": False,
        "max_concurrency": 0,
        "schedule": "every(0:00:05)",
        "tags": ["mail", "night"],
        "timeout_seconds": 60,
        "k8s_config": None,
        # jitter is ours; everything else is aio-fluid's
        "retry": {
            "max_attempts": 3, "wait": 1.0, "backoff": 1.0, "max_wait": 60.0, "exceptions": [], "jitter": 0.0,
        },
        "rate_limit_retry": None,
        "env": {},
    }  # fmt: skip


async def test_tasks_by_tag(client: httpx.AsyncClient) -> None:
    response = await client.get("/tasks", params={"tags": ["night", "none"]})
    assert [info["name"] for info in response.json()] == ["mail"]
    assert (await client.get("/tasks", params={"tags": "none"})).json() == []


async def test_task(client: httpx.AsyncClient, manager: TaskManager) -> None:
    when = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    await manager.broker.update_task(
        mail,
        {"last_run_end": when, "last_run_duration": timedelta(seconds=1.5), "last_run_state": TaskState.success},
    )
    info = (await client.get("/tasks/mail")).json()
    assert (info["last_run_end"], info["last_run_duration"], info["last_run_state"]) == (
        "2024-05-06T07:08:09Z",
        "PT1.5S",
        "success",
    )


async def test_status(client: httpx.AsyncClient, manager: TaskManager) -> None:
    assert (await client.get("/tasks-status")).json() == {"workers": [], "queues": {"high": 0, "medium": 0, "low": 0}}
    await manager.broker.set_manager_status("x", {"kind": "task_consumer", "status": {"a": {"running": True}}}, ttl=9)
    assert (await client.get("/tasks-status")).json()["workers"] == [
        {"kind": "task_consumer", "status": {"a": {"running": True}}}
    ]


# -- changing


async def test_enable(client: httpx.AsyncClient, manager: TaskManager) -> None:
    response = await client.patch("/tasks/mail", json={"enabled": False})
    assert (response.status_code, response.json()["enabled"], response.json()["name"]) == (200, False, "mail")
    assert not (await manager.broker.get_tasks_info("mail"))[0].enabled
    assert (await client.patch("/tasks/mail", json={"enabled": True})).json()["enabled"] is True
    response = await client.patch("/tasks/mail", json={})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "enabled"]


async def test_queues_are_emptied(client: httpx.AsyncClient, manager: TaskManager) -> None:
    await manager.queue("anything", priority="low")
    await manager.queue("anything", priority="high")
    await manager.queue("anything", priority="high")
    assert (await client.delete("/tasks-queue/high")).json() == {"high": 2}
    assert (await client.delete("/tasks-queue")).json() == {"high": 0, "medium": 0, "low": 1}
    assert (await client.delete("/tasks-queue/urgent")).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/tasks/no"), ("PATCH", "/tasks/no"), ("POST", "/tasks/no"), ("POST", "/tasks/a b")]
)
async def test_unknown_task(client: httpx.AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, path, json={"enabled": True})
    assert (response.status_code, response.json()) == (404, {"detail": "Task not found"})


# -- queueing


async def test_a_run_is_queued(client: httpx.AsyncClient, manager: TaskManager) -> None:
    response = await client.post("/tasks/mail", json={"to": "x"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    run = response.json()
    assert datetime.fromisoformat(run.pop("queued")).tzinfo is not None
    assert len(run.pop("id")) == 32
    assert run == {
        "task": "mail",
        "priority": "medium",
        "params": {"to": "x", "copies": 1, "password": ""},
        "state": "queued",
        "start": None,
        "end": None,
        "execute_after": None,
        "rate_limit_attempt": 0,
        "retry_attempt": 0,
        "from_run_id": "",
        "root_run_id": "",
    }
    assert await queued(manager) == {"medium": 1}


async def test_secrets_are_queued_and_not_shown(client: httpx.AsyncClient, manager: TaskManager) -> None:
    response = await client.post("/tasks/mail", json={"to": "x", "password": CANARY})
    assert response.json()["params"]["password"] == "**********"
    assert CANARY not in response.text
    run = await manager.broker.get_task_run(manager)
    assert run is not None
    assert run.params.password.get_secret_value() == CANARY


async def test_events(client: httpx.AsyncClient, manager: TaskManager) -> None:
    events: list[str] = []
    for state in ("init", "queued"):
        manager.dispatcher.register_handler(state, lambda run: events.append(run.state))
    await client.post("/tasks/anything")
    assert events == ["init", "queued"]


async def test_every_kind_of_params(client: httpx.AsyncClient, manager: TaskManager) -> None:
    body = {"weight": 1, "address": {"city": "Ulm"}, "run_id": "mine", "params": [1]}
    run = (await client.post("/tasks/parcel", json=body)).json()
    assert run["params"] == {**body, "weight": 1.0}
    assert run["id"] != "mine"
    assert run["priority"] == "high"
    assert (await client.post("/tasks/note", json={"text": "x"})).json()["params"] == {"text": "x"}
    body = {"run_id": "a", "priority": "b", "from_task_run": 1, "params": 2}
    assert (await client.post("/tasks/anything", json=body)).json()["params"] == body
    assert (await client.post("/tasks/anything")).json()["params"] == {}


@pytest.mark.parametrize(
    ("path", "body", "places"),
    [
        ("mail", {}, [["to"]]),
        ("mail", {"to": 1, "copies": 0, "password": CANARY}, [["to"], ["copies"]]),
        ("parcel", {"weight": CANARY, "address": {"city": "x"}}, [["weight"]]),
        ("parcel", {"weight": 1, "address": {"city": 3, "x": CANARY}}, [["address", "city"]]),
        ("parcel", {"weight": 1}, [["address"]]),
        ("note", {}, [["text"]]),
        ("note", {"text": [CANARY]}, [["text"]]),
        ("mail", [CANARY], [[]]),
        ("anything", CANARY, [[]]),
    ],
)
async def test_params_that_do_not_fit(
    client: httpx.AsyncClient, manager: TaskManager, path: str, body: Any, places: list[list[str]]
) -> None:
    response = await client.post(f"/tasks/{path}", json=body)
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["detail"]] == [["body", *place] for place in places]
    assert all(error["msg"] and error["type"] for error in response.json()["detail"])
    assert CANARY not in response.text
    assert await queued(manager) == {}


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
    ],
)
async def test_bodies_that_are_none(
    client: httpx.AsyncClient, manager: TaskManager, content: bytes, content_type: str
) -> None:
    response = await client.post("/tasks/mail", content=content, headers={"content-type": content_type})
    assert response.status_code == 422
    assert await queued(manager) == {}


async def test_json_by_any_name(client: httpx.AsyncClient) -> None:
    for content_type in ("application/json; charset=utf-8", "application/vnd.mail+json"):
        headers = {"content-type": content_type}
        assert (await client.post("/tasks/mail", content=b'{"to":"x"}', headers=headers)).status_code == 200


async def test_a_body_that_is_too_large() -> None:
    manager = a_manager(max_payload_bytes=1000)
    async with client_of(task_manager_fastapi(manager, insecure=True)) as client:
        assert (await client.post("/tasks/anything", json={"x": "y" * 2000})).status_code == 413
        assert (await client.post("/tasks/anything", json={"x": "y" * 950})).status_code == 413
        assert (await client.post("/tasks/anything", json={"x": "y" * 500})).status_code == 200


async def test_a_task_that_is_registered_later(client: httpx.AsyncClient, manager: TaskManager) -> None:
    manager.register_task(anything._replace(name="late"))
    assert (await client.post("/tasks/late", json={"x": 1})).json()["params"] == {"x": 1}


@pytest.mark.parametrize(
    ("error", "detail"),
    [(BrokerConnectionError("redis://h: gone"), "unavailable"), (BrokerFullError("redis://h: full"), "full")],
)
async def test_a_broker_that_cannot(
    client: httpx.AsyncClient, manager: TaskManager, monkeypatch: pytest.MonkeyPatch, error: Exception, detail: str
) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(manager.intake, "hand_over", fails)
    monkeypatch.setattr(manager.broker, "get_tasks_info", fails)
    for response in (await client.post("/tasks/anything"), await client.get("/tasks")):
        assert response.status_code == 503
        assert detail in response.json()["detail"]
        assert "redis://" not in response.text


async def test_a_queue_that_is_full() -> None:
    manager = a_manager(max_queue_length=1, on_full="raise")
    async with client_of(task_manager_fastapi(manager, insecure=True)) as client:
        assert (await client.post("/tasks/anything")).status_code == 200
        assert (await client.post("/tasks/anything")).status_code == 503
    assert await queued(manager) == {"medium": 1}


async def test_through_redis(redis_url: str) -> None:
    manager = TaskManager(broker_url=redis_url)
    manager.register_task(mail)
    async with client_of(task_manager_fastapi(manager, insecure=True)) as client:
        assert (await client.post("/tasks/mail", json={"to": "x"})).status_code == 200
        assert (await client.patch("/tasks/mail", json={"enabled": False})).json()["enabled"] is False
        assert (await client.get("/tasks")).json()[0]["enabled"] is False
        assert (await client.get("/tasks-status")).json() == {
            "workers": [],
            "queues": {"high": 0, "medium": 1, "low": 0},
        }
        assert (await client.delete("/tasks-queue")).json() == {"high": 0, "medium": 1, "low": 0}
    await manager.broker.clear()
    await manager.on_shutdown()


# -- the application


async def test_options_of_the_application(manager: TaskManager) -> None:
    app = task_manager_fastapi(manager, prefix="/jobs", tags=["Jobs"], insecure=True, title="mine")
    assert app.title == "mine"
    async with client_of(app) as client:
        assert len((await client.get("/jobs")).json()) == 4
        assert (await client.get("/jobs-status")).status_code == 200
        assert (await client.get("/tasks")).status_code == 404
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert all(route["tags"] == ["Jobs"] for path in paths.values() for route in path.values())


async def test_an_application_of_ones_own(manager: TaskManager) -> None:
    app = FastAPI()

    @app.get("/mine")
    async def mine(task_manager: TaskManagerDep, request: Request) -> list[str]:
        assert task_manager is get_task_manager_from_request(request)
        return list(task_manager.registry)

    assert task_manager_fastapi(manager, app=app, include_router=False) is app
    assert get_task_manager(app) is manager
    async with client_of(app) as client:
        assert (await client.get("/mine")).json() == ["mail", "parcel", "note", "anything"]
        assert (await client.get("/tasks")).status_code == 404


async def test_the_router_alone(manager: TaskManager) -> None:
    app = FastAPI()
    app.state.task_manager = manager
    app.include_router(get_router(manager, insecure=True), prefix="/x")
    async with client_of(app) as client:
        assert (await client.get("/x/mail")).status_code == 200


async def test_openapi(client: httpx.AsyncClient) -> None:
    spec = (await client.get("/openapi.json")).json()
    assert "$ref" not in str(
        {path: spec["paths"][path]["post"]["requestBody"] for path in ("/tasks/mail", "/tasks/parcel")}
    )

    def params(name: str) -> Any:
        return spec["paths"][f"/tasks/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    assert params("mail")["required"] == ["to"]
    assert params("parcel")["properties"]["address"]["properties"]["city"] == {"type": "string"}
    assert params("note")["properties"] == {"text": {"type": "string"}}
    assert params("anything") == {"type": "object"}
    answer = spec["paths"]["/tasks"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["items"] == {"$ref": "#/components/schemas/TaskInfo"}


async def test_a_model_that_contains_itself() -> None:
    class Tree(pydantic.BaseModel):
        children: list[Tree] = []

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    manager = a_manager()
    manager.register_task(anything._replace(name="tree", params_model=Tree))
    async with client_of(task_manager_fastapi(manager, insecure=True)) as client:
        assert (await client.get("/openapi.json")).status_code == 200
        body = {"children": [{"children": []}]}
        assert (await client.post("/tasks/tree", json=body)).json()["params"] == body


def test_models() -> None:
    assert TaskUpdate(enabled=False).enabled is False
    created = TaskCreate.model_validate({"name": "x"})
    assert (created.name, created.params, created.priority) == ("x", {}, None)


def test_lazy_names() -> None:
    assert fluidfast.task_manager_fastapi is task_manager_fastapi
    assert fluidfast.scheduler.task_manager_fastapi is task_manager_fastapi


# -- who may


async def only_staff(x_token: Annotated[str, Header()] = "") -> None:
    if x_token != "staff":
        raise HTTPException(401, "who are you?")


class Routes(TaskManagerPlugin):
    """A plugin with routes, in each of the ways to add some."""

    def register(self, task_manager: TaskManager) -> None:
        pass

    def register_routes(self, app: FastAPI, prefix: str = "/tasks", tags: Any = None) -> None:
        async def plugged() -> str:
            return "plugged"

        router = APIRouter()
        router.add_api_route("/routed", plugged)
        app.include_router(router, prefix=f"{prefix}-plugin", tags=tags)
        app.add_api_route(f"{prefix}-plugin/added", plugged, tags=tags)
        app.get(f"{prefix}-plugin/decorated", tags=tags)(plugged)


ROUTES = [
    ("GET", "/tasks"),
    ("GET", "/tasks/anything"),
    ("PATCH", "/tasks/anything"),
    ("POST", "/tasks/anything"),
    ("POST", "/tasks/unknown"),
    ("GET", "/tasks-status"),
    ("GET", "/tasks-health"),
    ("DELETE", "/tasks-queue"),
    ("DELETE", "/tasks-queue/high"),
    ("GET", "/tasks-plugin/routed"),
    ("GET", "/tasks-plugin/added"),
    ("GET", "/tasks-plugin/decorated"),
]


@pytest.mark.parametrize("auth", [only_staff, Depends(only_staff)], ids=["callable", "Depends"])
async def test_every_route_asks_who_it_is(auth: Any) -> None:
    manager = a_manager().with_plugin(Routes())
    app = FastAPI()
    task_manager_fastapi(manager, app=app, auth=auth)

    @app.get("/open")
    async def everybodys() -> str:
        return "open"

    known = {path.replace("{task_name}", "anything") for path in app.openapi()["paths"]} - {"/open"}
    assert known <= {path.replace("/high", "/{priority}") for _, path in ROUTES} | {f"/tasks/{t.name}" for t in TASKS}
    async with client_of(app) as client:
        for method, path in ROUTES:
            response = await client.request(method, path, json={"enabled": True})
            assert (response.status_code, response.json()) == (401, {"detail": "who are you?"}), path
            response = await client.request(method, path, json={"enabled": True}, headers={"x-token": "staff"})
            assert response.status_code == (404 if path.endswith("unknown") else 200), path
        assert (await client.get("/open")).json() == "open"
    # one POST got through, and the DELETE after it
    assert await queued(manager) == {}


async def test_without_auth_plugins_are_open_too() -> None:
    app = task_manager_fastapi(a_manager().with_plugin(Routes()), insecure=True)
    async with client_of(app) as client:
        for name in ("routed", "added", "decorated"):
            assert (await client.get(f"/tasks-plugin/{name}")).json() == "plugged"


def lifespan_of(app: FastAPI) -> Any:
    return app.router.lifespan_context(app)


# -- life


async def test_life_of_a_manager() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        told.append("app starts")
        yield {"given": 7}
        told.append("app stops")

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        told.append("manager starts")
        yield
        told.append("manager stops")

    manager = a_manager()
    manager.add_async_context_manager(context())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app = task_manager_fastapi(manager, insecure=True, lifespan=own)
        async with lifespan_of(app) as state:
            assert state == {"given": 7}
            told.append("serves")
    assert told == ["app starts", "manager starts", "serves", "manager stops", "app stops"]


async def test_handlers_of_the_application_still_run() -> None:
    told: list[str] = []
    app = FastAPI()
    app.router.on_startup.append(lambda: told.append("up"))
    app.router.on_shutdown.append(lambda: told.append("down"))
    task_manager_fastapi(a_manager(), app=app, insecure=True)
    app.router.on_startup.append(lambda: told.append("later"))
    async with lifespan_of(app):
        assert told == ["up", "later"]
    assert told == ["up", "later", "down"]


@pytest.mark.parametrize("cls", [TaskConsumer, TaskScheduler])
async def test_life_of_a_consumer(cls: type[TaskConsumer]) -> None:
    done = asyncio.Event()

    @task
    async def work(ctx: TaskRun) -> None:
        done.set()

    manager = a_manager(cls)
    manager.register_task(work)
    app = task_manager_fastapi(manager, insecure=True)
    assert isinstance(manager, TaskConsumer)
    async with lifespan_of(app), client_of(app) as client:
        assert manager.is_running()
        await client.post("/tasks/work")
        await within(done.wait())
    assert manager.is_stopped()


class Handled:
    """SIGTERM is handled, as uvicorn does, and not sent to the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, handler: Any) -> None:
        self.sent: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.before = signal.signal(signal.SIGTERM, handler)
        monkeypatch.setattr("fluidfast.http.workers.os.kill", lambda pid, number: self.sent.set_result(number))

    def restore(self) -> None:
        signal.signal(signal.SIGTERM, self.before)


@pytest.fixture
def sigterm(monkeypatch: pytest.MonkeyPatch) -> Any:
    assert threading.current_thread() is threading.main_thread()
    handled: list[Handled] = []

    def make(handler: Any) -> Handled:
        handled.append(Handled(monkeypatch, handler))
        return handled[-1]

    yield make
    for each in handled:
        each.restore()


async def test_a_consumer_that_ends_ends_the_process(
    sigterm: Callable[[Any], Handled], caplog: pytest.LogCaptureFixture
) -> None:
    handled = sigterm(lambda *_: None)
    manager = a_manager(TaskConsumer)
    assert isinstance(manager, TaskConsumer)
    async with lifespan_of(task_manager_fastapi(manager, insecure=True)):
        manager.gracefully_stop()
        assert await within(handled.sent) == signal.SIGTERM
    assert [record.levelno for record in caplog.records if record.name == "fluidfast.http"] == [logging.CRITICAL]


async def test_health(sigterm: Callable[[Any], Handled], client: httpx.AsyncClient) -> None:
    """Of a plain manager; of a consumer while it runs, and once an error has ended it."""
    assert (await client.get("/tasks-health")).status_code == 200
    sigterm(lambda *_: None)
    manager = a_manager(TaskConsumer)
    assert isinstance(manager, TaskConsumer)
    app = task_manager_fastapi(manager, insecure=True)

    async def fail() -> None:
        raise ZeroDivisionError("on purpose")

    async with client_of(app) as consuming:
        assert (await consuming.get("/tasks-health")).status_code == 503
        await manager.startup()
        health = await consuming.get("/tasks-health")
        assert (health.status_code, health.json()["running"]) == (200, True)
        manager.add_workers(WorkerFunction(fail, name="failing"))
        with pytest.raises(ZeroDivisionError):
            await within(manager.wait_for_shutdown())
        health = await consuming.get("/tasks-health")
        assert health.status_code == 503
        assert health.json()["workers"]["failing"]["error"] == "ZeroDivisionError: on purpose"


async def test_an_application_does_not_start_without_its_broker(sigterm: Callable[[Any], Handled]) -> None:
    handled = sigterm(lambda *_: None)
    consumer = TaskConsumer(broker_url="redis://127.0.0.1:1", connect_seconds=0.1)
    with pytest.raises(BrokerConnectionError, match="connect_seconds"):
        async with lifespan_of(task_manager_fastapi(consumer, insecure=True)):
            raise AssertionError("it started")
    assert not handled.sent.done()


async def test_nobody_is_killed_without_a_handler(sigterm: Callable[[Any], Handled]) -> None:
    handled = sigterm(signal.SIG_DFL)
    manager = a_manager(TaskConsumer)
    assert isinstance(manager, TaskConsumer)
    async with lifespan_of(task_manager_fastapi(manager, insecure=True)):
        manager.gracefully_stop()
        await within(manager.wait_for_shutdown())
    assert not handled.sent.done()
