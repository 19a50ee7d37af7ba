"""The summary of a consumer in its log: a line every 10 s, if anything happened."""

import asyncio
import logging
from time import monotonic, process_time

from ..brokers._leases import Claimed
from ..brokers.base import TaskBroker
from ..core.states import TaskState
from ..errors import BrokerError
from ..wire.peek import due_at
from ._slots import Slots
from .failures import Failures
from .upkeep import Upkeep

__all__ = ["SUMMARY_SECONDS", "Summary"]

logger = logging.getLogger("fluidfast.worker")

SUMMARY_SECONDS = 10.0
"""How often there is a summary; also for how long an error's traceback is shown once."""
ANSWER_SECONDS = 2.0
"""How long the broker may take to tell what waits."""
BUSY_CPU = 0.7
"""The share of a core from which on the processor is the limit, and not the slots."""
FULL_CPU = 0.8
"""The share that more slots are to use."""
MOST_SLOTS = 1_000
"""No more slots than that are proposed."""
OTHERS = (
    (TaskState.failure, "failed"),
    (TaskState.aborted, "aborted"),
    (TaskState.rate_limited, "refused by max_concurrency"),
)


class Summary:
    """Logs what a consumer has done.

        113/s, 1,132 done, 2 failed, 1 retried; 138 of 200 running; 1,284 waiting, oldest 8.4 s, empty in 4 s

    ``option``: what sets the number of slots, as its user writes it.
    """

    def __init__(self, slots: Slots, broker: TaskBroker, upkeep: Upkeep, failures: Failures) -> None:
        self.option = "max_concurrent_tasks="
        self._slots = slots
        self._broker = broker
        self._upkeep = upkeep
        self._failures = failures
        self._counts = self._count()
        self._running = 0
        self._at = monotonic()
        self._cpu = process_time()
        self._waiting: tuple[float, int] | None = None  # when we last asked what waits, and the answer

    async def loop(self) -> None:
        """Log a summary, again and again."""
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            for line in self._failures.left_out():
                logger.warning("%s", line)
            if logger.isEnabledFor(logging.INFO) and (line := await self.line()):
                logger.info("%s", line)

    async def line(self) -> str:
        """Return the summary since the last one; "" if nothing happened."""
        now, cpu, counts, running = monotonic(), process_time(), self._count(), self._slots.running
        seconds, share = now - self._at, (cpu - self._cpu) / max(now - self._at, 1e-3)
        before, self._counts = self._counts, counts
        self._at, self._cpu = now, cpu
        if counts == before and running == self._running:
            return ""
        self._running = running
        slots = self._slots.concurrency
        new = {name: counts[name] - before[name] for name in counts}
        rate = sum(n for name, n in new.items() if name != "retried") / seconds
        done = [f"{new.pop('done'):,} done", *(f"{n:,} {name}" for name, n in new.items() if n)]
        parts = [f"{shown_rate(rate)}, {', '.join(done)}", f"{running:,} of {slots:,} running"]
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                waiting, oldest = await self._ask()
        except (BrokerError, TimeoutError):
            return "; ".join(parts)
        if not waiting:
            parts.append("nothing waiting")
        else:
            parts.append(f"{waiting:,} waiting" + (f", oldest {spoken(oldest)}" if oldest is not None else ""))
            parts[-1] += self._trend(waiting, now, rate)
        if waiting and running >= slots and share < BUSY_CPU and not self._runs_processes():
            parts.append(self._hint(slots, waiting, share))
        return "; ".join(parts)

    def _count(self) -> dict[str, int]:
        tally = self._slots.tally
        counts = {"done": tally.count(TaskState.success)}
        counts.update((name, tally.count(state)) for state, name in OTHERS)
        return {**counts, "retried": tally.retried}

    async def _ask(self) -> tuple[int, float | None]:
        """Ask the broker how many runs wait, and how many seconds the one has waited that is the oldest."""
        waiting = sum((await self._broker.queue_length()).values())
        if not waiting:
            return 0, None
        due = [at for payload in await self._broker.fronts() if (at := due_at(payload)) is not None]
        return waiting, max(0.0, self._upkeep.now() / 1e6 - min(due)) if due else None

    def _trend(self, waiting: int, now: float, rate: float) -> str:
        """When nothing waits any more, if it goes on like that: as all consumers and producers did since the last
        summary, else by this consumer's own rate."""
        last, self._waiting = self._waiting, (now, waiting)
        if last is not None and now - last[0] < 1.5 * SUMMARY_SECONDS:
            rate = (last[1] - waiting) / (now - last[0])
            if rate < 0:
                return f", growing by {shown_rate(-rate)}"
        return f", empty in {spoken(waiting / rate)}" if rate > 0 else ""

    def _hint(self, slots: int, waiting: int, share: float) -> str:
        more = min(slots * FULL_CPU / max(share, 0.01), slots * 10, slots + waiting, MOST_SLOTS)
        step = 10 ** max(0, len(str(int(more))) - 2)
        better = int(more) // step * step
        busy = f"all {slots:,} slots busy, CPU {share * 100:.0f} %"
        return f"{busy}: try {self.option}{better}" if better > slots else busy

    def _runs_processes(self) -> bool:
        """Whether a slot waits for the process of a CPU-bound run, whose use of the processor is not ours."""
        held = (slot.held for slot in self._slots)
        return any(isinstance(one, Claimed) and one.run.task.cpu_bound for one in held)


def shown_rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def spoken(seconds: float) -> str:
    """Return a time as one says it: ``8.4 s``, ``12 min``, ``3 h``, ``2 days``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:,.0f} days"
