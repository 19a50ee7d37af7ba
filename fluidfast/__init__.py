"""fluidfast: a Cython-accelerated, high-throughput task scheduler; a drop-in for aio-fluid's ``fluid.scheduler``."""

from ._run import TaskRun
from ._version import __version__
from .broker import TaskBroker
from .common import is_in_cpu_process
from .config import TaskManagerConfig
from .consumer import TaskConsumer
from .manager import TaskManager
from .plugin import TaskManagerPlugin
from .schedule import Scheduler, crontab, every
from .states import TaskPriority, TaskState
from .task import K8sConfig, K8sResourceRequirements, QueuedTask, RetryPolicy, Task, TaskInfo, task

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
    "TaskState",
    "__version__",
    "crontab",
    "every",
    "is_in_cpu_process",
    "task",
]
