"""Hooks: code around each queueing, or each execution, of a run. A manager without hooks pays nothing for them.

A hook gets the run and ``go``, and awaits ``go()`` to go on:

    async def traced(run, go):
        with tracer.start_as_current_span(f"queue {run.name}"):
            await go()

A hook around queueing that raises refuses the run: the caller gets the exception, and nothing is sent. A hook around
running that raises fails the run, as if the task's function had. The runs of a batch task are run as one: the hook gets
the list of them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import TaskUsageError
from ._machine import Listeners
from .states import STATES

__all__ = ["AROUND_QUEUEING", "AROUND_RUNNING", "Around", "Go", "Hooks"]

Go = Callable[[], Awaitable[None]]
Around = Callable[[Any, Go], Awaitable[None]]

AROUND_QUEUEING = 1 << len(STATES)
"""The bit of ``Listeners.mask`` for a hook around queueing, beside those of the states: one test covers all."""
AROUND_RUNNING = 1 << len(STATES) + 1
"""The same for hooks around running."""


class Hooks:
    """The hooks of one manager, the first one outermost. ``queueing``, ``running``: the installed hooks."""

    def __init__(self, listeners: Listeners) -> None:
        self.queueing: tuple[Around, ...] = ()
        self.running: tuple[Around, ...] = ()
        self._listeners = listeners

    def around_queueing(self, hook: Around) -> None:
        """Call ``hook`` around each queueing of a run: one by one, in bulk, by a schedule, over HTTP, from a file."""
        self.queueing += (hook,)
        self._listeners.mask |= AROUND_QUEUEING

    def around_running(self, hook: Around) -> None:
        """Call ``hook`` around each call of a task's function, in the consumer's process.

        This includes functions that run in a thread or in their own process.
        """
        self.running += (hook,)
        self._listeners.mask |= AROUND_RUNNING

    def copy_to(self, other: "Hooks") -> None:
        """Add these hooks to ``other``, after its own."""
        for hook in self.queueing:
            other.around_queueing(hook)
        for hook in self.running:
            other.around_running(hook)

    async def call_queueing(self, run: Any, send: Go) -> None:
        """Send a run within the hooks around queueing.

        Raises:
            TaskUsageError: a hook did not await ``go()`` exactly once.
            RuntimeError: something that a hook awaited was cancelled, and not the caller.
        """
        try:
            await _call(self.queueing, run, send)
        except asyncio.CancelledError as exc:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            raise RuntimeError(f"a hook around queueing {run.name} raised CancelledError") from exc

    async def call_running(self, function: Callable[[Any], Awaitable[Any]], argument: Any) -> Any:
        """Call a task's function with its run, or its list of runs, within the hooks around running. Return its result.

        Raises:
            TaskUsageError: a hook did not await ``go()`` exactly once.
        """
        result: Any = None

        async def go() -> None:
            nonlocal result
            result = await function(argument)

        await _call(self.running, argument, go)
        return result


async def _call(hooks: tuple[Around, ...], argument: Any, go: Go) -> None:
    if not hooks:
        await go()
        return
    hook, *inner = hooks
    calls = 0

    async def once() -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise TaskUsageError(f"hook {hook!r} awaited go() twice: await it once")
        await _call(tuple(inner), argument, go)

    await hook(argument, once)
    if not calls:
        raise TaskUsageError(f"hook {hook!r} returned without go(): await go(), or raise to refuse the run")
