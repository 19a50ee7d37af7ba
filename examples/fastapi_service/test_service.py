"""Tests of the task and of the API, without a server: fluidfast's pytest plugin gives each a broker of its own."""

import pytest
from api import app
from fastapi.testclient import TestClient
from tasks import manager, send_welcome

from fluidfast import TaskManager
from fluidfast.testing import Harness


@pytest.fixture
def fluidfast_target() -> TaskManager:
    """The manager that the plugin puts on the test's broker."""
    return manager


def test_the_task(fluidfast_consumer: Harness) -> None:
    send_welcome.sync.queue("grace@example.com")
    done = fluidfast_consumer.sync.drain()
    done.raise_failed()
    assert done.states == {"success": 1}


def test_a_signup_queues_a_mail(fluidfast_consumer: Harness) -> None:
    with TestClient(app) as client:
        assert client.post("/signups", json={"email": "grace@example.com"}).status_code == 202
        assert client.get("/health").json()["medium"] == 1
        assert client.get("/tasks").status_code in (401, 403)
    fluidfast_consumer.assert_queued(send_welcome, to="grace@example.com")
