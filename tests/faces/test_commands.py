"""``python -m fluidfast``: every command as a process of its own, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from kits import waiting
from kits.command_kit import COMMAND, Running, environment, run, until
from kits.servers import RedisServer

from fluidfast import TaskConsumer, TaskRun, __version__, task
from fluidfast.commands import main
from fluidfast.commands.display import one_line, print_pairs, ranges
from fluidfast.commands.lines import LineReader
from fluidfast.commands.target import CommandError, as_consumer, as_manager, load

APP = """
import asyncio, os, pathlib, time
import msgspec
from fluidfast import TaskConsumer, TaskManager, TaskRun, task

HERE = pathlib.Path(__file__).parent

def note(what, number):
    with open(HERE / "runs.txt", "a") as file:
        file.write(f"{what} {number}\\n")

class Params(msgspec.Struct):
    number: int
    text: str = ""

@task
async def wait(ctx: TaskRun[Params]) -> None:
    note("start", ctx.params.number)
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    note("end", ctx.params.number)

@task
def block(ctx: TaskRun[Params]) -> None:
    note("start", ctx.params.number)
    while not (HERE / "go").exists():
        time.sleep(0.01)
    note("end", ctx.params.number)

@task(cpu_bound=True)
async def compute(ctx: TaskRun[Params]) -> None:
    note(f"pid {os.getpid()} text {ctx.params.text}", ctx.params.number)
    if ctx.params.text == "abort":
        ctx.abort("as it was asked to")

manager = TaskManager(max_concurrent_tasks=2, connect_seconds=1)
narrow = TaskManager(max_queue_length=100, full_timeout=1)
narrow.register_task(wait)
manager.register_from_dict(globals())
consumer = TaskConsumer(max_concurrent_tasks=2)
consumer.register_from_dict(globals())

def make():
    return manager

async def make_later():
    return manager

def make_and_fail():
    raise KeyError("no settings")

empty = TaskManager()
number = 5
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory with the module ``app``."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
        yield client


def name_of(url: str) -> str:
    return url.partition("?name=")[2]


def queue_key(url: str, priority: str = "medium") -> str:
    return f"{{{name_of(url)}}}-queue-{priority}"


def numbers_on(client: redis.Redis, url: str, priority: str = "medium") -> list[int]:
    """Numbers of the runs that wait, the next one first."""
    payloads: Any = client.lrange(queue_key(url, priority), 0, -1)
    return [json.loads(payload)["params"]["number"] for payload in reversed(payloads)]


def lines(numbers: range) -> bytes:
    return b"".join(b'{"number": %d}\n' % number for number in numbers)


def runs(app: Path) -> list[str]:
    path = app / "runs.txt"
    return path.read_text().splitlines() if path.exists() else []


def is_one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> bool:
    assert done.returncode == 1, done
    assert done.stdout == "", done
    [line] = done.stderr.splitlines()
    assert line.startswith("fluidfast: error: "), done
    for word in words:
        assert word in line, done
    return True


# -- the command itself


def test_help_and_version_say_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = run("--version", cwd=tmp_path)
    assert version.returncode == 0
    assert version.stdout.startswith(f"fluidfast {__version__} (CPython {sys.version.split()[0]}, ")
    text = run("--help", cwd=tmp_path).stdout
    for command in ("bench", "chaos", "worker", "queue"):
        assert f"\n  {command} " in text
        with pytest.raises(SystemExit, match=r"^0$"):  # here: a process of its own was seen to do it
            main([command, "--help"])
        assert "exit codes:" in capsys.readouterr().out
    assert run(cwd=tmp_path).returncode == 2
    assert run("dance", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("module", "left_out"),
    [
        ("fluidfast", "click rich fastapi pydantic watchfiles pyarrow"),
        ("fluidfast.scheduler", "click rich fastapi pydantic watchfiles pyarrow"),
        ("fluidfast.commands", "rich fastapi pydantic watchfiles pyarrow"),
        ("fluidfast.commands.worker", "rich fastapi pydantic watchfiles pyarrow"),
    ],
)
def test_it_imports_only_what_it_needs(tmp_path: Path, module: str, left_out: str) -> None:
    program = f"import sys, {module}; print(sorted(set('{left_out}'.split()) & set(sys.modules)))"
    assert run("-c", program, cwd=tmp_path, program=(sys.executable,)).stdout == "[]\n"


