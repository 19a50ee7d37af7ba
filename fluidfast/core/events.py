"""Dispatchers: call handlers for events. An event is a type and a tag; each pair has at most one handler."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

from ..texts import printable
from ._machine import Listeners
from .states import STATES

if TYPE_CHECKING:
    from ._run import TaskRun

__all__ = [
    "AsyncDispatcher",
    "AsyncTaskDispatcher",
    "BaseDispatcher",
    "Dispatcher",
    "Event",
    "MessageHandlerType",
    "MessageType",
    "TaskDispatcher",
]

MessageType = TypeVar("MessageType")
MessageHandlerType = TypeVar("MessageHandlerType")

logger = logging.getLogger(__name__)


class Event(NamedTuple):
    """An event that a handler is registered for. The tag tells handlers of one event type apart."""

    type: str
    tag: str = ""

    @classmethod
    def from_string(cls, event: str) -> Self:
        """Return the event for ``"success"`` or ``"success.mytag"``: the tag follows the first dot."""
        type_, _, tag = event.partition(".")
        return cls(type_, tag)

    @classmethod
    def from_string_or_event(cls, event: "str | Event") -> "Event":
        """Return the event itself, or the event for a string."""
        return cls.from_string(event) if isinstance(event, str) else event


class BaseDispatcher(ABC, Generic[MessageType, MessageHandlerType]):
    """Store handlers by event. Subclasses define the type of a message and how to call its handlers."""

    def __init__(self) -> None:
        # event type -> tag -> handler. An inner dict is never changed, only replaced, so that whoever iterates over
        # one is not disturbed by handlers that come and go meanwhile.
        self._handlers: dict[str, dict[str, MessageHandlerType]] = {}

    @abstractmethod
    def event_type(self, message: MessageType) -> str:
        """Return the event type of a message."""

    def register_handler(self, event: Event | str, handler: MessageHandlerType) -> MessageHandlerType | None:
        """Have ``handler`` called for ``event`` and return the handler that it replaces, if any.

        Several handlers for one type need different tags: ``"success.log"``, ``"success.mail"``.
        """
        type_, tag = self._event(event)
        present = self._handlers.get(type_, {})
        self._handlers[type_] = {**present, tag: handler}
        return present.get(tag)

    def unregister_handler(self, event: Event | str) -> MessageHandlerType | None:
        """Forget the handler of ``event`` and return it; None if there is none."""
        type_, tag = self._event(event)
        remaining = dict(self._handlers.get(type_, ()))
        handler = remaining.pop(tag, None)
        if remaining:
            self._handlers[type_] = remaining
        else:
            self._handlers.pop(type_, None)
        return handler

    def get_handlers(self, message: MessageType) -> dict[str, MessageHandlerType] | None:
        """Return the handlers for the type of ``message``, by tag; None if there are none.

        The dict does not follow later registrations.
        """
        return self._handlers.get(self.event_type(message))

    def registered(self) -> list[tuple[Event, MessageHandlerType]]:
        """Return all handlers with the events that they are registered for."""
        return [(Event(type_, tag), handler) for type_, tags in self._handlers.items() for tag, handler in tags.items()]

    def _event(self, event: Event | str) -> Event:
        return Event.from_string_or_event(event)


class Dispatcher(BaseDispatcher[MessageType, Callable[[MessageType], None]]):
    """A dispatcher of plain functions."""

    def dispatch(self, message: MessageType) -> int:
        """Call the message's handlers one after the other, in order of registration, and return how many there are.

        An exception of a handler is passed on; the handlers after it are not called.
        """
        handlers = self.get_handlers(message)
        if not handlers:
            return 0
        for handler in handlers.values():
            handler(message)
        return len(handlers)


class AsyncDispatcher(BaseDispatcher[MessageType, Callable[[MessageType], Awaitable[None]]]):
    """A dispatcher of coroutine functions."""

    async def dispatch(self, message: MessageType) -> int:
        """Await the message's handlers, all at the same time, and return how many there are.

        Returns when the last one is done. Then the first error, in order of registration, is passed on; other errors
        are logged. If the caller is cancelled, so are the handlers.
        """
        handlers = self.get_handlers(message)
        if not handlers:
            return 0
        if len(handlers) == 1:
            for tag, handler in handlers.items():
                await self._call(handler, message, tag)
            return 1
        results = await asyncio.gather(
            *(self._call(handler, message, tag) for tag, handler in handlers.items()), return_exceptions=True
        )
        errors = [result for result in results if result is not None]
        for error in errors[1:]:
            logger.error("one more handler of the same message failed", exc_info=error)
        if errors:
            raise errors[0]
        return len(handlers)

    async def _call(self, handler: Callable[[MessageType], Awaitable[None]], message: MessageType, tag: str) -> None:
        await handler(message)


def is_current(task: "asyncio.Task[Any] | None") -> bool:
    """Whether the event loop runs this task now. It does not in a coroutine that is closed, say because its loop is
    gone: GeneratorExit that arrives there is not an error of the code that was awaited."""
    return asyncio._get_running_loop() is not None and asyncio.current_task() is task


def task_event(event: Event | str) -> Event:
    """Return the event, with "queue" (aio-fluid 1.2's name) read as "init". Its tag says so, so that handlers of both
    names have places of their own."""
    found = Event.from_string_or_event(event)
    return Event("init", f"queue:{found.tag}") if found.type == "queue" else found


def _log_failure(run: "TaskRun", tag: str) -> None:
    """One line, with the traceback of the exception that is being handled."""
    logger.exception("handler of event %s, tag %r, failed for run %s", run.state, tag, printable(run.id))


class TaskDispatcher(Dispatcher["TaskRun"]):
    """Tells plain functions of the states that runs enter. The event type is the state's name.

    Handlers must not block: they are called where the state changes. A handler that raises, be it SystemExit or
    CancelledError, is logged; neither the other handlers nor the run notice. The event "queue" is another name of
    "init". Types that are no state are accepted.

    ``listeners`` knows for which states there is a handler, so that a state without one costs nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners = Listeners()

    def event_type(self, message: "TaskRun") -> str:
        """The run's state."""
        return message.state

    def register_handler(
        self, event: Event | str, handler: Callable[["TaskRun"], None]
    ) -> Callable[["TaskRun"], None] | None:
        """Have ``handler`` called for ``event`` and return the handler that it replaces, if any."""
        replaced = super().register_handler(event, handler)
        self._count_listeners()
        return replaced

    def unregister_handler(self, event: Event | str) -> Callable[["TaskRun"], None] | None:
        """Forget the handler of ``event`` and return it; None if there is none."""
        handler = super().unregister_handler(event)
        self._count_listeners()
        return handler

    def dispatch(self, message: "TaskRun") -> int:
        """Pass the run to the handlers of its state, one after the other, and return how many there are.

        Handlers get the object that is passed here. Their errors are logged.
        """
        handlers = self.get_handlers(message)
        if not handlers:
            return 0
        for tag, handler in handlers.items():
            try:
                handler(message)
            except BaseException:  # nobody can have cancelled or closed a plain function: it is the handler's own
                _log_failure(message, tag)
        return len(handlers)

    def _event(self, event: Event | str) -> Event:
        return task_event(event)

    def _count_listeners(self) -> None:
        others = self.listeners.mask >> len(STATES) << len(STATES)  # of hooks
        states = sum(1 << number for number, state in enumerate(STATES) if state in self._handlers)
        self.listeners.mask = others | states


class AsyncTaskDispatcher(AsyncDispatcher["TaskRun"]):
    """Tells coroutine functions of the states that runs enter. The event type is the state's name.

    A handler that raises is logged; neither the other handlers nor the caller notice, unless ``raises``. The event
    "queue" is another name of "init". Types that are no state are accepted.
    """

    def __init__(self, *, raises: bool = False) -> None:
        super().__init__()
        self.raises = raises

    def event_type(self, message: "TaskRun") -> str:
        """The run's state."""
        return message.state

    def _event(self, event: Event | str) -> Event:
        return task_event(event)

    async def _call(self, handler: Callable[["TaskRun"], Awaitable[None]], message: "TaskRun", tag: str) -> None:
        task = asyncio.current_task()
        try:
            await handler(message)
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # the caller is cancelled, and not only something that the handler waited for
            if isinstance(exc, GeneratorExit) and not is_current(task):
                raise
            _log_failure(message, tag)
            if self.raises:
                raise
