"""The files of examples/deploy: what their parsers say, and that their values fit each other and the code."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from dockerfile_parse import DockerfileParser
from kits.command_kit import until
from kits.example_kit import EXAMPLES, Example, started

from fluidfast.brokers.redis.keys import DEFAULT_NAME, Keys
from fluidfast.core.states import PRIORITIES

DEPLOY = EXAMPLES / "deploy"
WORKER = "python -m fluidfast worker app:manager --concurrency 20"
SHIP = """python -m fluidfast queue app:manager ship --params '{"order": "A-7"}'"""
HEALTH = "python health.py"
LEAST_AFTER_GRACE_SECONDS = 10
"""For what a worker does after the grace period: it requeues, settles, and closes its connections."""


def documents(name: str) -> dict[str, Any]:
    """The objects of a manifest, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


def seconds(text: str) -> int:
    assert text.endswith("s"), text
    return int(text[:-1])


# -- Docker


@pytest.fixture
def instructions(tmp_path: Path) -> list[dict[str, Any]]:
    shutil.copy(DEPLOY / "Dockerfile", tmp_path)
    return DockerfileParser(str(tmp_path)).structure  # it writes: not in the checkout


def values(instructions: list[dict[str, Any]], name: str) -> list[str]:
    return [step["value"] for step in instructions if step["instruction"] == name]


def test_the_image_has_two_stages_and_no_root(instructions: list[dict[str, Any]]) -> None:
    stages = values(instructions, "FROM")
    assert len(stages) == 2
    assert stages[0].endswith(" AS build")
    assert stages[0].removesuffix(" AS build") == stages[1], "one Python in both, or the environment does not run"
    last = instructions[[i for i, step in enumerate(instructions) if step["instruction"] == "FROM"][1] :]
    [user] = values(last, "USER")
    assert int(user) > 0
    assert not [value for value in values(last, "RUN") if "pip" in value]
    order = [step["instruction"] for step in last]
    assert order.index("USER") < order.index("CMD")
    # the user exists, with that number
    assert f"--uid {user} " in "".join(values(last, "RUN"))


def test_the_worker_is_process_1_of_the_image(instructions: list[dict[str, Any]]) -> None:
    [command] = values(instructions, "CMD")
    assert yaml.safe_load(command) == shlex.split(WORKER), "a list: the form with a shell would keep signals from it"
    assert values(instructions, "STOPSIGNAL") == ["SIGTERM"]
    [check] = values(instructions, "HEALTHCHECK")
    assert yaml.safe_load(check.partition(" CMD ")[2]) == shlex.split(HEALTH)


