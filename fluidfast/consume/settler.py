"""The settler of a consumer: report each run's outcome to the broker, and repeat that until the broker answers.

It settles a batch when all its runs have finished, or the finished ones after SETTLE_SECONDS.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from time import monotonic
from typing import Any

import msgspec

from ..brokers._leases import Claimed, Lease
from ..brokers.base import TaskBroker
from ..brokers.contract import Settlement
from ..core._run import TaskRun
from ..errors import BrokerConnectionError, BrokerError, TaskError
from ._ledger import Ledger

__all__ = ["Settler"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
"""How long it takes to try again what the broker did not take."""


class Settler(Ledger):
    """Settles for one consumer, ``who`` in the log.

    ``lost`` is called with a lease that could not be settled, ``finished`` when all of a lease has been.

    Attributes: ``leases`` by batch; ``limited``: the slots held under ``max_concurrency``, slot -> task;
    ``context``: in which it talks to the broker; ``buried``, ``failed``: how many runs went to the dead letters, and to
    the failed runs.
    """

    def __init__(
        self, broker: TaskBroker, who: str, *, lost: Callable[[Lease], None], finished: Callable[[], None]
    ) -> None:
        super().__init__()
        self._broker = broker
        self._who = who
        self._lost = lost
        self.buried = self.failed = 0
        self._finished = finished
        self.context = copy_context()
        self._sends: set[asyncio.Task[None]] = set()
        self._over = False  # nothing more is said to the broker, which is being closed

    def open_lease(self, batch: str, size: int) -> Lease:
        """A batch of so many runs has been claimed."""
        lease = self.leases[batch] = Lease(batch, size, Settlement(batch))
        return lease

    def close_lease(self, lease: Lease) -> None:
        """Nothing of it is left here."""
        self.leases.pop(lease.batch, None)
        self._finished()

    # -- what became of a run

    def again(self, held: Claimed, delay: float, priority: int, payload: bytes) -> None:
        """It is queued once more, as ``payload``, in ``delay`` seconds."""
        held.lease.settlement.retries.append((delay, priority, payload))
        self._settle(held)

    def bury(self, held: Claimed, reason: str) -> None:
        """It goes to the dead letters. To be said before, or right after, it is ``finished``."""
        self.buried += 1
        held.lease.settlement.dead.append((held.field, reason))

    def fail(self, held: Claimed, reason: str) -> None:
        """It goes to the failed runs, as it has no retry. To be said as ``bury`` is."""
        self.failed += 1
        held.lease.settlement.failed.append((held.field, reason))

    def discard(self, held: Claimed, reason: str) -> None:
        """It is no run; its bytes go to the dead letters."""
        self.bury(held, reason)
        self._settle(held)

    def give_back(self, held: Claimed) -> None:
        """It did not come to its end, and goes back to its queue."""
        lease = held.lease
        lease.partial = True
        self._spawn(self._give_back(lease, held.field, self._taken(held)))

    def drop(self, held: Claimed) -> None:
        """Its lease is gone: another consumer has it, and nothing said of it here would count."""
        held.lease.partial = True
        if slots := self._taken(held):
            self.free(slots)
        self._settled(held.lease)

    async def _give_back(self, lease: Lease, field: str, slots: list[tuple[str, str]]) -> None:
        try:
            if slots:
                await self._broker.free(slots)
            await self._broker.release(lease.batch, [field])
        except BrokerError as exc:
            logger.warning("%s: cannot give back a run, its lease will run out: %s", self._who, exc)
        self._settled(lease)

    def _reply(self, settlement: Settlement, run: TaskRun[Any, Any]) -> None:
        try:
            assert run.extra is not None
            address = msgspec.json.decode(run.extra["reply"], type=str)
            payload = self._broker.codec.encode_finished(run)
        except (TaskError, msgspec.DecodeError) as exc:
            logger.warning("%s: cannot send the result of %s to its caller: %s", self._who, run.shown_name, exc)
        else:
            settlement.replies.append((address, payload))

    def _free(self, held: Claimed) -> None:
        held.lease.settlement.slots += self._taken(held)

    def _taken(self, held: Claimed) -> list[tuple[str, str]]:
        """Take a run's slot under ``max_concurrency`` out of those that are held."""
        slot = held.slot
        task = self.limited.pop(slot, None)
        return [] if task is None else [(task, slot)]

    def free(self, slots: list[tuple[str, str]]) -> None:
        """Free slots (task, slot) that no settlement frees."""
        self._spawn(self._free_now(slots))

    async def _free_now(self, slots: list[tuple[str, str]]) -> None:
        try:
            await self._broker.free(slots)
        except BrokerError as exc:
            logger.warning("%s: slots under max_concurrency are free only after a lease: %s", self._who, exc)

    # -- saying it

    def flush(self) -> None:
        """Say what there is to say, without waiting for more of it."""
        self._timer = None
        for lease in list(self._dirty):
            self._start_send(lease)

    async def settle_all(self, deadline: float) -> bool:
        """Say it, and wait for the answers. False: not all were there by this monotonic time."""
        self.flush()
        while self._sends or self._dirty:
            if self._sends:
                await asyncio.wait(set(self._sends), timeout=max(0.01, min(5.0, deadline - monotonic())))
            self.flush()
            if self._sends and monotonic() > deadline:
                return False
        return True

    async def close(self, seconds: float) -> None:
        """Say what is left, give up after so many seconds, and say nothing any more."""
        self.flush()
        if self._sends:
            await asyncio.wait(set(self._sends), timeout=seconds)
        self._over = True
        for send in set(self._sends):
            send.cancel()
        if self._sends:
            await asyncio.wait(set(self._sends), timeout=seconds)
        if self._timer is not None:
            self._timer.cancel()

    def fall_silent(self) -> None:
        """Say nothing to the broker from here on."""
        self._over = True

    def _start_send(self, lease: Lease) -> None:
        # One settlement of a lease at a time: they have to arrive in their order.
        if not lease.sending:
            lease.sending = True
            self._spawn(self._send(lease))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._over:
            coroutine.close()
            return
        task = asyncio.get_running_loop().create_task(coroutine, context=self.context.copy())  # not that of a run
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _send(self, lease: Lease) -> None:
        try:
            while lease in self._dirty:
                self._dirty.discard(lease)
                settlement = lease.settlement
                lease.settlement = Settlement(lease.batch)
                if lease.lost and settlement.slots:
                    self.free(settlement.slots)
                if lease.lost or not (settlement.done or settlement.slots):
                    continue
                settlement.whole = lease.left == 0 and not lease.partial
                for name, run in settlement.info.items():
                    ended: TaskRun[Any, Any] = run  # type: ignore[assignment]
                    end, duration = ended.end, ended.duration
                    assert end is not None
                    assert duration is not None
                    settlement.info[name] = (end.isoformat(), duration.total_seconds(), str(ended.state))
                await self._send_until_answered(lease, settlement)
        finally:
            lease.sending = False
            if lease.left <= 0 and lease not in self._dirty:
                self.close_lease(lease)

    async def _send_until_answered(self, lease: Lease, settlement: Settlement) -> None:
        while True:
            try:
                if not await self._broker.settle(settlement):
                    if settlement.slots:
                        self.free(settlement.slots)
                    self._lost(lease)
                return
            except BrokerConnectionError as exc:
                logger.warning("%s: cannot settle %d runs, trying again: %s", self._who, len(settlement.done), exc)
            except BrokerError as exc:
                logger.error("%s: cannot settle %d runs, trying again: %s", self._who, len(settlement.done), exc)
            await asyncio.sleep(AGAIN_SECONDS)
