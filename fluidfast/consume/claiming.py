"""The way of runs from the broker to the slots: they are claimed and read, and given back where no slot takes them."""

import asyncio
import logging
from time import monotonic
from typing import Any

from ..brokers._leases import Claimed
from ..brokers.base import TaskBroker
from ..brokers.contract import Claim
from ..core._machine import Listeners
from ..core.context import follows_runs
from ..core.states import TaskState
from ..core.task import Task
from ..errors import BrokerConnectionError, BrokerError, PayloadError, TaskParamsError, UnknownTaskError
from ..texts import describe
from ._slots import Slots
from .failures import Failures
from .groups import Groups
from .held import Group
from .host import Host
from .life import Life
from .settler import Settler
from .upkeep import Upkeep

__all__ = ["Claiming"]

logger = logging.getLogger("fluidfast.engine")

WAIT_SECONDS = 5.0
HOLD_SECONDS = 0.5
"""How long something claimed may wait for a slot here before others get it."""
QUIET_SECONDS = 2.0
"""How long a busy consumer stops claiming so that it can run a suspect alone; if it is not idle by then, another
may be."""


class Claiming:
    """Claims for one consumer, as much as its slots want. ``manager``: that of the consumer.

    Attributes: ``waiting``: whether it waits for something to claim.
    """

    def __init__(
        self,
        slots: Slots,
        settler: Settler,
        broker: TaskBroker,
        life: Life,
        groups: Groups,
        upkeep: Upkeep,
        manager: Host,
        listeners: Listeners,
        failures: Failures,
    ) -> None:
        self._failures = failures
        self._slots = slots
        self._settler = settler
        self._broker = broker
        self._life = life
        self._groups = groups
        self._upkeep = upkeep
        self._manager = manager
        self._listeners = listeners
        self.waiting = False
        self._quiet_next = 0.0  # when the consumer may next be quiet for a suspect
        self._known: dict[str, bool] = {}  # task name -> enabled, as the last claim saw it

    def consumes(self) -> bool:
        """Whether the consumer is to claim anything."""
        return self._slots.concurrency > 0 and self._manager.config.consume_tasks

    async def loop(self) -> None:
        """Claim, until the consumer is asked to stop."""
        slots = self._slots
        failing = False
        ahead: tuple[int, asyncio.Task[Claim]] | None = None
        try:
            while ahead is not None or not slots.draining:
                try:
                    if ahead is not None:
                        idle, (want, claiming), ahead = False, ahead, None
                        claim = await claiming
                        del claiming  # it holds what it gave
                    elif not self.consumes():
                        await self._broker.stop_reserving(self._life.id)  # what is pushed is for others
                        if await self._life.wait_stop(1.0):
                            return
                        continue
                    elif (want := slots.want()) == 0:
                        await self._wait_for_room()
                        continue
                    else:
                        idle = slots.running == 0 and not slots.ready
                        claim = await self._claim(want, idle)
                    failing = False
                    slots.quiet_until = 0.0
                    if claim.suspects and not idle and (now := monotonic()) >= self._quiet_next:
                        slots.quiet_until = now + QUIET_SECONDS
                        self._quiet_next = now + 5 * QUIET_SECONDS
                    if not claim.items and not slots.draining:
                        self.waiting = True
                        try:
                            claim = await self._wait(claim.suspects > 0) or claim
                        finally:
                            self.waiting = False
                        if claim.items and not self.consumes():  # any more
                            self._settler.leases.pop(claim.batch, None)
                            await self._broker.release(claim.batch, [item.field for item in claim.items])
                            continue
                    if claim.items:
                        try:
                            if len(claim.items) == want and not claim.alone and not slots.draining:
                                ahead = await self._claim_ahead(want)
                            await self.accept(claim)
                        except BaseException:
                            # Do not renew runs that were not accepted: their lease expires, and others get them.
                            self._settler.leases.pop(claim.batch, None)
                            raise
                        if len(claim.items) < want:
                            await asyncio.sleep(0)  # no more is waiting there: these start before we look again
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if slots.draining or self._life.ends() or task is None or task.cancelling():
                        return
                    logger.exception("%s: claiming failed; trying again", self._life.who)  # something that it awaited
                    await asyncio.sleep(0.5)
                except BrokerConnectionError as exc:
                    if not failing:
                        logger.warning("%s: %s; trying again", self._life.who, exc)
                    failing = True
                    if await self._life.wait_stop(0.5) and ahead is None:
                        return
                except Exception:
                    logger.exception("%s: claiming failed; trying again", self._life.who)
                    if await self._life.wait_stop(0.5) and ahead is None:
                        return
        finally:
            if ahead is not None:
                ahead[1].cancel()

    async def _claim(self, want: int, idle: bool) -> Claim:
        claim = await self._broker.claim(self._life.id, want, idle=idle, waits=True, tasks=tuple(self._known))
        if claim.items:  # in the step in which the answer came, so that there is no moment in which nobody prolongs it
            self._settler.open_lease(claim.batch, len(claim.items))
        return claim

    async def _wait(self, suspects: bool) -> Claim | None:
        """Until it is time to claim, or to start what is given. ``suspects`` wait for an idle consumer."""
        began = monotonic()
        claim: Claim | None = None
        while self.consumes():
            at = monotonic()
            claim = await self._broker.wait(self._life.id, WAIT_SECONDS, tuple(self._known))
            now = monotonic()
            if claim is not None or now - at < WAIT_SECONDS:  # there is something
                break
            if suspects or now - began >= self._broker.look_seconds(self._life.id):
                break
        if claim is not None:
            self._settler.open_lease(claim.batch, len(claim.items))
        return claim

    async def _claim_ahead(self, coming: int) -> tuple[int, "asyncio.Task[Claim]"] | None:
        """Ask for the next batch before this one, of so many runs, is read: the server works on it meanwhile."""
        want = self._slots.want(coming)
        if not want:
            return None
        claiming = asyncio.create_task(self._claim(want, False), name=f"{self._life.who}-claim-ahead")
        await asyncio.sleep(0)  # it is sent
        return want, claiming

    async def _wait_for_room(self) -> None:
        slots = self._slots
        room = slots.room()
        await asyncio.wait([room], timeout=0.05)
        if room.done():
            return
        # Every slot is taken for longer than a moment: what is pushed now is for others.
        await self._broker.stop_reserving(self._life.id)
        if not room.done() and slots.want() == 0 and not slots.draining:
            await asyncio.wait([room], timeout=1.0)

    def lease_closed(self) -> None:
        """Nothing of a lease is left here: after a suspect that ran alone, claiming goes on."""
        if self._slots.alone and not self._settler.leases:
            self._slots.alone = False
            self._slots.make_room()

    async def accept(self, claim: Claim) -> None:
        """Turn payloads into runs: those that can start go to the slots, the others are settled."""
        slots, settler, upkeep = self._slots, self._settler, self._upkeep
        lease = settler.leases[claim.batch]
        self._known.update(claim.enabled)
        slots.alone = claim.alone
        slots.follows = follows_runs()
        codec = self._broker.codec
        manager, listeners = self._manager, self._listeners
        if claim.at:
            upkeep.set_now(claim.at)
        now = upkeep.now()
        claimed: list[Claimed] = []
        names: set[str] = set()
        last: Task[Any] | None = None
        for item in claim.items:
            item.lease = lease
            try:
                item.run = run = codec.decode(item.payload, manager, listeners)
            except TaskParamsError as exc:
                lease.unstarted -= 1
                item.run = exc.task_run
                slots.end(item, TaskState.failure)
                self._failures.log(exc.task_run, exc, again_in=None, ours=True)
                settler.bury(item, str(exc))
            except (UnknownTaskError, PayloadError) as exc:
                lease.unstarted -= 1
                logger.error("%s: a run cannot be decoded and moves to the dead letters: %s", self._life.who, exc)
                settler.discard(item, str(exc))
            except BaseException as exc:  # reading waits for nothing, so nobody can have cancelled it
                lease.unstarted -= 1
                logger.error("%s: a run cannot be decoded and moves to the dead letters", self._life.who, exc_info=exc)
                settler.discard(item, describe(exc))
            else:
                if run.execute_after is not None and (after := run.execute_after.timestamp() * 1e6) > now:
                    lease.unstarted -= 1
                    settler.again(item, delay := (after - now) / 1e6, run.prio, item.payload)
                    upkeep.promote_in(delay)
                    continue
                claimed.append(item)
                if run.task is not last:  # runs of one task come in a row
                    last = run.task
                    names.add(run.name)
        known = self._known
        if fresh := names - claim.enabled.keys():
            try:
                infos = await self._broker.get_tasks_info(*fresh)
                known.update((info.name, info.enabled) for info in infos)
            except BrokerError as exc:  # the next claim brings the flags
                logger.warning("%s: cannot see whether tasks are enabled: %s", self._life.who, exc)
                for name in fresh:
                    known.setdefault(name, True)
        ready = slots.ready
        if last is not None and len(names) == 1 and known.get(last.name, True) and not last.batch:
            ready.extend(claimed)
            claimed = []
        for held in claimed:
            if known.get(held.run.name, True):
                if held.run.task.batch:
                    self._groups.collect(held)
                else:
                    ready.append(held)
            else:
                lease.unstarted -= 1
                held.run.logger.debug("%s - aborted - the task is disabled", held.run.shown_id)
                slots.end(held, TaskState.aborted)
        slots.wake()

    # -- giving back

    async def release_stale(self) -> None:
        """Give back what waits for a slot, if some of it has for too long: others may have room."""
        slots = self._slots
        if not slots.draining and monotonic() - slots.oldest() > HOLD_SECONDS:
            slots.prefetch = 0
            await self.release_ready()

    async def release_ready(self) -> None:
        """Give back what waits for a slot."""
        slots = self._slots
        taken = self._groups.take_gathered()
        for ready in reversed(slots.take_ready()):
            if isinstance(ready, Group):
                taken += reversed(ready.claimed)
                slots.collected -= len(ready.claimed)
            else:
                taken.append(ready)
        back: dict[str, list[Claimed]] = {}
        for held in taken:
            back.setdefault(held.lease.batch, []).append(held)
        # The last claimed goes back first, so that the first claimed is the next to be taken.
        for batch, claimed in back.items():
            claimed.reverse()
            lease = claimed[0].lease
            lease.partial = True
            lease.left -= len(claimed)
            lease.unstarted -= len(claimed)
            try:
                await self._broker.release(batch, [held.field for held in claimed])
            except BrokerError as exc:
                logger.warning(
                    "%s: cannot give back %d runs, their lease will run out: %s", self._life.who, len(claimed), exc
                )
            if lease.left <= 0 and not lease.sending:
                self._settler.close_lease(lease)
