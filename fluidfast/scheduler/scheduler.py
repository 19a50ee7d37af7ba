"""The scheduler, under aio-fluid's name."""

from ..clock import ScheduleTasks, TaskScheduler

__all__ = ["ScheduleTasks", "TaskScheduler"]
