"""The engine of a consumer: claim, execute, settle.

It keeps up to ``max_concurrent_tasks`` slots busy. A slot is one long-lived asyncio task that awaits one handler after
the other, so that starting a run costs no Task object; ``current_task()`` in a handler is the slot. What is claimed and
not started waits in ``ready``; how much more than the free slots is claimed follows the observed pace. What became of
the runs is said by the settler.
"""

import asyncio
import logging
import os
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any

from ..brokers._leases import Claimed, Lease
from ..brokers.contract import Claim
from ..core._run import TaskRun
from ..core._time import now_micros
from ..core.events import is_current
from ..core.process import consumer_began, consumer_ended
from ..core.states import STATES
from ..core.task import Task, is_async
from ..core.workers import Worker
from ..errors import (
    BrokerConnectionError,
    BrokerError,
    HungThreadsError,
    NoThreadError,
    PayloadError,
    TaskAbortedError,
    TaskError,
    TaskParamsError,
    TaskRunError,
    UnknownTaskError,
)
from ..execute.executor import SET_TO_FAILURE, refuse_unrun, retry_after_failure, retry_when_limited
from ..execute.threads import Job, Threads
from ..texts import describe, error_text, printable
from ._ledger import SETTLE_SECONDS
from ._slots import Slot, Slots
from .host import Host
from .keeper import Held, LeaseKeeper
from .settler import Settler

__all__ = ["Engine"]

logger = logging.getLogger("fluidfast.engine")

WAIT_SECONDS = 5.0
CLEANUP_SECONDS = 0.7
"""How long a run that shutdown has cancelled may take to clean up."""
END_SECONDS = 0.1
"""How long what does not end then is waited for once more. A shutdown takes the grace period and these two at most."""
END_OF_WAITING_SECONDS = 5.0
"""How long shutdown waits for the server to end this consumer's waiting for something to claim."""
PROMOTE_SECONDS = 1.0
MAX_PREFETCH = 2000
QUICK_SECONDS = 0.02
SLOW_SECONDS = 0.1
AGAIN_SECONDS = 1.0
"""After which a run asks again for a slot under ``max_concurrency`` that it should get."""
CANCEL_AGAIN_SECONDS = 1.0
"""How long a run that was cancelled may go on before it is cancelled again."""
HUNG_ROOM = 32
"""Threads that may hang in plain functions beside those of the slots. Each one more takes a slot away."""
HUNG_SECONDS = 5.0
"""How long a consumer that has lost all of its slots that way waits for one of the functions to return."""
HOLD_SECONDS = 0.5
"""How long something claimed may wait for a slot here before others get it."""
QUIET_SECONDS = 2.0
"""How long a busy consumer stops claiming so that it can run a suspect alone; if it is not idle by then, another
may be."""
SHOWN = 700
"""Characters of an exception's text in the reason of a dead letter; where it was raised stands behind them."""
BREAKS = "\n\r\t"
"""Characters that become a space there."""
RUNNING, SUCCESS, FAILURE, ABORTED, RATE_LIMITED, INTERRUPTED = 2, 3, 4, 5, 6, 7


class Group:
    """Runs of a task that takes a batch, executed as one."""

    __slots__ = ("helds", "lease")

    def __init__(self, helds: list[Claimed]) -> None:
        self.helds = helds
        self.lease = Lease("", 0)  # of their own are several, and what happens to one of them does not stop the others


class Collector:
    """Runs of a task that takes a batch, until there are enough of them or the first has waited for long enough."""

    __slots__ = ("helds", "timer")

    def __init__(self) -> None:
        self.helds: list[Claimed] = []
        self.timer: asyncio.TimerHandle | None = None


