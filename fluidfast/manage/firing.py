"""The clock: fire schedules, each due time once, with any number of schedulers.

Every scheduler evaluates the schedules on each heartbeat, without the broker. The broker queues a due run and remembers
its due time in one step. So a second scheduler adds nothing, and a killed one has either queued the run or left it to
the others. The clock retries an unavailable broker on each heartbeat.

Calendar times go through ``push_once``, under a key that names the time. Intervals go through ``push_after``: the
broker stores the last fire of each, and a scheduler that knows an older one learns the newer one and counts from it.
A mark on the broker stores the time up to which a calendar was checked. A scheduler that starts fires the times missed
since then.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from ..checks import CENTURY, check_number
from ..core._run import TaskRun
from ..core.schedule import CronRun, Scheduler, crontab, every
from ..core.task import Task
from ..core.workers import Worker
from ..errors import BrokerConnectionError, BrokerError, ConfigError, NotDurableError
from ..settings import get_settings
from .manager import TaskManager

__all__ = ["ScheduleTasks"]

logger = logging.getLogger("fluidfast.clock")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
REMEMBER_SECONDS = 7200.0
"""How long the broker remembers a fired calendar time: longer than the largest ``catch_up_seconds``, and the most that
the clocks of two schedulers may differ."""
LOOKED_SECONDS = 20.0
"""Interval at which a scheduler tells the broker the time up to which it has checked calendars."""
LOOKED_KEPT_SECONDS = 7 * 86400.0
"""How long it remembers that."""
DISABLED = timedelta(seconds=1)
"""How long a disabled task that is due is left alone before the broker is asked again."""


@dataclass(slots=True)
class Due:
    """A due time that was not fired yet."""

    task: Task[Any]
    key: str
    remember_seconds: float
    since: float
    previous: CronRun | None
    """The task's last run before."""
    at: int = 0
    """Of an interval: its time in microseconds since the epoch."""
    init: TaskRun[Any, Any] | None = None
    queued: TaskRun[Any, Any] | None = None


