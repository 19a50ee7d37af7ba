"""Plugins: what is added to a manager from outside."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .manager import TaskManager

__all__ = ["TaskManagerPlugin"]


class TaskManagerPlugin(ABC):
    """Subclass it and give it to ``manager.with_plugin``."""

    @abstractmethod
    def register(self, task_manager: "TaskManager") -> None:
        """Called once, with the manager: register tasks, handlers and contexts here."""

    def register_routes(self, app: Any, prefix: str = "/tasks", tags: Sequence[str] | None = None) -> None:  # noqa: B027
        """Called by ``task_manager_fastapi`` with the FastAPI application: add routes here."""
