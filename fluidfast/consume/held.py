"""The runs of batches, as a consumer holds them: those that are gathered, and those that are executed as one."""

import asyncio
from typing import Any

from ..brokers._leases import Claimed, Lease
from ..core._run import TaskRun
from ._slots import Slot

__all__ = ["Collector", "Group", "claimed_when"]


class Group:
    """Runs of a task that takes a batch, executed as one."""

    __slots__ = ("claimed", "lease")

    def __init__(self, claimed: list[Claimed]) -> None:
        self.claimed = claimed
        self.lease = Lease(
            "", 0
        )  # a placeholder: the runs belong to several leases; losing one does not stop the others

    def runs(self) -> list[TaskRun[Any, Any]]:
        """Return its runs, in their order."""
        return [held.run for held in self.claimed]


class Collector:
    """Runs of a task that takes a batch, until there are enough of them or the first has waited for long enough."""

    __slots__ = ("claimed", "timer")

    def __init__(self) -> None:
        self.claimed: list[Claimed] = []
        self.timer: asyncio.TimerHandle | None = None

    def take(self) -> list[Claimed]:
        """Take out what is gathered. Nothing waits for more any longer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        claimed, self.claimed = self.claimed, []
        return claimed


def claimed_when(slot: Slot) -> tuple[float, int]:
    """Orders what runs by when it was taken off its queue."""
    held = slot.held.claimed[0] if isinstance(slot.held, Group) else slot.held
    return (0.0, 0) if held is None else (held.lease.claimed_at, int(held.field[1:]))
