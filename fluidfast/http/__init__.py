"""The HTTP routes of a task manager, in a FastAPI application. Needs the extra ``http``.

    app = task_manager_fastapi(task_manager, auth=only_staff)

==========================  ==========================================================================
GET /tasks                  the registered tasks; ``?tags=`` those with one of these tags
GET /tasks/NAME             one task
PATCH /tasks/NAME           ``{"enabled": bool}``: enable or disable it
POST /tasks/NAME            queue a run; the body is its params
POST /tasks                 the same as in aio-fluid 1.x: ``{"name": ..., "params": {...}, "priority": ...}``
GET /tasks-status           running managers, and runs waiting by priority
GET /tasks-health           whether this process consumes, if it should: 200, or 503 with the error that ended it
DELETE /tasks-queue         remove what waits; ``/tasks-queue/PRIORITY`` in one queue
==========================  ==========================================================================

404: no such task. 422: params that do not fit, with the place of each mistake and never a value. 413: a run larger
than the broker takes. 503: the broker is not there, or full.

``auth`` is a FastAPI dependency that every route asks first. Without one everybody who reaches the server could queue
runs, disable tasks and empty queues, so the routes are refused (``OpenRoutesError``) unless ``insecure=True`` or the
environment's ``FLUID_HTTP_INSECURE=true`` allows that, as aio-fluid always does.

A browser sends its user's cookies along with a form of another site. A request that changes something therefore needs
the content type of JSON, which no form can send, or has to come from the same site (``Sec-Fetch-Site``, ``Origin``).
Otherwise it is refused: 403 for another site's request, 415 for another content type. A client that is no browser may
leave an empty body without a content type.
"""

try:
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Response
    from fastapi.params import Depends as DependsMarker
    from pydantic import BaseModel, Field
except ModuleNotFoundError as exc:
    if exc.name not in ("fastapi", "pydantic", "starlette"):
        raise
    raise ImportError("the HTTP routes need FastAPI: pip install 'fluidfast[http]'") from exc

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from enum import Enum
from typing import Annotated, Any, cast

import msgspec
from starlette.requests import HTTPConnection

from ..brokers.contract import TaskManagersStatus
from ..core.params import Params, adapter_for
from ..core.states import TaskPriority
from ..core.task import Task, TaskInfo
from ..core.workers import Worker
from ..errors import (
    BrokerConnectionError,
    BrokerFullError,
    OpenRoutesError,
    ParamsError,
    PayloadTooLargeError,
    QueueFullError,
    UnknownTaskError,
)
from ..manage.manager import TaskManager
from ..run import TaskRun
from ..settings import read_settings
from .workers import (
    AppWorkers,
    WorkersDep,
    app_workers,
    end_with,
    get_workers_from_app,
    get_workers_from_request,
)

__all__ = [
    "AppWorkers",
    "TaskCreate",
    "TaskManagerDep",
    "TaskUpdate",
    "WorkersDep",
    "app_workers",
    "get_router",
    "get_task_manager",
    "get_task_manager_from_request",
    "get_workers_from_app",
    "get_workers_from_request",
    "task_manager_fastapi",
]

logger = logging.getLogger(__name__)

JSON_TYPE = "application/json"
UNHEALTHY: dict[int | str, dict[str, Any]] = {503: {"description": "The consumer of this process does not run"}}
REF = "#/schemas/{name}"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")
"""Methods that change nothing."""


def get_task_manager(app: FastAPI) -> TaskManager:
    """The manager of an application that ``task_manager_fastapi`` made."""
    return cast(TaskManager, app.state.task_manager)


def get_task_manager_from_request(request: Request) -> TaskManager:
    """The manager of the application that serves a request; what ``TaskManagerDep`` depends on."""
    return get_task_manager(request.app)


TaskManagerDep = Annotated[TaskManager, Depends(get_task_manager_from_request)]
"""The manager, as a parameter of a route: ``async def route(task_manager: TaskManagerDep)``."""


