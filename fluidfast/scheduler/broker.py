"""The brokers, under aio-fluid's name."""

from ..brokers.base import TaskBroker, TaskRegistry
from ..brokers.contract import TaskManagersStatus, TaskManagerStatus
from ..brokers.redis.broker import RedisTaskBroker

__all__ = ["RedisTaskBroker", "TaskBroker", "TaskManagerStatus", "TaskManagersStatus", "TaskRegistry"]
