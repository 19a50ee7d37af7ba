"""``worker app:manager``: all that a plain manager has comes to its consumer, and a module that cannot be imported is
named by the user's own line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kits.command_kit import ROOT, Running, environment, run, until

from fluidfast import TaskManager, TaskManagerPlugin, TaskRun, task
from fluidfast.commands.target import CommandError, as_consumer, as_manager, load

# -- what a plain manager has

APP = """
import asyncio, os
from contextlib import asynccontextmanager
from fluidfast import TaskConsumer, TaskManager, TaskManagerPlugin, TaskRun, crontab, task

def say(*words):
    print(*words, flush=True)

@task(schedule=crontab())
async def first(ctx: TaskRun) -> None:
    say("ran", ctx.name, ctx.deps, ctx.task_manager.state.opened)
    await manager.queue("second")

@task(tags=["mine"])
async def second(ctx: TaskRun) -> None:
    say("ran", ctx.name, sorted(ctx.task.tags))

class History(TaskManagerPlugin):
    def register(self, manager):
        async def note(run):
            say("async", run.name, run.state)

        async def removed(run):
            say("async that was removed", run.name)

        manager.dispatcher.register_handler("success.plain", lambda run: say("plain", run.name, run.state))
        manager.register_async_handler("success.history", note)
        manager.register_async_handler("running", note)
        manager.register_async_handler("success.removed", removed)
        manager.unregister_async_handler("success.removed")

@asynccontextmanager
async def opened():
    async def late(run):
        say("late async", run.name)

    manager.state.opened = "opened"
    manager.register_async_handler("success.late", late)
    manager.dispatcher.register_handler("success.late-plain", lambda run: say("late plain", run.name))
    yield
    say("closed")

