"""Who may change something by HTTP: no route is open by accident, and no form of another site changes anything."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException

from fluidfast import TaskManager, TaskManagerPlugin, TaskRun, task
from fluidfast.errors import ConfigError, OpenRoutesError
from fluidfast.http import get_router, task_manager_fastapi
from fluidfast.settings import get_settings

FORMS = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "Text/Plain; a=+json"]
OTHER = "https://other.example"


@task
async def wipe(ctx: TaskRun) -> None: ...


class Plugin(TaskManagerPlugin):
    def register(self, task_manager: TaskManager) -> None: ...

    def register_routes(self, app: FastAPI, prefix: str = "/tasks", tags: Any = None) -> None:
        @app.post(f"{prefix}-plugin/purge")
        async def purge() -> str:
            return "purged"


def a_manager() -> TaskManager:
    manager = TaskManager(broker_url=f"memory://{uuid.uuid4().hex}")
    manager.register_task(wipe)
    return manager.with_plugin(Plugin())


def later(manager: TaskManager) -> None:
    manager.register_task(wipe._replace(name="later"))


async def only_staff(x_token: Annotated[str, Header()] = "") -> None:
    if x_token != "staff":
        raise HTTPException(401)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUID_HTTP_INSECURE", raising=False)


# -- open routes


def whole(**options: Any) -> FastAPI:
    manager = a_manager()
    app = task_manager_fastapi(manager, **options)
    later(manager)
    return app


def router_alone(**options: Any) -> FastAPI:
    manager = a_manager()
    app = task_manager_fastapi(manager, include_router=False)
    app.include_router(get_router(manager, **options), prefix="/tasks")
    later(manager)
    return app


MAKERS = pytest.mark.parametrize("make", [whole, router_alone])


@MAKERS
def test_open_routes_are_refused(make: Any) -> None:
    with pytest.raises(OpenRoutesError) as caught:
        make()
    assert isinstance(caught.value, ConfigError)
    for word in ("auth=", "insecure=True", "FLUID_HTTP_INSECURE=true", make is whole and "task_manager_fastapi("):
        assert not word or word in str(caught.value)


@MAKERS
@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes"])
def test_the_environment_opens_them_also_when_settings_were_read_before(
    make: Any, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_settings()
    monkeypatch.setenv("FLUID_HTTP_INSECURE", value)
    make()
    for closed in ("false", "0", ""):
        monkeypatch.setenv("FLUID_HTTP_INSECURE", closed)
        with pytest.raises(OpenRoutesError):
            make()
    monkeypatch.setenv("FLUID_HTTP_INSECURE", "perhaps")
    with pytest.raises(ConfigError, match="FLUID_HTTP_INSECURE='perhaps'"):
        make()


def test_the_environment_s_choice_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def start(app: FastAPI) -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start(whole(insecure=True)))
    assert "may queue" not in caplog.text
    monkeypatch.setenv("FLUID_HTTP_INSECURE", "true")
    asyncio.run(start(whole(auth=only_staff)))
    assert "may queue" not in caplog.text
    asyncio.run(start(whole()))
    assert caplog.text.count("FLUID_HTTP_INSECURE") == 1


@pytest.mark.parametrize(
    "options",
    [{"auth": only_staff}, {"auth": Depends(only_staff)}, {"app": FastAPI(dependencies=[Depends(only_staff)])}],
)
async def test_every_route_asks(options: dict[str, Any]) -> None:
    app = whole(**options)
    async with client_of(app) as client:
        for method, path in changing(app):
            response = await client.request(method, path, json={"enabled": True})
            assert response.status_code == 401, (method, path)
            response = await client.request(method, path, json={"enabled": True}, headers={"x-token": "staff"})
            assert response.status_code == 200, (method, path)


async def test_every_route_of_a_router_asks() -> None:
    app = router_alone(auth=only_staff)
    async with client_of(app) as client:
        for method, path in changing(app):
            assert (await client.request(method, path, json={"enabled": True})).status_code == 401, (method, path)
        assert (await client.get("/tasks")).status_code == 401
        assert (await client.get("/tasks", headers={"x-token": "staff"})).status_code == 200


# -- forms of other sites


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


def changing(app: FastAPI) -> list[tuple[str, str]]:
    """Every route of an application that changes something, as a method and a path that exists."""
    found = [
        (method.upper(), path.replace("{task_name}", "wipe").replace("{priority}", "high"))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if method != "get"
    ]
    assert {method for method, _ in found} == {"POST", "PATCH", "DELETE"}
    return [*found, ("POST", "/tasks/later")]  # the one that is in no schema


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(whole(insecure=True)) as client:
        yield client


ROUTES = changing(whole(insecure=True))


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": OTHER},
        {"origin": "null"},
        {"origin": "http://test.other.example"},
        {"origin": "http://test:81"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://test"},
        {"sec-fetch-site": "cross-site", "origin": "http://test"},
    ],
    ids=str,
)
async def test_another_site_changes_nothing(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
) -> None:
    for kind in [*FORMS, ""]:
        for content in (b"", b"enabled=1"):
            sent = {**headers, "content-type": kind} if kind else headers
            response = await client.request(method, path, content=content, headers=sent)
            assert response.status_code == 403, (kind, content)


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if "plugin" not in route[1]])
@pytest.mark.parametrize("kind", FORMS)
async def test_forms_without_a_word_of_where_they_come_from(
    client: httpx.AsyncClient, method: str, path: str, kind: str
) -> None:
    for content in (b"", b"enabled=1"):
        response = await client.request(method, path, content=content, headers={"content-type": kind})
        assert response.status_code == 415
        assert "application/json" in response.text


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] != "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        {},  # no browser
        {"sec-fetch-site": "same-origin", "origin": "http://test"},
        {"sec-fetch-site": "same-origin", "content-type": FORMS[0]},
        {"origin": "http://test"},
        {"origin": "https://TEST"},  # a proxy speaks TLS
        {"origin": OTHER, "content-type": "application/json"},  # which a browser does not send unasked
    ],
    ids=str,
)
async def test_this_site_and_other_programs_may(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
) -> None:
    assert (await client.request(method, path, headers=headers)).status_code == 200


async def test_a_body_needs_the_content_type(client: httpx.AsyncClient) -> None:
    for headers in ({}, {"content-type": "text/plain", "origin": "http://test"}):
        assert (await client.post("/tasks/wipe", content=b"{}", headers=headers)).status_code == 415
    assert (await client.patch("/tasks/wipe", json={"enabled": False})).status_code == 200


async def test_reading_is_not_hindered(client: httpx.AsyncClient) -> None:
    headers = {"origin": OTHER, "sec-fetch-site": "cross-site", "content-type": "text/plain"}
    for path in ("/tasks", "/tasks/wipe", "/tasks-status"):
        assert (await client.get(path, headers=headers)).status_code == 200
