"""One tree of exceptions. Everything that fluidfast raises on purpose is a ``TaskError``."""

from typing import Any

__all__ = [
    "BrokerAuthError",
    "BrokerConnectionError",
    "BrokerError",
    "BrokerFullError",
    "BrokerURLError",
    "BufferedRunsLost",
    "ConfigError",
    "ConnectionLostError",
    "CpuBoundEntryPointError",
    "DisabledTaskError",
    "DurabilityUnsupportedError",
    "HungThreadsError",
    "NoThreadError",
    "NotDurableError",
    "OpenRoutesError",
    "ParamsError",
    "PayloadError",
    "PayloadTooLargeError",
    "QueueFullError",
    "TaskAbortedError",
    "TaskDecoratorError",
    "TaskError",
    "TaskNameTaken",
    "TaskParamsError",
    "TaskRunError",
    "TaskUsageError",
    "UnknownTaskError",
    "WorkerStartError",
]


class TaskError(RuntimeError):
    """The root of the tree.

    ``summary``: set by ``queue_many``, what was confirmed before the error (``QueueSummary``). ``index``: there,
    which item.
    """

    summary: Any = None
    index: int = -1


class ConfigError(TaskError, ValueError):
    """A setting or an option is unknown or out of range. The message names it."""


class OpenRoutesError(ConfigError):
    """HTTP routes that change something would be served without ``auth``. The message names what allows that."""


class UnknownTaskError(TaskError):
    """A task name that the registry does not hold."""


class TaskNameTaken(TaskError, ValueError):
    """A different function is registered under the task's name. The message names both functions."""


class TaskUsageError(TaskError, TypeError, ValueError):
    """A task was called like a function, a function was given where a task is needed, or params stand where the
    priority does. The message has the line to write instead."""


class DisabledTaskError(TaskError):
    """A task that was disabled with ``enable_task(name, False)``."""


class ParamsError(TaskError, ValueError):
    """Params that do not fit the task's model. Raised by ``queue`` and its like before anything is sent.

    ``task_name`` is the task, ``field`` the path of the offending field (``""`` if it is the whole).
    """

    def __init__(self, message: str, *, task_name: str = "", field: str = "") -> None:
        super().__init__(message)
        self.task_name = task_name
        self.field = field


class TaskParamsError(ParamsError):
    """Params that came off a queue and do not fit the task's model.

    ``task_run`` is the run with its params as they were read, unvalidated.
    """

    def __init__(self, task_run: Any, message: str, *, field: str = "") -> None:
        super().__init__(message, task_name=getattr(task_run, "name", ""), field=field)
        self.task_run = task_run


class PayloadError(TaskError, ValueError):
    """Bytes from a queue that are not a run: broken JSON, no task name, wrong types."""


class PayloadTooLargeError(TaskError, ValueError):
    """A run whose encoded form is larger than the broker's limit. Nothing was sent."""


class TaskRunError(TaskError):
    """A run cannot do what was asked of it, such as going from ``success`` to ``running``."""


class TaskAbortedError(TaskError):
    """Raised inside a task (``run.abort(reason)``) to end it as ``aborted``: no error, no retry."""


class TaskDecoratorError(TaskError, TypeError, ValueError):
    """``@task`` was used in a way that has no meaning: its function, a keyword or a number does not fit."""


class CpuBoundEntryPointError(TaskError):
    """A CPU-bound child process reached a consumer's start: its entry point has no ``exec`` command."""


class WorkerStartError(TaskError):
    """A worker was started twice."""


class HungThreadsError(TaskError):
    """All threads of a consumer hang in plain functions that go on after their timeout, so that it can run nothing."""


class NoThreadError(TaskError):
    """The system gave no thread for a plain function. Its run goes back to its queue. Handled within."""


class BrokerError(TaskError):
    """The broker could not do what was asked. Names the URL, never its password."""


class BrokerURLError(BrokerError, ValueError):
    """A broker URL with an unknown scheme or a bad option."""


class BrokerConnectionError(BrokerError, ConnectionError):
    """The server is not there, or went away and did not come back in time."""


class ConnectionLostError(BrokerConnectionError):
    """The connection ended before the answer came: whether the command took effect is unknown. Handled within."""


class BrokerAuthError(BrokerConnectionError):
    """The server refused the user name or the password, or the user lacks a right: its own text says which."""


class QueueFullError(BrokerError):
    """``max_queue_length`` runs, or ``max_queue_bytes`` bytes, wait, and did so for as long as the caller may be kept.
    Nothing was sent."""


class BufferedRunsLost(BrokerError):
    """Runs that ``queue`` had accepted with ``delivery="buffered"`` could not be confirmed.

    ``run_ids`` are they, ``__cause__`` is why; after a BrokerConnectionError they may have been queued all the same.
    """

    def __init__(self, message: str, run_ids: list[str]) -> None:
        super().__init__(message)
        self.run_ids = run_ids


class DurabilityUnsupportedError(BrokerError, ConfigError):
    """The server cannot do what ``durability`` demands. Nothing was sent. The message names what to change."""


class NotDurableError(BrokerError):
    """The runs are queued, but no replica had them (``durability="replica"``), or they were not on disk
    (``durability="fsync"``), within the time that was set: a failover or a power cut at this moment may lose them."""


class BrokerFullError(BrokerError):
    """The server is at ``maxmemory`` and has no room. Nothing of the batch was stored."""
