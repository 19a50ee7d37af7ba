"""The scheduler, under aio-fluid's name."""

from ..manage.firing import ScheduleTasks, TaskScheduler

__all__ = ["ScheduleTasks", "TaskScheduler"]
