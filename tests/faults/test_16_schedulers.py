"""Row 16: several schedulers on one broker, and the one that was first is killed when the next time is due: every due
time fires once.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import Any

import pytest
from apps.processes import Command, app, script
from harness import Fleet, percentile, until
from results import Figures

from fluidfast.commands.trials.ledger import NOTE, STARTED, Oracle

PERIODS = {"each_second": 1, "each_other": 2, "each_minute": 60}


def start(fleet: Fleet, number: int, *, crontab: bool, plant: str) -> Command:
    return script(fleet, f"scheduler{number}", "schedules", crontab=crontab, plant=plant)


def leader(oracle: Oracle, schedulers: list[Command]) -> Command:
    """Who of the living was the last to be first."""
    fired = [line for line in oracle.lines(NOTE) if line.id.startswith("fired ")]
    living = {process.who: process for process in schedulers if process.alive}
    return next(
        (living[line.who] for line in sorted(fired, key=lambda line: -line.at) if line.who in living), schedulers[0]
    )


def run(
    fleet: Fleet,
    oracle: Oracle,
    seed: int,
    *,
    schedulers: int,
    seconds: float,
    kills: int,
    crontab: bool = False,
    plant: str = "",
) -> dict[str, Any]:
    """So many schedulers for so long, with so many kills at due times, each replaced."""
    draw = random.Random(seed)
    options: dict[str, Any] = {"crontab": crontab, "plant": plant}
    fleet.workers(1, app=app("schedules"))
    running = [start(fleet, i, **options) for i in range(schedulers)]
    until(lambda: all(process.is_ready() for process in running), 30, "all are ready")
    began = time.time()
    for kill in range(kills):
        # around a whole second, which is when all is due
        due = began + seconds * (kill + 1) / (kills + 1)
        at = round(due) + draw.uniform(-0.01, 0.12)
        time.sleep(max(0.0, at - 0.3 - time.time()))
        victim = leader(oracle, running)
        time.sleep(max(0.0, at - time.time()))
        victim.kill()
        running.remove(victim)
        running.append(start(fleet, schedulers + kill, **options))
    time.sleep(max(0.0, began + seconds - time.time()))
    ended = time.time()
    # the last one may not be there yet on a busy machine, and SIGTERM before it listens is no shutdown
    until(lambda: all(process.is_ready() for process in running), 30, "those that came later are ready")
    for process in running:
        process.terminate()
    for process in running:
        process.done()
    fleet.drain(20)
    fleet.stop()
    return judge(fleet, oracle, began, ended, schedulers=schedulers, kills=kills, seed=seed)


def judge(
    fleet: Fleet, oracle: Oracle, began: float, ended: float, *, schedulers: int, kills: int, seed: int
) -> dict[str, Any]:
    meant: dict[str, tuple[str, int]] = {}  # run id -> task, number of the due time
    for line in oracle.lines(NOTE):
        if line.id.startswith("try "):
            _, key, id = line.id.split(" ")
            _, name, number = key.split(":")
            meant[id] = name, int(number)
    fired: dict[tuple[str, int], list[float]] = defaultdict(list)
    offset = time.time() - time.monotonic()
    for line in oracle.lines(STARTED):
        assert line.id in meant, f"a run that no scheduler has made: {line.id}"
        fired[meant[line.id]].append(line.at + offset)
    double = {key: len(at) for key, at in fired.items() if len(at) > 1}
    missed = []
    late = []
    due = 0
    for name, period in PERIODS.items():
        if name == "each_minute" and not any(task == name for task, _ in fired):
            assert ended - began < 120
            continue
        unit = 60 if name == "each_minute" else period
        # a crontab's number is in seconds
        numbers = [number // 60 if name == "each_minute" else number for task, number in fired if task == name]
        wanted = range(int(began // unit) + 1, int(ended // unit))
        due += len(wanted)
        missed += [(name, number) for number in wanted if number not in numbers]
        scale = 60 if name == "each_minute" else 1
        late += [at[0] - number * unit for number in wanted if (at := fired.get((name, number * scale))) is not None]
    fleet.assert_clean()
    figures = {
        "schedulers": schedulers, "leaders_killed": kills, "due_times": due, "fired": len(fired), "double": len(double),
        "missed": len(missed), "late_ms_p50": percentile(late, 0.5) * 1000, "late_ms_max": max(late) * 1000,
    }  # fmt: skip
    print(f"seed {seed}: {figures}")
    assert not double, f"seed {seed}: fired more than once: {double}"
    assert not missed, f"seed {seed}: missed: {missed}"
    return figures


def test_every_due_time_fires_once(fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    found = run(fleet, oracle, fault_seed, schedulers=4, seconds=4, kills=3)
    figures.add(16, "4 schedulers, the leader killed at due times", **found)


@pytest.mark.soak
@pytest.mark.parametrize("schedulers", [2, 5])
def test_for_minutes(fleet: Fleet, oracle: Oracle, fault_seed: int, figures: Figures, schedulers: int) -> None:
    found = run(fleet, oracle, fault_seed, schedulers=schedulers, seconds=300, kills=100, crontab=True)
    figures.add(16, f"{schedulers} schedulers with a crontab as well, the leader killed at due times", **found)


@pytest.mark.soak
@pytest.mark.parametrize("plant", ["mark-then-push", "push-always"])
def test_calibration(fleet: Fleet, oracle: Oracle, fault_seed: int, plant: str) -> None:
    red = "missed" if plant == "mark-then-push" else "fired more than once"
    with pytest.raises(AssertionError, match=red):
        run(fleet, oracle, fault_seed, schedulers=3, seconds=20, kills=15, plant=plant)
