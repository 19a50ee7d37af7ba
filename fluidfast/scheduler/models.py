"""Tasks, runs and what describes them, under aio-fluid's name."""

from ..config import TaskManagerConfig
from ..replies import TaskRunWaiter
from ..run import TaskRun
from ..states import FINISHED_STATES, TaskPriority, TaskState
from ..task import (
    EmptyParams,
    K8sConfig,
    K8sResourceRequirements,
    QueuedTask,
    RandomizeType,
    RetryPolicy,
    RetryPolicyInfo,
    Task,
    TaskExecutor,
    TaskInfo,
    TaskInfoUpdate,
    task,
)

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
