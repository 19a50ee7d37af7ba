"""The name of aio-fluid's ``fluid.utils.errors``."""

from fluidfast.errors import WorkerStartError

__all__ = ["WorkerStartError"]
