"""The life of an engine, as far as its parts need to know of it."""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["Life"]


class Life:
    """Tells the parts of an engine whose they are, and whether it goes on.

    Attributes: ``who``: its name in the log; ``id``: that of its consumer on the broker, once it runs; ``is_running``:
    whether nobody has asked it to stop; ``wait_stop``: waits for that, or for so many seconds, and tells whether it
    came; ``ended``: the engine sets it when it has stopped all of its work.
    """

    def __init__(
        self, who: str, *, is_running: Callable[[], bool], wait_stop: Callable[[float], Awaitable[bool]]
    ) -> None:
        self.who = who
        self.id = ""
        self.is_running = is_running
        self.wait_stop = wait_stop
        self.ended = False
        self._task: asyncio.Task[None] | None = None

    def begin(self, consumer_id: str) -> None:
        """The engine runs from here on, in the current task."""
        self.id = consumer_id
        self._task = asyncio.current_task()

    def ends(self) -> bool:
        """Whether the engine ends, or the event loop, which cancels all of its tasks: then a slot that is cancelled
        says nothing of its run, and is not replaced."""
        task = self._task
        return self.ended or task is None or task.done() or task.cancelling() > 0
