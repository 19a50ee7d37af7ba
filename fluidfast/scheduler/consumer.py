"""The managers and their dispatchers, under aio-fluid's name."""

from ..core.config import TaskManagerConfig
from ..core.events import AsyncTaskDispatcher, TaskDispatcher
from ..manage.consumer import TaskConsumer
from ..manage.manager import AsyncHandler, TaskManager

__all__ = [
    "AsyncHandler",
    "AsyncTaskDispatcher",
    "TaskConsumer",
    "TaskDispatcher",
    "TaskManager",
    "TaskManagerConfig",
]