kind = TaskConsumer if os.environ["KIND"] == "consumer" else TaskManager
manager = kind(deps="deps", delivery="buffered").with_plugin(History())
manager.add_async_context_manager(opened())
manager.register_from_dict({"first": first, "second": second})
"""


@pytest.mark.parametrize("kind", ["manager", "consumer"])
def test_a_worker_has_all_that_its_manager_has(tmp_path: Path, redis_url: str, kind: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    variables = {"FLUID_BROKER_URL": redis_url, "KIND": kind}
    run("queue", "app:manager", "first", cwd=tmp_path, **variables)
    with Running("worker", "app:manager", cwd=tmp_path, **variables) as worker:
        expected = {
            *(f"{what} {name} {state}" for name in ("first", "second") for what, state in (
                ("async", "running"), ("async", "success"), ("plain", "success"))),
            *(f"late {what} {name}" for name in ("first", "second") for what in ("async", "plain")),
            "ran first deps opened",
            "ran second ['mine']",
        }  # fmt: skip
        until(lambda: expected <= set(worker.stdout.splitlines()), f"{expected - set(worker.stdout.splitlines())}")
        worker.signal(15)
        assert worker.end() == 0
    assert set(worker.stdout.splitlines()) == {*expected, "closed"}
    assert (
        "this worker does not fire schedules, only a TaskScheduler does; scheduled tasks: first" in worker.stderr
    ) == (kind == "manager")
    assert "overrides" not in worker.stderr


def test_what_is_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(TaskManager):
        async def on_startup(self) -> None: ...

        def helper(self) -> None: ...

    @task
    async def work(ctx: TaskRun) -> None: ...

    manager = Mine()
    manager.register_task(work)
    as_consumer(manager, None)
    assert "this Mine into a TaskConsumer" in caplog.text
    assert "(on_startup)" in caplog.text


def test_plugins_come_along() -> None:
    class Plugin(TaskManagerPlugin):
        def register(self, task_manager: TaskManager) -> None: ...

    manager = TaskManager().with_plugin(plugin := Plugin())
    assert as_consumer(manager, None).plugins == [plugin]


# -- modules that cannot be imported

BROKEN = {
    "an option": (
        'from fluidfast import TaskManager\n\nmanager = TaskManager(broker_url="redis://h?leese_seconds=3")',
        3,
    ),
    "a library": ("import json\n\njson.loads('{')", 3),
    "a package": ("import msgspec\nmsgspec.json.decode(b'{')", 2),
    "a helper": ("import helper\n\nhelper.fails()", (2, "helper")),
    "no module": ("\nimport nothing_of_that_name", 2),
    "no name": ("\nfrom json import nothing", 2),
    "no name of ours": ("\n\nfrom fluidfast import nothing", 3),
    "no name of a helper": ("\nfrom helper import nothing", 2),
    "an attribute": ("import os\nos.nothing", 2),
    "syntax": ("\n\ndef f(:", 3),
    "indentation": ("if True:\npass", 2),
    "syntax of a helper": ("import helper_with_syntax", (2, "helper_with_syntax")),
    "code in a text": ("\neval('1 +')", 2),
    "a task": ("from fluidfast import task\n@task(timeout_seconds=-1)\nasync def f(ctx): ...", 2),
    "not an Exception": ("import asyncio\nraise asyncio.CancelledError", 2),
    "a group": ("raise ExceptionGroup('two', [KeyError(1), ValueError(2)])", 1),
    "no text": ("class Odd(Exception):\n    def __str__(self): return 1 / 0\n\nraise Odd", 4),
    "control characters": ("raise KeyError('\\x1b[2J\\u202e' + 'x' * 9000)", 1),
    "exit": ("import sys\nsys.exit(3)", 2),
    "exit without an error": ("import sys\nsys.exit()", 2),
    "argparse": ("import argparse\nargparse.ArgumentParser().parse_args(['--no'])", 2),
}


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "helper.py").write_text("def fails():\n    return 1 / 0\n")
    (tmp_path / "helper_with_syntax.py").write_text("\nthis is\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def forget(*names: str) -> None:
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("case", BROKEN)
def test_the_users_own_line_is_named(apps: Path, case: str) -> None:
    text, place = BROKEN[case]
    line, module = place if isinstance(place, tuple) else (place, "broken_app")
    (apps / "broken_app.py").write_text(text)
    forget("broken_app", "helper", "helper_with_syntax")
    with pytest.raises(CommandError) as caught:
        load("broken_app:manager")
    said = str(caught.value)
    assert f"({apps / module}.py, line {line})" in said, said
    assert said.isprintable()
    assert len(said) < 3000
    if "exit" in case or case == "argparse":
        assert "exits while it is imported" in said
        assert "__main__" in said


def test_the_line_of_a_factory_is_named(apps: Path) -> None:
    (apps / "factory_app.py").write_text(
        "import sys\nfrom fluidfast import TaskManager\n"
        "def make():\n    return TaskManager(broker_url='nothing')\ndef leave():\n    sys.exit(1)"
    )
    for name, line in (("make", 4), ("leave", 6)):
        with pytest.raises(CommandError, match=rf"factory_app.py, line {line}\)"):
            as_manager(load(f"factory_app:{name}"), f"factory_app:{name}")
    forget("factory_app")


def test_an_installed_application_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "installed_app.py").write_text("\nfrom fluidfast import TaskManager\nTaskManager(broker_url='nothing')")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(CommandError, match=r"installed_app.py, line 3\)"):
        load("installed_app:manager")


def test_a_module_that_exits_is_an_error_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    done = run("worker", "leaves:manager", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "leaves.py, line 2" in line


# -- a clone in which nothing was built


@pytest.mark.parametrize("built", [(), ("_time", "_run", "_machine", "_pqueue", "_resp")])
def test_an_import_without_the_compiled_modules_says_how_to_build_them(tmp_path: Path, built: tuple[str, ...]) -> None:
    shutil.copytree(
        ROOT / "fluidfast", tmp_path / "fluidfast", ignore=shutil.ignore_patterns("*.so", "*.pyx", "__pycache__")
    )
    for name in built:
        for module in ROOT.glob(f"fluidfast/**/{name}.*.so"):
            shutil.copy(module, tmp_path / module.relative_to(ROOT).parent)
    # the finder of an editable install would find the modules of the checkout
    program = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; import fluidfast"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**environment(), "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match(r"ImportError: No module named 'fluidfast\.(\w+\.)+_", last)
    assert "pip install -e ." in last
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in last
