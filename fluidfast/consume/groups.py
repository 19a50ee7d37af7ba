"""Tasks that take a batch: their runs are gathered, and executed as one."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from time import monotonic
from typing import Any

from ..brokers._leases import Claimed
from ..core.events import is_current
from ..core.hooks import Hooks
from ..core.task import Task, is_async
from ..execute.executor import checked
from ._slots import Slot, Slots
from .held import Collector, Group
from .life import Life
from .outcomes import Outcomes
from .plain import PlainFunctions
from .settler import Settler

__all__ = ["Groups"]

logger = logging.getLogger("fluidfast.engine")


class Groups:
    """Gathers the runs of each task that takes a batch, and runs them, a group in a slot."""

    def __init__(
        self,
        slots: Slots,
        settler: Settler,
        life: Life,
        outcomes: Outcomes,
        functions: PlainFunctions,
        hooks: Hooks,
    ) -> None:
        self._slots = slots
        self._settler = settler
        self._life = life
        self._outcomes = outcomes
        self._functions = functions
        self._hooks = hooks
        self._collectors: dict[str, Collector] = {}

    def collect(self, held: Claimed) -> None:
        """Put a run to the others of its task, which are executed together."""
        task: Task[Any] = held.run.task
        slots = self._slots
        collector = self._collectors.get(task.name)
        if collector is None:
            collector = self._collectors[task.name] = Collector()
            slots.collectable += task.batch * min(slots.concurrency, 4)
        collector.claimed.append(held)
        slots.collected += 1
        if len(collector.claimed) >= task.batch:
            self._close(collector)
        elif collector.timer is None:
            collector.timer = asyncio.get_running_loop().call_later(task.batch_wait, self._close, collector)

    def _close(self, collector: Collector) -> None:
        """Close the group: start its gathered runs, and add no more."""
        if claimed := collector.take():
            self._slots.ready.append(Group(claimed))
            self._slots.wake()

    def take_gathered(self) -> list[Claimed]:
        """Take out all that is gathered and no group yet, the last claimed of each task first."""
        taken: list[Claimed] = []
        for collector in self._collectors.values():
            taken += reversed(collector.take())
        self._slots.collected -= len(taken)
        return taken

    async def run(self, slot: Slot, group: Group) -> None:
        """Run a group in a slot."""
        slots = self._slots
        slots.occupy(slot, group)
        try:
            for held in group.claimed:
                slots.take(held.lease)
                if held.lease.lost:
                    self._settler.drop(held)
            await self._run(slot, [held for held in group.claimed if not held.lease.lost])
        except BaseException as exc:
            if isinstance(exc, GeneratorExit) and not is_current(slot.task):
                raise
            logger.error("%s: a batch could not be handled", self._life.who, exc_info=exc)
            for held in group.claimed:
                if not held.run.is_done:
                    self._settler.drop(held)
        finally:
            slots.collected -= len(group.claimed)
            slots.vacate(slot)

    async def _run(self, slot: Slot, claimed: list[Claimed]) -> None:
        if not claimed:
            return
        task: Task[Any] = claimed[0].run.task
        self._slots.limit(slot, monotonic() + task.timeout_seconds)
        for held in claimed:
            self._slots.started(held)
        failed: Any = None
        try:
            runs = [held.run for held in claimed]
            function = task.executor if is_async(task.executor) else partial(self._functions.call, slot, task)
            failed = await self._hooks.call_running(partial(checked, function), runs)
        except BaseException as exc:
            for held in reversed(claimed):  # the last claimed goes back first, if they go back
                self._outcomes.broke(slot, held, exc)
            return
        errors = failed if isinstance(failed, Mapping) else {}
        for held in claimed:
            self._outcomes.conclude(held, errors.get(held.run.id))
