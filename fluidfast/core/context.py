"""The context variable of the run that code belongs to."""

from contextvars import ContextVar
from typing import Any

__all__ = ["SLOT"]

SLOT: ContextVar[tuple[Any, Any] | None] = ContextVar("fluidfast_slot", default=None)
"""The broker and the slot of the run that the caller is in. The tasks and threads that a run starts inherit it."""
