"""Hooks and middleware: code around each queueing, or each execution, of a run. A manager without pays nothing.

Middleware is an object with one or both of these methods, which go on with ``call_next()``:

    class Traced:
        async def enqueue(self, run, options, call_next):
            with tracer.start_as_current_span(f"send {run.name}"):
                return await call_next()  # the run's handle

        async def execute(self, run, call_next):
            with tracer.start_as_current_span(f"process {run.name}"):
                return await call_next()  # the function's result

A hook is a function for one of them, which gets the run and ``go``, and returns nothing:

    async def traced(run, go):
        with tracer.start_as_current_span(f"queue {run.name}"):
            await go()

One around queueing that raises refuses the run: the caller gets the exception, and nothing is sent. One around running
that raises fails the run, as if the task's function had. The runs of a batch task are run as one: it gets the list of
them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..checks import shown
from ..errors import TaskUsageError
from ._machine import Listeners
from .states import STATES
from .task import is_async

__all__ = ["AFTER_END", "AROUND_QUEUEING", "AROUND_RUNNING", "Around", "CallNext", "Go", "Hooks"]

logger = logging.getLogger(__name__)

Go = Callable[[], Awaitable[None]]
Around = Callable[[Any, Go], Awaitable[None]]
CallNext = Callable[[], Awaitable[Any]]
Enqueue = Callable[[Any, Any, CallNext], Awaitable[Any]]
Execute = Callable[[Any, CallNext], Awaitable[Any]]
AfterEnd = Callable[[Any], None]
AfterFailure = Callable[[Any, BaseException, str], None]

AROUND_QUEUEING = 1 << len(STATES)
"""The bit of ``Listeners.mask`` for a hook around queueing, beside those of the states: one test covers all."""
AROUND_RUNNING = 1 << len(STATES) + 1
"""The same for hooks around running."""
AFTER_END = 1 << len(STATES) + 2
"""The same for hooks after the end of a run."""


class Hooks:
    """The hooks and the middleware of one manager, the first one outermost.

    ``queueing``: calls around queueing (run, options, call_next). ``running``: calls around running (run, call_next).
    ``ends``: calls after the end of a run (run). ``failures``: calls after a failed attempt (run, exception, place).
    """

    def __init__(self, listeners: Listeners) -> None:
        self.queueing: tuple[Enqueue, ...] = ()
        self.running: tuple[Execute, ...] = ()
        self.ends: tuple[AfterEnd, ...] = ()
        self.failures: tuple[AfterFailure, ...] = ()
        self._listeners = listeners

    def around_queueing(self, hook: Around) -> None:
        """Call ``hook`` around each queueing of a run: one by one, in bulk, by a schedule, over HTTP, from a file."""

        async def enqueue(run: Any, options: Any, call_next: CallNext) -> Any:
            return await _within(hook, run, call_next)

        self._add_queueing(enqueue)

    def around_running(self, hook: Around) -> None:
        """Call ``hook`` around each call of a task's function, in the consumer's process.

        This includes functions that run in a thread or in their own process.
        """

        async def execute(run: Any, call_next: CallNext) -> Any:
            return await _within(hook, run, call_next)

        self._add_running(execute)

    def add_middleware(self, middleware: Any) -> None:
        """Call the middleware's ``enqueue`` around each queueing, and its ``execute`` around each call of a function.

        Raises:
            TaskUsageError: it has neither method, one is not a coroutine function, or it is a class.
        """
        if isinstance(middleware, type):
            raise TaskUsageError(
                f"add_middleware takes an object, and was given the class {middleware.__name__}: write "
                f"add_middleware({middleware.__name__}())"
            )
        enqueue, execute = (getattr(middleware, name, None) for name in ("enqueue", "execute"))
        for name, method in (("enqueue", enqueue), ("execute", execute)):
            if method is not None and not is_async(method):
                raise TaskUsageError(f"middleware {shown(middleware)}: its {name} must be an async def")
        if enqueue is None and execute is None:
            raise TaskUsageError(
                f"middleware {shown(middleware)} has neither 'async def enqueue(self, run, options, call_next)' nor "
                "'async def execute(self, run, call_next)'"
            )
        if enqueue is not None:
            self._add_queueing(enqueue)
        if execute is not None:
            self._add_running(execute)

    def after_end(self, hook: AfterEnd) -> None:
        """Call ``hook`` with each run that a consumer has brought to its end here, and not with a copy of it.

        It must not block. The consumer logs an exception of the hook and goes on.
        """
        self.ends += (hook,)
        self._listeners.mask |= AFTER_END

    def after_failure(self, hook: AfterFailure) -> None:
        """Call ``hook`` after each failed attempt of a run here, with the run, the exception, and ``file.py:line``.

        It must not block. The consumer logs an exception of the hook and goes on.
        """
        self.failures += (hook,)

    def log_error(self, hook: Callable[..., Any], run: Any) -> None:
        """Log the exception that is being handled, of a hook after the end of a run or after a failure."""
        logger.exception("hook %s failed for run %s", shown(hook), run.shown_name)

    def copy_to(self, other: "Hooks") -> None:
        """Add these hooks to ``other``, after its own."""
        for enqueue in self.queueing:
            other._add_queueing(enqueue)
        for execute in self.running:
            other._add_running(execute)
        for ended in self.ends:
            other.after_end(ended)
        for failed in self.failures:
            other.after_failure(failed)

    def _add_queueing(self, enqueue: Enqueue) -> None:
        self.queueing += (enqueue,)
        self._listeners.mask |= AROUND_QUEUEING

    def _add_running(self, execute: Execute) -> None:
        self.running += (execute,)
        self._listeners.mask |= AROUND_RUNNING

    async def call_queueing(self, run: Any, send: CallNext, options: Mapping[str, Any] | None = None) -> Any:
        """Send a run within the hooks around queueing, and return what the outermost returns.

        ``send`` returns the run's handle. ``options``: those that the caller gave.

        Raises:
            TaskUsageError: a hook did not go on exactly once, or middleware returned no handle.
            RuntimeError: something that a hook awaited was cancelled, and not the caller.
        """
        try:
            handle = send
            for enqueue in reversed(self.queueing):
                handle = _link(enqueue, (run, {} if options is None else dict(options)), handle)
            return await handle()
        except asyncio.CancelledError as exc:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            raise RuntimeError(f"a hook around queueing {run.name} raised CancelledError") from exc

    async def call_running(self, function: Callable[[Any], Awaitable[Any]], argument: Any) -> Any:
        """Call a task's function with its run, or its list of runs, within the hooks around running. Return its result,
        or what the outermost middleware returns in its place.

        Raises:
            TaskUsageError: a hook did not go on exactly once.
        """

        async def call() -> Any:
            return await function(argument)

        result: CallNext = call
        for execute in reversed(self.running):
            result = _link(execute, (argument,), result)
        return await result()


class Once:
    """What hooks go on with: they have to await it exactly once.

    ``go``: how ``hook`` writes that. ``result``: what ``inner`` returned.
    """

    __slots__ = ("awaited", "go", "hook", "inner", "result")

    def __init__(self, inner: CallNext, hook: Any, go: str) -> None:
        self.inner = inner
        self.hook = hook
        self.go = go
        self.awaited = False
        self.result: Any = None

    async def __call__(self) -> Any:
        if self.awaited:
            raise TaskUsageError(f"hook {self.hook!r} awaited {self.go} twice: await it once")
        self.awaited = True
        self.result = await self.inner()
        return self.result

    def check(self) -> None:
        """Raise TaskUsageError if it was not awaited."""
        if not self.awaited:
            raise TaskUsageError(
                f"hook {self.hook!r} returned without {self.go}: await {self.go}, or raise to refuse the run"
            )


async def _within(hook: Around, run: Any, call_next: CallNext) -> Any:
    """Call a hook, which returns nothing, and return what ``call_next`` returned to it."""
    go = Once(call_next, hook, "go()")
    await hook(run, go)
    go.check()
    return go.result


def _link(around: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...], inner: CallNext) -> CallNext:
    """Return a call of ``around`` with these arguments, and with ``inner`` as its ``call_next``."""

    async def call() -> Any:
        call_next = Once(inner, around, "call_next()")
        result = await around(*arguments, call_next)
        call_next.check()
        return result

    return call
