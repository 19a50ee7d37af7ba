"""The clock: fires schedules, each due time once, however many schedulers look at it.

Every scheduler evaluates the schedules by itself, on each heartbeat, without the broker. What is due goes through
``push_once``: the broker queues a run and remembers its due time in one step, so a second scheduler adds nothing, and
one
that is killed has queued the run or left it to the others. A broker that is not there is asked again on each heartbeat.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from ._run import TaskRun
from .config import TaskManagerConfig
from .consumer import TaskConsumer
from .errors import BrokerConnectionError, BrokerError, NotDurableError
from .manager import TaskManager
from .schedule import CronRun, Scheduler, crontab, every
from .settings import get_settings
from .task import Task
from .workers import Worker

__all__ = ["ScheduleTasks", "TaskScheduler"]

logger = logging.getLogger(__name__)

MINUTE = timedelta(minutes=1)
CATCH_UP = timedelta(minutes=10)
"""Calendar minutes that went by between two looks (a blocked event loop) are made up for, if they are not more."""
REMEMBER_SECONDS = 7200.0
"""How long a due time of the calendar is remembered as fired: how far clocks of two schedulers may be apart."""
DISABLED_SECONDS = 1.0
"""How long a disabled task that is due is left alone before the broker is asked again."""


@dataclass(slots=True)
class Due:
    """A due time that was not fired yet."""

    task: Task[Any]
    key: str
    remember_seconds: float
    since: float
    previous: CronRun | None
    """What was the task's last run before."""
    init: TaskRun[Any, Any] | None = None
    queued: TaskRun[Any, Any] | None = None
    payload: bytes = b""


