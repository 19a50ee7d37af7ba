"""Tests of the task and of the API. They use no worker, and the API's test needs the broker of FLUID_BROKER_URL."""

from api import app
from fastapi.testclient import TestClient
from tasks import manager, send_welcome


async def execute() -> str:
    run = await manager.execute(send_welcome, to="grace@example.com")
    return str(run.state)


def test_the_task() -> None:
    with TestClient(app) as client:
        assert client.portal is not None
        assert client.portal.call(execute) == "success"


def test_a_signup_queues_a_mail() -> None:
    with TestClient(app) as client:
        assert client.post("/signups", json={"email": "grace@example.com"}).status_code == 202
        assert client.get("/health").json()["medium"] == 1
        assert client.get("/tasks").status_code in (401, 403)
