"""A payload read without a registry: for lists of what gave up, and for what is sent again.

The positions of the fields of a MessagePack payload stand in ``_codec``; only this package knows them.
"""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..core.params import read_json, without_constants
from ..core.states import PRIORITIES

__all__ = ["afresh", "due_at", "is_packed", "read_fields"]


def is_packed(payload: bytes) -> bool:
    """Return True for MessagePack: its first byte opens an array, and no JSON begins with one of those."""
    return bool(payload) and (payload[0] >> 4 == 9 or payload[0] in (0xDC, 0xDD))


def read_fields(payload: bytes) -> dict[str, Any]:
    """Return the fields of a payload: id, task, priority, params and retry_attempt at least; ``{}`` if it is no run."""
    try:
        if is_packed(payload):
            values = msgspec.msgpack.decode(payload)
            identity, task, priority, params = values[:4]
            return {
                "id": identity.hex() if isinstance(identity, bytes) else identity,
                "task": task,
                "priority": str(PRIORITIES[priority]),
                "params": params,
                "queued": values[5] if len(values) > 5 else None,
                "execute_after": values[8] if len(values) > 8 else None,
                "retry_attempt": values[10] if len(values) > 10 else 0,
            }
        fields = read_json(payload)
        return fields if isinstance(fields, dict) else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError, IndexError):
        return {}


def due_at(payload: bytes) -> float | None:
    """Return when a run was to start at the earliest, in seconds since the epoch: when it was queued, or later if it
    was delayed. None if the payload does not say."""
    fields = read_fields(payload)
    times = [found for name in ("queued", "execute_after") if (found := seconds_of(fields.get(name))) is not None]
    return max(times, default=None)


def seconds_of(moment: Any) -> float | None:
    """Return a time of a payload, a number or ISO 8601 text (naive: UTC), in seconds since the epoch."""
    if isinstance(moment, str):
        try:
            found = datetime.fromisoformat(moment)
        except ValueError:
            return None
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float(moment) if isinstance(moment, int | float) and not isinstance(moment, bool) else None


def afresh(payload: bytes) -> bytes:
    """Return a payload with no attempts so far, due at once; what is no run, as it is."""
    try:
        if is_packed(payload):
            values = msgspec.msgpack.decode(payload)
            values[8:11] = [None, 0, 0][: max(0, len(values) - 8)]
            return msgspec.msgpack.encode(values)
        constants = without_constants(payload) is not None
        fields = read_json(payload) if constants else msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
        if not isinstance(fields, dict):
            return payload
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError):
        return payload
    for name in ("execute_after", "rate_limit_attempt", "retry_attempt"):
        fields.pop(name, None)
    return json.dumps(fields).encode() if constants else msgspec.json.encode(fields)