COMPLETE = """
eval "$(fluidfast completion bash)"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_fluidfast_completion fluidfast
echo "${{COMPREPLY[@]}}"
"""


def test_completion_in_bash(app: Path) -> None:
    """As bash calls it, which takes the TARGET apart at the colon."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for words, wanted in (
        ("fluidfast w", "worker"),
        ("fluidfast worker app : manager --con", "--concurrency"),
        ("fluidfast queue app : manager ''", "block compute wait"),
        ("fluidfast dead app : manager re", "requeue"),
        ("fluidfast queue nothing : there ''", ""),
    ):
        done = run("-c", COMPLETE.format(words=words), cwd=app, program=("bash",), PATH=path)
        assert (done.stdout.strip(), done.stderr) == (wanted, ""), words
    for shell in ("zsh", "fish"):
        assert "_FLUIDFAST_COMPLETE" in run("completion", shell, cwd=app).stdout


def test_a_mistyped_command_or_option(tmp_path: Path) -> None:
    for arguments, *words in (
        (("wroker",), "no command 'wroker', did you mean 'worker'?"),
        (
            ("dance",),
            "no command 'dance'; there are bench, chaos, completion, dead, history, queue, worker",
        ),
        (("dead", "app:manager", "lst"), "no command 'lst', did you mean 'list'?"),
        (("worker", "app:manager", "--concurency", "2"), "--concurency", "--concurrency"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        for word in words:
            assert word in done.stderr


def test_a_bar_on_a_terminal_only(app: Path, redis_url: str) -> None:
    (app / "runs.ndjson").write_bytes(lines(range(60_000)))
    seen = {}
    for name, variables in (("colour", {}), ("none", {"NO_COLOR": "1"})):
        terminal, other = os.openpty()
        options = ("queue", "app:manager", "wait", "--from", "runs.ndjson")
        env = environment(FLUID_BROKER_URL=redis_url, TERM="xterm", COLUMNS="80", **variables)
        process = subprocess.Popen(
            [*COMMAND, *options], cwd=app, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=other
        )
        os.close(other)
        seen[name] = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(terminal, 1 << 16):
                seen[name] += part
        os.close(terminal)
        out, _ = process.communicate(timeout=60)
        assert out.startswith(b"queued 60,000 runs of 'wait'")
    for text in seen.values():
        assert b"queued" in text
        assert b" left" in text
        assert text.endswith(b"\x1b[2K")
    assert b"\x1b[38" in seen["colour"] or b"\x1b[3" in seen["colour"]
    assert not re.search(rb"\x1b\[[0-9;]*3\dm", seen["none"])


# -- bench


def check_result(path: Path, tasks: int) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_bytes())
    assert result["tasks"] == tasks
    assert result["queued"] == result["ran"] == tasks + 200
    assert (result["lost"], result["duplicated"], result["left_on_broker"]) == (0, 0, 0)
    assert result["interrupted"] is False
    for name in ("queued_per_second", "run_per_second", "end_to_end_per_second", "total_seconds"):
        assert result[name] > 0, name
    assert 0 < result["wait_ms"]["p50"] <= result["wait_ms"]["p99"]
    assert 0 < result["wait_ms"]["idle_p50"] <= result["wait_ms"]["idle_p99"]
    assert set(result["versions"]) == {"fluidfast", "Python", "loop"}
    assert "at least once" in result["delivery"]
    return result


def test_bench_on_memory(tmp_path: Path) -> None:
    done = run("bench", "--tasks", "20000", "--json", "result.json", cwd=tmp_path)
    assert done.returncode == 0, done
    assert done.stderr == ""
    result = check_result(tmp_path / "result.json", 20_000)
    assert result["mode"] == "one-by-one"
    assert list(result["peak_memory_mib"]) == ["this process"]
    rows = dict(line.split("   ", 1) for line in done.stdout.splitlines())
    assert rows["lost"].strip() == rows["duplicated"].strip() == "0"
    assert "/s" in rows["queued"]
    assert "/s" in rows["run"]
    assert "/s" in rows["end to end"]


@pytest.mark.parametrize(("mode", "wire"), [("gather", "json"), ("many", "msgpack")])
def test_bench_on_a_server(tmp_path: Path, redis_url: str, client: redis.Redis, mode: str, wire: str) -> None:
    options = ("--tasks", "20000", "--mode", mode, "--wire", wire, "--json", "-")
    done = run("bench", "--broker", redis_url, *options, cwd=tmp_path)
    assert done.returncode == 0, done
    assert done.stderr == ""
    (tmp_path / "result.json").write_text(done.stdout)
    result = check_result(tmp_path / "result.json", 20_000)
    assert list(result["peak_memory_mib"]) == ["this process", "worker"]
    assert name_of(redis_url) not in result["broker"], "it has to have a name of its own"
    assert list(client.scan_iter("*bench-*")) == []


def test_bench_says_that_its_worker_was_killed(tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    tasks = 150_000

    def key() -> bytes | None:
        return next(client.scan_iter("*bench-*-queue-medium"), None)

    options = ("--tasks", str(tasks), "--mode", "many", "--json", "result.json")
    with Running("bench", "--broker", redis_url, *options, cwd=tmp_path) as bench:
        queue = until(key, "a queue")
        until(lambda: client.llen(queue) == tasks, "all tasks on the queue")
        until(lambda: client.llen(queue) < tasks - 10_000, "tasks that run")
        [worker] = bench.children()
        os.kill(worker, signal.SIGKILL)
        assert bench.end() == 1
    assert f"error: the worker process (pid {worker}) was killed by SIGKILL before it was done" in bench.stderr
    assert "Traceback" not in bench.stderr
    result = json.loads((tmp_path / "result.json").read_bytes())
    assert result["queued"] == tasks
    assert 0 < result["ran"] < tasks
    assert result["lost"] is None, "nobody waited for what is left"
    assert list(client.scan_iter("*bench-*")) == []


def test_bench_is_interrupted(tmp_path: Path, redis_url: str, client: redis.Redis) -> None:
    with Running("bench", "--broker", redis_url, "--mode", "one-by-one", cwd=tmp_path) as bench:
        until(lambda: next(client.scan_iter("*bench-*-queue-medium"), None), "a queue")
        bench.signal(signal.SIGINT)
        assert bench.end() == 130
    assert bench.stdout.startswith("INTERRUPTED")
    assert bench.stderr == ""
    assert list(client.scan_iter("*bench-*")) == []


def test_bench_refuses_what_cannot_be(tmp_path: Path) -> None:
    assert is_one_line_error(run("bench", "--broker", "redis://:pw@127.0.0.1:1", cwd=tmp_path), "127.0.0.1:1", ":***@")
    assert is_one_line_error(run("bench", "--broker", "carrier://pigeon", cwd=tmp_path), "unknown scheme 'carrier'")
    assert is_one_line_error(run("bench", "--json", "no/such.json", cwd=tmp_path), "no/such.json", "No such file")
    assert run("bench", "--tasks", "0", cwd=tmp_path).returncode == 2


# -- what MODULE:MANAGER may be


def test_a_target_that_is_none_is_said_in_one_line(app: Path) -> None:
    (app / "broken.py").write_text("import nothing_of_that_name\n")
    (app / "wrong.py").write_text("def f(:\n")
    for target, *words in (
        ("app:empty", "has no tasks"),
        ("app:make_and_fail", "app:make_and_fail() failed", "KeyError", "app.py, line"),
        ("broken:manager", "'broken'", "No module named 'nothing_of_that_name'", "broken.py, line 1"),
    ):
        assert is_one_line_error(run("worker", target, cwd=app), *words)
        assert is_one_line_error(run("queue", target, "wait", cwd=app), *words)


def test_targets(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)
    monkeypatch.syspath_prepend(app)
    (app / "wrong_app.py").write_text("def f(:\n")
    for target, *words in (
        ("app", "MODULE:NAME, such as app:manager"),
        (":manager", "MODULE:NAME, such as app:manager"),
        ("app:", "MODULE:NAME, such as app:manager"),
        ("app.py:manager", "app:manager"),
        ("./app:manager", "app:manager"),
        ("a b:manager", "is not a module name"),
        ("no_such_app:manager", "no module 'no_such_app'", str(app), "; there are app, wrong_app"),
        ("wrongapp:manager", "no module 'wrongapp'", "did you mean 'wrong_app'?"),
        ("app:xyzzy", "no 'xyzzy'", "; its managers: manager, narrow, consumer, empty"),
        ("app.sub:manager", "no module 'app.sub'"),
        ("wrong_app:manager", "SyntaxError", "wrong_app.py, line 1"),
        ("app:managr", "no 'managr'", "did you mean 'manager'?"),
        ("app:manager.x", "'manager' of module 'app'", "no 'x'"),
    ):
        with pytest.raises(CommandError) as caught:
            load(target)
        for word in words:
            assert word in str(caught.value), target
    for name, word in (("number", "of type int"), ("make_later", "of type coroutine"), ("empty", "has no tasks")):
        with pytest.raises(CommandError, match=word):
            as_manager(load(f"app:{name}"), name)
    assert as_manager(load("app:make"), "app:make") is load("app:manager")
    sys.modules.pop("app")


def test_a_plain_manager_lends_all_it_has_to_its_consumer(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)
    monkeypatch.syspath_prepend(app)
    manager = load("app:manager")
    sys.modules.pop("app")
    seen: list[Any] = []
    manager.dispatcher.register_handler("success.mine", seen.append)
    consumer = as_consumer(manager, 7)
    assert set(consumer.registry) == {"wait", "block", "compute"}
    assert consumer.deps is manager.deps
    assert consumer.state is manager.state
    assert consumer.config.max_concurrent_tasks == consumer.engine.concurrency == 7
    assert manager.config.max_concurrent_tasks == 2
    assert consumer.broker.url == manager.broker.url
    run = consumer.create_task_run("wait", number=1)
    run.set_state("success")
    assert [one.id for one in seen] == [run.id]
    assert as_consumer(consumer, None) is consumer


# -- worker


def test_a_worker_drains(app: Path, redis_url: str, client: redis.Redis) -> None:
    queued = run(
        "queue", "app:manager", "wait", "--from", "-", input=lines(range(6)), cwd=app, FLUID_BROKER_URL=redis_url
    )
    assert queued.returncode == 0, queued
    with Running("worker", "app:consumer", cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        until(lambda: len(runs(app)) == 2, "two runs")
        worker.signal(signal.SIGTERM)
        worker.wait_for("shutting down: ")
        (app / "go").touch()
        assert worker.end() == 0
    assert sorted(runs(app)) == ["end 0", "end 1", "start 0", "start 1"]
    assert numbers_on(client, redis_url) == [2, 3, 4, 5]
    assert "3 tasks, 2 at a time, on redis://" in worker.stderr
    assert "stopped after 2 runs" in worker.stderr


@pytest.mark.parametrize("name", ["wait", "block"])
def test_a_second_signal_hurries(app: Path, redis_url: str, client: redis.Redis, name: str) -> None:
    run("queue", "app:manager", name, "--from", "-", input=lines(range(6)), cwd=app, FLUID_BROKER_URL=redis_url)
    options = ("--concurrency", "3", "--log-level", "info")
    with Running("worker", "app:make", *options, cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        until(lambda: len(runs(app)) == 3, "three runs")
        worker.signal(signal.SIGTERM)
        worker.wait_for("shutting down: ")
        worker.signal(signal.SIGINT)
        assert worker.end(8) == 0  # of 10 seconds that the grace period has
    assert sorted(runs(app)) == ["start 0", "start 1", "start 2"]
    assert sorted(numbers_on(client, redis_url)) == list(range(6))
    assert "stopping now" in worker.stderr
    assert client.keys(f"*{name_of(redis_url)}*lease*") == []


def test_a_worker_goes_on_after_runs_that_take_long(app: Path, redis_url: str, client: redis.Redis) -> None:
    run("queue", "app:manager", "wait", "--from", "-", input=lines(range(200)), cwd=app, FLUID_BROKER_URL=redis_url)
    with Running("worker", "app:manager", cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        until(lambda: len(runs(app)) == 2, "two runs")
        until(lambda: client.llen(queue_key(redis_url)) == 198, "what was claimed and cannot start to be given back")
        (app / "go").touch()
        until(lambda: len(runs(app)) == 400, "all runs")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0


async def test_room_that_is_made_while_the_broker_is_told_that_there_is_none() -> None:
    """Every slot taken for longer than a moment: the consumer says so to the broker, and goes on claiming after it."""

    @task
    async def long(ctx: TaskRun) -> None:
        await asyncio.sleep(0.07)

    consumer = TaskConsumer(broker_url="memory://room", max_concurrent_tasks=1)
    told = 0

    async def stop_reserving(_: str) -> None:
        nonlocal told
        told += 1
        await asyncio.sleep(0.04)

    consumer.broker.stop_reserving = stop_reserving  # type: ignore[method-assign]
    for _ in range(5):
        await consumer.queue(long)
    await consumer.startup()
    try:
        await waiting.until(lambda: consumer.engine.finished == 5)
    finally:
        await consumer.shutdown()
    assert told


def test_a_worker_executes_cpu_bound_tasks(app: Path, redis_url: str) -> None:
    text = b'{"number": 1, "text": "a secret"}\n{"number": 2, "text": "abort"}\n'
    run("queue", "app:manager", "compute", "--from", "-", input=text, cwd=app, FLUID_BROKER_URL=redis_url)
    with Running("worker", "app:manager", "--log-runs", cwd=app, FLUID_BROKER_URL=redis_url) as worker:
        worker.wait_for("fluidfast.runs: aborted task=compute")
        worker.wait_for("fluidfast.runs: success task=compute")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    first, second = sorted(runs(app), key=lambda line: line[-1])
    assert first.endswith("text a secret 1")
    assert second.endswith("text abort 2")
    assert f"pid {worker.process.pid}" not in first


def test_a_server_that_is_not_there(app: Path) -> None:
    away = "redis://:secret@127.0.0.1:1"
    worker = run("worker", "app:manager", "--log-level", "WARNING", cwd=app, FLUID_BROKER_URL=away)
    assert worker.returncode == 1
    waited, stopped, error = worker.stderr.splitlines()  # it says once that it waits
    assert "trying again for up to 1 s" in waited
    assert "stopped running" in stopped
    assert error.startswith("fluidfast: error: broker redis://:***@127.0.0.1:1")
    assert "gave up after 1 s: start the server, or raise connect_seconds" in error
    assert "secret" not in worker.stderr
    options = ("wait", "--params", '{"number": 1}')
    assert is_one_line_error(run("queue", "app:manager", *options, cwd=app, FLUID_BROKER_URL=away), ":***@127.0.0.1:1")


def test_a_worker_on_memory_warns(app: Path) -> None:
    with Running("worker", "app:manager", cwd=app) as worker:
        worker.wait_for("memory:// exists in this process only")
        worker.wait_for("3 tasks, 2 at a time")
        worker.signal(signal.SIGINT)
        assert worker.end() == 0


# -- queue


def test_queue_a_file_in_its_order(app: Path, redis_url: str, client: redis.Redis) -> None:
    (app / "runs.ndjson").write_bytes(lines(range(5000)))
    done = run("queue", "app:manager", "wait", "--from", "runs.ndjson", cwd=app, FLUID_BROKER_URL=redis_url)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("queued 5,000 runs of 'wait' on redis://")
    assert numbers_on(client, redis_url) == list(range(5000))


def test_queue_into_a_queue_of_less_than_a_window(app: Path, redis_url: str, client: redis.Redis) -> None:
    """What is sent at a time is no more than may wait."""
    text = lines(range(250))
    done = run("queue", "app:narrow", "wait", "--from", "-", input=text, cwd=app, FLUID_BROKER_URL=redis_url)
    assert done.returncode == 1
    assert "max_queue_length is 100" in done.stderr
    assert numbers_on(client, redis_url) == list(range(100))


def test_queue_one_run(app: Path, redis_url: str, client: redis.Redis) -> None:
    options = ("--params", '{"number": 7}', "--priority", "high")
    done = run("queue", "app:manager", "wait", *options, cwd=app, FLUID_BROKER_URL=redis_url)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("queued 1 run of 'wait' on ")
    assert numbers_on(client, redis_url, "high") == [7]
    for params, *words in (
        ("{}", "--params", "'wait'", "field 'number'"),
        ("[1]", "--params", "an array"),
        ("{", "not JSON"),
    ):
        done = run("queue", "app:manager", "wait", "--params", params, cwd=app, FLUID_BROKER_URL=redis_url)
        assert is_one_line_error(done, *words)
    done = run("queue", "app:manager", "wait", "--priority", "urgent", cwd=app, FLUID_BROKER_URL=redis_url)
    assert done.returncode == 2
    assert "urgent" in done.stderr


BAD = lines(range(1500)) + b'\n{"number": "five"}\n  \r\n{"number": 1501}\r\n[1501]\n{"number\n\xff\n{"number": 1502}'


def test_a_bad_line_stops(app: Path, redis_url: str, client: redis.Redis) -> None:
    done = run("queue", "app:manager", "wait", "--from", "-", input=BAD, cwd=app, FLUID_BROKER_URL=redis_url)
    assert done.returncode == 1
    assert done.stdout.startswith("queued 1,500 runs of ")
    assert "line 1,502: invalid params for task 'wait', field 'number'" in done.stderr
    assert "the first line that was not queued: 1,502\n" in done.stderr
    assert "five" not in done.stderr, "params are not for the log"
    assert numbers_on(client, redis_url) == list(range(1500))


def test_a_bad_line_is_skipped(app: Path, redis_url: str, client: redis.Redis) -> None:
    options = ("--from", "-", "--on-error", "skip", "--priority", "low")
    done = run("queue", "app:manager", "wait", *options, input=BAD, cwd=app, FLUID_BROKER_URL=redis_url)
    assert done.returncode == 1
    assert done.stdout.startswith("queued 1,502 runs of ")
    for text in (
        "line 1,502: ",
        "line 1,505: ",
        "line 1,506: it is not JSON",
        "line 1,507: it is not JSON",
        "4 bad lines",
    ):
        assert text in done.stderr
    assert numbers_on(client, redis_url, "low") == [*range(1500), 1501, 1502]


def test_bad_lines_are_not_all_repeated(app: Path, redis_url: str) -> None:
    options = ("--from", "-", "--on-error", "skip")
    done = run("queue", "app:manager", "wait", *options, input=b"x\n" * 5000, cwd=app, FLUID_BROKER_URL=redis_url)
    assert done.returncode == 1
    assert done.stdout.startswith("queued 0 runs of ")
    assert "4,980 more lines are bad" in done.stderr
    assert len(done.stderr.splitlines()) == 20 + 3


def test_queue_reads_a_pipe_as_it_comes(app: Path, redis_url: str, client: redis.Redis) -> None:
    options = ("app:manager", "wait", "--from", "-")
    with Running("queue", *options, cwd=app, stdin=subprocess.PIPE, FLUID_BROKER_URL=redis_url) as queue:
        pipe = queue.process.stdin
        assert pipe is not None
        for number in (1, 2):
            pipe.write(lines(range(number, number + 1)))
            pipe.flush()
            until(lambda: client.llen(queue_key(redis_url)) == number, f"run {number}")  # noqa: B023
        queue.signal(signal.SIGINT)
        assert queue.end() == 130
    assert queue.stdout.startswith("queued 2 runs of ")
    assert "interrupted: no line after 2 was queued" in queue.stderr


def test_queue_says_how_far_it_came_when_the_server_dies(app: Path, start_server: Callable[..., RedisServer]) -> None:
    server = start_server()
    url = f"{server.url}?name=dies"
    options = ("app:manager", "wait", "--from", "-")
    with (
        redis.Redis.from_url(server.url) as client,
        Running(
            "queue", *options, cwd=app, stdin=subprocess.PIPE, FLUID_BROKER_URL=f"{url}&enqueue_timeout=1"
        ) as queue,
    ):
        pipe = queue.process.stdin
        assert pipe is not None
        pipe.write(lines(range(3000)))
        pipe.flush()
        until(lambda: client.llen(queue_key(url)) == 3000, "3000 runs")
        server.kill()
        pipe.write(lines(range(3000, 3400)))
        pipe.close()
        assert queue.end() == 1
    assert queue.stdout.startswith("queued 3,000 runs of ")
    assert "Traceback" not in queue.stderr
    assert "the server did not answer, so these lines may or may not be queued: 3,001-3,400\n" in queue.stderr
    assert "the first line that was not queued: 3,001\n" in queue.stderr


def test_queue_says_what_a_full_server_refused(app: Path, start_server: Callable[..., RedisServer]) -> None:
    server = start_server(maxmemory="3mb")
    url = f"{server.url}?name=full"
    text = b"".join(b'{"number": %d, "text": "%s"}\n' % (number, b"x" * 1000) for number in range(5000))
    done = run("queue", "app:manager", "wait", "--from", "-", input=text, cwd=app, FLUID_BROKER_URL=url)
    assert done.returncode == 1
    with redis.Redis.from_url(server.url) as client:
        kept: Any = client.llen(queue_key(url))
    assert 0 < kept < 5000
    assert done.stdout.startswith(f"queued {kept:,} runs of ")
    assert "maxmemory" in done.stderr
    assert f"the first line that was not queued: {kept + 1:,}\n" in done.stderr
    assert "not queued, the broker refused them: lines " in done.stderr


def test_queue_refuses_what_cannot_be(app: Path, redis_url: str) -> None:
    for arguments, *words in (
        (("wiat",), "app:manager has no task 'wiat'", "did you mean 'wait'?"),
        (("x",), "has no task 'x'; it has block, compute, wait"),
        (("wait", "--from", "nothing.ndjson"), "--from nothing.ndjson", "No such file"),
        (("wait", "--from", "."), "--from .", "directory"),
    ):
        assert is_one_line_error(run("queue", "app:manager", *arguments, cwd=app, FLUID_BROKER_URL=redis_url), *words)
    assert is_one_line_error(run("queue", "app:manager", "wait", cwd=app), "memory://", "exists in this process only")
    both = run("queue", "app:manager", "wait", "--from", "-", "--params", "{}", cwd=app, FLUID_BROKER_URL=redis_url)
    assert both.returncode == 2


# -- pieces


async def read_lines(text: bytes, pieces: int, max_bytes: int) -> list[tuple[int, bytes | None]]:
    """What a LineReader makes of a text that comes in pieces of so many bytes."""
    reading, writing = os.pipe()
    reader = LineReader(lambda: os.read(reading, 1 << 17), max_bytes=max_bytes)
    found: list[tuple[int, bytes | None]] = []

    async def write() -> None:
        for first in range(0, len(text), pieces):
            os.write(writing, text[first : first + pieces])
            await asyncio.sleep(0.0005)
        os.close(writing)

    feeding = asyncio.create_task(write())
    async for chunk in reader:
        found += chunk
    await feeding
    os.close(reading)
    assert reader.bytes_read == len(text)
    return found


@pytest.mark.parametrize("pieces", [1, 3, 7, 1000])
async def test_lines_in_pieces(pieces: int) -> None:
    text = b"one\n\ntwo\r\n" + b"x" * 50 + b"\nfour\n" + b"y" * 40
    expected = [(1, b"one"), (2, b""), (3, b"two\r"), (4, None), (5, b"four"), (6, None)]
    assert await read_lines(text, pieces, 20) == expected
    assert await read_lines(b"a\nb\n", pieces, 20) == [(1, b"a"), (2, b"b")]
    assert await read_lines(b"a\nb", pieces, 20) == [(1, b"a"), (2, b"b")]
    assert await read_lines(b"", pieces, 20) == []


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranges([1, 2, 3, 7, 1000, 1001]) == "1-3, 7, 1,000-1,001"
    assert ranges(range(0, 100, 2), most=2) == "0, 2, ..."
    print_pairs([("a", "1"), ("long name", "[2]")])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["a           1", "long name   [2]"]
    assert one_line(ValueError("two\nlines \x1b[31m")) == "two lines  [31m"
    assert one_line(KeyError()) == "KeyError"
