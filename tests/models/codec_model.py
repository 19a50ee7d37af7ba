"""The wire as it would be read and written if nothing had to be fast: ``json``, a MessagePack reader, and dicts.

A record is a dict of what a run says about itself::

    id, task, priority, params, queued, execute_after, rate_limit_attempt, retry_attempt, from_run_id, root_run_id,
    extra

Times are microseconds since the epoch or None, ``extra`` is name -> value of the keys that are not ours. What a payload
leaves to its reader (an id, a time of queueing) is None.
"""

import json
import re
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

__all__ = [
    "FIELDS",
    "PRIORITIES",
    "STATES",
    "Refused",
    "depth",
    "pack",
    "read_json",
    "read_msgpack",
    "unpack",
    "write_json",
]

PRIORITIES = ("high", "medium", "low")
STATES = ("init", "queued", "running", "success", "failure", "aborted", "rate_limited", "interrupted")
TIMES = ("queued", "start", "end", "execute_after")
FIELDS = (
    "id",
    "task",
    "priority",
    "params",
    "state",
    *TIMES,
    "rate_limit_attempt",
    "retry_attempt",
    "from_run_id",
    "root_run_id",
)
MAX_DEPTH = 64
MAX_INT = 2**31 - 1
EARLIEST, LATEST = -62135596800000000, 253402300799999999  # the years 1 and 9999
WATERSHED = 20_000_000_000


class Refused(Exception):
    """No run, a run of no known task, or params that are no object."""


# --- writing --------------------------------------------------------------------------------------


def seconds(micros: int) -> str:
    if abs(micros) > WATERSHED * 1_000_000:  # as a number it would count milliseconds
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    sign = "-" if micros < 0 else ""
    return f"{sign}{abs(micros) // 1_000_000}.{abs(micros) % 1_000_000:06d}"


def write_json(record: Mapping[str, Any], state: str = "queued") -> dict[str, Any]:
    """The JSON object of a record, in the order of its keys; times are text."""
    written: dict[str, Any] = {name: record[name] for name in ("id", "task", "priority")}
    written["state"] = state
    for name in TIMES:
        if record.get(name) is not None:
            written[name] = seconds(record[name])
    for name in ("rate_limit_attempt", "retry_attempt", "from_run_id", "root_run_id"):
        if record[name]:
            written[name] = record[name]
    return {**written, **record["extra"], "params": record["params"]}


# --- reading --------------------------------------------------------------------------------------


class Number(str):
    """A JSON number that has a fraction or an exponent, as it is written."""


class Extension(NamedTuple):
    """A MessagePack value of a type that JSON does not have: the type, and what it holds."""

    content: bytes


def integer(digits: str) -> int | Number:
    return int(digits) if len(digits) < 4300 else Number(digits)  # more than int() takes


def floats(value: Any, endless: bool = False) -> Any:
    """The value with its numbers read. ``endless``: one that is out of range is an infinity, and not refused."""
    if isinstance(value, Number):
        found = float(value)
        if found in (float("inf"), -float("inf")) and not endless:
            raise Refused("a number out of range")
        return found
    if isinstance(value, dict):
        return {name: floats(item, endless) for name, item in value.items()}
    if isinstance(value, list):
        return [floats(item, endless) for item in value]
    return value


def depth(value: Any) -> int:
    levels, layer = 0, [value]
    while layer := [held for held in layer if isinstance(held, dict | list)]:
        levels += 1
        layer = [item for held in layer for item in (held.values() if isinstance(held, dict) else held)]
    return levels


def refuse(text: Any) -> Any:
    raise Refused(text)


def read_json(payload: bytes, tasks: Mapping[str, str]) -> dict[str, Any]:
    """The record in a JSON payload. ``tasks``: name -> default priority of those that are known."""
    try:
        found = json.loads(payload.decode("utf-8"), parse_float=Number, parse_int=integer)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise Refused(exc) from exc
    if not isinstance(found, dict):
        raise Refused("not an object")
    if depth(found) > MAX_DEPTH + 1:
        raise Refused("too deep")
    for name, value in found.items():  # a float is a NaN or an infinity, as Python writes it: in params only
        if name in FIELDS and name != "params" and isinstance(value, float):
            raise Refused("an endless number")
        if name not in FIELDS:
            found[name] = nulls(value)
    return checked({n: json_time(v) if n in TIMES else v for n, v in found.items()}, tasks)


