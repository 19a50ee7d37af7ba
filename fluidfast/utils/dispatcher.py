"""The dispatchers, under aio-fluid's name."""

from ..core.events import AsyncDispatcher, BaseDispatcher, Dispatcher, Event

__all__ = ["AsyncDispatcher", "BaseDispatcher", "Dispatcher", "Event"]
