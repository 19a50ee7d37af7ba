"""Plugins, under aio-fluid's name."""

from ..manage.plugin import TaskManagerPlugin

__all__ = ["TaskManagerPlugin"]
