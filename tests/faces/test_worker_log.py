"""The log of ``fluidfast worker``: its formats, a line a run, and an application that has set up logging itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kits.command_kit import COMMAND, Running, environment, run, until

from fluidfast import TaskConsumer, TaskManager, task
from fluidfast.commands.target import as_consumer

APP = """
import logging, os, pathlib
from fluidfast import TaskManager, TaskRun, task

HERE = pathlib.Path(__file__).parent
log = logging.getLogger("shop.mail")

@task
async def send(ctx: TaskRun) -> None:
    log.info("to %s", ctx.params["to"])

@task
async def noop(ctx: TaskRun) -> None: ...

@task
async def last(ctx: TaskRun) -> None:
    (HERE / "last").touch()

@task
async def breaks(ctx: TaskRun) -> None:
    raise ValueError("on purpose")

@task(cpu_bound=True)
async def compute(ctx: TaskRun) -> None:
    log.info("computed")

manager = TaskManager()
manager.register_from_dict(globals())
"""

THEIRS = """
import logging
logging.basicConfig(format="THEIRS %(levelname)s %(name)s %(message)s %(run_id)s", level="INFO")
from app import manager
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "theirs.py").write_text(THEIRS)
    return tmp_path


def queue(app: Path, url: str, name: str, lines: list[dict[str, Any]]) -> None:
    given = "".join(json.dumps(line) + "\n" for line in lines).encode()
    done = run("queue", "app:manager", name, "--from", "-", input=given, cwd=app, FLUID_BROKER_URL=url)
    assert done.returncode == 0, done


def stop(worker: Running) -> str:
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0
    return worker.stderr


