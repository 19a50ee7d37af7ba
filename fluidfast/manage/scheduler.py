"""``TaskScheduler``: a consumer that also fires schedules."""

from typing import Any

from ..core.config import TaskManagerConfig
from .consumer import TaskConsumer
from .firing import ScheduleTasks

__all__ = ["TaskScheduler"]


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
