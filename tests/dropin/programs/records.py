"""Runs and other records as data."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

from fluid.scheduler import K8sConfig, QueuedTask, TaskInfo, TaskManager, TaskManagerPlugin, TaskRun, TaskState, task
from fluid.scheduler.broker import RedisTaskBroker, TaskBroker, TaskManagersStatus
from pydantic import BaseModel, SecretStr


class Login(BaseModel):
    user: str
    password: SecretStr
    since: datetime | None = None


@task(tags=["auth"], k8s_config=K8sConfig(namespace="jobs", resources={"limits": {"cpu": "1"}}))
async def login(ctx: TaskRun[Login]) -> None:
    """Log in"""


class Names(TaskManagerPlugin):
    def register(self, task_manager: TaskManager) -> None:
        task_manager.dispatcher.register_handler("queued.names", lambda run: print("queued", run.name))


WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


async def main() -> None:
    manager = TaskManager()
    print(manager.with_plugin(Names()) is manager)
    manager.register_task(login)
    run = manager.create_task_run("login", run_id="abc", user="ada", password="secret", since=WHEN)
    print(run.model_dump_json())
    print(run.model_dump(mode="json", include={"id", "params", "state"}))
    print(run.model_dump(exclude_none=True, exclude={"params", "priority", "state"}))
    print(list(run.model_copy(update={"id": "other"}).model_dump())[:4])
    payload = json.loads(run.queue_dump_json())
    print(payload["task"], payload["params"], payload["id"])
    print(run.set_state(TaskState.queued, WHEN), run.queued, run.state)
    run.set_state(TaskState.running, WHEN + timedelta(seconds=2))
    run.set_state(TaskState.success, WHEN + timedelta(seconds=5))
    print(run.in_queue, run.duration, run.duration_ms, run.total, run.is_done)

    info = login.info(enabled=False, last_run_end=WHEN, last_run_duration=timedelta(seconds=1.5))
    data = json.loads(info.model_dump_json())
    print(data["last_run_end"], data["last_run_duration"], data["k8s_config"]["namespace"], data["tags"])
    print(TaskInfo.model_validate_json(info.model_dump_json()) == info, info.model_copy(update={"name": "x"}).name)
    queued = QueuedTask(run_id="1", task="login", params={"user": "x"})
    print(queued.model_dump(), queued.model_dump_json())
    print(K8sConfig().model_dump(exclude={"sleep"}), "namespace" in K8sConfig.model_fields)
    print(TaskManagersStatus(workers=[]).model_dump())
    print(sorted(TaskInfo.model_json_schema()["properties"])[:3])

    broker = TaskBroker.from_url("redis://localhost:6379?name=mine")
    print(isinstance(broker, RedisTaskBroker), broker.prefix, sorted(broker.task_queue_names))
    await manager.queue("login", user="bob", password="secret")
    for counts in (await manager.broker.queue_length(), await manager.broker.clear_queue()):
        print({str(priority): count for priority, count in counts.items()})
    await manager.on_shutdown()


asyncio.run(main())
