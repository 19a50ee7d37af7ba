"""``TaskScheduler``: a consumer that also fires schedules."""

from typing import Any, Unpack

from ..core.config import ManagerOptions, TaskManagerConfig
from .consumer import TaskConsumer
from .firing import ScheduleTasks

__all__ = ["TaskScheduler"]


class TaskScheduler(TaskConsumer):
    """A consumer that also fires the schedules (``@task(schedule=...)``) of its registered, enabled tasks.

    You can run several on one broker: each due time fires once. ``consume_tasks=False`` makes it only schedule,
    ``schedule_tasks=False`` makes it only consume. Arguments: as ``TaskConsumer``.
    """

    def __init__(
        self,
        *,
        deps: Any = None,
        config: TaskManagerConfig | None = None,
        name: str = "",
        stopping_grace_period: float | None = None,
        **kwargs: Unpack[ManagerOptions],
    ) -> None:
        super().__init__(deps=deps, config=config, name=name, stopping_grace_period=stopping_grace_period, **kwargs)
        self.add_workers(ScheduleTasks(self, stopping_grace_period=stopping_grace_period))
