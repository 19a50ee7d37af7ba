"""The workers, under aio-fluid's name."""

from ..core.workers import (
    AsyncConsumer,
    QueueConsumer,
    QueueConsumerWorker,
    Worker,
    WorkerFunction,
    Workers,
    WorkerState,
)

__all__ = [
    "AsyncConsumer",
    "QueueConsumer",
    "QueueConsumerWorker",
    "Worker",
    "WorkerFunction",
    "WorkerState",
    "Workers",
]
