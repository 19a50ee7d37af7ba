"""How an assertion shows runs."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from ..checks import shown
from ..core._run import TaskRun
from ..core.params import items
from ..texts import printable

__all__ = ["shown_call", "shown_queued"]

MOST_SHOWN = 20


def shown_call(name: str, params: Mapping[str, Any], *, partial: bool = False) -> str:
    """A run as a call: ``send(to='grace@example.com', copies=1)``. ``partial``: it may have more params."""
    given = [f"{printable(key)}={shown(value)}" for key, value in params.items()]
    return f"{printable(name)}({', '.join([*given, '...'] if partial else given)})"


def shown_queued(runs: Iterable[TaskRun[Any, Any]], now: int) -> str:
    """Return the queued runs as text, a line for each. ``now``: microseconds since the epoch."""
    lines = []
    for run in runs:
        params = run.params
        call = shown_call(run.name, dict(items(params)))
        lines.append(f"  {call}{shown_due(run.execute_after, now)}")
    if not lines:
        return "Nothing is queued."
    more = [f"  ... and {len(lines) - MOST_SHOWN:,} more"] if len(lines) > MOST_SHOWN else []
    return "\n".join(["Queued are:", *lines[:MOST_SHOWN], *more])


def shown_due(due: datetime | None, now: int) -> str:
    return "" if due is None else f"  due in {due.timestamp() - now / 1e6:,.1f} s"
