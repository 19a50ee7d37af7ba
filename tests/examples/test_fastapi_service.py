"""The service and a worker, started by hand; the processes of the Compose file are the same commands."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
import yaml
from kits.command_kit import until
from kits.example_kit import Example
from kits.servers import free_port

API = "python -m uvicorn api:app --port 8000"
WORKER = "python -m fluidfast worker tasks:manager --concurrency 20"
SIGN_UP = (
    "curl -s -X POST localhost:8000/signups -H 'content-type: application/json' "
    """-d '{"email": "grace@example.com"}'"""
)
HEALTH = "curl -s localhost:8000/health"


@pytest.fixture
def example(redis_url: str, tmp_path: Path) -> Example:
    return Example("fastapi_service", tmp_path, FLUID_BROKER_URL=redis_url, ADMIN_TOKEN="secret")


def test_a_signup_reaches_the_worker(example: Example) -> None:
    port = {"8000": str(free_port())}
    with example.start(API, replacing=port) as api, example.start(WORKER) as worker:
        api.wait_for("Application startup complete")
        run_id = json.loads(example.run(SIGN_UP, replacing=port))["run_id"]
        worker.wait_for(f"welcome mail to grace@example.com, idempotency key {run_id}")
        until(lambda: json.loads(example.run(HEALTH, replacing=port))["medium"] == 0, "nothing waits")
        listed = example.run(
            """curl -s localhost:8000/tasks -H "authorization: Bearer $ADMIN_TOKEN\"""", replacing=port
        )
        assert [task["name"] for task in json.loads(listed)] == ["send_welcome"]
        for process in (api, worker):
            process.signal(signal.SIGTERM)
        assert worker.end() == 0
        api.end()


def test_the_compose_file_starts_the_same_processes(example: Example) -> None:
    services = yaml.safe_load((example.folder / "compose.yaml").read_text())["services"]
    assert services["worker"]["command"] == shlex.split(WORKER)
    assert services["api"]["command"][:4] == shlex.split(API)[:4]
    inline = services["worker"]["build"]["dockerfile_inline"]
    [copied] = re.findall(r"^COPY (.*) \./$", inline, re.M)
    assert all((example.folder / name).exists() for name in copied.split())
    for name in ("api", "worker"):
        assert services[name]["depends_on"]["valkey"]["condition"] == "service_healthy"
    assert "healthcheck" in services["valkey"]
