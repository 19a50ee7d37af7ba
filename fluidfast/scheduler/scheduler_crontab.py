"""The calendar schedule, under aio-fluid's name."""

from ..core.schedule import CronRun, Scheduler, crontab

__all__ = ["CronRun", "Scheduler", "crontab"]
