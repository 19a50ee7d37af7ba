"""``worker --burst``: ends when nothing is left to do, here or anywhere, and says what it did."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
from kits import waiting
from kits.command_kit import Running, run, until

from fluidfast import TaskConsumer, TaskRun, task
from fluidfast.commands.burst import Burst

APP = """
import asyncio, pathlib
from contextlib import asynccontextmanager
from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task

HERE = pathlib.Path(__file__).parent

@task
async def good(ctx: TaskRun) -> None: ...

@task
async def bad(ctx: TaskRun) -> None:
    raise ValueError("bad")

@task
async def aborts(ctx: TaskRun) -> None:
    ctx.abort("no")

@task(retry=RetryPolicy(max_attempts=3, wait=0.5))
async def second(ctx: TaskRun) -> None:
    if not ctx.retry_attempt:
        raise ValueError("not yet")

@task(retry=RetryPolicy(max_attempts=1, wait=0.01))
async def never(ctx: TaskRun) -> None:
    raise ValueError("never")

@task
async def held(ctx: TaskRun) -> None:
    (HERE / "held").touch()
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)

@task
async def parent(ctx: TaskRun) -> None: ...

TASKS = (good, bad, aborts, second, never, held, parent)

def with_tasks(manager):
    for each in TASKS:
        manager.register_task(each)
    return manager

def consumer():
    made = with_tasks(TaskConsumer(delivery="buffered"))

    async def later(run):
        await asyncio.sleep(0.3)
        await made.queue("good")

    made.register_async_handler("success.later", lambda run: later(run) if run.name == "parent" else asyncio.sleep(0))
    return made

def local():
    made = with_tasks(TaskConsumer(broker_url="memory://"))

    @asynccontextmanager
    async def three():
        for _ in range(3):
            await made.queue("second")
        yield

    made.add_async_context_manager(three())
    return made

manager = with_tasks(TaskManager(max_concurrent_tasks=5, lease_seconds=2))
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def queue(app: Path, url: str, name: str, count: int = 1) -> None:
    done = run(
        "queue", "app:manager", name, "--from", "-", cwd=app, input=b"{}\n" * count, FLUID_BROKER_URL=url
    )  # fmt: skip
    assert done.returncode == 0, done


def burst(app: Path, url: str, *options: str, target: str = "app:manager") -> tuple[int, dict[str, Any]]:
    options = ("--burst", "--json", "--log-level", "warning", *options)
    done = run("worker", target, *options, cwd=app, FLUID_BROKER_URL=url)
    return done.returncode, json.loads(done.stdout)


def counts(**some: int) -> dict[str, int]:
    return {"done": 0, "failed": 0, "dead": 0, "aborted": 0, "retried": 0, **some}


def only_counts(summary: dict[str, Any]) -> dict[str, int]:
    return {name: summary[name] for name in counts()}


def test_an_empty_queue_ends_it(app: Path, redis_url: str) -> None:
    done = run("worker", "app:manager", "--burst", cwd=app, FLUID_BROKER_URL=redis_url)
    assert done.returncode == 0, done
    assert done.stdout.startswith("0 done, 0 failed, 0 dead in 0.")


def test_it_counts_what_became_of_the_runs(app: Path, redis_url: str) -> None:
    for name, count in {"good": 200, "bad": 2, "aborts": 1, "second": 3, "never": 1}.items():
        queue(app, redis_url, name, count)
    server, _, name = redis_url.partition("?name=")
    with redis.Redis.from_url(server) as client:
        client.lpush(f"{{{name}}}-queue-low", b"no run")
    code, summary = burst(app, redis_url)
    assert only_counts(summary) == counts(done=203, failed=2, dead=2, aborted=1, retried=4)
    assert code == 1
    assert summary["seconds"] > 0.5, "the delay of a retry"
    assert summary["per_second"] == pytest.approx(208 / summary["seconds"], rel=0.01)
    assert burst(app, redis_url)[0] == 0


def test_it_waits_for_what_handlers_queue(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "parent", 3)
    code, summary = burst(app, redis_url, target="app:consumer")
    assert (code, only_counts(summary)) == (0, counts(done=6))


def test_on_memory(app: Path) -> None:
    done = run("worker", "app:local", "--burst", cwd=app)
    assert done.returncode == 0, done
    assert done.stdout.startswith("3 done, 0 failed, 0 dead, 3 retried in ")


def test_it_waits_for_other_workers(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "held")
    env = {"FLUID_BROKER_URL": redis_url}
    with Running("worker", "app:manager", "--concurrency", "1", cwd=app, **env) as other:
        until((app / "held").exists, "the other worker holds the run")
        with Running("worker", "app:manager", "--burst", cwd=app, **env) as bursting:
            bursting.wait_for("waiting for runs that are delayed, or that other workers hold")
            (app / "go").touch()
            assert bursting.end() == 0
        other.signal(signal.SIGTERM)
        assert other.end() == 0
    assert bursting.stdout.startswith("0 done,")


def test_it_takes_over_from_a_worker_that_was_killed(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "held")
    env = {"FLUID_BROKER_URL": redis_url}
    with Running("worker", "app:manager", cwd=app, **env) as other:
        until((app / "held").exists, "the other worker holds the run")
    (app / "go").touch()
    assert (other.process.returncode, only_counts(burst(app, redis_url)[1])) == (-9, counts(done=1))


def test_several_processes(app: Path, redis_url: str) -> None:
    queue(app, redis_url, "good", 500)
    queue(app, redis_url, "second", 3)
    code, summary = burst(app, redis_url, "--processes", "2")
    assert (code, only_counts(summary)) == (0, counts(done=503, retried=3))
    assert (summary["emptied"], summary["workers_lost"]) == (True, 0)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_before_the_queue_is_empty(app: Path, redis_url: str, processes: str) -> None:
    queue(app, redis_url, "held")
    options = ("worker", "app:manager", "--burst", "--processes", processes)
    with Running(*options, cwd=app, FLUID_BROKER_URL=redis_url) as bursting:
        until((app / "held").exists, "the run runs")
        bursting.signal(signal.SIGTERM)
        bursting.wait_for("shutting down" if processes == "1" else "draining")
        (app / "go").touch()
        assert bursting.end() == 130
    assert bursting.stdout.startswith("stopped before the queue was empty: 1 done")


async def test_runs_that_end_while_the_broker_is_asked() -> None:
    """What their handlers queue is seen by the next look only."""

    @task
    async def quick(ctx: TaskRun) -> None: ...

    consumer = TaskConsumer(broker_url="memory://burst-asked")
    consumer.register_task(quick)
    release = asyncio.Event()

    async def handler(run: TaskRun) -> None:
        await release.wait()

    consumer.register_async_handler("success", handler)
    looks: list[bool] = []

    async def has_runs() -> bool:
        if not looks:
            await consumer.queue(quick)
            await waiting.until(lambda: consumer.engine.finished == 1)
        looks.append(consumer.is_busy())
        return False

    consumer.broker.has_runs = has_runs  # type: ignore[method-assign]
    async with consumer:
        burst = Burst(consumer)
        assert not await burst.is_over()
        assert looks == [True]
        assert not await burst.is_over(), "the handler still runs"
        release.set()
        await waiting.until(lambda: not consumer.is_busy())
        assert await burst.is_over()


def test_options_that_do_not_go_together(app: Path) -> None:
    for options in (("--burst", "--reload"), ("--json",)):
        done: subprocess.CompletedProcess[str] = run("worker", "app:manager", *options, cwd=app)
        assert done.returncode == 2
