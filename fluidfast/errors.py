"""All exceptions that fluidfast raises on purpose. Their root is ``TaskError``."""

from typing import Any

__all__ = [
    "BrokerAuthError",
    "BrokerConnectionError",
    "BrokerError",
    "BrokerFullError",
    "BrokerLayoutError",
    "BrokerURLError",
    "BufferedRunsLost",
    "ConfigError",
    "ConnectionLostError",
    "CpuBoundEntryPointError",
    "DisabledTaskError",
    "DurabilityUnsupportedError",
    "HistoryError",
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
    """The root of all exceptions of fluidfast.

    ``queue_many`` sets two attributes. ``summary`` (``QueueSummary``): the runs confirmed before the error. ``index``:
    the position of the item that failed, from 0; -1: none.
    """

    summary: Any = None
    index: int = -1


class ConfigError(TaskError, ValueError):
    """A setting or an option is unknown or out of range. The message names it."""


class OpenRoutesError(ConfigError):
    """HTTP routes that change something would be open, without ``auth``. The message names the ways to allow that."""


class UnknownTaskError(TaskError):
    """A task name is not in the registry."""


class TaskNameTaken(TaskError, ValueError):
    """A different function is already registered under the task's name. The message names both functions."""


class TaskUsageError(TaskError, TypeError, ValueError):
    """A task, or its params, are used in the wrong way. The message has the line to write instead.

    Examples: a task called like a function, a function in place of a task, params in place of the priority.
    """


class DisabledTaskError(TaskError):
    """A task is disabled (``enable_task(name, False)``)."""


class ParamsError(TaskError, ValueError):
    """Params do not fit the task's model. ``queue`` and the other calls raise it before they send anything.

    ``task_name`` is the task, ``field`` the path of the wrong field (``""``: the params as a whole).
    """

    def __init__(self, message: str, *, task_name: str = "", field: str = "") -> None:
        super().__init__(message)
        self.task_name = task_name
        self.field = field


class TaskParamsError(ParamsError):
    """Params read from a queue do not fit the task's model.

    ``task_run`` is the run with the unvalidated params.
    """

    def __init__(self, task_run: Any, message: str, *, field: str = "") -> None:
        super().__init__(message, task_name=getattr(task_run, "name", ""), field=field)
        self.task_run = task_run


class PayloadError(TaskError, ValueError):
    """Bytes from a queue are not a run: invalid JSON, no task name, wrong types."""


class PayloadTooLargeError(TaskError, ValueError):
    """An encoded run is larger than the broker's ``max_payload_bytes``. Nothing was sent."""


class TaskRunError(TaskError):
    """A run cannot do this, such as go from ``success`` to ``running``."""


class TaskAbortedError(TaskError):
    """A task ends its run as ``aborted`` (``run.abort(reason)``): no failure, no retry."""


class TaskDecoratorError(TaskError, TypeError, ValueError):
    """``@task`` got a function, a keyword or a number that it cannot use. The message names it."""


class CpuBoundEntryPointError(TaskError):
    """The child process of a CPU-bound run started a consumer: its entry point has no ``exec`` command."""


class WorkerStartError(TaskError):
    """A worker cannot start: it already runs, or this process is a fork of the one that it runs in."""


class HungThreadsError(TaskError):
    """All threads of a consumer hang in plain functions after their timeouts, so the consumer cannot run anything."""


class NoThreadError(TaskError):
    """The system refused a thread for a plain function. The consumer handles this and requeues the run."""


class HistoryError(TaskError):
    """The database of the run history is unavailable, lacks its tables, or took longer than 10 s."""


class BrokerError(TaskError):
    """A broker operation failed. The message names the URL, never its password."""


class BrokerURLError(BrokerError, ValueError):
    """A broker URL has an unknown scheme or a bad option. The message names it."""


class BrokerLayoutError(BrokerError):
    """A newer release has changed the layout of the broker's keys. The message names both layouts."""


class BrokerConnectionError(BrokerError, ConnectionError):
    """The server is unavailable, or did not come back in time."""


class ConnectionLostError(BrokerConnectionError):
    """The connection ended before the answer came, so the command may or may not have taken effect.

    fluidfast handles this itself.
    """


class BrokerAuthError(BrokerConnectionError):
    """The server refused the user name or the password, or the user lacks a right. The message names it."""


class QueueFullError(BrokerError):
    """The queue holds ``max_queue_length`` runs or ``max_queue_bytes`` bytes, and ``full_timeout`` seconds have passed.

    Nothing was sent. ``on_full="raise"`` raises it at once.
    """


class BufferedRunsLost(BrokerError):
    """The server did not confirm runs that ``queue`` had accepted with ``delivery="buffered"``.

    ``run_ids`` has their ids, ``__cause__`` the reason. After a BrokerConnectionError they may be queued nevertheless.
    """

    def __init__(self, message: str, run_ids: list[str]) -> None:
        super().__init__(message)
        self.run_ids = run_ids


class DurabilityUnsupportedError(BrokerError, ConfigError):
    """The server does not support the ``durability`` setting. Nothing was sent. The message says what to change."""


class NotDurableError(BrokerError):
    """The runs are queued, but not replicated or written to disk within ``durability_seconds``.

    With ``durability="replica"`` a failover at this moment may lose them, with ``durability="fsync"`` a power cut.
    """


class BrokerFullError(BrokerError):
    """The server has reached ``maxmemory``. It stored nothing of the batch."""
