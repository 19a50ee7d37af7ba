"""The params of a run as JSON for people: secrets masked, and nothing that a database refuses."""

import json
from typing import Any

import msgspec

from .records import cleaned

__all__ = ["masked"]

encode = msgspec.json.Encoder(enc_hook=str).encode  # the text of a secret is its mask


def masked(params: Any) -> bytes:
    """Return params as a JSON object. Never raises."""
    try:
        # of the type: a mapping may have a param of this name
        dump = None if isinstance(params, dict) else getattr(type(params), "model_dump_json", None)
        found = encode(params) if dump is None else dump(params).encode()
        if found.startswith(b"{") and b"\\u0000" not in found:
            return found
        return json.dumps(as_object(json.loads(found))).encode()
    except Exception:
        return from_builtins(params)


def from_builtins(params: Any) -> bytes:
    """For what the encoders refuse: lone surrogates, large integers."""
    try:
        plain = dict(params) if isinstance(params, dict) else params.model_dump()
        return json.dumps(as_object(json.loads(json.dumps(plain, default=str)))).encode()
    except Exception:
        return b"{}"


def as_object(value: Any) -> dict[str, Any]:
    found = cleaned(value)
    return found if isinstance(found, dict) else {"params": found}