def test_json_and_a_line_a_run(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "send", [{"to": "one"}])
    queue(app, redis_url, "noop", [{}] * 2_500)
    queue(app, redis_url, "breaks", [{}])
    queue(app, redis_url, "last", [{}])
    options = ("--log-format", "json", "--log-runs")
    with Running("worker", "app:manager", *options, cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        until((app / "last").exists, "the last run")
        text = stop(worker)
    records = [json.loads(line) for line in text.splitlines()]
    runs = [record for record in records if record["name"] == "fluidfast.runs"]
    assert len(runs) == 2_503
    assert len({record["run_id"] for record in runs}) == 2_503
    assert {record["state"] for record in runs} == {"success", "failure"}
    (own,) = [record for record in records if record["name"] == "shop.mail"]
    (ended,) = [record for record in runs if record["task"] == "send"]
    assert own["message"] == "to one"
    assert (own["task"], own["run_id"], own["attempt"]) == ("send", ended["run_id"], 1)
    (failed,) = [record for record in records if record["message"].startswith("run failed")]
    assert (failed["error"], failed["task"], failed["level"]) == ("ValueError", "breaks", "ERROR")
    assert "ValueError: on purpose" in failed["exception"]
    assert records[-1]["message"] == "stopped after 2503 runs"


def test_the_console(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "send", [{"to": "one"}])
    with Running("worker", "app:manager", "--log-runs", cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        worker.wait_for(" INFO    fluidfast.runs: success task=send run=")
        text = stop(worker)
    (line,) = [line for line in text.splitlines() if "shop.mail" in line]
    assert " INFO    shop.mail: to one [task=send run=" in line
    assert line.endswith(" attempt=1]")


@pytest.mark.parametrize("options", [(), ("--log-format", "json", "--log-runs")])
def test_an_application_that_has_set_up_logging(app: Path, redis_url: str, options: tuple[str, ...]) -> None:
    queue(app, redis_url, "send", [{"to": "one"}])
    queue(app, redis_url, "last", [{}])
    with Running(
        "worker", "theirs:manager", *options, cwd=app, FLUID_BROKER_URL=redis_url, LOG_LEVEL="ERROR"
    ) as worker:
        until((app / "last").exists, "the last run")
        lines = stop(worker).splitlines()
    theirs = [line for line in lines if line.startswith("THEIRS ")]
    runs = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(theirs) + len(runs) == len(lines), "nothing is written twice, or in another format"
    (own,) = [line for line in theirs if "shop.mail" in line]
    assert own.startswith("THEIRS INFO shop.mail to one ")
    assert len(own.split()[-1]) == 32, "the filter is on their handler"
    assert len(runs) == (2 if options else 0)
    assert any("--log-format" in line for line in theirs) is bool(options)


def test_the_worker_s_number(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "send", [{"to": "one"}] * 50)
    options = ("--processes", "2", "--log-runs")
    with Running("worker", "app:manager", *options, cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        for number in (1, 2):
            worker.wait_for(f" INFO    fluidfast.worker[{number}]: worker ")
        until(lambda: worker.stderr.count("success task=send") == 50, "all runs")
        text = stop(worker)
    assert " INFO    fluidfast.supervisor: supervising 2 worker processes" in text
    assert all("]: " in line for line in text.splitlines() if "shop.mail" in line or "fluidfast.runs" in line)


def test_the_process_of_a_cpu_bound_run_logs_alike(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "compute", [{}])
    options = ("--log-format", "json", "--log-runs")
    with Running("worker", "app:manager", *options, cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        worker.wait_for("run ended: ")
        text = stop(worker)
    (own,) = [record for line in text.splitlines() if (record := json.loads(line))["message"] == "computed"]
    assert own["task"] == "compute"
    assert len(own["run_id"]) == 32


def test_nobody_reads_the_log(app: Path, redis_url: str) -> None:
    """All runs are run; what was not lost is there, and what was lost is counted."""
    queue(app, redis_url, "noop", [{}] * 120_000)
    queue(app, redis_url, "last", [{}])
    read_end, write_end = os.pipe()
    worker = subprocess.Popen(
        [*COMMAND, "worker", "app:manager", "--log-runs", "--log-format", "json"],
        cwd=app, env=environment(FLUID_BROKER_URL=redis_url), stdin=subprocess.DEVNULL, stderr=write_end,
    )  # fmt: skip
    os.close(write_end)
    try:
        until((app / "last").exists, "the last run")
        with open(read_end, "rb") as log:
            worker.send_signal(signal.SIGTERM)
            records = [json.loads(line) for line in log]
        assert worker.wait(30) == 0
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    runs = sum(record["name"] == "fluidfast.runs" for record in records)
    lost = [record["message"] for record in records if record["name"] == "fluidfast.log"]
    assert lost
    dropped = sum(int(text.partition(" ")[0].replace(",", "")) for text in lost)
    assert 0 <= runs + dropped - 120_001 <= 20  # some of the others are lost too


def test_a_wrong_level(app: Path) -> None:
    done = run("worker", "app:manager", cwd=app, LOG_LEVEL="LOUD")
    assert done.returncode == 1
    assert done.stderr == "fluidfast: error: LOG_LEVEL='LOUD' must be one of DEBUG, INFO, WARNING, ERROR\n"


# -- the number of slots


@task
async def work(ctx: Any) -> None: ...


@pytest.mark.parametrize("kind", [TaskManager, TaskConsumer])
def test_how_many_slots_a_worker_has(kind: type[TaskManager], monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(option: int | None = None, **options: Any) -> int:
        manager = kind(broker_url="memory://slots", **options)
        manager.register_task(work, replace=True)
        consumer = as_consumer(manager, option)
        assert consumer.engine.concurrency == consumer.config.max_concurrent_tasks
        return consumer.engine.concurrency

    from fluidfast.settings import get_settings

    get_settings.cache_clear()
    assert slots() == 32
    assert slots(max_concurrent_tasks=5) == 5
    assert slots(3, max_concurrent_tasks=5) == 3
    assert TaskConsumer(broker_url="memory://slots").engine.concurrency == 5, "in code"
    assert as_consumer(TaskConsumer.of(kind(broker_url="memory://slots")), None).engine.concurrency == 32
    monkeypatch.setenv("FLUID_MAX_CONCURRENT_TASKS", "5")
    get_settings.cache_clear()
    assert slots() == 5
    get_settings.cache_clear()
