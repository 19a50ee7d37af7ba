"""Row 24: a supervisor with two workers, as systemd and shells treat them.

SIGTERM to the whole group, the supervisor killed, its output closed or the disk full: one stop is one stop, children
end, work goes on, nothing is lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apps.processes import APPS, Item, queue_all
from apps.shut import TASKS
from harness import Fleet, until
from results import Figures

import fluidfast
from fluidfast.commands.trials.ledger import FINISHED, STARTED, Oracle

OUTPUTS = {"as usual": None, "disk full": "/dev/full", "closed": "closed"}


class Group:
    """A supervisor and its workers, in a process group of their own."""

    def __init__(self, fleet: Fleet, who: str, *, grace: float, output: str | None = None) -> None:
        options = {
            "url": fleet.url, "ledgers": str(fleet.oracle.directory), "who": who, "grace": grace, "concurrency": 4,
        }  # fmt: skip
        paths = [str(Path(fluidfast.__file__).parents[1]), str(APPS.parent)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "FAULT": json.dumps(options)}
        command = [sys.executable, "-m", "fluidfast", "worker", "shut:consumer", "--processes", "2"]
        if output == "closed":
            command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
        # the app ends with its stdin, which this pipe holds open: that children end with their supervisor is up to us
        read, self.held = os.pipe()
        with open("/dev/full" if output == "/dev/full" else os.devnull, "wb") as out:
            self.popen = subprocess.Popen(
                command, stdin=read, stdout=out, stderr=out, env=env, cwd=APPS, start_new_session=True
            )
        os.close(read)

    def signal(self, number: int) -> None:
        os.killpg(self.popen.pid, number)

    def members(self) -> list[int]:
        """Pids of its group that are alive."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.popen.pid and fields[0] != "Z":
                found.append(int(entry))
        return found

    def end(self) -> None:
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()
        os.close(self.held)


@pytest.fixture
def groups() -> Iterator[list[Group]]:
    found: list[Group] = []
    yield found
    for group in found:
        group.end()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_stop_of_the_whole_group(
    fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures, groups: list[Group], output: str
) -> None:
    """What runs finishes within the grace period, what has not started is back on its queue."""
    items: list[Item] = [("sleeping", f"slow-{i}", None, {"seconds": 1.5}) for i in range(30)]
    queue_all(fleet, oracle, TASKS, items)
    group = Group(fleet, "group", grace=10, output=OUTPUTS[output])
    groups.append(group)
    until(lambda: oracle.count(STARTED) >= 8, 30, "all eight slots run")
    began = time.monotonic()
    group.signal(signal.SIGTERM)
    until(lambda: not group.members(), 20, "the group has ended")
    took = time.monotonic() - began
    code = group.popen.wait(5)
    started, finished = oracle.count(STARTED), oracle.count(FINISHED)
    places = fleet.places()
    figures.add(
        24,
        f"SIGTERM to the whole group, output {output}",
        exit_code=code,
        exit_s=took,
        started=started,
        finished=finished,
    )
    assert code == 0
    assert started == finished
    assert places == {"medium": 30 - started}
    assert took < 1.5 + 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_supervisor_is_killed(
    fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures, groups: list[Group]
) -> None:
    """Its children end, whatever they run, and others run what they had."""
    items: list[Item] = [("blocking", f"block-{i}", None, {"seconds": 60}) for i in range(2)]
    queue_all(fleet, oracle, TASKS, items)
    group = Group(fleet, "group", grace=1)
    groups.append(group)
    until(lambda: oracle.count(STARTED) >= 1, 30, "a handler blocks its loop")
    began = time.monotonic()
    os.kill(group.popen.pid, signal.SIGKILL)
    until(lambda: not group.members(), 15, lambda: f"all have ended: {group.members()}")
    took = time.monotonic() - began
    figures.add(24, "the supervisor is killed, a child blocks its loop", ended_s=took, grace_s=1.0)
    assert took < 1 + 4
