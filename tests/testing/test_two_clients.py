"""An application and its manager at module level, started twice: each TestClient has an event loop of its own."""

from __future__ import annotations

import threading
import warnings

import pytest
from fastapi import FastAPI

from fluidfast import TaskConsumer, TaskManager, TaskRun, task, task_manager_fastapi

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Starlette, about the client that it uses
    from fastapi.testclient import TestClient

done = threading.Event()


@task
async def note(ctx: TaskRun) -> None:
    done.set()


@pytest.mark.parametrize("kind", [TaskManager, TaskConsumer])
def test_two_clients(broker_url: str, kind: type[TaskManager]) -> None:
    manager = kind(broker_url=broker_url)
    manager.register_task(note)
    app = task_manager_fastapi(manager, app=FastAPI(), insecure=True)
    for _ in range(2):
        done.clear()
        with TestClient(app) as client:
            assert client.post("/tasks/note", json={}).status_code == 200
            if kind is TaskConsumer:
                assert done.wait(10)
                continue
            assert client.get("/tasks/note").json()["name"] == "note"
    assert manager.sync.queue("note").state == "queued"
    manager.sync.close()
