"""The interval schedule, under aio-fluid's name."""

from ..schedule import every

__all__ = ["every"]
