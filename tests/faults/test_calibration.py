"""Each row goes red when the bug that it is for is planted (``plants.py``): a campaign that cannot see is worth
nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import test_3_worker_stopped as row3
import test_4_connection_cut as row4
import test_5_server_full as row5
import test_7_clocks as row7
import test_8_malformed as row8
from harness import Fleet, until
from kits.servers import RedisServer
from plants import planted
from results import Figures

from fluidfast.commands.trials.ledger import STARTED


class Ignored(Figures):
    """Figures of a run with a bug in it are not for the table."""

    def add(self, row: int, what: str, **values: object) -> None:
        print(f"with the bug: {what}: {values}")


@pytest.fixture
def ignored(fault_seed: int) -> Figures:
    return Ignored(fault_seed)


@pytest.mark.parametrize("bug", ["ack-before-run", "pop-without-lease"])
def test_row_1_sees_what_a_killed_worker_takes_with_it(fleet: Fleet, bug: str) -> None:
    [victim] = fleet.workers(1, plant=bug, config={"max_concurrent_tasks": 5})
    fleet.producer(count=40, ms=300).done()
    until(lambda: fleet.oracle.count(STARTED) >= 5, 10, "it has begun")
    victim.kill()
    fleet.workers(1)
    fleet.drain(20, consumers=False)
    fleet.stop()
    verdict = fleet.verdict()
    assert verdict.lost
    with pytest.raises(AssertionError, match="lost"):
        verdict.check()


def test_row_2_sees_what_a_server_forgets(make_fleet: Callable[..., Fleet]) -> None:
    """The bug is the operator's: nothing on disk."""
    fleet = make_fleet()
    fleet.producer(count=50).done()
    fleet.server.kill()
    fleet.server.restart()
    fleet.workers(1)
    fleet.drain(10)
    fleet.stop()
    assert len(fleet.verdict().lost) == 50


def test_row_3_sees_a_stale_settlement(fleet: Fleet, fault_seed: int, ignored: Figures) -> None:
    fleet.set_lease(0.6)
    with pytest.raises(AssertionError):
        row3.check_stopped(fleet, ignored, fault_seed, plant="no-fence")


@pytest.mark.parametrize(
    ("bug", "verb"),
    [("no-sequence", "enqueue"), ("settled-again", "settle with a retry"), ("delayed-again", "delay")],
)
async def test_row_4_sees_what_is_queued_twice(
    redis_server: RedisServer, redis_url: str, fault_seed: int, bug: str, verb: str
) -> None:
    verbs = [each for each in row4.VERBS if each.name == verb]
    with planted(bug):
        found = await row4.campaign(redis_server, redis_url.partition("name=")[2], 30, fault_seed, verbs)
    assert found["queued_twice"] > 0


async def test_row_5_sees_a_batch_that_passes_for_one_that_was_seen(make_fleet: Callable[..., Fleet]) -> None:
    with planted("no-order"), pytest.raises(AssertionError):
        await row5.test_refused_and_accepted_behind_each_other_and_both_answers_lost(make_fleet)


def test_row_7_sees_a_sweeper_that_does_not_look_twice(fleet: Fleet, fault_seed: int, ignored: Figures) -> None:
    with pytest.raises(AssertionError, match="ran twice without a reason"):
        row7.look_overdue(fleet, ignored, fault_seed, plant="one-sweep")


def test_row_8_sees_what_is_dropped(fleet: Fleet, fault_seed: int, ignored: Figures) -> None:
    with pytest.raises(AssertionError):
        row8.malformed(fleet, ignored, fault_seed, 300, plant="dead-forgotten")
