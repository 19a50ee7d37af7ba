"""Plugins: extensions of a manager."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .manager import TaskManager

__all__ = ["TaskManagerPlugin"]


class TaskManagerPlugin(ABC):
    """Base class of plugins: subclass it and pass an instance to ``manager.with_plugin``."""

    @abstractmethod
    def register(self, task_manager: "TaskManager") -> None:
        """Register tasks, handlers and contexts. Called once, with the manager."""

    def register_routes(self, app: Any, prefix: str = "/tasks", tags: Sequence[str] | None = None) -> None:  # noqa: B027
        """Add routes to the FastAPI application. Called by ``task_manager_fastapi``."""
