"""The brokers, under aio-fluid's name."""

from ..brokers.base import TaskBroker, TaskManagersStatus, TaskManagerStatus, TaskRegistry
from ..brokers.redis.broker import RedisTaskBroker

__all__ = ["RedisTaskBroker", "TaskBroker", "TaskManagerStatus", "TaskManagersStatus", "TaskRegistry"]
