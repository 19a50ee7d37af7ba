"""Tasks, runs and what describes them, under aio-fluid's name."""

from ..core.config import TaskManagerConfig
from ..core.retry import RetryPolicy, RetryPolicyInfo
from ..core.states import FINISHED_STATES, TaskPriority, TaskState
from ..core.task import (
    EmptyParams,
    K8sConfig,
    K8sResourceRequirements,
    QueuedTask,
    RandomizeType,
    Task,
    TaskExecutor,
    TaskInfo,
    TaskInfoUpdate,
    task,
)
from ..manage.waiter import TaskRunWaiter
from ..run import TaskRun

__all__ = [
    "FINISHED_STATES",
    "EmptyParams",
    "K8sConfig",
    "K8sResourceRequirements",
    "QueuedTask",
    "RandomizeType",
    "RetryPolicy",
    "RetryPolicyInfo",
    "Task",
    "TaskExecutor",
    "TaskInfo",
    "TaskInfoUpdate",
    "TaskManagerConfig",
    "TaskPriority",
    "TaskRun",
    "TaskRunWaiter",
    "TaskState",
    "task",
]
