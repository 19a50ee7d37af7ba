"""The managers and their dispatchers, under aio-fluid's name."""

from ..config import TaskManagerConfig
from ..consumer import TaskConsumer
from ..events import AsyncTaskDispatcher, TaskDispatcher
from ..manager import AsyncHandler, TaskManager

__all__ = [
    "AsyncHandler",
    "AsyncTaskDispatcher",
    "TaskConsumer",
    "TaskDispatcher",
    "TaskManager",
    "TaskManagerConfig",
]
