"""The engine of a consumer: claim, execute, settle.

It keeps up to ``max_concurrent_tasks`` slots busy. A slot is one long-lived asyncio task that awaits one handler after
the other, so that starting a run costs no Task object; ``current_task()`` in a handler is the slot. Claimed runs wait
in ``slots.ready``; how many more than the free slots are claimed follows the observed pace. The settler tells the
broker what became of the runs.

The engine is composed of parts, each of which does one thing. It starts them, replaces what ends, and sees to the end.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any

from ..core.process import consumer_began, consumer_ended
from ..core.workers import Worker
from ..errors import BrokerError, HungThreadsError
from ._slots import Slot, Slots
from .admission import Admission
from .claiming import Claiming
from .failures import Failures
from .groups import Groups
from .held import claimed_when
from .host import Host
from .life import Life
from .outcomes import Outcomes
from .plain import PlainFunctions
from .settler import Settler
from .summary import Summary
from .timeouts import Timeouts
from .upkeep import Upkeep

__all__ = ["Engine"]

logger = logging.getLogger("fluidfast.engine")

CLEANUP_SECONDS = 0.7
"""How long a run that shutdown has cancelled may take to clean up."""
END_SECONDS = 0.1
"""How long what does not end then is waited for once more. A shutdown takes the grace period and these two at most."""
END_OF_WAITING_SECONDS = 5.0
"""How long shutdown waits for the server to end this consumer's waiting for something to claim."""


