"""``Host``: the part of a manager that an engine works for."""

from typing import Protocol

from ..brokers.base import TaskBroker
from ..core.config import TaskManagerConfig
from ..core.events import TaskDispatcher
from ..core.hooks import Hooks

__all__ = ["Host"]


class Host(Protocol):
    """A consumer, as its engine sees it."""

    broker: TaskBroker
    config: TaskManagerConfig
    dispatcher: TaskDispatcher
    hooks: Hooks

    @property
    def manager_id(self) -> str:
        """Names the consumer in this process, on the broker."""