class TaskUpdate(BaseModel):
    """Changes to a task, as PATCH takes them."""

    enabled: bool = Field(description="Whether runs of the task are executed and it is scheduled")


class TaskCreate(BaseModel):
    """A request to queue a run."""

    name: str = Field(description="Name of the task")
    params: dict[str, Any] = Field(default_factory=dict, description="Params of the run")
    priority: TaskPriority | None = Field(default=None, description="Priority, if not that of the task")


def task_manager_fastapi(
    task_manager: TaskManager,
    *,
    app: FastAPI | None = None,
    include_router: bool = True,
    prefix: str = "/tasks",
    tags: Sequence[str | Enum] | None = None,
    auth: Callable[..., Any] | DependsMarker | None = None,
    insecure: bool = False,
    **kwargs: Any,
) -> FastAPI:
    """Return an application that has the routes of a task manager, and starts and stops it.

    The manager starts after the application's own lifespan and stops before it. A consumer or scheduler consumes in
    this process, a plain manager enters its contexts. If a consumer stops while the application runs, it sends SIGTERM
    to this process (if there is a handler for it, as in uvicorn), so that a service manager can restart it.

    ``app``: the application to extend; None: a new one, made with ``kwargs``.
    ``include_router``: add the routes, and those of plugins, under ``prefix`` (without a final slash), with OpenAPI
    ``tags`` (default: ``["Tasks"]``).
    ``auth``: a FastAPI dependency (the callable, or ``Depends`` of it) for every route, also those of plugins. It
    raises ``HTTPException(401)`` for an unauthorized request. An ``app`` with its own dependencies needs none.
    ``insecure``: let anyone who can reach the server use the routes.

    Raises:
        OpenRoutesError: the routes have no ``auth``, and neither ``insecure`` nor FLUID_HTTP_INSECURE allows that.
    """
    app = FastAPI(**kwargs) if app is None else app
    guards = guards_of(auth)
    open_by_environment = False
    if include_router:
        if not (guards or app.router.dependencies):
            open_by_environment = allow_open_routes("task_manager_fastapi(manager", insecure)
        names: list[str | Enum] = ["Tasks"] if tags is None else list(tags)
        app.include_router(routes_of(task_manager, guards), prefix=prefix, tags=names)
        # Plugins add to the application itself: while they do, what it adds has the guards.
        guards = [*guards, Depends(refuse_other_sites)]
        app.router.dependencies.extend(guards)
        try:
            for plugin in task_manager.plugins:
                plugin.register_routes(app, prefix=prefix, tags=cast(list[str], names))
        finally:
            del app.router.dependencies[len(app.router.dependencies) - len(guards) :]
    app.state.task_manager = task_manager
    workers = cast(AppWorkers, app_workers(app)) if isinstance(task_manager, Worker) else None
    own = app.router.lifespan_context
    app.router.lifespan_context = cast(
        Any, lifespan_of(task_manager, workers, own, f"{prefix}/..." if open_by_environment else "")
    )
    return app


