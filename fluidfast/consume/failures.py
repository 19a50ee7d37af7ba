"""The log lines of failed attempts: a line each, and one traceback for each error and place in a while."""

import logging
import os
import traceback
from functools import lru_cache
from types import CodeType
from typing import Any

from ..core._run import TaskRun
from ..core._time import now_micros
from ..core.hooks import Hooks
from ..errors import TaskRunError
from ..texts import error_text, printable

__all__ = ["Failures", "shown_line"]

SHOWN = 300
"""Characters of an exception's text in a line."""
MAX_PLACES = 1_000
"""Errors and places that are told apart; the tracebacks of further ones are left out."""


class Failures:
    """Logs the failed attempts of one consumer, on the logger of their task.

        run failed: task=pay run=10c7... attempt=1/4 after=10s error=ReadTimeout at=gateway.py:41 again_in=5s: no answer

    A failure that is retried is a warning, a final one an error. The values are fields of the record too. Params are
    never logged.

    Then it calls the ``hooks`` after a failure.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._seen: dict[tuple[str, str], int] = {}  # error and place -> failures since the last traceback

    def log(self, run: TaskRun[Any, Any], exc: BaseException, *, again_in: float | None, ours: bool) -> None:
        """Log a failed attempt. ``again_in``: seconds until the next; None: it was the last. ``ours``: the exception
        was not raised by the task, so its traceback would tell nothing."""
        level = logging.ERROR if again_in is None else logging.WARNING
        is_logged = run.logger.isEnabledFor(level)
        if not (is_logged or self._hooks.failures):
            return
        place = "" if ours else place_of(exc, run)
        if is_logged:
            self._log(level, run, exc, place, again_in, ours)
        for hook in self._hooks.failures:
            try:
                hook(run, exc, place)
            except Exception:
                self._hooks.log_error(hook, run)

    def _log(
        self, level: int, run: TaskRun[Any, Any], exc: BaseException, place: str, again_in: float | None, ours: bool
    ) -> None:
        error = printable(type(exc).__name__)
        policy = run.task.retry
        attempts = "" if policy is None else "/∞" if policy.max_attempts is None else f"/{policy.max_attempts + 1}"
        attempt = run.retry_attempt + 1
        _, start, end = run.times_us
        seconds = max(0, (end or now_micros()) - start) / 1e6 if start else 0.0
        name, run_id, text = printable(run.task.name), run.shown_id, error_text(exc, SHOWN)
        fields: dict[str, Any] = {
            "task": name,
            "run_id": run_id,
            "attempt": attempt,
            "seconds": seconds,
            "error": error,
        }
        # Task, error and place stand in the message itself: Sentry and others group records by it.
        message = f"run failed: task={literal(name)} run=%s attempt=%s after=%s error={literal(error)}"
        values = [run_id, f"{attempt}{attempts}", short(seconds)]
        if place:
            message += f" at={literal(place)}"
            fields["at"] = place
        if again_in is not None:
            message += " again_in=%s"
            values.append(short(again_in))
            fields["again_in"] = again_in
        if text:
            message += ": %s"
            values.append(text)
        shows = not (ours or isinstance(exc, TaskRunError)) and self._is_first(error, place)
        logger = run.logger
        info = (type(exc), exc, exc.__traceback__) if shows else None
        # not by logger.log(), which looks for its caller: a third of what logging takes
        logger.handle(logger.makeRecord(logger.name, level, __file__, 0, message, tuple(values), info, "log", fields))

    def _is_first(self, error: str, place: str) -> bool:
        key = (error, place)
        count = self._seen.get(key)
        if count is not None:
            self._seen[key] = count + 1
            return False
        if len(self._seen) >= MAX_PLACES:
            return False
        self._seen[key] = 0
        return True

    def left_out(self) -> list[str]:
        """Begin a new while. Return a line for each error and place of which tracebacks were left out in the last."""
        seen, self._seen = self._seen, {}
        return [
            f"runs failed: error={error} at={place}: and {count:,} more"
            for (error, place), count in seen.items()
            if count
        ]


def literal(text: str) -> str:
    """Return text as a part of a message that is formatted with ``%``."""
    return text.replace("%", "%%")


def short(seconds: float) -> str:
    """Return a time to the millisecond: ``0.058s``, ``5s``, ``90.5s``."""
    return f"{round(seconds, 3):.12g}s"


def place_of(exc: BaseException, run: TaskRun[Any, Any]) -> str:
    """Return the innermost line of the task's own package that an exception passed; of any code if there is none."""
    package = run.task.module.partition(".")[0]
    frames = list(traceback.walk_tb(exc.__traceback__))
    if not frames:
        return ""
    own = (one for one in reversed(frames) if str(one[0].f_globals.get("__name__", "")).partition(".")[0] == package)
    frame, line = next(own, frames[-1])
    return shown_line(frame.f_code, line)


@lru_cache(MAX_PLACES)
def shown_line(code: CodeType, line: int) -> str:
    """Return a line of code as ``file.py:line``."""
    return printable(f"{os.path.basename(code.co_filename)}:{line}")
