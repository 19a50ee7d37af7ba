"""``worker --reload``: real files that change under a running worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from kits.command_kit import COMMAND, Running, run, until

from fluidfast.commands.reload import folders_of

APP = """
import asyncio, pathlib
from fluidfast import TaskConsumer, TaskRun, task
import version

HERE = pathlib.Path(__file__).parent

def note(text):
    with open(HERE / "notes", "a") as file:
        file.write(text + "\\n")

@task
async def hold(ctx: TaskRun) -> None:
    note(f"start {version.NUMBER}")
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    note(f"end {version.NUMBER}")

def consumer():
    made = TaskConsumer()
    made.register_task(hold)
    return made
"""
MAIN = """
from fluidfast.cli import TaskManagerCLI
TaskManagerCLI("app:consumer")()
"""


def version(app: Path, text: str) -> None:
    new = app / "version.new"
    new.write_text(text)
    os.replace(new, app / "version.py")


@pytest.mark.parametrize("own", [False, True], ids=["fluidfast", "the application's own"])
def test_a_change_drains_and_restarts(tmp_path: Path, redis_url: str, own: bool) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "main.py").write_text(MAIN)
    version(tmp_path, "NUMBER = 1\n")
    notes = tmp_path / "notes"
    env = {"FLUID_BROKER_URL": redis_url, "PYTHONDONTWRITEBYTECODE": "1"}
    program = (COMMAND[0], "main.py") if own else COMMAND
    target = () if own else ("app:consumer",)

    def queue() -> None:
        assert run("queue", *target, "hold", cwd=tmp_path, program=program, **env).returncode == 0

    with Running("worker", *target, "--reload", cwd=tmp_path, program=program, **env) as worker:
        worker.wait_for("1 tasks, ")
        queue()
        until(notes.exists, "a run")
        version(tmp_path, "NUMBER = 2\n")
        worker.wait_for("version.py changed: draining and restarting 1 workers")
        worker.wait_for("shutting down: running tasks have 10 s")
        (tmp_path / "go").touch()
        until(lambda: worker.stderr.count("1 tasks, ") == 2, "the next worker")
        queue()
        until(lambda: notes.read_text().splitlines() == ["start 1", "end 1", "start 2", "end 2"], "a run of it")
        version(tmp_path, "NUMBER = (\n")
        worker.wait_for("SyntaxError: '(' was never closed")
        worker.wait_for("ended with exit code 1; waiting for a change of a file")
        version(tmp_path, "NUMBER = 3\n")
        until(lambda: worker.stderr.count("1 tasks, ") == 3, "the next worker")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    assert "Traceback" not in worker.stderr


def test_a_file_that_is_wrong_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("x = (\n")
    with Running("worker", "app:consumer", "--reload", cwd=tmp_path) as worker:
        worker.wait_for("SyntaxError")
        worker.wait_for("waiting for a change of a file")
        version(tmp_path, "NUMBER = 1\n")
        (tmp_path / "app.py").write_text(APP)
        worker.wait_for("1 tasks, ")
        worker.signal(signal.SIGINT)
        assert worker.end() == 0


def test_which_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for folder in (here / "mine", other / "package"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (other / "single.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(other)
    monkeypatch.syspath_prepend(here)
    assert folders_of("mine.sub:manager") == [str(here)]
    assert folders_of("package.sub:manager") == [str(here), str(other / "package")]
    assert folders_of("single:manager") == [str(here), str(other)]
    assert folders_of("nothing_there:manager") == folders_of("this application") == [str(here)]