def test_what_the_image_copies_is_there_and_not_ignored(instructions: list[dict[str, Any]]) -> None:
    allowed = {line[1:] for line in (DEPLOY / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = [value.split()[:-1] for value in values(instructions, "COPY") if not value.startswith("--from")]
    assert {name for names in copied for name in names} == allowed
    assert all((DEPLOY / name).exists() for name in allowed)


# -- Compose


def test_compose() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    worker, valkey = services["worker"], services["valkey"]
    assert worker["healthcheck"]["test"][1:] == shlex.split(HEALTH)
    assert worker["depends_on"]["valkey"]["condition"] == "service_healthy"
    assert valkey["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"]
    options = valkey["command"].split()
    assert options[options.index("--maxmemory-policy") + 1] == "noeviction"
    assert options[options.index("--appendonly") + 1] == "yes"
    assert worker["environment"]["FLUID_BROKER_URL"] == "redis://valkey:6379"
    grace = int(worker["environment"]["FLUID_STOPPING_GRACE_PERIOD"])
    assert seconds(worker["stop_grace_period"]) >= grace + LEAST_AFTER_GRACE_SECONDS
    assert worker["read_only"]
    assert worker["tmpfs"] == ["/tmp"], "health.py writes there"
    assert "command" not in worker, "that of the image"


def has_compose() -> bool:
    return (
        shutil.which("docker") is not None
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )


@pytest.mark.skipif(not has_compose(), reason="the Compose file is parsed above; its plugin is not installed")
def test_compose_by_docker_itself() -> None:
    """It needs no daemon to read a file."""
    for file in (DEPLOY / "compose.yaml", EXAMPLES / "fastapi_service" / "compose.yaml"):
        done = subprocess.run(["docker", "compose", "-f", file, "config", "-q"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done


# -- systemd


def test_the_unit() -> None:
    text = (DEPLOY / "fluidfast-worker.service").read_text()
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert service["KillSignal"] == "SIGTERM"
    assert service["Restart"] == "on-failure", "a worker that drained ends with 0 and stays down"
    grace = int(service["Environment"].partition("FLUID_STOPPING_GRACE_PERIOD=")[2])
    assert int(service["TimeoutStopSec"]) >= grace + LEAST_AFTER_GRACE_SECONDS
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.startswith("/"), "systemd wants a path"
    assert arguments[: len(shlex.split(WORKER)) - 1] == shlex.split(WORKER)[1:]
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="the unit is parsed above; systemd-analyze is not installed"
)
def test_the_unit_by_systemd_itself(tmp_path: Path) -> None:
    """What it says of paths and users of this machine aside."""
    text = (DEPLOY / "fluidfast-worker.service").read_text().replace("/srv/app/.venv/bin/python", sys.executable)
    unit = tmp_path / "fluidfast-worker.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not said, said
    # that it would have said something
    unit.write_text(text.replace("KillMode=mixed", "KillMode=some"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert "kill mode" in done.stderr


# -- Kubernetes


def test_the_deployment() -> None:
    deployment = documents("kubernetes/worker.yaml")["Deployment"]
    assert deployment["apiVersion"] == "apps/v1"
    assert "replicas" not in deployment["spec"], "KEDA says how many"
    template = deployment["spec"]["template"]
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert labels.items() <= template["metadata"]["labels"].items()
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    assert container["command"] == shlex.split(WORKER)
    assert container["livenessProbe"]["exec"]["command"] == shlex.split(HEALTH)
    assert "readinessProbe" not in container
    env = {variable["name"]: variable for variable in container["env"]}
    grace = int(env["FLUID_STOPPING_GRACE_PERIOD"]["value"])
    assert pod["terminationGracePeriodSeconds"] >= grace + LEAST_AFTER_GRACE_SECONDS
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"]: "/tmp" for volume in pod["volumes"]}, "health.py writes there"
    secret = documents("kubernetes/scaledobject.yaml")["Secret"]
    reference = env["FLUID_BROKER_URL"]["valueFrom"]["secretKeyRef"]
    assert reference["name"] == secret["metadata"]["name"]
    assert secret["stringData"][reference["key"]].startswith("redis://")


def test_keda_asks_for_the_lists_that_the_broker_has() -> None:
    manifests = documents("kubernetes/scaledobject.yaml")
    deployment = documents("kubernetes/worker.yaml")["Deployment"]
    scaled = manifests["ScaledObject"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["spec"]["minReplicaCount"] >= 1, "nobody else queues what is delayed"
    triggers = scaled["spec"]["triggers"]
    keys = Keys(DEFAULT_NAME)
    assert [trigger["metadata"]["listName"] for trigger in triggers] == [keys.queue(p) for p in PRIORITIES]
    login = manifests["TriggerAuthentication"]
    for trigger in triggers:
        assert trigger["type"] == "redis"
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes text only"
        assert int(trigger["metadata"]["listLength"]) > 0
        host, _, port = trigger["metadata"]["address"].partition(":")
        assert f"@{host}:{port}/" in manifests["Secret"]["stringData"]["url"], "the server of the workers"
        assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
    secret = manifests["Secret"]
    for target in login["spec"]["secretTargetRef"]:
        assert target["name"] == secret["metadata"]["name"]
        assert target["key"] in secret["stringData"]


async def test_the_lists_are_where_runs_wait(redis_url: str, tmp_path: Path) -> None:
    example = Example("deploy", tmp_path, FLUID_BROKER_URL=redis_url)
    example.run(SHIP)
    with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
        lists = [Keys(redis_url.partition("?name=")[2]).queue(priority) for priority in PRIORITIES]
        assert [client.llen(name) for name in lists] == [0, 1, 0]
        client.delete(*lists)


# -- the page


def test_the_page_shows_these_files() -> None:
    page = (EXAMPLES.parent / "docs" / "how-to" / "deploying.md").read_text()
    for name in (
        "Dockerfile",
        "compose.yaml",
        "fluidfast-worker.service",
        "health.py",
        "kubernetes/scaledobject.yaml",
        "kubernetes/worker.yaml",
    ):
        assert f"\n{(DEPLOY / name).read_text()}```\n" in page, name


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(
        r"^\| \[(\w+)\]\(\.\./examples/(\S+?)\)", (EXAMPLES.parent / "docs" / "examples.md").read_text(), re.M
    )
    assert sorted(name for name, _ in listed) == sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    assert all((EXAMPLES / link).exists() for _, link in listed)


# -- health


def test_a_worker_is_healthy_until_its_event_loop_is_blocked(redis_url: str, tmp_path: Path) -> None:
    beat = tmp_path / "alive"
    example = Example("deploy", tmp_path, FLUID_BROKER_URL=redis_url, HEARTBEAT_FILE=str(beat))
    before = example.try_line(HEALTH)
    assert (before.returncode, before.stdout) == (1, f"no worker has touched {beat}\n")
    with example.start(WORKER) as worker:
        until(beat.exists, "a heartbeat")
        assert "the worker's event loop ran" in example.run(HEALTH)
        worker.signal(signal.SIGSTOP)  # as if a task blocked the loop
        os.utime(beat, (0, 0))  # half a minute and more ago
        assert example.try_line(HEALTH).returncode == 1
        worker.signal(signal.SIGCONT)
        started(worker)
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
