"""Hooks: code that is called around each queueing of a run. A manager without hooks pays nothing for them.

A hook gets the run and ``go``, and awaits ``go()`` to go on:

    async def traced(run, go):
        with tracer.start_as_current_span(f"queue {run.name}"):
            await go()

A hook that raises instead refuses the run: who queues it gets the exception, and nothing is sent.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from ._machine import Listeners
from .states import STATES

__all__ = ["HOOKED", "Around", "Go", "Hooks"]

Go = Callable[[], Awaitable[None]]
Around = Callable[[Any, Go], Awaitable[None]]

HOOKED = 1 << len(STATES)
"""The bit of ``Listeners.mask`` that says that there is a hook around queueing, next to those of the states: one test
covers both."""


class Hooks:
    """The hooks of one manager, the first one outermost."""

    def __init__(self, listeners: Listeners) -> None:
        self.queueing: tuple[Around, ...] = ()
        self._listeners = listeners

    def around_queueing(self, hook: Around) -> None:
        """Have ``hook`` called around each queueing of a run, whichever way it comes: one by one, in bulk, by a
        schedule, over HTTP, from a file."""
        self.queueing += (hook,)
        self._listeners.mask |= HOOKED

    async def call_queueing(self, run: Any, send: Go) -> None:
        """Send a run within the hooks around queueing."""
        for hook in reversed(self.queueing):
            send = _within(hook, run, send)
        await send()


def _within(hook: Around, run: Any, go: Go) -> Go:
    async def step() -> None:
        await hook(run, go)

    return step
