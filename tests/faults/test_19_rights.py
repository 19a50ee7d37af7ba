"""Row 19: a user of the server loses a right while it works, each right in turn: nothing is taken that is not kept, and
work goes on when the right is back. (A right that is missing from the start is refused by ``connect``.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from harness import UNSURE, Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED

PRODUCER = ("lpush", "evalsha", "get", "set", "zadd", "time")
WORKER = (
    "evalsha", "time", "hset", "hdel", "hget", "hgetall", "zadd", "zrem", "zscore", "zrangebyscore", "unlink", "exists",
    "rpop", "lpop", "rpush", "lpush", "llen", "blmove", "set",
)  # fmt: skip
FEW = ("hset", "zadd", "time", "unlink", "zrem", "rpop", "blmove")


def take_away(fleet: Fleet, figures: Figures, seed: int, *, worker: Sequence[str], seconds: float) -> None:
    fleet.call("ACL", "SETUSER", "worker", "on", "nopass", "~*", "&*", "+@all")
    fleet.call("ACL", "SETUSER", "producer", "on", "nopass", "~*", "&*", "+@all")
    plain = fleet.url

    def as_user(name: str) -> str:
        return plain.replace("redis://", f"redis://{name}:x@", 1)

    fleet.workers(2, url=as_user("worker"), config={"max_concurrent_tasks": 10})
    rights = [("worker", right) for right in worker] + [("producer", right) for right in PRODUCER]
    producer = fleet.producer(count=1_000_000, ms=5, rate=250, url=as_user("producer"), seed=seed)
    until(lambda: fleet.oracle.count(FINISHED) > 20, 20, "work is going on")
    for user, right in rights:
        fleet.call("ACL", "SETUSER", user, f"-{right}")
        time.sleep(seconds)
        fleet.call("ACL", "SETUSER", user, f"+{right}")
        before = fleet.oracle.count(FINISHED)
        until(lambda n=before: fleet.oracle.count(FINISHED) > n + 5, 40, f"work goes on after -{right} of the {user}")
    producer.terminate()
    producer.done(60)
    fleet.drain(60)
    fleet.stop()
    verdict = fleet.verdict().check(seed=seed)
    figures.add(19, "a right is taken away under load, each in turn", rights=len(rights), **verdict.counts())
    assert not verdict.dead
    # a consumer whose waiting was refused is not sure of its inbox, so it stays known for the next sweep of another
    fleet.assert_clean(*UNSURE)


def test_a_right_is_taken_away_under_load(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    take_away(fleet, figures, fault_seed, worker=FEW, seconds=0.2)


@pytest.mark.soak
def test_each_right_is_taken_away_under_load(
    make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures
) -> None:
    take_away(make_fleet(), figures, fault_seed, worker=WORKER, seconds=3.0)
