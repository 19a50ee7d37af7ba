"""The record of a run as plain data."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import msgspec

__all__ = ["dump", "dump_json"]


def dump(
    run: Any,
    *,
    mode: str = "python",
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return the record of a ``TaskRun`` as a dict; see ``TaskRun.model_dump``."""
    as_json = mode == "json"

    def moment(value: datetime | None) -> Any:
        return value.isoformat().replace("+00:00", "Z") if as_json and value is not None else value

    params: Any = run.params
    if hasattr(type(params), "model_dump"):
        params = params.model_dump(mode=mode)
    elif as_json:
        params = msgspec.to_builtins(params, enc_hook=str)
    fields = {
        "id": run.id,
        "task": run.name,
        "priority": str(run.priority) if as_json else run.priority,
        "params": params,
        "state": str(run.state) if as_json else run.state,
        "queued": moment(run.queued),
        "start": moment(run.start),
        "end": moment(run.end),
        "execute_after": moment(run.execute_after),
        "rate_limit_attempt": run.rate_limit_attempt,
        "retry_attempt": run.retry_attempt,
        "from_run_id": run.from_run_id,
        "root_run_id": run.root_run_id,
    }
    return {
        name: value
        for name, value in fields.items()
        if (include is None or name in include) and (exclude is None or name not in exclude)
    }


def dump_json(run: Any, *, include: Collection[str] | None = None, exclude: Collection[str] | None = None) -> str:
    """Return ``dump(mode="json")`` as JSON text."""
    return msgspec.json.encode(dump(run, mode="json", include=include, exclude=exclude)).decode()
