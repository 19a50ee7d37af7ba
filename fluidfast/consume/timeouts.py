"""The time of what a consumer holds: runs end with their timeouts, and when their lease is lost."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic

from ..brokers._leases import Claimed, Lease
from ..brokers.base import TaskBroker
from ..errors import BrokerError
from ._slots import Slot, Slots, Stint
from .held import Group
from .keeper import Held, LeaseKeeper
from .life import Life
from .settler import Settler

__all__ = ["Timeouts"]

logger = logging.getLogger("fluidfast.engine")

CANCEL_AGAIN_SECONDS = 1.0
"""How long a run that was cancelled may go on before it is cancelled again."""


class Timeouts:
    """Cancels the runs that have no time any more, and has the leases of the others prolonged.

    ``kept``: gives the slots under ``max_concurrency`` that are held for longer than their runs, as (task, slot). It is
    called in the keeper's thread.
    """

    def __init__(
        self,
        slots: Slots,
        settler: Settler,
        broker: TaskBroker,
        life: Life,
        *,
        kept: Callable[[], list[tuple[str, str]]],
    ) -> None:
        self._slots = slots
        self._settler = settler
        self._broker = broker
        self._life = life
        self._kept = kept
        self._lease_seconds = broker.options.lease_seconds
        self._prolonged_at = 0.0  # when the leases were last prolonged
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Look at nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    # -- of runs

    def sweep_by(self, when: float) -> None:
        """Look at timeouts at this monotonic time."""
        if self._timer is not None:
            self._timer.cancel()
        self._slots.sweep_at = when
        delay = max(0.0, when - monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self.sweep)

    def sweep(self) -> None:
        """Look at timeouts now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.sweep_at = float("inf")
        now = monotonic()
        first = float("inf")
        for slot in self._slots:
            held = slot.held  # threads may change it at any time
            if held is None:
                continue
            if slot.cancel_at <= now:
                if slot.job is not None and not slot.reason and slot.job.due > now:
                    slot.deadline = slot.cancel_at = slot.job.due  # its thread began after its slot
                else:
                    self.cancel(slot, held, slot.reason or "timeout")
            first = min(first, slot.cancel_at)
        if first < self._slots.sweep_at:
            self.sweep_by(first)

    def cancel(self, slot: Slot, held: Claimed | Group, reason: str) -> None:
        """Cancel what a slot runs, if it still runs that; again and again, since it may swallow that (as
        asyncio.wait_for of Python 3.11 may)."""
        assert slot.task is not None
        if isinstance(slot.job, Stint) and not slot.job.interrupt(held):  # its thread is past it
            return
        slot.reason = reason
        slot.cancel_at = monotonic() + CANCEL_AGAIN_SECONDS
        slot.task.cancel()
        if slot.cancel_at < self._slots.sweep_at:
            self.sweep_by(slot.cancel_at)

    # -- of leases

    def is_unsure(self, lease: Lease) -> bool:
        """Whether a lease may have run out: this process, or the server, stood still for longer than that takes."""
        return monotonic() - max(lease.claimed_at, self._prolonged_at) > self._lease_seconds

    async def still_holds(self, lease: Lease, slot: Slot) -> bool:
        """Ask the broker whether a lease is still ours; ``slot`` is about to start one of its runs."""
        try:
            gone = await self._broker.renew(self._life.id, [lease.batch])
        except BrokerError:  # nobody knows: what cannot be settled will run again
            return True
        if gone:
            self.lose(lease, "it ran out", besides=slot)
        return not gone

    def lose(self, lease: Lease, why: str, besides: Slot | None = None) -> None:
        """Give up a lost lease, whose runs go to others. Cancel those that run, but not in the slot ``besides``."""
        if lease.lost:
            return
        lease.lost = True
        logger.warning("%s: lease %s was lost (%s); its runs may run twice", self._life.who, lease.batch, why)
        for slot in self._slots:
            held = slot.held
            if held is not None and held.lease is lease and slot is not besides and not slot.reason:
                self.cancel(slot, held, "lost")

    def lose_batches(self, batches: list[str]) -> None:
        """The leases of these batches have run out."""
        for batch in batches:
            lease = self._settler.leases.get(batch)
            if lease is not None and lease.left > 0 and not lease.sending:
                self.lose(lease, "it ran out")

    def keeper(self) -> LeaseKeeper:
        """Make the thread that prolongs the leases. To be called in the event loop of the consumer."""
        loop = asyncio.get_running_loop()
        renewer = self._broker.renewer(self._life.id)

        def renew(batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
            began = monotonic()
            gone = renewer(batches, slots)
            if not gone:  # else the event loop could start what is lost before it hears of that
                self._prolonged_at = began
            return gone

        def held() -> Held | None:
            if loop.is_closed():  # without a word to its tasks: nobody goes on with what runs
                keeper.stop()
                return None
            return self._held(loop)

        def lost(batches: list[str]) -> None:
            loop.call_soon_threadsafe(self.lose_batches, batches)

        keeper = LeaseKeeper(
            renew,
            held,
            lost,
            period_seconds=self._lease_seconds / 3,
            soon=loop.call_soon_threadsafe,
            stalled=self._broker.releaser(self._life.id),
        )
        return keeper

    def _held(self, loop: asyncio.AbstractEventLoop) -> Held | None:
        """Return the leases and slots to renew. The keeper's thread calls it.

        None: the event loop is blocked for good, so that others may take this consumer's runs.
        """
        batches = list(self._settler.leases)
        slots = [(task, slot) for slot, task in list(self._settler.limited.items())] + self._kept()
        # A run that is over its time by more than a lease should have ended.
        late = monotonic() - self._lease_seconds
        hung: list[str] = []
        for slot in list(self._slots):
            held, reason = slot.held, slot.reason
            if held is None or slot.deadline >= late:
                continue
            if not reason:  # the loop has not even cancelled it
                return None
            hung += [one.lease.batch for one in (held.claimed if isinstance(held, Group) else (held,))]
        if hung:  # it does not let itself be cancelled
            batches = [batch for batch in batches if batch not in hung]
            loop.call_soon_threadsafe(self.lose_batches, hung)
        return batches, slots