def lifespan_of(
    manager: TaskManager,
    workers: AppWorkers | None,
    own: Callable[[Any], AbstractAsyncContextManager[Any]],
    open_routes: str,
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(own(app))
            if open_routes:
                logger.warning(
                    "%s: anyone who can reach this server may queue and disable tasks (FLUID_HTTP_INSECURE); "
                    "task_manager_fastapi(..., auth=dependency) restricts that",
                    open_routes,
                )
            await stack.enter_async_context(life_of(manager, workers))
            yield state

    return lifespan


@asynccontextmanager
async def life_of(manager: TaskManager, workers: AppWorkers | None) -> AsyncIterator[None]:
    """Start the manager, and stop it at the end. A consumer is one of the ``workers`` of the application meanwhile."""
    if workers is None or not isinstance(manager, Worker):
        await manager.on_startup()
        try:
            yield
        finally:
            await manager.on_shutdown()
        return
    await manager.startup()
    workers.add_workers(manager)
    watch = asyncio.create_task(end_with(manager), name="fluidfast-watch")
    try:
        yield
    finally:
        watch.cancel()
        workers.drop(manager)
        await asyncio.wait([watch])
        await manager.shutdown()


# -- routes


async def in_http_terms() -> AsyncIterator[None]:
    """Turn errors of the broker into HTTP statuses. A dependency of every route."""
    try:
        yield
    except (BrokerConnectionError, BrokerFullError, QueueFullError) as exc:
        logger.warning("a request failed: %s", exc)
        there = not isinstance(exc, BrokerConnectionError)
        raise HTTPException(503, "Broker full" if there else "Broker unavailable") from exc


async def refuse_other_sites(connection: HTTPConnection) -> None:
    """Refuse a cross-site request that changes something, with 403. A dependency.

    A request with the JSON content type passes: a browser asks the server before it sends one to another site.
    """
    if connection.scope.get("method", "GET") in SAFE_METHODS or is_json(connection):
        return
    if is_same_origin(connection) is False:
        raise HTTPException(403, f"A cross-site request needs the content type {JSON_TYPE}")


async def refuse_other_types(request: Request) -> None:
    """Refuse a request that changes something without the JSON content type, with 415. A dependency.

    A request that comes from a page of this site, as its browser says, passes.
    """
    if request.method in SAFE_METHODS or is_json(request) or not request.headers.get("content-type"):
        return
    if not is_same_origin(request):
        raise unsupported_type()


def is_same_origin(connection: HTTPConnection) -> bool | None:
    """Return whether a browser says that a page of this site sent the request; None if it does not say."""
    headers = connection.headers
    if sites := headers.getlist("sec-fetch-site"):
        return all(site in ("same-origin", "none") for site in sites)  # none: the user did it, not a page
    if not (origins := headers.getlist("origin")):
        return None
    # without the scheme: a proxy in front of this server may have been the one who spoke TLS
    host = headers.get("host", "").lower()
    return bool(host) and all(origin.partition("://")[2].lower() == host for origin in origins)


def is_json(connection: HTTPConnection) -> bool:
    """Return whether the content type is JSON."""
    media_type = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == JSON_TYPE or media_type.endswith("+json")


def unsupported_type() -> HTTPException:
    return HTTPException(415, f"The content type must be {JSON_TYPE}")


def guards_of(auth: Callable[..., Any] | DependsMarker | None) -> list[DependsMarker]:
    """Return the dependencies for ``auth``."""
    return [] if auth is None else [auth if isinstance(auth, DependsMarker) else Depends(auth)]


def allow_open_routes(call: str, insecure: bool) -> bool:
    """Allow routes without ``auth``, or raise. Return True if it is the environment that allows them.

    Raises:
        OpenRoutesError: neither ``insecure`` nor the environment allows them.
    """
    if insecure:
        return False
    if read_settings().http_insecure:
        return True
    raise OpenRoutesError(
        f"{call}): without auth anyone who can reach the server may queue and disable tasks; give it "
        "auth=DEPENDENCY, a FastAPI dependency that raises HTTPException(401), or allow that with insecure=True or "
        "FLUID_HTTP_INSECURE=true in the environment"
    )


def get_router(
    task_manager: TaskManager,
    *,
    auth: Callable[..., Any] | DependsMarker | None = None,
    insecure: bool = False,
) -> APIRouter:
    """The routes of a manager, without prefix. Include it with the prefix ``/tasks``.

    ``auth``: a FastAPI dependency of every route, as for ``task_manager_fastapi``. ``insecure``: allow everybody who
    reaches the server to use them; also for a router whose application has dependencies that ask.

    Raises:
        OpenRoutesError: there is no ``auth``, and nothing allows that.
    """
    guards = guards_of(auth)
    if not guards:
        allow_open_routes("get_router(manager", insecure)
    return routes_of(task_manager, guards)


def routes_of(task_manager: TaskManager, guards: Sequence[DependsMarker] = ()) -> APIRouter:
    router = APIRouter(
        dependencies=[*guards, Depends(refuse_other_sites), Depends(refuse_other_types), Depends(in_http_terms)]
    )
    unknown: dict[int | str, dict[str, Any]] = {404: {"description": "No such task"}}
    # The routes write their answers themselves; the response models are for OpenAPI.
    router.add_api_route("", get_tasks, summary="List tasks", response_model=list[TaskInfo])
    router.add_api_route("-status", get_task_status, summary="Running managers", response_model=TaskManagersStatus)
    router.add_api_route("-health", get_health, summary="Whether this process consumes", responses=UNHEALTHY)
    router.add_api_route("-queue", delete_queue, methods=["DELETE"], summary="Empty all queues")
    router.add_api_route("-queue/{priority}", delete_queue_by_priority, methods=["DELETE"], summary="Empty one queue")
    router.add_api_route("/{task_name}", get_task, summary="Get a task", response_model=TaskInfo, responses=unknown)
    router.add_api_route(
        "/{task_name}",
        patch_task,
        methods=["PATCH"],
        summary="Enable or disable a task",
        response_model=TaskInfo,
        responses=unknown,
    )
    refused: dict[int | str, dict[str, Any]] = {422: {"description": "The params do not fit"}}
    for task in task_manager.registry.values():
        router.add_api_route(
            f"/{task.name}",
            queue_named(task.name),
            methods=["POST"],
            summary=f"Queue a run of {task.name}",
            description=task.description,
            response_model=TaskRun,
            responses=refused,
            openapi_extra={"requestBody": params_body(task)},
        )
    router.add_api_route("", queue_created, methods=["POST"], include_in_schema=False)
    # also for those that are registered later
    router.add_api_route("/{task_name}", queue_task, methods=["POST"], responses=unknown, include_in_schema=False)
    return router


def encoded(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON_TYPE)


async def get_tasks(
    task_manager: TaskManagerDep,
    tags: Annotated[list[str] | None, Query(description="Only tasks with at least one of these tags")] = None,
) -> Response:
    infos = await task_manager.broker.get_tasks_info()
    return encoded([info for info in infos if not tags or info.tags.intersection(tags)])


async def get_task(task_manager: TaskManagerDep, task_name: Annotated[str, Path()]) -> Response:
    infos = await task_manager.broker.get_tasks_info(task_name)
    if not infos:
        raise HTTPException(404, "Task not found")
    return encoded(infos[0])


async def patch_task(task_manager: TaskManagerDep, task_name: Annotated[str, Path()], update: TaskUpdate) -> Response:
    try:
        return encoded(await task_manager.broker.enable_task(task_name, update.enabled))
    except UnknownTaskError as exc:
        raise HTTPException(404, "Task not found") from exc


async def get_health(task_manager: TaskManagerDep) -> Response:
    """A plain manager is healthy; a consumer or a scheduler is while it runs. Asks no broker."""
    if not isinstance(task_manager, Worker):
        return encoded({"running": True, "workers": {}})
    running = task_manager.is_running()
    health = msgspec.json.encode({"running": running, "workers": await task_manager.status()})
    return Response(health, status_code=200 if running else 503, media_type=JSON_TYPE)


async def get_task_status(task_manager: TaskManagerDep) -> Response:
    return encoded(await task_manager.broker.get_all_manager_statuses())


async def delete_queue(task_manager: TaskManagerDep) -> dict[str, int]:
    return await task_manager.broker.clear_queue()


async def delete_queue_by_priority(
    task_manager: TaskManagerDep, priority: Annotated[TaskPriority, Path()]
) -> dict[str, int]:
    return await task_manager.broker.clear_queue(priority)


def queue_named(task_name: str) -> Callable[..., Any]:
    async def route(task_manager: TaskManagerDep, request: Request) -> Response:
        return await queue_task(task_manager, task_name, request)

    route.__name__ = queue_task.__name__  # the operation's id is made of it
    return route


async def queue_task(task_manager: TaskManagerDep, task_name: Annotated[str, Path()], request: Request) -> Response:
    if task_name not in task_manager.registry:
        raise HTTPException(404, "Task not found")
    params = await params_of(request, task_manager.broker.options.max_payload_bytes)
    return await queue_run(task_manager, task_name, params)


async def queue_created(task_manager: TaskManagerDep, created: TaskCreate) -> Response:
    return await queue_run(task_manager, created.name, created.params, created.priority)


async def queue_run(
    task_manager: TaskManager, task_name: str, params: dict[str, Any], priority: TaskPriority | None = None
) -> Response:
    task = task_manager.registry.get(task_name)
    if task is None:
        raise HTTPException(404, "Task not found")
    try:
        run = task_manager.intake.make_with(task, params, priority)
        await task_manager.intake.send(run)
    except ParamsError as exc:
        raise HTTPException(422, mistakes(task, params, exc)) from exc
    except PayloadTooLargeError as exc:
        raise HTTPException(413, str(exc)) from exc
    return Response(run.model_dump_json(), media_type=JSON_TYPE)


async def params_of(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the body; an empty body is an empty one."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"The body is larger than {max_bytes} bytes")
    if not body:
        return {}
    if not is_json(request):
        raise unsupported_type()
    try:
        params = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise HTTPException(422, [mistake("json_invalid", (), f"Invalid JSON: {exc}")]) from exc
    if not isinstance(params, dict):
        raise HTTPException(422, [mistake("dict_type", (), "The body must be a JSON object")])
    return params


def mistake(kind: str, place: Sequence[str | int], message: str) -> dict[str, Any]:
    return {"type": kind, "loc": ["body", *place], "msg": message}


def mistakes(task: Task[Any], params: dict[str, Any], exc: ParamsError) -> list[dict[str, Any]]:
    """Return the errors of params, in FastAPI's form but without the values, which may be secrets."""
    try:
        adapter_for(task.params_model).validate(params)
    except Exception as cause:  # the error that ours tells the first part of
        errors = getattr(cause, "errors", None)
        if callable(errors):
            found = errors(include_url=False, include_input=False, include_context=False)
            return [mistake(error["type"], error["loc"], error["msg"]) for error in found]
    return [mistake("params", exc.field.split(".") if exc.field else (), str(exc))]


# -- OpenAPI


def params_body(task: Task[Any]) -> dict[str, Any]:
    """Return the description of a route's body: the params of a task."""
    return {"content": {JSON_TYPE: {"schema": schema_of(task.params_model)}}}


def schema_of(model: Any) -> dict[str, Any]:
    """The JSON schema of a type, whole; of one that has none: any object."""
    try:
        if model is Params:
            return {"type": "object"}
        if hasattr(model, "model_json_schema"):
            schema = model.model_json_schema(ref_template=REF.replace("{name}", "{model}"))
            return cast(dict[str, Any], inlined(schema, schema.get("$defs", {}), ()))
        (schema,), components = msgspec.json.schema_components([model], ref_template=REF)
        return cast(dict[str, Any], inlined(schema, components, ()))
    except Exception as exc:
        logger.debug("no JSON schema of %r: %s", model, exc)
        return {"type": "object"}


def inlined(schema: Any, parts: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    """A schema with its references replaced by what they mean; where one contains itself, by any object."""
    if isinstance(schema, list):
        return [inlined(item, parts, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref", "")
    name = reference.rpartition("/")[2]
    if name in within:
        return {"type": "object"}
    if name in parts:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**inlined(parts[name], parts, (*within, name)), **inlined(rest, parts, within)}
    return {key: inlined(value, parts, within) for key, value in schema.items() if key != "$defs"}
