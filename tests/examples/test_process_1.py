"""The worker as process 1 of a PID namespace, as in a container without an init: signals, exit code, no zombies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kits.command_kit import until
from kits.example_kit import Example, started

WORKER = "python -m fluidfast worker app:manager --concurrency 20"
SHIP = """python -m fluidfast queue app:manager ship --params '{"order": "A-7"}'"""
UNSHARE = "unshare --pid --fork --mount-proc --kill-child"
if os.geteuid() != 0:
    UNSHARE += " --user --map-root-user"


def may_make_namespaces() -> bool:
    return sys.platform.startswith("linux") and subprocess.run([*UNSHARE.split(), "true"]).returncode == 0


pytestmark = pytest.mark.skipif(
    not may_make_namespaces() and "CI" not in os.environ, reason="this user may not make a PID namespace"
)
if not sys.platform.startswith("linux"):
    pytest.skip("PID namespaces are Linux's", allow_module_level=True)


class Container:
    """A worker of examples/deploy as process 1."""

    def __init__(self, example: Example, options: str = "") -> None:
        self.running = example.start(WORKER, under=UNSHARE, replacing={"20": f"20 {options}"})

    def __enter__(self) -> Container:
        self.running.__enter__()
        started(self.running)
        [self.pid] = until(self._first_processes, "process 1")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.running.__exit__(None, None, None)  # unshare's end kills process 1, and so all others

    def _first_processes(self) -> list[int]:
        """Its id outside: what `unshare` has started, whose NSpid is 1."""
        found, parents = [], [self.running.process.pid]
        while parents:
            parent = parents.pop()
            for child in children_of(parent):
                (found if inner_pid(child) == 1 else parents).append(child)
        return found


def status_of(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def inner_pid(pid: int) -> int:
    """The id of a process in its innermost namespace; 0 if it has none of its own."""
    ids = status_of(pid).get("NSpid", "").split()
    return int(ids[-1]) if len(ids) > 1 else 0


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.fixture
def example(redis_url: str, tmp_path: Path) -> Example:
    return Example("deploy", tmp_path, FLUID_BROKER_URL=redis_url, HEARTBEAT_FILE=str(tmp_path / "alive"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains(example: Example, number: signal.Signals) -> None:
    with Container(example) as container:
        example.run(SHIP, replacing={'"A-7"': '"A-7", "seconds": 1'})
        container.running.wait_for("begin A-7")
        os.kill(container.pid, number)
        assert container.running.end() == 0
        assert "end A-7" in container.running.stdout, "the run had time to finish"


def test_a_second_signal_ends_at_once_and_the_run_goes_back(example: Example) -> None:
    with Container(example) as container:
        example.run(SHIP, replacing={'"A-7"': '"A-7", "seconds": 1000'})
        container.running.wait_for("begin A-7")
        os.kill(container.pid, signal.SIGTERM)
        container.running.wait_for("shutting down")
        os.kill(container.pid, signal.SIGTERM)
        assert container.running.end() == 0
    with example.start(WORKER) as next_worker:
        next_worker.wait_for("begin A-7")


def test_a_supervisor_replaces_a_worker_and_leaves_no_zombie(example: Example) -> None:
    with Container(example, "--processes 2") as container:
        until(lambda: container.running.stderr.count(" at a time") == 2, "both run")
        workers = until(lambda: len(found := children_of(container.pid)) == 2 and found, "two workers")
        os.kill(workers[0], signal.SIGKILL)
        replaced = until(
            lambda: workers[0] not in (now := children_of(container.pid)) and len(now) == 2 and now, "another worker"
        )
        assert workers[1] in replaced
        until(lambda: container.running.stderr.count(" at a time") == 3, "it runs")
        os.kill(container.pid, signal.SIGTERM)
        assert container.running.end() == 0
