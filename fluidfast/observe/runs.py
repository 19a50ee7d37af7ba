"""``RunLines``: a line for each run that has ended, made without ``logging``, which would take 15 us for it."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..core._run import TaskRun
from ..texts import printable
from .filters import numbered, worker_number

__all__ = ["RunLines"]

NAME = "fluidfast.runs"


class RunLines:
    """Called with each run that has ended: gives a line of text, or of JSON, to ``put``.

    A line has the state that the run ended in, its task, id and attempt, how many seconds it took, and how many it had
    waited.
    """

    def __init__(self, put: Callable[[str], None], *, as_json: bool = False) -> None:
        self._put = put
        self._worker = worker_number()
        self._name = numbered(NAME)
        self._line = self._json if as_json else self._text
        self._encode = msgspec.json.Encoder().encode
        self._second = -1
        self._stamp = ""
        self._task: Any = None
        self._shown = ""

    def __call__(self, run: TaskRun[Any, Any]) -> None:
        self._put(self._line(run))

    def _text(self, run: TaskRun[Any, Any]) -> str:
        queued, start, end = run.times_us
        second, micros = divmod(end, 1_000_000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        task = run.task
        if task is not self._task:
            self._task, self._shown = task, printable(task.name)
        return (
            f"{self._stamp},{micros // 1000:03d} INFO    {self._name}: {run.state} task={self._shown} "
            f"run={run.shown_id} attempt={run.retry_attempt + 1} seconds={(end - start) / 1e6:.6f} "
            f"waited={(start - queued) / 1e6:.6f}"
        )

    def _json(self, run: TaskRun[Any, Any]) -> str:
        queued, start, end = run.times_us
        second, micros = divmod(end, 1_000_000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        task = run.task
        if task is not self._task:
            self._task, self._shown = task, printable(task.name)
        state = run.state
        return self._encode(
            {
                "time": f"{self._stamp}.{micros // 1000:03d}Z",
                "level": "INFO",
                "name": NAME,
                "message": f"run ended: {state}",
                "task": self._shown,
                "run_id": run.shown_id,
                "attempt": run.retry_attempt + 1,
                "worker": self._worker,
                "state": state,
                "seconds": (end - start) / 1e6,
                "waited": (start - queued) / 1e6,
            }
        ).decode()
