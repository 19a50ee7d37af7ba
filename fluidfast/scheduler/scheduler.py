"""The scheduler, under aio-fluid's name."""

from ..manage.firing import ScheduleTasks
from ..manage.scheduler import TaskScheduler

__all__ = ["ScheduleTasks", "TaskScheduler"]
