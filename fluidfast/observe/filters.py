"""``RunFilter``: puts the run that code belongs to on its log records."""

import logging
import os

from ..core.context import RUN, follow_runs
from ..texts import printable

__all__ = ["WORKER", "RunFilter", "numbered", "worker_number"]

WORKER = "FLUIDFAST_WORKER"
"""Environment variable: the number of a worker process among those of its supervisor, from 1."""


class RunFilter(logging.Filter):
    """Adds ``run_id``, ``task``, ``attempt``, ``batch`` and ``worker`` to each record, and drops none.

    Put it on handlers, so that it sees the records of all loggers:

        handler.addFilter(RunFilter())

    or, in a ``dictConfig``: ``"filters": {"run": {"()": "fluidfast.observe.RunFilter"}}``. The commands of fluidfast
    put it on every handler themselves.

    ``run_id`` and ``task`` are safe to show. ``attempt`` counts from 1. Outside of a run they are ``""`` and 0. In a
    batch task, ``run_id`` and ``attempt`` are those of the batch's first run, and ``batch`` is the number of its runs
    (0 in any other task). ``worker`` is the number of this process among those of ``--processes``, else 1. A field that
    the record already has, because somebody gave it as ``extra=``, stays.

    Tasks and threads that a run starts belong to it, also after it has ended.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.worker = worker_number()
        follow_runs()

    def filter(self, record: logging.LogRecord) -> bool:
        fields = record.__dict__
        run = RUN.get()
        batch = 0
        if isinstance(run, list):
            batch = len(run)
            run = run[0] if run else None
        if "run_id" in fields:  # it says itself which run it is about
            run, batch = None, 0
        fields.setdefault("run_id", "" if run is None else run.shown_id)
        fields.setdefault("task", "" if run is None else printable(run.task.name))
        fields.setdefault("attempt", 0 if run is None else run.retry_attempt + 1)
        fields.setdefault("batch", batch)
        fields.setdefault("worker", self.worker)
        return True


def worker_number() -> int:
    """Return the number of this worker process, 1 if it has none."""
    number = os.environ.get(WORKER, "")
    return int(number) if number.isdecimal() else 1


def numbered(name: str) -> str:
    """Return a logger's name with the number of this process behind it, if it is one of several workers."""
    return f"{name}[{worker_number()}]" if WORKER in os.environ else name
