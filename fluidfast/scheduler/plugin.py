"""Plugins, under aio-fluid's name."""

from ..plugin import TaskManagerPlugin

__all__ = ["TaskManagerPlugin"]
