"""The interval schedule, under aio-fluid's name."""

from ..core.schedule import every

__all__ = ["every"]