class ScheduleTasks(Worker):
    """The worker of a scheduler: looks at the schedules of all registered tasks, and queues what is due.

    ``heartbeat``: seconds between two looks; None: FLUID_SCHEDULER_HEARTBEAT_MILLIS, else 0.1.
    """

    def __init__(
        self, task_manager: TaskManager, heartbeat: float | None = None, *, stopping_grace_period: float | None = None
    ) -> None:
        super().__init__(stopping_grace_period=stopping_grace_period)
        self.task_manager = task_manager
        self.heartbeat = get_settings().scheduler_heartbeat_millis / 1000 if heartbeat is None else heartbeat
        self.last_run: dict[str, CronRun] = {}
        """Task name -> the due time that was seen last."""
        self.fired = 0
        """Due times that this scheduler was the one to fire."""
        self._due: dict[str, Due] = {}
        self._quiet: dict[str, float] = {}  # task name -> until when (monotonic seconds) it is not looked at
        self._broken: set[str] = set()
        self._looked: datetime | None = None
        self._failing = False

    async def run(self) -> None:
        firing: asyncio.Task[None] | None = None
        try:
            while self.is_running():
                if self.task_manager.config.schedule_tasks:
                    self.look(datetime.now(UTC))
                    # apart, so that a broker that takes its time does not keep us from looking
                    if self._due and (firing is None or firing.done()):
                        firing = asyncio.create_task(self.fire(), name=f"{self.worker_name}-fire")
                await self._wait_stop(self.heartbeat)
            try:
                async with asyncio.timeout(self._stopping_grace_period / 2):
                    if firing is not None:
                        await firing
                    await self.fire()
            except TimeoutError:
                pass
        finally:
            if firing is not None:
                firing.cancel()
                await asyncio.wait([firing])
            if self._due:
                logger.error("%s: stopped before it could fire %s", self.worker_name, ", ".join(self._due))

    async def tick(self) -> None:
        """One heartbeat: look, and fire what is due."""
        if self.task_manager.config.schedule_tasks:
            self.look(datetime.now(UTC))
            await self.fire()

    # -- looking

    def look(self, now: datetime) -> None:
        """Note what is due at ``now`` (aware). Asks nobody."""
        moments = [now]
        if self._looked is not None and MINUTE <= now - self._looked <= CATCH_UP:
            missed = self._looked.replace(second=0, microsecond=0) + MINUTE
            while missed < now.replace(second=0, microsecond=0):
                moments.insert(-1, missed)
                missed += MINUTE
        self._looked = now
        for task in self.task_manager.registry.periodic():
            schedule = task.schedule
            assert schedule is not None
            if self._quiet and self._quiet.get(task.name, 0.0) > monotonic():
                continue
            for moment in moments if isinstance(schedule, crontab) else (now,):
                previous = self.last_run.get(task.name)
                try:
                    run = schedule(moment, previous)
                except BaseException:  # it is a plain call: nobody can have cancelled it
                    if task.name not in self._broken:  # once, and not ten times a second
                        self._broken.add(task.name)
                        logger.exception("%s: the schedule of task %s failed", self.worker_name, task.name)
                    continue
                if run is not None:
                    self.last_run[task.name] = run
                    self._note(task, schedule, run, moment, previous)

    def _note(
        self, task: Task[Any], schedule: Scheduler, run: CronRun, moment: datetime, previous: CronRun | None
    ) -> None:
        if isinstance(schedule, every):
            # One interval that is owed is enough; those of other schedules have a meaning each.
            for key in [key for key, due in self._due.items() if due.task.name == task.name]:
                del self._due[key]
            width = max(schedule.delta.total_seconds(), self.heartbeat)
            # whole seconds are counted by the run, which does not drift with the moments of the looks
            exact = moment if schedule.delta.microseconds or not schedule.delta else run.datetime
            number = int(exact.timestamp() // width)
            remember_seconds = max(120.0, 3 * width)
        else:
            number = int(run.datetime.timestamp())
            remember_seconds = REMEMBER_SECONDS
        key = f"schedule:{task.name}:{number}"
        self._due[key] = Due(task, key, remember_seconds, monotonic(), previous)

    # -- firing

    async def fire(self) -> None:
        """Queue what is due and was fired by nobody. What the broker cannot take now stays due; raises nothing."""
        dues = list(self._due.values())
        if not dues:
            return
        try:
            infos = await self.task_manager.broker.get_tasks_info(*{due.task.name for due in dues})
        except Exception as exc:
            self._failed(exc)
            return
        enabled = {info.name: info.enabled for info in infos}
        for due in dues:
            if due.key not in self._due:
                continue  # a later one took its place meanwhile
            if not enabled.get(due.task.name, True):
                self._due.pop(due.key, None)
                self._forget_disabled(due)
            elif monotonic() - due.since > due.remember_seconds:
                self._due.pop(due.key, None)
                logger.error("%s: gave up %s, the broker was not there for too long", self.worker_name, due.key)
            elif not await self._fire(due):
                return
        self._failing = False

    def _forget_disabled(self, due: Due) -> None:
        """As if it had not been due, so that it is if the task is enabled in time."""
        name = due.task.name
        self._quiet[name] = monotonic() + DISABLED_SECONDS
        if due.previous is None:
            self.last_run.pop(name, None)
        else:
            self.last_run[name] = due.previous

    async def _fire(self, due: Due) -> bool:
        """False: the broker is not there, it makes no sense to go on."""
        manager = self.task_manager
        try:
            if due.queued is None:
                self._make_run(due)
            assert due.init is not None
            assert due.queued is not None
            try:
                is_ours = await manager.broker.push_once(due.key, due.remember_seconds, due.queued.prio, due.payload)
            except NotDurableError as exc:  # it is queued, and by us
                logger.warning("%s: fired %s: %s", self.worker_name, due.key, exc)
                is_ours = True
        except BrokerError as exc:
            self._failed(exc)
            return not isinstance(exc, BrokerConnectionError)
        except Exception:
            self._due.pop(due.key, None)
            logger.exception("%s: cannot make a run of task %s", self.worker_name, due.task.name)
            return True
        self._due.pop(due.key, None)
        if is_ours:
            self.fired += 1
            # Told only now: a scheduler that comes second has made no run.
            due.init._emit()
            due.queued._emit()
        return True

    def _make_run(self, due: Due) -> None:
        manager = self.task_manager
        run = manager.create_task_run(due.task)
        delay = due.task.randomize() if due.task.randomize else 0
        if delay > 0:
            run.execute_after = datetime.now(UTC) + timedelta(seconds=delay)
        due.init = run.model_copy()
        due.payload = manager.broker.codec.submit(run)
        due.queued = run

    def _failed(self, exc: Exception) -> None:
        if not isinstance(exc, BrokerError):
            logger.error("%s: cannot fire what is due, trying again", self.worker_name, exc_info=exc)
        elif not self._failing:
            logger.warning("%s: cannot fire what is due, trying again: %s", self.worker_name, exc)
        self._failing = True


class TaskScheduler(TaskConsumer):
    """A consumer that also fires schedules (``@task(schedule=...)``) of its registered tasks, if they are enabled.

    Run as many as you like on one broker: each due time is fired once. With ``consume_tasks=False`` it only schedules.
    Arguments as ``TaskConsumer``; ``schedule_tasks=False`` in the config holds the clock.
    """

    def __init__(
        self,
        *,
        deps: Any = None,
        config: TaskManagerConfig | None = None,
        name: str = "",
        stopping_grace_period: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(deps=deps, config=config, name=name, stopping_grace_period=stopping_grace_period, **kwargs)
        self.add_workers(ScheduleTasks(self, stopping_grace_period=stopping_grace_period))
