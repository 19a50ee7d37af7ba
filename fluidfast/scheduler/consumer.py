"""The managers and their dispatchers, under aio-fluid's name."""

from ..consumer import TaskConsumer
from ..core.config import TaskManagerConfig
from ..core.events import AsyncTaskDispatcher, TaskDispatcher
from ..manager import AsyncHandler, TaskManager

__all__ = [
    "AsyncHandler",
    "AsyncTaskDispatcher",
    "TaskConsumer",
    "TaskDispatcher",
    "TaskManager",
    "TaskManagerConfig",
]
