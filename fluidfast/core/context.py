"""The context variables of the run that code belongs to."""

from contextvars import ContextVar
from typing import Any

__all__ = ["RUN", "SLOT", "follow_runs", "follows_runs"]

RUN: ContextVar[Any] = ContextVar("fluidfast_run", default=None)
"""The run that the caller is in, for a batch task the list of its runs; None outside of a run. The tasks and threads
that a run starts inherit it, and keep it after the run has ended. Consumers set it once somebody has called
``follow_runs``."""

SLOT: ContextVar[tuple[Any, Any] | None] = ContextVar("fluidfast_slot", default=None)
"""The broker and the slot of the run that the caller is in. The tasks and threads that a run starts inherit it."""

_follows = False


def follow_runs() -> None:
    """Have the consumers of this process set ``RUN`` for each run from their next claim on; 0.1 us a run."""
    global _follows
    _follows = True


def follows_runs() -> bool:
    """Whether somebody reads ``RUN`` in this process."""
    return _follows
