"""The names of aio-fluid's ``fluid.utils.errors``."""

from typing import Any

from fluidfast.errors import WorkerStartError

__all__ = ["FlamegraphError", "FluidError", "FluidValueError", "ValidationError", "WorkerStartError"]


class FluidError(Exception):
    """A base for an application's own errors. fluidfast raises ``fluidfast.errors.TaskError`` and its kinds."""


class FluidValueError(ValueError, FluidError):
    """A base for an application's own errors about values."""


class ValidationError(FluidValueError):
    """A field has a wrong value."""

    def __init__(self, field: str, msg: str = "", field_type: str = "string", value: Any = None) -> None:
        super().__init__(msg or "validation error")
        self.field = field
        self.msg = msg or "validation error"
        self.field_type = field_type
        self.value = value


class FlamegraphError(FluidError):
    """A flame graph could not be made; fluidfast makes none and never raises it."""
