"""Time travel: the real scheduler looks at each moment on the way at which something may be due."""

from datetime import datetime, timedelta

from ..core.schedule import crontab, every
from ..core.task import Task
from ..manage.firing import EPOCH, ScheduleTasks, micros_of
from ..manage.manager import TaskManager
from .broker import StagedBroker

__all__ = ["Schedules"]

HEARTBEAT = timedelta(seconds=0.1)
"""The interval at which a scheduler looks, by default."""
OTHERS = timedelta(seconds=1)
"""The interval here for a schedule of the user's own class, which cannot say when it is due next."""


class Schedules:
    """The schedules of a manager's tasks, seen by one scheduler that started at the first ``travel``."""

    def __init__(self, manager: TaskManager, broker: StagedBroker) -> None:
        self._manager = manager
        self._broker = broker
        self.begin()

    def begin(self) -> None:
        """Start with a new scheduler, at whatever time the clock shows then."""
        self._scheduler = ScheduleTasks(self._manager, HEARTBEAT.total_seconds())
        self._known: set[str] = set()

    async def travel(self, start: int, end: int) -> None:
        """Move the clock from ``start`` to ``end`` (microseconds since the epoch), and fire what is due on the way."""
        broker, scheduler = self._broker, self._scheduler
        moment: datetime | None = EPOCH + timedelta(microseconds=start)
        last = EPOCH + timedelta(microseconds=end)
        infos = await broker.get_tasks_info()
        enabled = {info.name for info in infos if info.enabled}
        while moment is not None and moment <= last:
            broker.set_now(micros_of(moment))
            await broker.promote()
            self._meet_new(moment)
            scheduler.look(moment)
            await scheduler.fire()
            moment = self._next(moment, enabled)
        broker.set_now(end)
        await broker.promote()

    def _meet_new(self, moment: datetime) -> None:
        """A calendar's present minute has gone by: whether it matches would depend on when the test runs."""
        for task in self._manager.registry.periodic():
            if task.name not in self._known:
                self._known.add(task.name)
                schedule = task.schedule
                if isinstance(schedule, every):
                    schedule.restart()
                elif isinstance(schedule, crontab) and (present := schedule(moment)) is not None:
                    self._scheduler.last_run[task.name] = present

    def _next(self, moment: datetime, enabled: set[str]) -> datetime | None:
        """The next moment at which something may be due."""
        tasks = (task for task in self._manager.registry.periodic() if task.name in enabled)
        return min((due for task in tasks if (due := self._due(task, moment)) is not None), default=None)

    def _due(self, task: Task[object], moment: datetime) -> datetime | None:
        schedule = task.schedule
        if type(schedule) is crontab:
            try:
                return schedule.next_run(moment)
            except ValueError:  # it never comes
                return None
        if type(schedule) is every:
            due = schedule.next_run(self._scheduler.last_run.get(task.name))
            return moment + HEARTBEAT if due is None else max(due, moment + HEARTBEAT)
        return moment + OTHERS