def nulls(value: Any) -> Any:
    """The value of a further key, null in the place of each NaN and infinity."""
    if isinstance(value, dict):
        return {name: nulls(item) for name, item in value.items()}
    if isinstance(value, list):
        return [nulls(item) for item in value]
    return None if isinstance(value, float) else value


def json_time(value: Any) -> Any:
    """As pydantic reads it."""
    if type(value) is str:
        if not re.fullmatch(r"[+-]?\d+(\.\d+)?", value, re.ASCII):
            return value.upper()
        value = float(value) if "." in value else int(value)
    number = floats(value)
    return number / 1000 if isinstance(number, int | float) and WATERSHED < abs(number) < 1e18 else value


def checked(found: dict[str, Any], tasks: Mapping[str, str]) -> dict[str, Any]:
    task = found.get("task")
    if type(task) is not str or task not in tasks:
        raise Refused("no known task")
    for name in FIELDS:
        floats(found.get(name))
    if floats(found.get("state")) and found["state"] not in STATES:
        raise Refused("no state")
    priority = found.get("priority")
    params = found.get("params", {})
    record = {
        "id": text(found.get("id")) or None,
        "task": task,
        "priority": tasks[task] if priority is None else priority,
        "params": {} if params is None else floats(params),
        "queued": micros(found.get("queued")) or None,
        "execute_after": micros(found.get("execute_after")) or None,
        "rate_limit_attempt": attempts(found.get("rate_limit_attempt")),
        "retry_attempt": attempts(found.get("retry_attempt")),
        "from_run_id": text(found.get("from_run_id")),
        "root_run_id": text(found.get("root_run_id")),
        "extra": {name: floats(value, True) for name, value in found.items() if name not in FIELDS},
    }
    if type(record["priority"]) is not str or record["priority"] not in PRIORITIES:
        raise Refused("no priority")
    if not isinstance(record["params"], dict):
        raise Refused("params are no object")
    return record


def further(written: str | bytes) -> Any:
    """The JSON value of a key that is none of ours: any number is one."""
    return floats(json.loads(written, parse_float=Number, parse_int=integer, parse_constant=refuse), True)


def text(value: Any) -> str:
    if isinstance(value, Number):
        value = float(value)
    if not value:
        return ""
    return value if type(value) is str else refuse("not text")


def attempts(value: Any) -> int:
    if value is None:
        return 0
    return value if type(value) is int and 0 <= value <= MAX_INT else refuse("no number of attempts")


