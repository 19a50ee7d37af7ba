"""CPU-bound runs: any id, and a process that ends well without having executed its run is a failure."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from kits import faces_app
from kits.command_kit import ROOT, Running
from kits.waiting import within

from fluidfast import TaskManager, TaskRun, TaskState
from fluidfast.errors import TaskRunError

IDS = ["--params", "-1", "-", "--", "--help", "a b\n\x1b[2J\u202e'\"", "nul\x00", "x" * 5000, "=", ""]

APP = """
from fluidfast import TaskManager, TaskRun, task

IDS = {ids!r}

@task(cpu_bound=True)
async def heavy(ctx: TaskRun) -> None:
    print("ran", IDS.index(ctx.id), flush=True)

manager = TaskManager(broker_url="memory://", max_concurrent_tasks=3)
manager.register_task(heavy)

class Queue:
    async def __aenter__(self):
        for run_id in IDS:
            await manager.queue("heavy", run_id=run_id)

    async def __aexit__(self, *_):
        pass

from fluidfast import is_in_cpu_process
if not is_in_cpu_process():
    manager.add_async_context_manager(Queue())
"""


def test_a_worker_executes_runs_of_any_id(tmp_path: Path) -> None:
    ids = IDS[:9:2]
    (tmp_path / "ids.py").write_text(APP.format(ids=ids))
    with Running("worker", "ids:manager", cwd=tmp_path) as worker:
        for number in range(len(ids)):
            worker.wait_for(f"ran {number}\n")
        worker.signal(15)
        assert worker.end() == 0
    assert "failure" not in worker.stderr


def an_application(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """This process was started by this command, and so are its children."""
    monkeypatch.setattr(sys, "orig_argv", [*command, "serve"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(faces_app.__file__).parents[1]), str(ROOT)]))
    monkeypatch.setenv("FLUID_BROKER_URL", "memory://")


async def execute(name: str, run_id: str = "", **params: Any) -> TaskRun:
    async with TaskManager(broker_url="memory://") as manager:
        faces_app.registered(manager)
        return await within(manager.execute(name, run_id=run_id, **params), 20)


@pytest.mark.parametrize("run_id", [IDS[0], IDS[5], IDS[6], IDS[7]], ids=ascii)
async def test_an_application_executes_runs_of_any_id(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    an_application(monkeypatch, sys.executable, faces_app.__file__)
    assert (await execute("quiet", run_id)).state is TaskState.success


PROGRAMS = {
    "nothing": "",
    "an exit": "import sys; sys.exit(0)",
    "garbage": "import os; os.write(1, bytes(range(256)) * 1000); os.write(2, bytes(range(256)) * 1000)",
    "closed output": "import os; os.close(1); os.close(2)",
    "the output of all": "import os; [os.write(fd, b'done') for fd in (1, 2)]",
    "another run": """
        import asyncio
        from fluidfast import TaskManager, task
        @task
        async def other(ctx): ...
        manager = TaskManager(broker_url="memory://")
        manager.execute_sync(other)
    """,
    "another run of that task": """
        from kits import faces_app
        from fluidfast import TaskManager
        faces_app.registered(TaskManager(broker_url="memory://")).execute_sync("quiet", run_id="other")
    """,
    "a start that fails": """
        import asyncio
        from kits import faces_app
        async def main():
            try:
                await faces_app.consumer().startup()
            except Exception as exc:
                print(exc)
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_process_that_did_not_execute_its_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAMS[name]))
    an_application(monkeypatch, sys.executable, str(program))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    with pytest.raises(TaskRunError, match="exit code 0 and has not executed the run: its entry point"):
        await execute("quiet")


async def test_an_entry_point_that_executes_it_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import sys
            from kits import faces_app
            from fluidfast import TaskManager
            run_id = next(word for word in sys.argv if word.startswith("--run-id=")).partition("=")[2]
            faces_app.registered(TaskManager(broker_url="memory://")).execute_sync(sys.argv[2], run_id=run_id)
        """)
    )
    an_application(monkeypatch, sys.executable, str(program))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    assert (await execute("quiet", "an-id")).state is TaskState.success


@pytest.mark.parametrize(
    ("how", "said"),
    [("_exit", "exit code 0 and has not"), ("exit", "exit code 0 and has not"), ("state", "exit code 1")],
)
async def test_a_task_that_ends_its_process(how: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    an_application(monkeypatch, sys.executable, faces_app.__file__)
    with pytest.raises(TaskRunError, match=said):
        await execute("ends", secret=how)


async def test_the_task_s_own_children_have_no_part_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They inherit neither the descriptor nor the variable of the confirmation, and one that stays holds up nothing."""
    an_application(monkeypatch, sys.executable, faces_app.__file__)
    assert (await execute("has_children")).state is TaskState.success
