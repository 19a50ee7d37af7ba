"""Row 2: the server is killed by SIGKILL and started again: consumers and producers connect again by themselves, the
rate is back within two seconds, and with ``appendfsync always`` nothing that was acknowledged is lost.

With ``everysec`` what is lost is counted. A killed process loses less than a power cut: what it had handed to the
kernel is in the file. With no file all that waited is lost, and what has to hold is that everybody goes on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from harness import UNSURE, Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED

OPTIONS = {"config": {"max_concurrent_tasks": 20}}
RATE = 1000
BACK_SECONDS = 2.0
WINDOW = 0.25


def rate_between(times: list[float], start: float, end: float) -> float:
    return sum(1 for at in times if start <= at < end) / (end - start)


def seconds_until_full_rate(times: list[float], back: float, rate: float) -> float:
    """From ``back`` until the end of the first window with 0.8 of the rate; inf if there is none within 10 s."""
    step = 0.05
    for i in range(int(10 / step)):
        if rate_between(times, back + i * step, back + i * step + WINDOW) >= 0.8 * rate:
            return i * step + WINDOW
    return float("inf")


def kill_and_restart(fleet: Fleet, seed: int, *, kills: int, away: tuple[float, float], steady: float) -> list[float]:
    """Under load; gives the seconds until the full rate, of each time."""
    draw = random.Random(seed)
    backs: list[float] = []
    for _ in range(kills):
        time.sleep(steady)
        fleet.server.kill()
        time.sleep(draw.uniform(*away))
        fleet.server.restart()
        backs.append(time.monotonic())
        assert not fleet.exits(), fleet.exits()
    time.sleep(steady)
    times = sorted(line.at for line in fleet.oracle.lines(FINISHED))
    return [seconds_until_full_rate(times, back, RATE) for back in backs]


def under_load(
    fleet: Fleet, seed: int, figures: Figures, what: str, *, kills: int, away: tuple[float, float], steady: float
) -> int:
    """Gives how many were lost."""
    fleet.workers(2, **OPTIONS)
    seconds = (steady + sum(away) / 2 + 1) * (kills + 1)
    producers = [fleet.producer(count=int(RATE / 2 * seconds), rate=RATE / 2, window=200, ms=2) for _ in range(2)]
    until(lambda: fleet.oracle.count(FINISHED) > RATE / 2, 20, "work is going on")
    took = kill_and_restart(fleet, seed, kills=kills, away=away, steady=steady)
    for producer in producers:
        producer.terminate()
        producer.done(40)
    fleet.drain(30)
    fleet.stop()
    verdict = fleet.verdict()
    unknown = [line for line in fleet.oracle.notes() if line.id.startswith("unknown ")]
    figures.add(
        2, what, kills=kills, **verdict.counts(), full_rate_within_s_max=max(took), worker_exits=len(fleet.exits()),
        calls_that_raised=len(unknown),
    )  # fmt: skip
    assert max(took) <= BACK_SECONDS, took
    assert not verdict.unexpected
    assert not unknown  # they were waited for
    return len(verdict.lost)


def test_killed_with_every_write_on_disk(make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures) -> None:
    fleet = make_fleet(appendonly="always", lease_seconds=2.0)
    lost = under_load(
        fleet, fault_seed, figures, "kill -9 of the server, appendfsync always", kills=1, away=(0.5, 0.8), steady=1.0
    )
    assert lost == 0
    fleet.verdict().check(seed=fault_seed, killed=())
    fleet.assert_clean(*UNSURE)


def test_killed_without_a_file(make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures) -> None:
    fleet = make_fleet(lease_seconds=1.0)
    lost = under_load(
        fleet, fault_seed, figures, "kill -9 of the server, nothing on disk", kills=1, away=(0.2, 0.4), steady=0.7
    )
    assert lost < RATE  # what was on its way at that time, and nothing after it
    fleet.assert_clean(*UNSURE)


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["always", "everysec"])
def test_killed_again_and_again(
    make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures, policy: str
) -> None:
    fleet = make_fleet(appendonly=policy, lease_seconds=3.0)
    lost = under_load(
        fleet, fault_seed, figures, f"kill -9 of the server, appendfsync {policy}", kills=20, away=(0.2, 8.0),
        steady=3.0,
    )  # fmt: skip
    if policy == "always":
        assert lost == 0
    fleet.assert_clean(*UNSURE)