def micros(value: Any) -> int:
    if value is None:
        return 0
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as exc:
            raise Refused(exc) from exc
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        span = moment - datetime(1970, 1, 1, tzinfo=UTC)
        found = (span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds
    elif isinstance(value, Number | int | float) and not isinstance(value, bool):
        number = floats(value)  # a double, where it is not an int
        found = round(Decimal(number) * 1_000_000) if number == number and abs(number) < 1e12 else refuse("no time")
        found = LATEST if found == LATEST + 1 and isinstance(number, float) else found
    else:
        raise Refused("no time")
    return found if EARLIEST <= found <= LATEST else refuse("no time")


# --- MessagePack ----------------------------------------------------------------------------------

PACKED = ("id", "task", "priority", "params", "state", *TIMES, *FIELDS[9:], "extra")


def read_msgpack(payload: bytes, tasks: Mapping[str, str]) -> dict[str, Any]:
    """The record in a MessagePack payload."""
    try:
        values, end = unpack(payload, 0)
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError, TypeError) as exc:
        raise Refused(exc) from exc
    if end != len(payload) or not isinstance(values, list) or len(values) < 4:
        raise Refused("not an array of four or more")
    found = dict(zip(PACKED, values, strict=False))
    extra = found.pop("extra", None) or {}
    if isinstance(found["id"], bytes):
        found["id"] = found["id"].hex()
    for name, known in (("priority", PRIORITIES), ("state", STATES)):
        number = found.get(name, 1)
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < len(known):
            raise Refused(f"no {name}")
        found[name] = known[int(number)]
    for name in ("rate_limit_attempt", "retry_attempt"):
        if type(found.get(name)) is float and found[name].is_integer():
            found[name] = int(found[name])
    for name in TIMES:
        if type(found.get(name)) is int:
            found[name] = float(found[name])
    if depth(found["params"]) > MAX_DEPTH:
        raise Refused("too deep")
    record = checked(found, tasks)
    if not isinstance(extra, dict):
        raise Refused("further keys are no map")
    try:
        record["extra"] = {name: further(value.decode("utf-8")) for name, value in extra.items() if name not in FIELDS}
    except (ValueError, AttributeError, RecursionError) as exc:
        raise Refused(exc) from exc
    if depth(record["extra"]) > MAX_DEPTH + 1:
        raise Refused("too deep")
    return record


def unpack(data: bytes, at: int) -> tuple[Any, int]:
    """The value that starts at an offset, and where the next one does. https://github.com/msgpack/msgpack spec.md"""
    first = data[at]
    at += 1
    if first <= 0x7F:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first <= 0x8F:
        return unpack_map(data, at, first & 15)
    if first <= 0x9F:
        return unpack_array(data, at, first & 15)
    if first <= 0xBF:
        return unpack_text(data, at, first & 31)
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in SCALARS:
        size = struct.calcsize(SCALARS[first])
        return struct.unpack(SCALARS[first], piece(data, at, size))[0], at + size
    if first in LENGTHS:
        code, kind = LENGTHS[first]
        size = struct.calcsize(code)
        length = struct.unpack(code, piece(data, at, size))[0]
        return kind(data, at + size, length)
    if 0xD4 <= first <= 0xD8:
        return unpack_extension(data, at, 1 << first - 0xD4)
    raise Refused(f"no type: {first:#x}")


def piece(data: bytes, at: int, length: int) -> bytes:
    found = data[at : at + length]
    if len(found) < length:
        raise IndexError
    return found


def unpack_text(data: bytes, at: int, length: int) -> tuple[str, int]:
    return piece(data, at, length).decode("utf-8"), at + length


def unpack_extension(data: bytes, at: int, length: int) -> tuple[Extension, int]:
    return Extension(piece(data, at, 1 + length)), at + 1 + length


def unpack_bytes(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    return piece(data, at, length), at + length


def unpack_array(data: bytes, at: int, length: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(length):
        value, at = unpack(data, at)
        values.append(value)
    return values, at


def unpack_map(data: bytes, at: int, length: int) -> tuple[dict[Any, Any], int]:
    found = {}
    for _ in range(length):
        name, at = unpack(data, at)
        if isinstance(name, dict | list):  # no key of Python's
            name = repr(name)
        found[name], at = unpack(data, at)
    return found, at


SCALARS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
LENGTHS: dict[int, tuple[str, Any]] = {
    0xC4: (">B", unpack_bytes),
    0xC5: (">H", unpack_bytes),
    0xC6: (">I", unpack_bytes),
    0xC7: (">B", unpack_extension),
    0xC8: (">H", unpack_extension),
    0xC9: (">I", unpack_extension),
    0xD9: (">B", unpack_text),
    0xDA: (">H", unpack_text),
    0xDB: (">I", unpack_text),
    0xDC: (">H", unpack_array),
    0xDD: (">I", unpack_array),
    0xDE: (">H", unpack_map),
    0xDF: (">I", unpack_map),
}


def pack(value: Any) -> bytes:
    """Short MessagePack by hand, for values that a library would not write."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    assert isinstance(value, dict)
    return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pack(name) + pack(item) for name, item in value.items())
