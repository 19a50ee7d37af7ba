"""A web developer with the folder examples/fastapi_service: the processes of its Compose file, started by hand."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kits.command_kit import Running, until
from kits.example_kit import Example, started
from kits.servers import RedisServer, free_port

API = "python -m uvicorn api:app --port 8000"
SIGN_UP = (
    "curl -s -X POST localhost:8000/signups -H 'content-type: application/json' "
    """-d '{"email": "grace@example.com"}'"""
)
HEALTH = "curl -s localhost:8000/health"
TESTS = "python -m pytest test_service.py"


class Service:
    """Valkey, the API and a worker, with the commands and health checks of the Compose file."""

    def __init__(self, example: Example, server: RedisServer) -> None:
        self.example = example
        self.server = server
        self.port = str(free_port())
        self.here = {"8000": self.port}
        self.services: dict[str, Any] = yaml.safe_load((example.folder / "compose.yaml").read_text())["services"]

    def start(self, name: str) -> Running:
        command = shlex.join(self.services[name]["command"]).replace("8000", self.port).replace("0.0.0.0", "127.0.0.1")
        self.example.lines.append(command)
        return self.example.start(command)

    def is_healthy(self, name: str) -> bool:
        """What the health check of a service says."""
        test = [word.replace("8000", self.port) for word in self.services[name]["healthcheck"]["test"][1:]]
        test = [self.example.python if word == "python" else word for word in test]
        return subprocess.run(test, capture_output=True).returncode == 0

    def sign_up(self) -> str:
        return str(json.loads(self.example.run(SIGN_UP, replacing=self.here))["run_id"])


@pytest.fixture
def service(start_server: Callable[..., RedisServer], tmp_path: Path) -> Service:
    server = start_server(appendonly="always")  # Compose: everysec, which may lose what came in the last second
    return Service(Example("fastapi_service", tmp_path, FLUID_BROKER_URL=server.url), server)


def test_it_lives_through_a_restart_of_the_server(service: Service) -> None:
    with service.start("api") as api, service.start("worker") as worker:
        api.wait_for("Application startup complete")
        started(worker)
        assert service.is_healthy("api")
        worker.wait_for(service.sign_up())

        service.server.kill()
        assert not service.is_healthy("api"), "within the three seconds that the check has"
        assert api.process.poll() is None
        assert worker.process.poll() is None

        service.server.restart()
        until(lambda: service.is_healthy("api"), "healthy again")
        worker.wait_for(service.sign_up())
        for process in (api, worker):
            process.signal(signal.SIGTERM)
        assert worker.end() == 0
        api.end()


def test_a_signup_waits_for_a_server_that_is_away_for_a_moment(service: Service) -> None:
    with service.start("api") as api, service.start("worker") as worker:
        api.wait_for("Application startup complete")
        started(worker)
        service.server.kill()
        line = SIGN_UP.replace("8000", service.port)
        service.example.lines.append(line)
        with service.example.start(line) as waiting:
            until(lambda: "POST" in api.stdout or waiting.process.poll() is None, "it has begun")
            service.server.restart()
            assert waiting.end() == 0
            worker.wait_for(json.loads(waiting.stdout)["run_id"])


def test_a_signup_is_refused_when_the_server_stays_away(service: Service) -> None:
    service.example.variables["FLUID_BROKER_URL"] += "?enqueue_timeout=0.2"  # the Compose file has 5
    with service.start("api") as api:
        api.wait_for("Application startup complete")
        service.sign_up()
        service.server.kill()
        refused = service.example.run(SIGN_UP, replacing=service.here)
        assert json.loads(refused) == {"detail": "try again later"}
        service.server.restart()
        until(lambda: "run_id" in service.example.run(SIGN_UP, replacing=service.here), "signups are taken again")


def test_their_own_tests_pass(service: Service) -> None:
    assert "2 passed" in service.example.run(TESTS)
