"""The names of aio-fluid's ``fluid.scheduler``: change ``fluid`` to ``fluidfast`` in an import, and nothing else."""

from typing import TYPE_CHECKING, Any

from fluidfast import (
    K8sConfig,
    K8sResourceRequirements,
    QueuedTask,
    RetryPolicy,
    Task,
    TaskBroker,
    TaskConsumer,
    TaskInfo,
    TaskManager,
    TaskManagerConfig,
    TaskManagerPlugin,
    TaskPriority,
    TaskRun,
    TaskScheduler,
    TaskState,
    is_in_cpu_process,
    task,
)

# From the modules of these names, so that to import one of those later does not put it in the place of the class.
from .crontab import Scheduler, crontab
from .every import every

if TYPE_CHECKING:
    from fluidfast import task_manager_fastapi

__all__ = [
    "K8sConfig",
    "K8sResourceRequirements",
    "QueuedTask",
    "RetryPolicy",
    "Scheduler",
    "Task",
    "TaskBroker",
    "TaskConsumer",
    "TaskInfo",
    "TaskManager",
    "TaskManagerConfig",
    "TaskManagerPlugin",
    "TaskPriority",
    "TaskRun",
    "TaskScheduler",
    "TaskState",
    "crontab",
    "every",
    "is_in_cpu_process",
    "task",
    "task_manager_fastapi",
]


def __getattr__(name: str) -> Any:
    if name == "task_manager_fastapi":
        import fluidfast

        return fluidfast.task_manager_fastapi
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
