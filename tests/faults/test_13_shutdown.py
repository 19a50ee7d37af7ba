"""Row 13: ``python -m fluidfast worker`` is told to stop, under load: what runs finishes, what has not started is back
on its queue in its order, at once; what takes longer than the grace period is run again elsewhere; nothing is lost.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import pytest
from apps.processes import Command, Item, queue_all
from apps.shut import TASKS
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED, STARTED, Oracle
from fluidfast.wire.peek import read_fields

SLACK_SECONDS = 1.0


def start(fleet: Fleet, who: str = "worker1", *, grace: float, concurrency: int = 4, plant: str = "") -> Command:
    command = [sys.executable, "-m", "fluidfast", "worker", "shut:consumer", "--log-level", "WARNING"]
    worker = Command(fleet, who, command, grace=grace, concurrency=concurrency, plant=plant)
    until(worker.is_ready, 30, lambda: f"ready:\n{worker.log}")
    return worker


def stop(worker: Command, *, kill_after: float | None = None) -> tuple[float, int]:
    """SIGTERM, and SIGKILL if it has not ended by then. Gives seconds to the end, and the exit code."""
    began = time.monotonic()
    worker.terminate()
    try:
        code = worker.popen.wait(kill_after or 60)
    except Exception:
        if kill_after is None:
            raise
        worker.kill()
        code = worker.popen.returncode
    worker.end()
    return time.monotonic() - began, code


def waiting(fleet: Fleet, priority: str) -> list[str]:
    """Ids on a queue, the next first."""
    payloads: list[bytes] = fleet.call("LRANGE", f"{fleet.prefix}-queue-{priority}", 0, -1)
    return [str(read_fields(payload)["id"]) for payload in reversed(payloads)]


def ids(oracle: Oracle, word: str) -> set[str]:
    return {line.id for line in oracle.lines(word)}


def loaded(
    fleet: Fleet, oracle: Oracle, slow_seconds: float, *, quick: int = 600, each: int = 20
) -> dict[str, list[str]]:
    """Quick runs, so that the worker gets used to claiming many; then slow ones of each priority. Gives those."""
    items: list[Item] = [("quick", f"quick-{i}", "high", {}) for i in range(quick)]
    slow = {word: [f"{word}-{i}" for i in range(each)] for word in ("high", "medium", "low")}
    items += [("sleeping", id, word, {"seconds": slow_seconds}) for word, found in slow.items() for id in found]
    queue_all(fleet, oracle, TASKS, items, at_once=1)
    return slow


def slow_started(oracle: Oracle) -> set[str]:
    return {id for id in ids(oracle, STARTED) if not id.startswith("quick")}


def test_sigterm_gives_back_in_order_and_finishes_what_runs(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    sigterm(make_fleet, oracle, fault_seed, figures)


def sigterm(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, plant: str = ""
) -> None:
    fleet = make_fleet(lease_seconds=30)
    slow = loaded(fleet, oracle, 0.6)
    worker = start(fleet, grace=10, plant=plant)
    until(lambda: len(slow_started(oracle)) >= 4, 20, "slow ones run")
    claimed = sum(map(len, slow.values())) - sum(len(waiting(fleet, word)) for word in slow) - 4
    seconds, code = stop(worker)
    assert code == 0
    places = fleet.places()
    started = slow_started(oracle)
    assert ids(oracle, STARTED) == ids(oracle, FINISHED)
    assert places.keys() <= {"high", "medium", "low"}, places
    for word, found in slow.items():
        assert waiting(fleet, word) == [id for id in found if id not in started], word
    another = start(fleet, "worker2", grace=10, concurrency=60)
    fleet.drain(30)
    assert stop(another)[1] == 0
    verdict = fleet.verdict().check(seed=fault_seed, killed=())
    assert not verdict.starts
    fleet.assert_clean()
    figures.add(
        13, "SIGTERM, handlers that fit the grace period", exit_s=seconds, handler_s=0.6, grace_s=10,
        claimed_and_not_started=claimed, **verdict.counts(),
    )  # fmt: skip
    assert claimed > 0
    assert seconds <= 0.6 + SLACK_SECONDS + 0.5


def test_what_outlives_the_grace_period_goes_back(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures
) -> None:
    """The first SIGTERM waits for the grace period, a second one does not; what ran is next to run, in its order."""
    found: dict[str, float] = {}
    fleet = make_fleet(lease_seconds=30)
    slow = loaded(fleet, oracle, 30, quick=0)
    first = [id for word in slow for id in slow[word]]
    for who, grace, hurried in (("once", 1.0, False), ("twice", 20.0, True)):
        before = oracle.count(STARTED)
        worker = start(fleet, who, grace=grace)
        until(lambda n=before: oracle.count(STARTED) >= n + 4, 20, "four run")
        began = time.monotonic()
        worker.terminate()
        if hurried:
            time.sleep(0.3)
            worker.terminate()
        assert worker.wait(30) == 0
        found[f"exit_{who}_s"] = time.monotonic() - began
        assert fleet.places().keys() <= {"high", "medium", "low"}
        assert [id for word in slow for id in waiting(fleet, word)] == first
    verdict = fleet.verdict()
    figures.add(
        13, "SIGTERM once (grace 1 s) and twice (grace 20 s), handlers of 30 s", **found,
        interrupted=len(slow_started(oracle)), left_on_the_queue=len(first),
    )  # fmt: skip
    assert verdict.counts()["ok"] == 0
    assert not ids(oracle, FINISHED)
    assert found["exit_once_s"] <= 1.0 + SLACK_SECONDS
    assert found["exit_twice_s"] <= 0.3 + SLACK_SECONDS


@pytest.mark.parametrize("kinds", ["stubborn threaded", pytest.param("blocking", marks=pytest.mark.soak)])
def test_what_cannot_be_stopped(
    make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures, kinds: str
) -> None:
    """A handler that does not let itself be cancelled, one in a thread, one that blocks the event loop: by the grace
    period and a second the worker is gone, by itself or by SIGKILL, and its runs are run elsewhere.
    """
    grace = 0.5
    fleet = make_fleet(lease_seconds=1.0)
    items: list[Item] = [(kind, f"{kind}-{i}", None, {"seconds": 2.2}) for kind in kinds.split() for i in range(2)]
    queue_all(fleet, oracle, TASKS, items)
    worker = start(fleet, grace=grace)
    until(lambda: oracle.count(STARTED) >= (1 if kinds == "blocking" else 4), 20, "they run")
    seconds, code = stop(worker, kill_after=grace + SLACK_SECONDS + 0.5)
    another = start(fleet, "worker2", grace=10)
    fleet.drain(30)
    stop(another)
    verdict = fleet.verdict().check(seed=fault_seed)
    fleet.assert_clean()
    had = {line.id for line in oracle.lines(STARTED, "worker1")}
    again = set(verdict.recovered) | set(verdict.duplicated)
    figures.add(
        13, f"SIGTERM, then SIGKILL 1.5 s after the grace period, handlers that cannot be stopped: {kinds}",
        exit_s=seconds, exit_code=code, grace_s=grace, **verdict.counts(),
    )  # fmt: skip
    assert again <= had
    assert code == (-9 if kinds == "blocking" else 0)  # that does not even hear of the first signal


@pytest.mark.soak
def test_rolling_restarts(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    """Workers are stopped under load and replaced, again and again: SIGTERM, and SIGKILL after the grace period."""
    fleet = make_fleet(lease_seconds=2.0)
    draw = random.Random(fault_seed)
    stops, grace = 100, 2.0
    workers = [start(fleet, f"roll{i}", grace=grace, concurrency=10) for i in range(3)]
    priorities = ["high", "medium", "low"]
    producer = fleet.producer(count=1_000_000, rate=60, ms=300, priorities=priorities, seed=fault_seed)
    seconds = []
    for number in range(stops):
        time.sleep(draw.uniform(0.1, 0.6))
        took, code = stop(workers.pop(0), kill_after=grace + SLACK_SECONDS)
        assert code == 0
        seconds.append(took)
        workers.append(start(fleet, f"roll{number + 3}", grace=grace, concurrency=10))
    producer.terminate()
    producer.done(30)
    fleet.drain(600)
    fleet.stop()
    verdict = fleet.verdict().check(seed=fault_seed, killed=())
    assert not verdict.starts
    fleet.assert_clean()
    figures.add(
        13, "rolling restarts under load", stops=stops, exit_s_max=max(seconds), grace_s=grace, **verdict.counts()
    )  # fmt: skip


@pytest.mark.soak
def test_calibration(make_fleet: Callable[..., Fleet], oracle: Oracle, fault_seed: int, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="leases"):
        sigterm(make_fleet, oracle, fault_seed, figures, "no-release")