class ScheduleTasks(Worker):
    """The worker of a scheduler: looks at the schedules of all registered tasks, and queues what is due.

    ``heartbeat``: seconds between two looks; None: FLUID_SCHEDULER_HEARTBEAT_MILLIS, else 0.1.
    """

    def __init__(
        self, task_manager: TaskManager, heartbeat: float | None = None, *, stopping_grace_period: float | None = None
    ) -> None:
        super().__init__(stopping_grace_period=stopping_grace_period)
        self.task_manager = task_manager
        if heartbeat is None:
            heartbeat = get_settings().scheduler_heartbeat_millis / 1000
        self.heartbeat: float = check_number("heartbeat", heartbeat, ConfigError, least=0.001)
        self.catch_up = timedelta(seconds=task_manager.config.catch_up_seconds)
        self.last_run: dict[str, CronRun] = {}
        """Task name -> the due time that was seen last."""
        self.fired = 0
        """Due times that this scheduler was the one to fire."""
        self._due: dict[str, Due] = {}
        self._quiet: dict[str, datetime] = {}  # task name -> when it was found disabled, and is left alone for a while
        self._broken: set[str] = set()
        self._looked: datetime | None = None
        self._first_look: dict[str, datetime] = {}  # name of a mark -> when this scheduler looked first
        self._unread: set[str] = set()  # marks that are to be read
        self._fired: dict[str, int] = {}  # name of a mark -> what it is, as far as is known
        self._tell_at = 0.0  # when the broker is to be told of our looks (monotonic seconds)
        self._failing = False

    async def run(self) -> None:
        firing: asyncio.Task[None] | None = None
        try:
            while self.is_running():
                if self.task_manager.config.schedule_tasks:
                    self.look(self._now())
                    # apart, so that a broker that takes its time does not keep us from looking
                    if (self._due or self._has_to_tell()) and (firing is None or firing.done()):
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
            self.look(self._now())
            await self.fire()

    def _now(self) -> datetime:
        return EPOCH + timedelta(microseconds=self.task_manager.broker.now())

    # -- looking

    def look(self, now: datetime) -> None:
        """Note what is due at ``now`` (aware). Asks nobody."""
        moments = [now]
        if self._looked is not None and MINUTE <= now - self._looked <= self.catch_up:
            moments = [*minutes_between(self._looked, now), now]
        self._looked = now
        for task in self.task_manager.registry.periodic():
            schedule = task.schedule
            assert schedule is not None
            if isinstance(schedule, crontab | every) and (mark := mark_of(task)) not in self._first_look:
                self._first_look[mark] = now
                self._unread.add(task.name)
            if self._quiet and task.name in self._quiet:
                # not before: the clock was set back, and says nothing about how long that is ago
                if timedelta() <= now - self._quiet[task.name] < DISABLED:
                    continue
                del self._quiet[task.name]
            for moment in moments if isinstance(schedule, crontab) else (now,):
                previous = self.last_run.get(task.name)
                run = self._evaluate(task, schedule, moment, previous)
                if run is not None:
                    self.last_run[task.name] = run
                    self._note(task, schedule, run, moment, previous)

    def _evaluate(
        self, task: Task[Any], schedule: Scheduler, moment: datetime, previous: CronRun | None
    ) -> CronRun | None:
        try:
            return schedule(moment, previous)
        except BaseException:  # it is a plain call: nobody can have cancelled it
            if task.name not in self._broken:  # once, and not ten times a second
                self._broken.add(task.name)
                logger.exception("%s: the schedule of task %s failed", self.worker_name, task.name)
            return None

    def _note(
        self, task: Task[Any], schedule: Scheduler, run: CronRun, moment: datetime, previous: CronRun | None
    ) -> None:
        if isinstance(schedule, every):
            # One interval that is owed is enough; those of other schedules have a meaning each.
            for key in [key for key, due in self._due.items() if due.task.name == task.name]:
                del self._due[key]
            # whole seconds are counted by the run, which does not drift with the moments of the looks
            exact = moment if schedule.delta.microseconds or not schedule.delta else run.datetime
            number = at = micros_of(exact)
            remember_seconds = max(120.0, 3 * (schedule.delta + schedule.jitter).total_seconds())
        else:
            number, at = int(run.datetime.timestamp()), 0
            remember_seconds = REMEMBER_SECONDS
        key = f"schedule:{task.name}:{number}"
        self._due[key] = Due(task, key, remember_seconds, monotonic(), previous, at)

    # -- firing

    async def fire(self) -> None:
        """Queue due runs that no scheduler has fired. They stay due while the broker is unavailable. Never raises."""
        try:
            if self._unread:
                await self._read_marks()
            if await self._fire_dues():
                await self._tell_looks()
                self._failing = False
        except Exception as exc:
            self._failed(exc)

    async def _fire_dues(self) -> bool:
        """Fire all due times. Return False if the broker is unavailable, after logging it."""
        dues = list(self._due.values())
        if not dues:
            return True
        infos = await self.task_manager.broker.get_tasks_info(*{due.task.name for due in dues})
        enabled = {info.name: info.enabled for info in infos}
        for due in dues:
            if due.key not in self._due:
                continue  # a later one took its place meanwhile
            if not enabled.get(due.task.name, True):
                self._due.pop(due.key, None)
                self._forget_disabled(due)
            elif monotonic() - due.since > due.remember_seconds:
                self._due.pop(due.key, None)
                logger.error("%s: gave up %s, the broker was unavailable for too long", self.worker_name, due.key)
            elif not await self._fire(due):
                return False
        return True

    def _forget_disabled(self, due: Due) -> None:
        """As if it had not been due, so that it is if the task is enabled in time."""
        name = due.task.name
        self._quiet[name] = self._looked or self._now()
        if due.previous is None:
            self.last_run.pop(name, None)
        else:
            self.last_run[name] = due.previous

    async def _fire(self, due: Due) -> bool:
        """Fire one due time. Return False if the broker is unavailable."""
        if due.queued is None:
            try:
                self._make_run(due)
            except BaseException:  # of randomize, or of the params: a plain call, so nobody can have cancelled it
                self._due.pop(due.key, None)
                logger.exception("%s: cannot make a run of task %s", self.worker_name, due.task.name)
                return True
        assert due.init is not None
        assert due.queued is not None
        try:
            await self.task_manager.intake.send_once(due.init, due.queued, lambda payload: self._push(due, payload))
        except BrokerError as exc:
            self._failed(exc)
            return not isinstance(exc, BrokerConnectionError)
        except Exception:
            logger.exception("%s: a hook around queueing task %s failed", self.worker_name, due.task.name)
        self._due.pop(due.key, None)
        return True

    async def _push(self, due: Due, payload: bytes) -> bool:
        """Queue the run of a due time, if nobody has. Return True if it is ours."""
        assert due.queued is not None
        try:
            is_ours = await self._push_first(due, due.queued.prio, payload)
        except NotDurableError as exc:  # it is queued, and by us
            logger.warning("%s: fired %s: %s", self.worker_name, due.key, exc)
            is_ours = True
        self.fired += is_ours
        return is_ours

    async def _push_first(self, due: Due, priority: int, payload: bytes) -> bool:
        broker = self.task_manager.broker
        if not due.at:
            return await broker.push_once(due.key, due.remember_seconds, priority, payload)
        mark = mark_of(due.task)
        after = self._fired.get(mark, 0)
        self._fired[mark] = due.at  # also if it is queued and an error says that it is not as safe as it should be
        try:
            is_ours, fired = await broker.push_after(mark, after, due.at, due.remember_seconds, priority, payload)
        except NotDurableError:
            raise
        except BaseException:
            self._fired[mark] = after
            raise
        if not is_ours:
            self._count_from(due.task, fired)
        return is_ours

    def _make_run(self, due: Due) -> None:
        manager = self.task_manager
        run = manager.create_task_run(due.task)
        delay = due.task.randomize() if due.task.randomize else 0
        check_number("randomize", delay, ConfigError, least=-CENTURY)
        if delay > 0:
            run.execute_after = self._now() + timedelta(seconds=delay)
        due.init = run.model_copy()
        manager.broker.codec.submit(run)  # it is queued from now on; one that cannot be written is refused here
        due.queued = run

    # -- what the broker remembers

    async def _read_marks(self) -> None:
        """Learn when intervals were fired last, and until when calendars were looked at, before we looked."""
        registry = self.task_manager.registry
        tasks = [registry[name] for name in self._unread if name in registry]
        values = await self.task_manager.broker.marks(*map(mark_of, tasks))
        for task, value in zip(tasks, values, strict=True):
            if value and isinstance(task.schedule, every):
                self._count_from(task, value)
            elif value and isinstance(task.schedule, crontab):
                self._make_up(task, task.schedule, datetime.fromtimestamp(value / 1e6, UTC))
            self._unread.discard(task.name)
        self._unread.intersection_update(registry)

    def _count_from(self, task: Task[Any], fired: int) -> None:
        """An interval was fired at this time by another scheduler: the next one counts from it."""
        schedule = task.schedule
        if not isinstance(schedule, every):
            return
        for key in [key for key, due in self._due.items() if due.task.name == task.name]:
            del self._due[key]
        self._fired[mark_of(task)] = fired
        moment = datetime.fromtimestamp(fired / 1e6, UTC)
        # a clock that was wrong may have fired it in what is the future to us
        self.last_run[task.name] = schedule.fired_at(moment if self._looked is None else min(moment, self._looked))

    def _make_up(self, task: Task[Any], schedule: crontab, looked: datetime) -> None:
        """Note the missed calendar times, between the last check of any scheduler and our first, within the window."""
        first = self._first_look[mark_of(task)]
        for moment in minutes_between(max(looked, first - self.catch_up), first):
            run = self._evaluate(task, schedule, moment, None)
            if run is not None:
                logger.info("%s: firing the missed time %s of task %s", self.worker_name, run.datetime, task.name)
                self._note(task, schedule, run, moment, None)

    def _has_to_tell(self) -> bool:
        return bool(self._unread) or (monotonic() >= self._tell_at and bool(self._first_look))

    async def _tell_looks(self) -> None:
        """Tell the broker, now and then, the time up to which calendars were checked and fired."""
        if not self._has_to_tell():
            return
        self._tell_at = monotonic() + LOOKED_SECONDS
        if self._looked is None or not self.catch_up:
            return
        owed = {due.task.name for due in self._due.values()} | self._unread
        names = [
            mark_of(task)
            for task in self.task_manager.registry.periodic()
            if isinstance(task.schedule, crontab) and task.name not in owed
        ]
        await self.task_manager.broker.set_marks(names, micros_of(self._looked), LOOKED_KEPT_SECONDS)

    def _failed(self, exc: Exception) -> None:
        if not isinstance(exc, BrokerError):
            logger.error("%s: cannot fire what is due, trying again", self.worker_name, exc_info=exc)
        elif not self._failing:
            logger.warning("%s: cannot fire what is due, trying again: %s", self.worker_name, exc)
        self._failing = True


def mark_of(task: Task[Any]) -> str:
    """Name of the mark on the broker that a task's schedule counts from."""
    return f"{'fired' if isinstance(task.schedule, every) else 'looked'}:{task.name}"


def micros_of(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def minutes_between(start: datetime, end: datetime) -> list[datetime]:
    """The full minutes after that of ``start`` and before that of ``end``."""
    first = start.replace(second=0, microsecond=0) + MINUTE
    last = end.replace(second=0, microsecond=0)
    return [first + number * MINUTE for number in range(max(0, (last - first) // MINUTE))]
