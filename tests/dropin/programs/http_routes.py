"""A FastAPI application with the manager's routes and routes of its own."""

import asyncio
import json

import httpx
from fastapi import FastAPI
from fluid.scheduler import QueuedTask, TaskInfo, TaskManager, TaskRun, task, task_manager_fastapi
from fluid.scheduler.endpoints import TaskManagerDep, get_task_manager
from pydantic import BaseModel, Field, SecretStr


class Mail(BaseModel):
    to: str
    copies: int = Field(default=1, ge=1)
    password: SecretStr = SecretStr("hidden")


@task(tags=["mail"])
async def mail(ctx: TaskRun[Mail]) -> None:
    """Send a mail"""


@task
async def ping(ctx: TaskRun) -> None:
    """Ping"""


class Overview(BaseModel):
    tasks: list[TaskInfo]
    last: TaskRun | None = None


manager = TaskManager()
manager.register_task(mail)
manager.register_task(ping)
app = task_manager_fastapi(manager, app=FastAPI(title="mine"))


@app.post("/own/{name}")
async def own(name: str, task_manager: TaskManagerDep) -> TaskRun:
    return await task_manager.queue("mail", to=name)


@app.post("/plain/{name}")
async def plain(name: str, task_manager: TaskManagerDep):
    return await task_manager.queue("mail", to=name)


@app.get("/overview")
async def overview(task_manager: TaskManagerDep) -> Overview:
    run = task_manager.create_task_run("mail", to="last")
    return Overview(tasks=await task_manager.broker.get_tasks_info("ping"), last=run)


@app.post("/echo")
async def echo(wanted: QueuedTask) -> QueuedTask:
    return wanted


def shown(response: httpx.Response) -> str:
    body = response.json()
    for each in body if isinstance(body, list) else [body]:
        for name in ("id", "queued", "module", "retry", "rate_limit_retry"):
            if isinstance(each, dict) and name in each:
                each[name] = type(each[name]).__name__
    return f"{response.status_code} {json.dumps(body, sort_keys=True)}"


async def main() -> None:
    print(get_task_manager(app) is manager)
    as_json = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        for path in ("/tasks", "/tasks?tags=mail", "/tasks/ping", "/tasks/nope"):
            print("GET", path, shown(await client.get(path)))
        print(shown(await client.patch("/tasks/ping", json={"enabled": False})))
        print(shown(await client.patch("/tasks/ping", json={"enabled": True})))
        print((await client.patch("/tasks/nope", json={"enabled": True})).status_code)
        print(shown(await client.post("/tasks/mail", json={"to": "ada", "copies": 2})))
        response = await client.post("/tasks/mail", json={"copies": 0})
        print(response.status_code, [error["loc"] for error in response.json()["detail"]])
        print(shown(await client.post("/own/bob")))
        print(shown(await client.post("/plain/eve")))
        body = (await client.get("/overview")).json()
        print(body["tasks"][0]["name"], body["last"]["params"], body["last"]["state"])
        print(shown(await client.post("/echo", json={"run_id": "a", "task": "mail", "params": {"to": "x"}})))
        print(shown(await client.get("/tasks-status")))
        print(shown(await client.request("DELETE", "/tasks-queue", headers=as_json)))
        print(shown(await client.request("DELETE", "/tasks-queue/high", headers=as_json)))
        spec = (await client.get("/openapi.json")).json()
    names = {"TaskInfo", "TaskRun", "TaskState", "TaskPriority", "TaskManagerStatus", "TaskManagersStatus", "K8sConfig"}
    print(spec["info"]["title"], names - spec["components"]["schemas"].keys())
    for path in ("/tasks", "/tasks/mail", "/tasks-status", "/tasks-queue"):
        print(path, sorted(route["operationId"] for route in spec["paths"][path].values()))
    await manager.on_shutdown()


asyncio.run(main())
