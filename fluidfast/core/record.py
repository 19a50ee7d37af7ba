"""The record of a run as plain data."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from .model import adapter, schema_with
from .states import TaskPriority, TaskState

__all__ = ["TWIN", "dump", "dump_json", "fields", "schema"]

TWIN: dict[str, tuple[Any, Any]] = {
    "id": (str, ...),
    "task": (str, ...),
    "priority": (TaskPriority, ...),
    "params": (Any, ...),
    "state": (TaskState, TaskState.init),
    "queued": (datetime | None, None),
    "start": (datetime | None, None),
    "end": (datetime | None, None),
    "execute_after": (datetime | None, None),
    "rate_limit_attempt": (int, 0),
    "retry_attempt": (int, 0),
    "from_run_id": (str, ""),
    "root_run_id": (str, ""),
}
"""The fields of the record, their types and defaults."""

PLAIN_OPTIONS = frozenset(("mode", "include", "exclude"))
"""Options of pydantic's ``model_dump`` that need no pydantic, if they are names of fields."""


def fields(run: Any, *, mode: str = "python") -> dict[str, Any]:
    """Return the fields of a run. ``mode``: ``"json"`` for params of plain builtins."""
    params: Any = run.params
    if hasattr(type(params), "model_dump"):
        params = params.model_dump(mode=mode)
    elif mode == "json":
        params = msgspec.to_builtins(params, enc_hook=str, str_keys=True)
    found = {name: getattr(run, name) for name in TWIN}
    found.update(task=run.name, params=params)
    return found


def dump(run: Any, **options: Any) -> dict[str, Any]:
    """Return the record of a ``TaskRun`` as a dict; see ``TaskRun.model_dump``."""
    include, exclude = options.get("include"), options.get("exclude")
    if not options.keys() <= PLAIN_OPTIONS or isinstance(include, Mapping) or isinstance(exclude, Mapping):
        return adapter(type(run)).dump_python(run, **options)  # type: ignore[no-any-return]
    mode = options.get("mode", "python")
    return {
        name: in_json(value) if mode == "json" else value
        for name, value in fields(run, mode=mode).items()
        if (include is None or name in include) and (exclude is None or name not in exclude)
    }


def in_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, str) else value


def dump_json(run: Any, **options: Any) -> str:
    """Return ``dump(mode="json")`` as JSON text."""
    if not options.keys() <= PLAIN_OPTIONS:
        return adapter(type(run)).dump_json(run, **options).decode()  # type: ignore[no-any-return]
    return msgspec.json.encode(dump(run, mode="json", **options)).decode()


def schema(cls: Any, handler: Any) -> Any:
    """Return pydantic's core schema of ``TaskRun``. It accepts a run, or its fields with a ``Task`` as ``task``."""
    from pydantic_core import core_schema

    return core_schema.no_info_before_validator_function(
        lambda value: run_of(cls, value),
        schema_with(cls, handler, lambda values: cls(**values), lambda run, info: fields(run, mode=info.mode)),
    )


def run_of(cls: Any, value: Any) -> Any:
    if isinstance(value, cls):
        return value
    if isinstance(value, Mapping) and hasattr(value.get("task"), "executor"):
        return cls(**value)
    raise ValueError("a manager makes runs: create_task_run(name, ...); there is no manager in this data")
