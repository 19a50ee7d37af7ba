"""The dispatchers, under aio-fluid's name."""

from ..events import AsyncDispatcher, BaseDispatcher, Dispatcher, Event

__all__ = ["AsyncDispatcher", "BaseDispatcher", "Dispatcher", "Event"]
