"""``worker --burst``: ends the worker when nothing is left to do, and says what it did."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import monotonic

from ..core.states import TaskState
from ..errors import BrokerError
from ..manage.consumer import TaskConsumer

__all__ = ["Burst", "Counts"]

logger = logging.getLogger("fluidfast.worker")

PAUSES = (0.02, 1.0)
"""Seconds between two looks: the first, and the longest."""
PATIENCE_SECONDS = 5.0
"""After so long without a run it says what it waits for."""


TALLIED = ("done", "failed", "dead", "aborted", "retried")


@dataclass
class Counts:
    """The counts of one worker, or of several.

    ``failed``: runs that failed for good, of tasks without a retry; ``dead``: runs that became dead letters;
    ``emptied``: no run was left; ``workers_lost``: workers that died before they could say what they had done.
    """

    done: int = 0
    failed: int = 0
    dead: int = 0
    aborted: int = 0
    retried: int = 0
    seconds: float = 0.0
    emptied: bool = True
    workers_lost: int = 0

    @classmethod
    def sum(cls, parts: Sequence["Counts"], *, seconds: float, workers_lost: int) -> "Counts":
        numbers = {name: sum(getattr(part, name) for part in parts) for name in TALLIED}
        return cls(**numbers, seconds=seconds, emptied=all(p.emptied for p in parts), workers_lost=workers_lost)

    @property
    def exit_code(self) -> int:
        return 130 if not self.emptied else 1 if self.failed or self.dead else 0

    def as_dict(self) -> dict[str, object]:
        rate = (self.done + self.failed + self.dead + self.aborted) / max(self.seconds, 1e-6)
        return {**asdict(self), "seconds": round(self.seconds, 3), "per_second": round(rate, 1)}

    def __str__(self) -> str:
        more = "".join(f", {n:,} {name}" for name in ("aborted", "retried") if (n := getattr(self, name)))
        text = f"{self.done:,} done, {self.failed:,} failed, {self.dead:,} dead{more} in {self.seconds:.2f} s"
        text += f" ({self.as_dict()['per_second']:,}/s)"
        if self.workers_lost:
            text += f"; without the runs of {self.workers_lost:,} workers that died"
        return text if self.emptied else f"stopped before the queue was empty: {text}"


class Burst:
    """Watches one worker."""

    def __init__(self, consumer: TaskConsumer) -> None:
        self.consumer = consumer
        self.started = monotonic()
        self.emptied_at: float | None = None

    async def watch(self) -> None:
        """Stop the consumer when no run is queued, leased or delayed, here or with any other worker."""
        pause, idle_since = PAUSES[0], monotonic()
        told = False
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
            if self.consumer.is_stopping():
                return
            if self.consumer.is_busy():
                pause, idle_since = PAUSES[0], monotonic()
                continue
            try:
                if await self.is_over():
                    break
            except BrokerError as exc:
                logger.warning("cannot see whether the queue is empty: %s", exc)
                continue
            if not told and monotonic() - idle_since > PATIENCE_SECONDS:
                told = True
                logger.info("waiting for runs that are delayed, or that other workers hold")
        self.emptied_at = monotonic()
        self.consumer.gracefully_stop()

    async def is_over(self) -> bool:
        """Whether nothing is left, and nothing has happened here while the broker was asked."""
        consumer = self.consumer
        finished = consumer.engine.finished
        for _ in range(2):  # of several shards each is seen at a moment of its own
            if await consumer.broker.has_runs() or consumer.is_busy() or consumer.engine.finished != finished:
                return False
        return True

    def counts(self) -> Counts:
        engine = self.consumer.engine
        tally, settler = engine.slots.tally, engine.settler
        return Counts(
            done=tally.count(TaskState.success),
            failed=settler.failed,
            dead=settler.buried,
            aborted=tally.count(TaskState.aborted),
            retried=tally.retried,
            seconds=(self.emptied_at or monotonic()) - self.started,
            emptied=self.emptied_at is not None,
        )
