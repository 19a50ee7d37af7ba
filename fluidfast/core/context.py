"""The context variable of the run that code belongs to."""

from contextvars import ContextVar
from typing import Any

__all__ = ["SLOT"]

SLOT: ContextVar[Any] = ContextVar("fluidfast_slot", default=None)
"""The engine and the slot in which the caller runs. The tasks and threads that a run starts inherit it."""