class Engine(Worker):
    """Consumes for one manager.

    Attributes: ``grace_seconds``: how long what runs may go on when the engine is to stop; the parts: ``slots``,
    ``settler``, ``claiming``, ``timeouts``, ``upkeep``, ``functions``, ``summary``.
    """

    def __init__(self, manager: Host, *, concurrency: int, stopping_grace_period: float) -> None:
        super().__init__(name="task-consumer", stopping_grace_period=stopping_grace_period + 5)
        self.manager = manager
        self.broker = broker = manager.broker
        self.grace_seconds = stopping_grace_period
        self._failure: Exception | None = None
        self._hurried = False
        self._loops: dict[str, asyncio.Task[None]] = {}

        listeners = manager.dispatcher.listeners
        self._life = life = Life(self.worker_name, is_running=self.is_running, wait_stop=self._wait_stop)
        self.settler = settler = Settler(
            broker, life.who, lost=lambda lease: self.timeouts.lose(lease, "could not be settled"),
            finished=lambda: self.claiming.lease_closed(),
        )  # fmt: skip
        # a lease older than a third of its time may be lost, and is checked before its runs start
        self.slots = slots = Slots(concurrency, settler, listeners, broker, broker.options.lease_seconds / 3)
        self.upkeep = upkeep = Upkeep(broker, life.who)
        self.functions = functions = PlainFunctions(slots, settler, life, give_up=self._give_up)
        self.timeouts = timeouts = Timeouts(slots, settler, broker, life, kept=functions.kept)
        failures = Failures(manager.hooks)
        self.summary = Summary(slots, broker, upkeep, failures)
        outcomes = Outcomes(slots, settler, broker, life, upkeep, manager, listeners, failures)
        groups = Groups(slots, settler, life, outcomes, functions, manager.hooks)
        self.claiming = Claiming(slots, settler, broker, life, groups, upkeep, manager, listeners, failures)
        slots.connect(
            admission=Admission(slots, settler, broker, life, timeouts, outcomes, upkeep),
            outcomes=outcomes,
            groups=groups,
            functions=functions,
            timeouts=timeouts,
            hooks=manager.hooks,
            ended=self._slot_ended,
        )

    def _renew(self) -> "Engine":
        """An engine lives once: what it knows is of one event loop."""
        engine = type(self)(self.manager, concurrency=self.concurrency, stopping_grace_period=self.grace_seconds)
        engine._worker_life.watchers = self._worker_life.watchers
        return engine

    # -- what it is

    @property
    def id(self) -> str:
        """The consumer's id on the broker: that of its process, once it runs."""
        return self._life.id

    @property
    def concurrency(self) -> int:
        """How many runs may run at a time."""
        return self.slots.concurrency

    @concurrency.setter
    def concurrency(self, concurrency: int) -> None:
        self.slots.concurrency = concurrency

    @property
    def finished(self) -> int:
        """Runs that this consumer has brought to an end."""
        return self.slots.finished

    def consumes(self) -> bool:
        """Whether it is to claim anything."""
        return self.claiming.consumes()

    async def status(self) -> dict[str, Any]:
        return {
            **await super().status(),
            "tasks_running": self.slots.running,
            "tasks_claimed": len(self.slots.ready),
            "tasks_finished": self.slots.finished,
            "threads_hung": self.functions.hung,
        }

    # -- what may be asked of it

    def promote_in(self, seconds: float) -> None:
        """Look for delayed runs that are due in so many seconds."""
        self.upkeep.promote_in(seconds)

    async def join_threads(self, seconds: float) -> int:
        """Wait for so many seconds until no plain function runs in a thread. Returns how many still do."""
        return await self.functions.join(seconds)

    def hurry(self) -> None:
        """Do not wait for the end of the grace period: what runs when this consumer stops goes back at once."""
        self._hurried = True
        if self.slots.draining:
            self.slots.make_room()

    def fall_silent(self) -> None:
        """Say nothing to the broker from here on. For the child of a fork, in which this engine is the parent's."""
        self._life.ended = True
        self.settler.fall_silent()

    # -- life

    async def run(self) -> None:
        broker, slots, life = self.broker, self.slots, self._life
        broker.consumes = True
        life.begin(self.manager.manager_id)
        await broker.connect()  # a server that is not there is said at once; one that goes away is waited for
        slots.context = self.settler.context = copy_context()
        keeper = self.timeouts.keeper()
        keeper.start()
        self._start_loop("reap_loop", self.upkeep.reap_loop)
        self._start_loop("promote_loop", partial(self.upkeep.promote_loop, self.claiming.release_stale))
        self._start_loop("claim_loop", self.claiming.loop)
        self._start_loop("summary_loop", self.summary.loop)
        consumer_began()
        try:
            await self._wait_stop()
            await self._drain()
            # before it deregisters: a later renewal would register it again, and nobody would ever deregister it
            keeper.stop()
            await keeper.join(broker.options.lease_seconds)
            await self._deregister()
        finally:
            consumer_ended()
            life.ended = True
            keeper.stop()
            ending = [*self._loops.values(), *(slot.task for slot in slots if slot.task)]
            for task in ending:
                task.cancel()
            # without a drain before, this is where what runs cleans up
            _, hung = await asyncio.wait(ending, timeout=END_SECONDS if slots.draining else CLEANUP_SECONDS)
            if hung:  # a handler that does not let itself be cancelled
                logger.warning("%s: %d tasks ignored cancellation and were abandoned", self.worker_name, len(hung))
            if not slots.draining:
                await self._let_go()
            await self.settler.close(END_SECONDS)  # with what has ended only now
            for part in (self.functions, self.timeouts, self.upkeep):
                part.close()

        if self._failure is not None:
            raise self._failure

    def _give_up(self, reason: HungThreadsError) -> None:
        """Stop, and end with this error."""
        self._failure = reason
        self.gracefully_stop()

    async def _let_go(self) -> None:
        """Give back at once what has not started: the event loop ends, and nobody waits for a drain."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.broker.stop_reserving(self.id)
                await self.claiming.release_ready()
        except (BrokerError, TimeoutError) as exc:
            logger.warning("%s: cannot give back what it has not started: %s", self.worker_name, exc or "no answer")

    async def _drain(self) -> None:
        """Stop claiming, give back what has not started, let the running finish within the grace period, give back
        what has not finished then."""
        slots = self.slots
        slots.draining = True
        claiming = self._loops["claim_loop"]
        slots.make_room()
        deadline = monotonic() + END_OF_WAITING_SECONDS
        while not claiming.done() and monotonic() < deadline:
            if self.claiming.waiting:
                claiming.cancel()  # again and again: asyncio.wait_for of Python 3.11 may swallow it
            await asyncio.wait([claiming], timeout=0.1)
        try:
            async with asyncio.timeout(END_OF_WAITING_SECONDS):
                await self.broker.stop_reserving(self.id)  # else what is given back wakes ourselves
        except (BrokerError, TimeoutError) as exc:
            logger.warning("%s: cannot end its waiting: %s", self.worker_name, exc or "no answer")
        await self.claiming.release_ready()
        deadline = monotonic() + self.grace_seconds
        while slots.running and monotonic() < deadline and not self._hurried:
            await asyncio.wait([slots.room()], timeout=min(0.25, max(0.0, deadline - monotonic())))
        # the last claimed goes back first here too
        for slot in sorted(slots, key=claimed_when, reverse=True):
            if (held := slot.held) is not None:
                self.timeouts.cancel(slot, held, "shutdown")
        # for the slots to be empty, not for their tasks: those wait for the next run
        deadline = monotonic() + CLEANUP_SECONDS
        while slots.running and monotonic() < deadline:
            await asyncio.wait([slots.room()], timeout=max(0.0, deadline - monotonic()))
        claiming.cancel()
        await asyncio.wait([claiming], timeout=END_SECONDS)
        try:
            async with asyncio.timeout(END_OF_WAITING_SECONDS):
                await self.claiming.release_ready()  # what a claim gave that was answered late
        except TimeoutError:
            logger.warning("%s: cannot give back what it has not started, its lease will run out", self.worker_name)
        if not await self.settler.settle_all(monotonic() + 5):
            logger.warning("%s: could not settle everything; it will be delivered again", self.worker_name)

    async def _deregister(self) -> None:
        try:
            await self.broker.deregister(self.id)
        except BrokerError as exc:
            logger.warning("%s: %s", self.worker_name, exc)

    # -- what ends is replaced

    def _start_loop(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loops[name] = asyncio.create_task(work(), name=f"{self.worker_name}-{name}")
        task.add_done_callback(partial(self._loop_ended, name, work))

    def _loop_ended(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], task: "asyncio.Task[None]") -> None:
        """A loop of the engine has ended: start it again, unless it was to end."""
        if not self._life.ends() and not self.slots.draining:
            self._log_end(task)
            self._start_loop(name, work)

    def _slot_ended(self, slot: Slot, task: "asyncio.Task[None]") -> None:
        """A slot's task has ended: start another in its place, unless the engine ends."""
        if not self._life.ends():
            if not slot.spent:
                self._log_end(task)
            if not self.functions.is_stuck(slot):
                self.slots.begin(slot)

    def _log_end(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        why = "it was cancelled" if task.cancelled() else "it failed" if error else "it returned"
        logger.error(
            "%s: %s ended (%s); another takes its place", self.worker_name, task.get_name(), why, exc_info=error
        )
