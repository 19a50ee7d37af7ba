"""fluidfast: a Cython-accelerated, high-throughput task scheduler; a drop-in for aio-fluid's ``fluid.scheduler``."""

from typing import TYPE_CHECKING, Any

try:
    from ._version import __version__
    from .brokers.base import TaskBroker
    from .core._run import TaskRun
    from .core.config import TaskManagerConfig
    from .core.process import is_in_cpu_process
    from .core.retry import RetryPolicy
    from .core.schedule import Scheduler, crontab, every
    from .core.states import TaskPriority, TaskState
    from .core.task import K8sConfig, K8sResourceRequirements, QueuedTask, Task, TaskInfo, task
    from .manage.bound import BoundTask
    from .manage.consumer import TaskConsumer
    from .manage.manager import TaskManager
    from .manage.plugin import TaskManagerPlugin
    from .manage.scheduler import TaskScheduler
    from .produce.handle import Middleware, RunHandle, RunOptions
except ImportError as exc:
    package, _, module = (exc.name or "").rpartition(".")
    if not (package.startswith("fluidfast") and module.startswith("_")):
        raise
    import sys

    raise ImportError(
        f"{exc}: the compiled modules of fluidfast are missing or older than their sources in {__path__[0]}, for "
        f"Python {sys.version_info.major}.{sys.version_info.minor}; build them: pip install -e . (in the clone)",
        name=exc.name,
        path=exc.path,
    ) from exc

if TYPE_CHECKING:
    from .http import task_manager_fastapi

__all__ = [
    "BoundTask",
    "K8sConfig",
    "K8sResourceRequirements",
    "Middleware",
    "QueuedTask",
    "RetryPolicy",
    "RunHandle",
    "RunOptions",
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
    "__version__",
    "crontab",
    "every",
    "is_in_cpu_process",
    "task",
    "task_manager_fastapi",
]


def __getattr__(name: str) -> Any:
    """``task_manager_fastapi``, when somebody asks for it: FastAPI is an optional dependency."""
    if name == "task_manager_fastapi":
        from .http import task_manager_fastapi

        return task_manager_fastapi
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
