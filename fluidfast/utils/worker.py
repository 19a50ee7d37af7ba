"""The workers, under aio-fluid's name."""

from ..workers import AsyncConsumer, QueueConsumer, QueueConsumerWorker, Worker, WorkerFunction, Workers, WorkerState

__all__ = [
    "AsyncConsumer",
    "QueueConsumer",
    "QueueConsumerWorker",
    "Worker",
    "WorkerFunction",
    "WorkerState",
    "Workers",
]
