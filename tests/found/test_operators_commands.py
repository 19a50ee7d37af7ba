"""`dead`, `queue`, `exec` in an operator's hands: bounded lines, closed pipes, help that fits, numbers to resume by."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from kits.command_kit import COMMAND, Running, environment, run, until

from fluidfast import TaskManager, TaskRun, task
from fluidfast.commands.queue import Account

APP = """
import os
from msgspec import Struct
from fluidfast import TaskManager, TaskRun, task

class Greeting(Struct, forbid_unknown_fields=True):
    name: str

@task
async def greet(ctx: TaskRun[Greeting]) -> None: ...

manager = TaskManager(broker_url=os.environ["BROKER"], **eval(os.environ.get("OPTIONS", "{}")))
manager.register_task(greet)
"""
GOOD, BAD = b'{"name":"x"}\n', b'{"nam":"x"}\n'


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url.partition("?")[0]) as made:
        yield made
        for key in made.scan_iter(prefix(redis_url) + "*"):
            made.delete(key)


def prefix(url: str) -> str:
    return "{" + url.partition("name=")[2] + "}"


# -- dead


def test_a_listed_line_is_bounded_and_printable(app: Path, redis_url: str, client: Any) -> None:
    payload = json.dumps({"id": "r\n\x1b[2J", "task": "n\x1b[31m\u202e\n" + "n" * 300_000, "params": {"x": 1}})
    client.lpush(f"{prefix(redis_url)}-ff:dead", b"1796000000000 " + b"why\x1b " * 5000 + b"\n" + payload.encode())
    client.lpush(f"{prefix(redis_url)}-ff:failed", b"no header", b"1796000000001 \xff\xfe\nno run")
    client.hset(f"{prefix(redis_url)}-ff:kept", mapping={"dead:trimmed": 7, "failed:trimmed": 5})
    client.expire(f"{prefix(redis_url)}-ff:kept", 100)
    done = run("dead", "app:manager", "list", cwd=app, BROKER=redis_url)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["id", "age", "kind", "task", "reason"]
    assert len(lines) == 6
    assert max(map(len, lines[:4])) <= 80
    assert all(line.isprintable() for line in lines)
    kinds = [next(word for word in line.split() if word in ("dead", "failed")) for line in lines[1:4]]
    assert kinds == ["failed", "dead", "failed"]
    assert lines[4].startswith("1 dead, 2 failed on redis://")
    assert lines[5].startswith("the broker dropped 12 older entries")
    id = lines[2].split()[0]
    shown = run("dead", "app:manager", "show", id, cwd=app, BROKER=redis_url)
    assert max(map(len, shown.stdout.splitlines())) < 2500
    assert "\x1b" not in shown.stdout
    only = run("dead", "app:manager", "list", "--kind", "failed", "--json", cwd=app, BROKER=redis_url)
    assert [json.loads(line)["kind"] for line in only.stdout.splitlines()] == ["failed", "failed"]
    purged = run("dead", "app:manager", "purge", "--kind", "failed", cwd=app, BROKER=redis_url)
    assert "2 removed" in purged.stdout
    assert "1 requeued" in run("dead", "app:manager", "requeue", id, cwd=app, BROKER=redis_url).stdout


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [(["dead", "app:manager", "list", "--limit", "3000"], {141}), (["queue", "--help"], {0, 141})],
)
def test_a_reader_that_goes_away_is_no_error(
    app: Path, redis_url: str, client: Any, arguments: list[str], codes: set[int]
) -> None:
    client.lpush(f"{prefix(redis_url)}-ff:dead", *(b"1796000000000 why\nno run %d" % n for n in range(3000)))
    read, write = os.pipe()
    os.close(read)  # it is gone before the first line
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=app, env=environment(BROKER=redis_url), stdout=write, stderr=subprocess.PIPE,
            timeout=60,
        )  # fmt: skip
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode in codes


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's")
def test_output_that_cannot_be_written_is_said(app: Path, redis_url: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "dead", "app:manager", "list"], cwd=app, env=environment(BROKER=redis_url), stdout=full,
            stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode() == "fluidfast: error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("columns", [72, 80])
@pytest.mark.parametrize("command", ["", "bench", "chaos", "worker", "queue", "dead", "dead app:manager requeue"])
def test_help_fits_the_terminal(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fluidfast.commands import main

    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert not [line for line in lines if len(line) > columns and "fluidfast " not in line]


# -- queue


@pytest.mark.parametrize(
    ("bad", "many", "skip", "told"),
    [
        ([1], 3, False, {"queued": 0, "first": 1, "behind": 0}),
        ([1], 3, True, {"queued": 2, "first": 1, "behind": 2, "last": 3}),
        ([3], 4, False, {"queued": 2, "first": 3, "behind": 0}),
        ([3], 4, True, {"queued": 3, "first": 3, "behind": 1, "last": 4}),
        ([4], 4, True, {"queued": 3, "first": 4, "behind": 0}),
        ([1, 4], 4, True, {"queued": 2, "first": 1, "behind": 2, "last": 3}),
        ([1500, 2600], 4000, True, {"queued": 3998, "first": 1500, "behind": 2499, "last": 4000}),
        ([2500], 4000, False, {"queued": 2499, "first": 2500, "behind": 0}),
    ],
)
def test_bad_lines_are_counted(
    app: Path, redis_url: str, client: Any, bad: list[int], many: int, skip: bool, told: dict[str, int]
) -> None:
    lines = b"".join(BAD if n in bad else GOOD for n in range(1, many + 1))
    how = ["--on-error", "skip"] if skip else []
    done = run("queue", "app:manager", "greet", "--from", "-", *how, cwd=app, input=lines, BROKER=redis_url)
    assert done.returncode == 1
    assert numbers(done.stdout + done.stderr) == told
    assert client.llen(f"{prefix(redis_url)}-queue-medium") == told["queued"]


def numbers(text: str) -> dict[str, int]:
    found = {
        "queued": re.search(r"queued ([\d,]+) runs?", text),
        "first": re.search(r"first line that was not queued: ([\d,]+)", text),
        "behind": re.search(r"([\d,]+) lines? behind that one (?:was|were) queued", text),
        "last": re.search(r"the last is line ([\d,]+)", text),
    }
    told = {name: int(match[1].replace(",", "")) for name, match in found.items() if match}
    return {**told, "behind": told.get("behind", 0)}


def test_lines_that_the_broker_refuses_before_a_bad_one_are_counted_from() -> None:
    """The first that was not queued is known only when the window is through."""
    account = Account()
    account.next_window()
    account.not_queued(7)  # a bad line, seen before anything of its window is sent
    for number in (1, 2, 4, 5, 6, 8, 9):
        account.queued_line(number)
    assert account.behind == 2
    account.not_queued(3)
    assert (account.first_not_queued, account.behind) == (3, 5)
    account.next_window()
    account.queued_line(10)
    assert (account.behind, account.last_queued, account.queued) == (6, 10, 8)


def test_after_ctrl_c_it_says_where_to_go_on(app: Path, redis_url: str, client: Any) -> None:
    key = f"{prefix(redis_url)}-queue-medium"
    options = ("app:manager", "greet", "--from", "-", "--on-error", "skip")
    with Running("queue", *options, cwd=app, stdin=subprocess.PIPE, BROKER=redis_url) as command:
        pipe = command.process.stdin
        assert pipe is not None
        pipe.write(GOOD * 20 + BAD + GOOD * 9)
        pipe.flush()
        until(lambda: client.llen(key) == 29, "the lines are queued")
        command.signal(signal.SIGINT)
        assert command.end() == 130
    said = command.stdout + command.stderr
    assert "interrupted: no line after 30 was queued" in said
    assert numbers(said) == {"queued": 29, "first": 21, "behind": 9, "last": 30}


def test_after_the_second_ctrl_c_too(app: Path, redis_url: str, client: Any) -> None:
    """While it waits for room in a full queue."""
    key = f"{prefix(redis_url)}-queue-medium"
    (app / "lines").write_bytes(GOOD * 5000)
    options = ("app:manager", "greet", "--from", "lines")
    with Running("queue", *options, cwd=app, BROKER=redis_url, OPTIONS="{'max_queue_length': 500}") as command:
        until(lambda: client.llen(key) >= 500, "the queue is full")
        command.signal(signal.SIGINT)
        command.wait_for("Ctrl-C again to end at once")
        command.signal(signal.SIGINT)
        assert command.end() == 130
    told = numbers(command.stdout + command.stderr)
    assert told["queued"] == client.llen(key)
    assert f"interrupted: no line after {told['queued']:,} was queued" in command.stderr
    assert "Traceback" not in command.stderr


# -- exec


class Which(msgspec.Struct):
    run_id: str


class Named(msgspec.Struct):
    log: int = msgspec.field(name="logLevel")


@task
async def again(ctx: TaskRun[Which]) -> None: ...


@task
async def leveled(ctx: TaskRun[Named]) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["again", "--run-id", "abc"], ["'run_id'", "--params '{\"run_id\": ...}'", "--run-id is an option"]),
        (["leveled"], ["'log'", "--params '{\"logLevel\": ...}'"]),
    ],
)
def test_a_field_that_is_named_like_an_option_of_exec_is_explained(arguments: list[str], words: list[str]) -> None:
    from click.testing import CliRunner

    from fluidfast.cli import TaskManagerCLI

    manager = TaskManager(broker_url="memory://fields")
    manager.register_task(again)
    manager.register_task(leveled)
    result = CliRunner().invoke(TaskManagerCLI(manager), ["exec", *arguments])
    assert result.exit_code == 2
    for word in words:
        assert word in result.output
    assert "Invalid value for --" not in result.output
    shown = CliRunner().invoke(TaskManagerCLI(manager), ["exec", arguments[0], "--help"], env={"COLUMNS": "200"})
    assert "The only way to give " in " ".join(shown.output.split())
    given = CliRunner().invoke(
        TaskManagerCLI(manager), ["exec", "again", "--run-id", "abc", "--params", '{"run_id": "x"}']
    )
    assert given.exit_code == 0, given.output
