"""One run: call the task within its time limit, decide the outcome, and whether to retry."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from ..core._run import TaskRun
from ..core.context import RUN
from ..core.events import is_current
from ..core.process import is_in_cpu_process
from ..core.states import TaskState
from ..core.task import TaskExecutor, is_async
from ..errors import TaskAbortedError, TaskRunError
from ..texts import printable
from .cpubound import confirm_executed

__all__ = [
    "Retry",
    "call",
    "checked",
    "execute",
    "execute_plain",
    "refuse_unrun",
    "retry_after_failure",
    "retry_when_limited",
]

UNRUN = frozenset(("coroutine", "generator", "async_generator"))
"""Type names of unrun results. Compiled functions return other types with the same names."""
SET_TO_FAILURE = "the task's function set it to failure"


@dataclass(frozen=True, slots=True)
class Retry:
    """A run to queue again, after ``delay`` seconds."""

    delay: float
    run: TaskRun[Any, Any]


async def call(executor: TaskExecutor, argument: Any) -> Any:
    """Call a task's function with its run, or with its runs if it takes a batch.

    A coroutine function runs here, any other in a thread of the event loop's pool, with a copy of the context.
    """
    if is_async(executor):
        return await checked(executor, argument)
    loop = asyncio.get_running_loop()
    result = await loop.run_in_executor(None, functools.partial(copy_context().run, call_in_thread, executor, argument))
    if hasattr(result, "__await__"):  # a plain function that returns a coroutine: partials, lambdas, wrappers
        result = await result
    refuse_unrun(result)
    return result


def call_in_thread(executor: TaskExecutor, argument: Any) -> Any:
    """Call a plain function, and turn StopIteration and GeneratorExit into a RuntimeError.

    A coroutine does this for StopIteration (PEP 479). A future does not accept StopIteration, and GeneratorExit would
    close the coroutines that await it.
    """
    try:
        return executor(argument)
    except (StopIteration, GeneratorExit) as exc:
        raise RuntimeError(f"the task's function raised {type(exc).__name__}") from exc


async def checked(executor: Callable[[Any], Awaitable[Any]], argument: Any) -> Any:
    """Call a function. Raises as it does, and as ``refuse_unrun``."""
    result = await executor(argument)
    refuse_unrun(result)
    return result


def refuse_unrun(result: Any) -> None:
    """Raise TaskRunError if a task's function returned a generator or a coroutine, whose work would never run."""
    if type(result).__name__ in UNRUN and isinstance(result, Coroutine | Generator | AsyncGenerator):
        if isinstance(result, Coroutine):
            result.close()  # no warning of a missing await: the error says it
        name = getattr(result, "__qualname__", "")
        raise TaskRunError(
            f"the task's function returned a {type(result).__name__} ({printable(name)}) that was not run: await "
            "it, or iterate over it, within the function"
        )


def raise_failed(result: Any, run: TaskRun[Any, Any]) -> None:
    """Raise the exception that a batch's function returned for this run, in a mapping by run id, if any."""
    if isinstance(result, Mapping) and (exc := result.get(run.id)) is not None:
        raise exc


async def execute(run: TaskRun[Any, Any], *, in_process: bool = False) -> None:
    """Execute a run here and now, and set its final state.

    ``in_process``: execute a CPU-bound task in this process instead of its own. A plain function runs in the event
    loop's default thread pool, whose size limits their number, and its time counts from this call. (A consumer uses its
    own threads.)

    Raises:
        TaskAbortedError: the task aborted itself.
        TaskRunError: its function set the run to failure, or something that it awaited was cancelled.
        TimeoutError: it took longer than its ``timeout_seconds``.
        Exception: whatever the task raised.
    """
    token = RUN.set(run)
    try:
        await execute_in_context(run, in_process)
    finally:
        with suppress(ValueError):  # it is closed, by another context, as its event loop is gone
            RUN.reset(token)


async def execute_in_context(run: TaskRun[Any, Any], in_process: bool) -> None:
    run.set_state(TaskState.running)
    caller = asyncio.current_task()
    cancelled = 0 if caller is None else caller.cancelling()
    try:
        async with asyncio.timeout(run.task.timeout_seconds):
            function = functools.partial(call, run.task.run_executor(in_process=in_process))
            hooks = getattr(run.task_manager, "hooks", None)
            # the process of a CPU-bound run has no part in them: its parent calls them around it
            if hooks is not None and hooks.running and not is_in_cpu_process():
                function = functools.partial(hooks.call_running, function)
            if run.task.batch:
                raise_failed(await function([run]), run)
            else:
                await function(run)
    except TaskAbortedError:
        end(run, TaskState.aborted)
        raise
    except asyncio.CancelledError as exc:
        if caller is None or caller.cancelling() > cancelled:
            end(run, TaskState.interrupted)
            raise
        end(run, TaskState.failure)
        raise TaskRunError("the task was cancelled from within") from exc
    except BaseException as exc:
        is_closed = isinstance(exc, GeneratorExit) and not is_current(caller)  # the event loop is gone
        end(run, TaskState.interrupted if is_closed else TaskState.failure)
        raise
    end(run, TaskState.success)
    if run.is_failure:
        raise TaskRunError(SET_TO_FAILURE)
    if in_process and is_in_cpu_process():
        confirm_executed(run.id)


def execute_plain(run: TaskRun[Any, Any]) -> None:
    """Execute a run of a plain function in this thread, without an event loop, and set its final state. Raises as
    ``execute``, but has no time limit: it is for the process of a CPU-bound run, whose parent has.
    """
    token = RUN.set(run)
    run.set_state(TaskState.running)
    try:
        result = call_in_thread(run.task.run_executor(in_process=True), run)
        if hasattr(result, "__await__"):
            result = asyncio.run(awaited(result))
        refuse_unrun(result)
    except BaseException as exc:
        end(run, TaskState.aborted if isinstance(exc, TaskAbortedError) else TaskState.failure)
        raise
    finally:
        RUN.reset(token)
    end(run, TaskState.success)
    if run.is_failure:
        raise TaskRunError(SET_TO_FAILURE)
    confirm_executed(run.id)


async def awaited(result: Awaitable[Any]) -> Any:
    return await result


def end(run: TaskRun[Any, Any], state: TaskState) -> None:
    """Set the final state of a run, unless the task's function did."""
    if not run.is_done:
        run.set_state(state)


def floor_of(run: TaskRun[Any, Any]) -> float:
    """Return the least seconds before a retry."""
    return float(run.task_manager.broker.options.retry_floor)


def retry_after_failure(run: TaskRun[Any, Any], exc: BaseException, now: int) -> Retry | None:
    """Return the retry of a failed run if its task's ``retry`` allows one. ``now``: microseconds since the epoch."""
    policy = run.task.retry
    if policy is None or not policy.allows(run.retry_attempt) or not policy.matches(exc):
        return None
    delay = max(policy.delay(run.retry_attempt + 1), floor_of(run))
    return Retry(delay, run._again(now + int(delay * 1e6), False))


def retry_when_limited(run: TaskRun[Any, Any], now: int) -> Retry | None:
    """Return the retry of a run that found no slot under ``max_concurrency``, if ``rate_limit_retry`` allows one.

    ``now``: microseconds since the epoch.
    """
    policy = run.task.rate_limit_retry
    if policy is None or not policy.allows(run.rate_limit_attempt):
        return None
    delay = max(policy.delay(run.rate_limit_attempt + 1), floor_of(run))
    return Retry(delay, run._again(now + int(delay * 1e6), True))
