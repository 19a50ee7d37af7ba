"""The exceptions, under aio-fluid's name."""

from ..errors import (
    CpuBoundEntryPointError,
    DisabledTaskError,
    TaskAbortedError,
    TaskDecoratorError,
    TaskError,
    TaskParamsError,
    TaskRunError,
    UnknownTaskError,
)

__all__ = [
    "CpuBoundEntryPointError",
    "DisabledTaskError",
    "TaskAbortedError",
    "TaskDecoratorError",
    "TaskError",
    "TaskParamsError",
    "TaskRunError",
    "UnknownTaskError",
]
