"""The states a run passes through and the three priorities: who enters each, who leaves it.

The numbers are part of the wire (MessagePack form) and of the compiled modules. A number or a
name is never reused or changed; a new state gets the next free number.
"""

from enum import StrEnum

__all__ = ["FINISHED_STATES", "PRIORITIES", "STATES", "TaskPriority", "TaskState"]


class TaskPriority(StrEnum):
    """Which queue a run waits in. Numbers on the wire: high 0, medium 1, low 2."""

    high = "high"
    medium = "medium"
    low = "low"


class TaskState(StrEnum):
    """Where a run is in its life. Numbers on the wire are the order of definition, from 0.

    ``init``: made by ``create_task_run``; only its maker knows it.
    ``queued``: the producer handed it to the broker. It stays in this state while it waits, while it is
    delayed, and while a consumer holds it without having started it.
    ``running``: an executor started it.
    ``success``, ``failure``, ``aborted``: the executor settled it (aborted: by itself, or because its task
    is disabled).
    ``rate_limited``: the consumer found no free slot under ``max_concurrency`` and the task has no
    ``rate_limit_retry`` left.
    ``interrupted``: the worker was shut down while it ran.
    """

    init = "init"
    queued = "queued"
    running = "running"
    success = "success"
    failure = "failure"
    aborted = "aborted"
    rate_limited = "rate_limited"
    interrupted = "interrupted"

    @property
    def is_failure(self) -> bool:
        """True for ``failure`` only."""
        return self is TaskState.failure

    @property
    def is_done(self) -> bool:
        """True when nothing follows this state."""
        return self in FINISHED_STATES


FINISHED_STATES: frozenset[TaskState] = frozenset(
    (
        TaskState.success,
        TaskState.failure,
        TaskState.aborted,
        TaskState.rate_limited,
        TaskState.interrupted,
    )
)

STATES: tuple[TaskState, ...] = tuple(TaskState)
"""State by number."""

PRIORITIES: tuple[TaskPriority, ...] = tuple(TaskPriority)
"""Priority by number."""

LETTERS = ("h", "m", "l")
"""Letters for the priorities, by number, in the fields of a lease and in front of a delayed payload."""
