"""A payload read without a registry: for lists of what gave up, and for what is sent again.

The positions of the fields of a MessagePack payload stand in ``_codec``; only this package knows them.
"""

import json
from typing import Any

import msgspec

from ..core.params import read_json, without_constants
from ..core.states import PRIORITIES

__all__ = ["afresh", "is_packed", "read_fields"]


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
                "retry_attempt": values[10] if len(values) > 10 else 0,
            }
        fields = read_json(payload)
        return fields if isinstance(fields, dict) else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError, IndexError):
        return {}


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
