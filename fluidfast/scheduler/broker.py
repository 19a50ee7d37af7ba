"""The brokers, under aio-fluid's name."""

from ..broker import TaskBroker, TaskManagersStatus, TaskManagerStatus, TaskRegistry
from ..redis_broker import RedisTaskBroker

__all__ = ["RedisTaskBroker", "TaskBroker", "TaskManagerStatus", "TaskManagersStatus", "TaskRegistry"]
