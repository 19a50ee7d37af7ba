"""``TaskRun``, by the name that people look for it under; it is compiled, in ``_run``."""

from .core._run import TaskRun

__all__ = ["TaskRun"]
