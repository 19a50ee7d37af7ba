"""Whether a run may start: its lease has to be ours still, and ``max_concurrency`` has to leave room."""

import logging

from ..brokers._leases import Claimed
from ..brokers.base import TaskBroker
from ..core.states import TaskState
from ..errors import BrokerError
from ..execute.executor import retry_when_limited
from ._slots import Slot, Slots
from .life import Life
from .outcomes import Outcomes
from .settler import Settler
from .timeouts import Timeouts
from .upkeep import Upkeep

__all__ = ["Admission"]

logger = logging.getLogger("fluidfast.engine")

AGAIN_SECONDS = 1.0
"""After which a run asks again for a slot under ``max_concurrency`` that it should get."""


class Admission:
    """Asked before a run starts whose lease may have run out, or whose task has a limit."""

    def __init__(
        self,
        slots: Slots,
        settler: Settler,
        broker: TaskBroker,
        life: Life,
        timeouts: Timeouts,
        outcomes: Outcomes,
        upkeep: Upkeep,
    ) -> None:
        self._slots = slots
        self._settler = settler
        self._broker = broker
        self._life = life
        self._timeouts = timeouts
        self._outcomes = outcomes
        self._upkeep = upkeep

    async def may_start(self, slot: Slot, held: Claimed) -> bool:
        """Whether a run may start now, in this slot. If not, it is dropped, or settled."""
        # others may have run it by now
        if self._timeouts.is_unsure(held.lease) and not await self._timeouts.still_holds(held.lease, slot):
            self._settler.drop(held)
            return False
        return not held.run.task.max_concurrency or await self._acquire(held)

    async def _acquire(self, held: Claimed) -> bool:
        run = held.run
        outcomes = self._outcomes
        try:
            granted = await self._broker.acquire(run.task, held.slot)
        except BrokerError as exc:
            logger.warning("%s: no slot for %s, trying again: %s", self._life.who, run.shown_name, exc)
            self._again(held)
            return False
        if granted:
            self._settler.limited[held.slot] = run.name
            return True
        retry = retry_when_limited(outcomes.as_claimed(held), self._upkeep.now())
        if retry is None and granted is None:  # a dead worker, or a run of the same id, holds its slot
            self._again(held)
        elif retry is None:
            self._slots.end(held, TaskState.rate_limited)
        else:
            run.logger.debug("%s - rate limited - again in %.1f s", run.shown_id, retry.delay)
            outcomes.again(held, retry.delay, retry.run)
        return False

    def _again(self, held: Claimed) -> None:
        """It is queued once more, as it came."""
        self._settler.again(held, AGAIN_SECONDS, held.run.prio, held.payload)
        self._upkeep.promote_in(AGAIN_SECONDS)