class Engine(Slots, Worker):
    """Consumes for one manager."""

    def __init__(self, manager: Host, *, concurrency: int, stopping_grace_period: float) -> None:
        Worker.__init__(self, name="task-consumer", stopping_grace_period=stopping_grace_period + 5)
        self.manager = manager
        self.broker = manager.broker
        settler = Settler(
            self.broker, self.worker_name, lost=lambda lease: self._lose(lease, "could not be settled"),
            finished=self._lease_finished,
        )  # fmt: skip
        # what was claimed longer ago than a third of a lease may be ours no more, and is looked at before it starts
        Slots.__init__(self, concurrency, settler, manager.dispatcher.listeners, self.broker.options.lease_seconds / 3)
        self.grace_seconds = stopping_grace_period
        self.id = ""  # of its process, when it runs
        self._collectors: dict[str, Collector] = {}
        self._leases = self._settler.leases
        self._limited = self._settler.limited
        self._threads = Threads(self._freed)
        self._stuck: list[Slot] = []  # slots that wait until a hung thread is free
        self._hung_timer: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None
        self._ended = False
        self._hurried = False
        self._quiet_next = 0.0
        self._waiting = False  # for something to claim
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._promote_timer: asyncio.TimerHandle | None = None
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._promote_soon: asyncio.Event = asyncio.Event()
        self._prolonged_at = 0.0  # when the leases were last prolonged
        self._behind = 0  # microseconds from this machine's wall clock to the broker's
        self._known: dict[str, bool] = {}  # task name -> enabled, as the last claim saw it

    def _renew(self) -> Worker:
        """An engine lives once: what it knows is of one event loop."""
        engine = type(self)(self.manager, concurrency=self.concurrency, stopping_grace_period=self.grace_seconds)
        engine._worker_life.watchers = self._worker_life.watchers
        return engine

    async def status(self) -> dict[str, Any]:
        return {
            **await super().status(),
            "tasks_running": self._running,
            "tasks_claimed": len(self._ready),
            "tasks_finished": self.finished,
            "threads_hung": len(self._threads.hung),
        }

    # -- life

    async def run(self) -> None:
        self.broker.consumes = True
        self.id = self.manager.manager_id
        await self.broker.connect()  # a server that is not there is said at once; one that goes away is waited for
        loop = self._loop = asyncio.get_running_loop()
        self._context = copy_context()

        def lost(batches: list[str]) -> None:
            loop.call_soon_threadsafe(self._lose_batches, batches)

        renewer = self.broker.renewer(self.id)

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
            return self._held()

        keeper = LeaseKeeper(
            renew,
            held,
            lost,
            period_seconds=self.broker.options.lease_seconds / 3,
            soon=loop.call_soon_threadsafe,
            stalled=self.broker.yielder(self.id),
        )
        keeper.start()
        for work in (self._reap_loop, self._promote_loop, self._claim_loop):
            self._start_loop(work)
        consumer_began()
        try:
            await self._wait_stop()
            await self._drain()
            # before the farewell: what it prolongs then would be known again, and nobody would ever say goodbye
            keeper.stop()
            await keeper.join(self.broker.options.lease_seconds)
            await self._say_farewell()
        finally:
            consumer_ended()
            self._ended = True
            keeper.stop()
            ending = [*self._loops.values(), *(slot.task for slot in self._slots if slot.task)]
            for task in ending:
                task.cancel()
            # without a drain before, this is where what runs cleans up
            _, hung = await asyncio.wait(ending, timeout=END_SECONDS if self._draining else CLEANUP_SECONDS)
            if hung:  # a handler that does not let itself be cancelled
                logger.warning("%s: leaves %d tasks behind that do not end", self.worker_name, len(hung))
            if not self._draining:
                await self._let_go()
            await self._settler.close(END_SECONDS)  # with what has ended only now
            self._threads.close()
            for timer in (self._sweep_timer, self._promote_timer, self._hung_timer):
                if timer is not None:
                    timer.cancel()

        if self._failure is not None:
            raise self._failure

    def _ends(self) -> bool:
        """Whether the engine ends, or the event loop, which cancels all of its tasks: then a slot that is cancelled
        says nothing of its run, and is not replaced."""
        task = self._worker_life.task
        return self._ended or task is None or task.done() or task.cancelling() > 0

    async def _let_go(self) -> None:
        """Give back at once what has not started: the event loop ends, and nobody waits for a drain."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.broker.idle_no_more(self.id)
                await self._release_ready()
        except (BrokerError, TimeoutError) as exc:
            logger.warning("%s: cannot give back what it has not started: %s", self.worker_name, exc or "no answer")

    def _start_loop(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        name = work.__name__
        task = self._loops[name] = asyncio.create_task(work(), name=f"{self.worker_name}-{name}")
        task.add_done_callback(partial(self._loop_ended, work))

    def _loop_ended(self, work: Callable[[], Coroutine[Any, Any, None]], task: "asyncio.Task[None]") -> None:
        """A loop of the engine has ended: start it again, unless it was to end."""
        if not self._ends() and not self._draining:
            self._log_end(task)
            self._start_loop(work)

    def _slot_ended(self, slot: Slot, task: "asyncio.Task[None]") -> None:
        """A slot's task has ended: start another in its place, unless the engine ends."""
        if not self._ends():
            if not slot.spent:
                self._log_end(task)
            if slot not in self._stuck:
                self._begin(slot)

    def _log_end(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        why = "it was cancelled" if task.cancelled() else "it failed" if error else "it returned"
        logger.error(
            "%s: %s ended (%s); another takes its place", self.worker_name, task.get_name(), why, exc_info=error
        )

    def hurry(self) -> None:
        """Do not wait for the end of the grace period: what runs when this consumer stops goes back at once."""
        self._hurried = True
        if self._draining and self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _drain(self) -> None:
        """Stop claiming, give back what has not started, let the running finish within the grace period, give back
        what has not finished then."""
        self._draining = True
        claiming = self._loops[self._claim_loop.__name__]
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        deadline = monotonic() + END_OF_WAITING_SECONDS
        while not claiming.done() and monotonic() < deadline:
            if self._waiting:
                claiming.cancel()  # again and again: asyncio.wait_for of Python 3.11 may swallow it
            await asyncio.wait([claiming], timeout=0.1)
        try:
            async with asyncio.timeout(END_OF_WAITING_SECONDS):
                await self.broker.idle_no_more(self.id)  # else what is given back wakes ourselves
        except (BrokerError, TimeoutError) as exc:
            logger.warning("%s: cannot end its waiting: %s", self.worker_name, exc or "no answer")
        await self._release_ready()
        deadline = monotonic() + self.grace_seconds
        while self._running and monotonic() < deadline and not self._hurried:
            self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room], timeout=min(0.25, max(0.0, deadline - monotonic())))
        # the last claimed goes back first here too
        for slot in sorted(self._slots, key=claimed_when, reverse=True):
            if slot.held is not None:
                self._cancel(slot, "shutdown")
        # for the slots to be empty, not for their tasks: those wait for the next run
        deadline = monotonic() + CLEANUP_SECONDS
        while self._running and monotonic() < deadline:
            self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room], timeout=max(0.0, deadline - monotonic()))
        claiming.cancel()
        await asyncio.wait([claiming], timeout=END_SECONDS)
        try:
            async with asyncio.timeout(END_OF_WAITING_SECONDS):
                await self._release_ready()  # what a claim gave that was answered late
        except TimeoutError:
            logger.warning("%s: cannot give back what it has not started, its lease will run out", self.worker_name)
        if not await self._settler.settle_all(monotonic() + 5):
            logger.warning("%s: could not settle everything; it will be delivered again", self.worker_name)

    async def _say_farewell(self) -> None:
        try:
            await self.broker.farewell(self.id)
        except BrokerError as exc:
            logger.warning("%s: %s", self.worker_name, exc)

    async def _release_ready(self, keep: int = 0) -> None:
        """Give back what waits for a slot, all but the first ``keep``."""
        back: dict[str, list[Claimed]] = {}
        taken: list[Claimed] = []
        for collector in self._collectors.values():
            if collector.timer is not None:
                collector.timer.cancel()
                collector.timer = None
            taken += reversed(collector.helds)
            self._collected -= len(collector.helds)
            collector.helds = []
        while len(self._ready) > keep:
            ready = self._ready.pop()
            if isinstance(ready, Group):
                taken += reversed(ready.helds)
                self._collected -= len(ready.helds)
            else:
                taken.append(ready)
        for held in taken:
            back.setdefault(held.lease.batch, []).append(held)
        # The last claimed goes back first, so that the first claimed is the next to be taken.
        for batch, helds in back.items():
            helds.reverse()
            lease = helds[0].lease
            lease.partial = True
            lease.left -= len(helds)
            lease.unstarted -= len(helds)
            try:
                await self.broker.release(batch, [held.field for held in helds])
            except BrokerError as exc:
                logger.warning(
                    "%s: cannot give back %d runs, their lease will run out: %s", self.worker_name, len(helds), exc
                )
            if lease.left <= 0 and not lease.sending:
                self._settler.close_lease(lease)

    # -- claiming

    async def _claim_loop(self) -> None:
        failing = False
        ahead: tuple[int, asyncio.Task[Claim]] | None = None
        try:
            while ahead is not None or not self._draining:
                try:
                    if ahead is not None:
                        idle, (want, claiming), ahead = False, ahead, None
                        claim = await claiming
                        del claiming  # it holds what it gave
                    elif not self._consumes():
                        await self.broker.idle_no_more(self.id)  # what is pushed is for others
                        if await self._wait_stop(1.0):
                            return
                        continue
                    elif (want := self._want()) == 0:
                        await self._wait_for_room()
                        continue
                    else:
                        idle = self._running == 0 and not self._ready
                        claim = await self._claim(want, idle)
                    failing = False
                    self._quiet_until = 0.0
                    if claim.suspects and not idle and (now := monotonic()) >= self._quiet_next:
                        self._quiet_until = now + QUIET_SECONDS
                        self._quiet_next = now + 5 * QUIET_SECONDS
                    if not claim.items and not self._draining:
                        self._waiting = True
                        try:
                            claim = await self._wait(claim.suspects > 0) or claim
                        finally:
                            self._waiting = False
                        if claim.items and not self._consumes():  # any more
                            self._leases.pop(claim.batch, None)
                            await self.broker.release(claim.batch, [item.field for item in claim.items])
                            continue
                    if claim.items:
                        try:
                            if len(claim.items) == want and not claim.alone and not self._draining:
                                ahead = await self._claim_ahead(want)
                            await self._accept(claim)
                        except BaseException:
                            # What was not taken in is not renewed either: its lease runs out, and others get it.
                            self._leases.pop(claim.batch, None)
                            raise
                        if len(claim.items) < want:
                            await asyncio.sleep(0)  # no more is waiting there: these start before we look again
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if self._draining or self._ends() or task is None or task.cancelling():
                        return
                    logger.exception("%s: claiming failed; trying again", self.worker_name)  # something that it awaited
                    await asyncio.sleep(0.5)
                except BrokerConnectionError as exc:
                    if not failing:
                        logger.warning("%s: %s; trying again", self.worker_name, exc)
                    failing = True
                    if await self._wait_stop(0.5) and ahead is None:
                        return
                except Exception:
                    logger.exception("%s: claiming failed; trying again", self.worker_name)
                    if await self._wait_stop(0.5) and ahead is None:
                        return
        finally:
            if ahead is not None:
                ahead[1].cancel()

    async def _claim(self, want: int, idle: bool) -> Claim:
        claim = await self.broker.claim(self.id, want, idle=idle, waits=True, tasks=tuple(self._known))
        if claim.items:  # in the step in which the answer came, so that there is no moment in which nobody prolongs it
            self._settler.open_lease(claim.batch, len(claim.items))
        return claim

    def _consumes(self) -> bool:
        return self.concurrency > 0 and getattr(self.manager.config, "consume_tasks", True)

    async def _wait(self, suspects: bool) -> Claim | None:
        """Until it is time to claim, or to start what is given. ``suspects`` wait for an idle consumer."""
        began = monotonic()
        claim: Claim | None = None
        while self._consumes():
            at = monotonic()
            claim = await self.broker.wait(self.id, WAIT_SECONDS, tuple(self._known))
            now = monotonic()
            if claim is not None or now - at < WAIT_SECONDS:  # there is something
                break
            if suspects or now - began >= self.broker.look_seconds(self.id):
                break
        if claim is not None:
            self._settler.open_lease(claim.batch, len(claim.items))
        return claim

    async def _claim_ahead(self, coming: int) -> tuple[int, "asyncio.Task[Claim]"] | None:
        """Ask for the next batch before this one, of so many runs, is read: the server works on it meanwhile."""
        want = self._want(coming)
        if not want:
            return None
        claiming = asyncio.create_task(self._claim(want, False), name=f"{self.worker_name}-claim-ahead")
        await asyncio.sleep(0)  # it is sent
        return want, claiming

    async def _wait_for_room(self) -> None:
        room = self._room = asyncio.get_running_loop().create_future()  # who makes room takes it out of self._room
        await asyncio.wait([room], timeout=0.05)
        if room.done():
            return
        # Every slot is taken for longer than a moment: what is pushed now is for others.
        await self.broker.idle_no_more(self.id)
        if not room.done() and self._want() == 0 and not self._draining:
            await asyncio.wait([room], timeout=1.0)

    def _now(self) -> int:
        """The broker's time in microseconds: what is delayed is due by its clock, whatever this machine's says."""
        return now_micros() + self._behind

    async def _accept(self, claim: Claim) -> None:
        """Turn payloads into runs: those that can start go to the slots, the others are settled."""
        lease = self._leases[claim.batch]
        self._known.update(claim.enabled)
        self._alone = claim.alone
        codec = self.broker.codec
        manager, listeners = self.manager, self._listeners
        if claim.at:
            self._behind = claim.at - now_micros()
        now = self._now()
        helds: list[Claimed] = []
        names: set[str] = set()
        last: Task[Any] | None = None
        for item in claim.items:
            item.lease = lease
            try:
                item.run = run = codec.decode(item.payload, manager, listeners)
            except TaskParamsError as exc:
                lease.unstarted -= 1
                item.run = exc.task_run
                exc.task_run.logger.error("%s - %s", exc.task_run.shown_id, exc)
                self._end(item, FAILURE)
                self._settler.bury(item, str(exc))
            except (UnknownTaskError, PayloadError) as exc:
                lease.unstarted -= 1
                logger.error("%s: a run cannot be read and goes to the dead: %s", self.worker_name, exc)
                self._settler.discard(item, str(exc))
            except BaseException as exc:  # reading waits for nothing, so nobody can have cancelled it
                lease.unstarted -= 1
                logger.error("%s: a run cannot be read and goes to the dead", self.worker_name, exc_info=exc)
                self._settler.discard(item, describe(exc))
            else:
                if run.execute_after is not None and (after := run.execute_after.timestamp() * 1e6) > now:
                    lease.unstarted -= 1
                    self._settler.again(item, delay := (after - now) / 1e6, run.prio, item.payload)
                    self.promote_in(delay)
                    continue
                helds.append(item)
                if run.task is not last:  # runs of one task come in a row
                    last = run.task
                    names.add(run.name)
        known = self._known
        if fresh := names - claim.enabled.keys():
            try:
                infos = await self.broker.get_tasks_info(*fresh)
                known.update((info.name, info.enabled) for info in infos)
            except BrokerError as exc:  # the next claim brings the flags
                logger.warning("%s: cannot see whether tasks are enabled: %s", self.worker_name, exc)
                for name in fresh:
                    known.setdefault(name, True)
        ready = self._ready
        if last is not None and len(names) == 1 and known.get(last.name, True) and not last.batch:
            ready.extend(helds)
            helds = []
        for held in helds:
            if known.get(held.run.name, True):
                if held.run.task.batch:
                    self._collect(held)
                else:
                    ready.append(held)
            else:
                lease.unstarted -= 1
                held.run.logger.info("%s - aborted - the task is disabled", held.run.shown_id)
                self._end(held, ABORTED)
        self._wake_slots()

    # -- executing

    def _collect(self, held: Claimed) -> None:
        """Put a run to the others of its task, which are executed together."""
        task: Task[Any] = held.run.task
        collector = self._collectors.get(task.name)
        if collector is None:
            collector = self._collectors[task.name] = Collector()
            self._collectable += task.batch * min(self.concurrency, 4)
        collector.helds.append(held)
        self._collected += 1
        if len(collector.helds) >= task.batch:
            self._group(collector)
        elif collector.timer is None:
            collector.timer = asyncio.get_running_loop().call_later(task.batch_wait, self._group, collector)

    def _group(self, collector: Collector) -> None:
        if collector.timer is not None:
            collector.timer.cancel()
            collector.timer = None
        helds, collector.helds = collector.helds, []
        if helds:
            self._ready.append(Group(helds))
            self._wake_slots()

    async def _work_group(self, slot: Slot, group: Group) -> None:
        """Run a batch in one slot."""
        self._running += 1
        slot.deadline = float("inf")
        slot.held = group
        try:
            for held in group.helds:
                held.lease.unstarted -= 1
                if held.lease.unstarted == 0:
                    self._pace(held.lease)
                if held.lease.lost:
                    self._settler.drop(held)
            await self._run_group(slot, [held for held in group.helds if not held.lease.lost])
        except BaseException as exc:
            if isinstance(exc, GeneratorExit) and not is_current(slot.task):
                raise
            logger.error("%s: a batch could not be handled", self.worker_name, exc_info=exc)
            for held in group.helds:
                if not held.run.is_done:
                    self._settler.drop(held)
        finally:
            self._collected -= len(group.helds)
            self._vacate(slot)

    async def _run_group(self, slot: Slot, helds: list[Claimed]) -> None:
        if not helds:
            return
        task: Task[Any] = helds[0].run.task
        slot.deadline = slot.cancel_at = deadline = monotonic() + task.timeout_seconds
        if deadline < self._sweep_at:
            self._sweep_by(deadline)
        for held in helds:
            held.run._enter(RUNNING)
            if self._listeners.mask & 1 << RUNNING:
                held.run._emit()
        failed: Any = None
        try:
            runs = [held.run for held in helds]
            failed = await (task.executor(runs) if is_async(task.executor) else self._in_thread(slot, task, runs))
            refuse_unrun(failed)
        except BaseException as exc:
            for held in reversed(helds):  # the last claimed goes back first, if they go back
                self._broke(slot, held, exc)
            return
        errors = failed if isinstance(failed, Mapping) else {}
        for held in helds:
            self._conclude(held, errors.get(held.run.id))

    def _conclude(self, held: Claimed, exc: BaseException | None) -> None:
        """Settle a run in the state that the task's function set it to, else by how the function ended."""
        run = held.run
        if run.is_failure or (exc is not None and not run.is_done):
            if isinstance(exc, TaskAbortedError):
                self._end(held, ABORTED)
            else:
                self._failed(held, exc or TaskRunError(SET_TO_FAILURE))
        else:
            self._end(held, STATES.index(run.state) if run.is_done else SUCCESS)

    def _pace(self, lease: Lease) -> None:
        """All of a batch has started: claim more at a time if that was quick, fewer if it was not."""
        age = monotonic() - lease.claimed_at
        if age < QUICK_SECONDS:
            self._prefetch = min(MAX_PREFETCH, max(16, self._prefetch * 2))
        elif age > SLOW_SECONDS:
            self._prefetch //= 4

    async def _may_start(self, slot: Slot, held: Claimed) -> bool:
        """Ask the broker whether a run is still ours, where that is not sure, and whether its task's limit leaves room.

        If not, it is dropped, or settled.
        """
        unsure = monotonic() - max(held.lease.claimed_at, self._prolonged_at) > self.broker.options.lease_seconds
        # this process, or the server, stood still: others may have run it by now
        if unsure and not await self._still_holds(held.lease, slot):
            self._settler.drop(held)
            return False
        return not held.run.task.max_concurrency or await self._acquire(held)

    # -- plain functions

    async def _in_thread(self, slot: Slot, task: Task[Any], argument: Any) -> Any:
        """Call a plain function, for what runs in a slot, in a thread of this consumer."""
        try:
            job = slot.job = self._threads.submit(task, argument)
        except NoThreadError:
            await asyncio.sleep(AGAIN_SECONDS)  # with its slot, or the run would come back at once
            raise
        try:
            await job.waiter
        except BaseException:
            if self._threads.leave(job):
                self._hangs(slot, job)
            raise
        finally:
            slot.job = None
        result = job.outcome()
        if hasattr(result, "__await__"):  # a plain function that returns a coroutine: partials, lambdas, wrappers
            slot.deadline = slot.cancel_at = job.due
            if job.due < self._sweep_at:
                self._sweep_by(job.due)
            result = await result
        return result

    async def join_threads(self, seconds: float) -> int:
        """Wait for so many seconds until no plain function runs in a thread. Returns how many still do."""
        return await self._threads.join(seconds)

    def _hangs(self, slot: Slot, job: Job) -> None:
        """The run in a slot has ended, and its function goes on in its thread."""
        held = slot.held
        if isinstance(held, Claimed) and self._limited.pop(held.slot, None) is not None:
            job.slot = held.slot  # max_concurrency counts it until it has returned
        if len(self._threads.hung) > HUNG_ROOM:
            self._stuck.append(slot)
            self.concurrency -= 1
            if not self.concurrency and self._hung_timer is None:
                self._hung_timer = asyncio.get_running_loop().call_later(HUNG_SECONDS, self._all_hang)
        logger.warning(
            "%s: task %s - its function goes on in its thread, which cannot be stopped; threads that hang: %s (room "
            "for %d beside the slots, of which %d are left)",
            self.worker_name, printable(job.task.name), self._threads.hung_by_task(), HUNG_ROOM, self.concurrency,
        )  # fmt: skip

    def _freed(self, job: Job) -> None:
        """A function has returned after its run had ended."""
        if job.slot:
            self._settler.free([(job.task.name, job.slot)])
        logger.info(
            "%s: task %s - its function has returned after %.1f s; threads that hang: %s",
            self.worker_name, printable(job.task.name), monotonic() - job.began, self._threads.hung_by_task() or "none",
        )  # fmt: skip
        if not self._stuck:
            return
        if self._hung_timer is not None:
            self._hung_timer.cancel()
            self._hung_timer = None
        slot = self._stuck.pop()
        self.concurrency += 1
        if not self._ends() and slot.task is not None and slot.task.done():
            self._begin(slot)

    def _all_hang(self) -> None:
        self._failure = HungThreadsError(
            f"all threads hang in plain functions that go on after their timeouts ({self._threads.hung_by_task()}): "
            "give what they wait for a timeout of its own, such as that of a socket"
        )
        self.gracefully_stop()

    def _broke(self, slot: Slot, held: Claimed, exc: BaseException) -> None:
        """A run's function did not return. Raises GeneratorExit if the slot's coroutine is being closed."""
        if isinstance(exc, GeneratorExit) and not is_current(slot.task):
            raise exc  # the event loop is gone: the lease runs out
        if isinstance(exc, TaskAbortedError):
            held.run.logger.info("%s - aborted - %s", held.run.shown_id, error_text(exc))
            self._end(held, ABORTED)
        elif isinstance(exc, NoThreadError):
            held.run.logger.error("%s - not started, it goes back to its queue: %s", held.run.shown_id, exc)
            held.run._enter(INTERRUPTED)
            held.run._emit()
            self._settler.give_back(held)
        elif isinstance(exc, asyncio.CancelledError) or self._interrupts(slot):
            self._cancelled(slot, held, exc)
        else:
            self._conclude(held, exc)

    def _interrupts(self, slot: Slot) -> bool:
        """Whether what runs in a slot is cancelled because the consumer or the event loop ends."""
        return slot.reason == "shutdown" or (self._ends() and slot.task is not None and slot.task.cancelling() > 0)

    def _mishandled(self, slot: Slot, held: Claimed, exc: BaseException) -> None:
        """A run was cancelled before it started, or something of ours failed, of which nothing is said to the broker:
        the run is delivered again."""
        if isinstance(exc, GeneratorExit) and not is_current(slot.task):
            raise exc
        if not isinstance(exc, asyncio.CancelledError) or not (slot.reason or self._ends()):
            logger.error("%s: run %s could not be handled", self.worker_name, held.run.shown_name, exc_info=exc)
            self._settler.drop(held)
            return
        if held.run.task.max_concurrency:
            self._limited[held.slot] = held.run.name  # it may have been granted
        if slot.reason == "lost":
            self._settler.drop(held)
        else:
            self._settler.give_back(held)

    async def _acquire(self, held: Claimed) -> bool:
        run = held.run
        try:
            granted = await self.broker.acquire(run.task, held.slot)
        except BrokerError as exc:
            logger.warning("%s: no slot for %s, trying again: %s", self.worker_name, run.shown_name, exc)
            self._retry(held, AGAIN_SECONDS, self._as_claimed(held))
            return False
        if granted:
            self._limited[held.slot] = run.name
            return True
        retry = retry_when_limited(self._as_claimed(held), self._now())
        if retry is None and granted is None:  # its own slot, of a worker that is gone, or that of a run of its id
            self._retry(held, AGAIN_SECONDS, self._as_claimed(held))
        elif retry is None:
            self._end(held, RATE_LIMITED)
        else:
            run.logger.info("%s - rate limited - again in %.1f s", run.shown_id, retry.delay)
            self._retry(held, retry.delay, retry.run)
        return False

    def _as_claimed(self, held: Claimed) -> TaskRun[Any, Any]:
        """The run as it came: what a task did to its params is not what is tried again."""
        return self.broker.codec.decode(held.payload, self.manager, self._listeners)

    def _cancelled(self, slot: Slot, held: Claimed, exc: BaseException) -> None:
        run = held.run
        reason = slot.reason
        if run.is_done and reason != "lost":
            self._conclude(held, None)
        elif reason == "timeout":
            self._failed(held, TimeoutError(f"it took longer than {run.task.timeout_seconds} s"), timed_out=True)
        elif reason == "lost":
            run.logger.warning("%s - cancelled - its lease was lost, another consumer has it", run.shown_id)
            self._settler.drop(held)
        elif reason == "shutdown" or self._draining or self._ends() or not self.is_running():
            run.logger.warning("%s - interrupted by shutdown, it goes back to its queue", run.shown_id)
            run._enter(INTERRUPTED)
            run._emit()
            self._settler.give_back(held)
        else:
            # The handler cancelled itself, or something that it awaited was cancelled.
            error = asyncio.CancelledError("the task was cancelled from within").with_traceback(exc.__traceback__)
            error.__cause__ = exc.__cause__ or exc.__context__
            self._failed(held, error)

    def _failed(self, held: Claimed, exc: BaseException, *, timed_out: bool = False) -> None:
        run = held.run
        policy = run.task.retry
        retry = None if policy is None else retry_after_failure(self._as_claimed(held), exc, self._now())
        identity = run.shown_id
        if timed_out:
            run.logger.error("%s - timeout - %s", identity, exc)
        elif isinstance(exc, TaskRunError):
            run.logger.error("%s - failure - %s", identity, error_text(exc))
        else:
            run.logger.error("%s - failure", identity, exc_info=exc)
        if retry is None:
            self._end(held, FAILURE)
            frames = innermost_frames(exc, 3)
            where = f" (at {' < '.join(frames)})" if frames else ""
            if policy is None:
                self._settler.fail(held, f"{describe(exc, SHOWN, keep=BREAKS)}{where}")
            else:
                name, text = printable(type(exc).__name__), error_text(exc, SHOWN, keep=BREAKS)
                self._settler.bury(held, f"{name} after {run.retry_attempt} retries: {text}{where}")
            return
        told = run.is_done
        run._enter(FAILURE)
        if not told:
            run._emit()
        run.logger.warning("%s - retry %d in %.1f s", identity, retry.run.retry_attempt, retry.delay)
        self._retry(held, retry.delay, retry.run)

    # -- settling

    def _retry(self, held: Claimed, delay: float, again: TaskRun[Any, Any]) -> None:
        try:
            payload = self.broker.codec.encode(again)
        except TaskError as exc:  # what it counts made it larger than it may be
            held.run.logger.error(
                "%s - cannot be tried again, it goes to the dead: %s", held.run.shown_id, error_text(exc)
            )
            self._end(held, FAILURE)
            self._settler.bury(held, f"cannot be tried again: {error_text(exc, SHOWN)}")
            return
        self._settler.again(held, delay, again.prio, payload)
        self.promote_in(delay)

    def _lease_finished(self) -> None:
        if self._alone and not self._leases:
            self._alone = False
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    async def _still_holds(self, lease: Lease, slot: Slot) -> bool:
        """Ask the broker whether a lease is still ours; ``slot`` is about to start one of its runs."""
        try:
            gone = await self.broker.renew(self.id, [lease.batch])
        except BrokerError:  # nobody knows: what cannot be settled will run again
            return True
        if gone:
            self._lose(lease, "it ran out", besides=slot)
        return not gone

    def _lose(self, lease: Lease, why: str, besides: Slot | None = None) -> None:
        """The lease is gone: its runs are somebody else's. What runs of them is cancelled, ``besides`` in one slot."""
        if lease.lost:
            return
        lease.lost = True
        logger.warning("%s: lease %s was lost (%s); its runs may run twice", self.worker_name, lease.batch, why)
        for slot in self._slots:
            held = slot.held
            if held is not None and held.lease is lease and slot is not besides and not slot.reason:
                self._cancel(slot, "lost")

    def _cancel(self, slot: Slot, reason: str) -> None:
        """Cancel what a slot runs; again and again, since it may swallow that (as asyncio.wait_for of Python 3.11
        may)."""
        assert slot.task is not None
        slot.reason = reason
        slot.cancel_at = monotonic() + CANCEL_AGAIN_SECONDS
        slot.task.cancel()
        if slot.cancel_at < self._sweep_at:
            self._sweep_by(slot.cancel_at)

    # -- upkeep

    def _sweep_by(self, when: float) -> None:
        """Look at timeouts at this monotonic time."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = when
        delay = max(0.0, when - monotonic())
        self._sweep_timer = asyncio.get_running_loop().call_later(delay, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        self._sweep_at = float("inf")
        now = monotonic()
        first = float("inf")
        for slot in self._slots:
            if slot.held is None:
                continue
            if slot.cancel_at <= now:
                if slot.job is not None and not slot.reason and slot.job.due > now:
                    slot.deadline = slot.cancel_at = slot.job.due  # its thread began after its slot
                else:
                    self._cancel(slot, slot.reason or "timeout")
            first = min(first, slot.cancel_at)
        if first < self._sweep_at:
            self._sweep_by(first)

    def _held(self) -> Held | None:
        """What is to be prolonged; called in the keeper's thread. None: the event loop is blocked for good, and what
        this consumer holds is for others."""
        batches = list(self._leases)
        slots = [(task, slot) for slot, task in list(self._limited.items())]
        slots += [(job.task.name, job.slot) for job in list(self._threads.hung) if job.slot]
        # A run that is over its time by more than a lease should have ended.
        late = monotonic() - self.broker.options.lease_seconds
        hung: list[str] = []
        for slot in list(self._slots):
            held, reason = slot.held, slot.reason
            if held is None or slot.deadline >= late:
                continue
            if not reason:  # the loop has not even cancelled it
                return None
            hung += [one.lease.batch for one in (held.helds if isinstance(held, Group) else (held,))]
        if hung and self._loop is not None:  # it does not let itself be cancelled
            batches = [batch for batch in batches if batch not in hung]
            self._loop.call_soon_threadsafe(self._lose_batches, hung)
        return batches, slots

    def _lose_batches(self, batches: list[str]) -> None:
        for batch in batches:
            lease = self._leases.get(batch)
            if lease is not None and lease.left > 0 and not lease.sending:
                self._lose(lease, "it ran out")

    async def _reap_loop(self) -> None:
        while True:
            await asyncio.sleep(self.broker.reap_seconds())
            try:
                await self.broker.reap()
            except Exception as exc:
                logger.warning("%s: reaping failed, trying again: %s", self.worker_name, exc)

    def promote_in(self, seconds: float) -> None:
        """Look for what is due in so many seconds. One timer, for the earliest: each look says when the next is due,
        and there is one within PROMOTE_SECONDS."""
        if seconds >= PROMOTE_SECONDS:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds + SETTLE_SECONDS
        if self._promote_timer is not None:
            if self._promote_timer.when() <= when:
                return
            self._promote_timer.cancel()
        self._promote_timer = loop.call_at(when, self._promote_now)

    def _promote_now(self) -> None:
        self._promote_timer = None
        self._promote_soon.set()

    async def _promote_loop(self) -> None:
        while True:
            pause = PROMOTE_SECONDS
            try:
                due = await self.broker.promote()
                if due is not None:
                    pause = min(pause, due + 0.001)
            except Exception as exc:
                logger.warning("%s: promoting delayed runs failed, trying again: %s", self.worker_name, exc)
            if self._ready and not self._draining and monotonic() - self._ready[0].lease.claimed_at > HOLD_SECONDS:
                self._prefetch = 0
                await self._release_ready()
            try:
                async with asyncio.timeout(pause):
                    await self._promote_soon.wait()
            except TimeoutError:
                pass
            self._promote_soon.clear()


def claimed_when(slot: Slot) -> tuple[float, int]:
    """Orders what runs by when it was taken off its queue."""
    held = slot.held.helds[0] if isinstance(slot.held, Group) else slot.held
    return (0.0, 0) if held is None else (held.lease.claimed_at, int(held.field[1:]))


def innermost_frames(exc: BaseException, count: int) -> list[str]:
    """Where an exception was raised, innermost first: ``file.py:line function``."""
    frames = traceback.extract_tb(exc.__traceback__)[-count:]
    return [f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
