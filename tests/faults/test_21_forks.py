"""Row 21: a manager that was made and used before a fork, in eight children.

Each answer reaches its caller, and no id is used by two.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from apps.processes import script
from harness import Fleet
from results import Figures


def fork(fleet: Fleet, figures: Figures, seed: int, *, children: int, each: int) -> None:
    fleet.workers(2, config={"max_concurrent_tasks": 20})
    parent = script(fleet, "parent", "forked", children=children, each=each)
    code = parent.wait(120)
    assert code == 0, f"{code} children failed:\n{parent.log[-4000:]}"
    fleet.drain(20)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed, killed=())
    figures.add(21, "a manager made before a fork", children=children, failed=code, **verdict.counts())
    assert verdict.ok == verdict.acknowledged == children * each * 2 + 2


def test_a_manager_made_before_a_fork(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    fork(fleet, figures, fault_seed, children=4, each=20)


@pytest.mark.soak
def test_a_manager_made_before_eight_forks(make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures) -> None:
    fork(make_fleet(), figures, fault_seed, children=8, each=1000)
