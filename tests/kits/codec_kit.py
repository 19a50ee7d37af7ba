"""Tasks, records and comparisons for the tests of the codec: a record is what the slow model of the wire
(`models/codec_model.py`) reads and writes.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pydantic
from hypothesis import strategies as st
from models.codec_model import FIELDS, PRIORITIES, Refused, read_json, read_msgpack

from fluidfast import Task, TaskRun, task
from fluidfast.errors import (
    PayloadError,
    TaskParamsError,
    UnknownTaskError,
)
from fluidfast.wire._codec import Codec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


NOW = 1_764_000_000_123_456


ID = "0123456789abcdef0123456789abcdef"


class Mail(msgspec.Struct):
    to: str
    copies: int = 1
    tags: list[str] = []


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr
    tries: int = 0


@task
async def work(ctx: TaskRun) -> None: ...


@task(name="worl", priority="low")
async def neighbour(ctx: TaskRun) -> None: ...


@task(name='tâche "\\" 仕事', priority="high")
async def foreign(ctx: TaskRun) -> None: ...


@task
async def mail(ctx: TaskRun[Mail]) -> None: ...


@task
async def login(ctx: TaskRun[Login]) -> None: ...


@task(name="a much longer name of a task, longer than 31 bytes", priority="low")
async def long_name(ctx: TaskRun[Mail]) -> None: ...


LONG = long_name


TASKS: dict[str, Task[Any]] = {a_task.name: a_task for a_task in (work, neighbour, foreign, mail, login, LONG)}


UNTYPED = (work, neighbour, foreign)


DEFAULTS = {a_task.name: str(a_task.priority) for a_task in TASKS.values()}


REFUSALS = (PayloadError, UnknownTaskError, TaskParamsError)


JSON_CODEC, PACKER = Codec(dict(TASKS)), Codec(dict(TASKS), msgpack=True)


def micros(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - EPOCH) // timedelta(microseconds=1)


def record_of(run: TaskRun[Any, Any]) -> dict[str, Any]:
    return {
        "id": run.id,
        "task": run.name,
        "priority": str(run.priority),
        "params": run.params,
        "queued": micros(run.queued),
        "execute_after": micros(run.execute_after),
        "rate_limit_attempt": run.rate_limit_attempt,
        "retry_attempt": run.retry_attempt,
        "from_run_id": run.from_run_id,
        "root_run_id": run.root_run_id,
        "extra": {name: json.loads(value) for name, value in (run.extra or {}).items()},
    }


def run_of(record: dict[str, Any], state: str = "queued") -> TaskRun[Any, Any]:
    def moment(name: str) -> datetime | None:
        return None if record.get(name) is None else EPOCH + timedelta(microseconds=record[name])

    plain = {name: value for name, value in record.items() if name not in ("task", "extra", "queued", "execute_after")}
    run: TaskRun[Any, Any] = TaskRun(
        **plain,
        task=TASKS[record["task"]],
        state=state,
        queued=moment("queued"),
        execute_after=moment("execute_after"),
    )
    if record["extra"]:
        run.extra = {name: json.dumps(value).encode() for name, value in record["extra"].items()}
    return run


def the_record(**changes: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "task": "work",
        "priority": "medium",
        "params": {},
        "queued": NOW,
        "execute_after": None,
        "rate_limit_attempt": 0,
        "retry_attempt": 0,
        "from_run_id": "",
        "root_run_id": "",
        "extra": {},
        **changes,
    }


def made_up(found: dict[str, Any], read: dict[str, Any]) -> dict[str, Any]:
    """What a reader makes up for what the payload does not say, checked and taken from what it found."""
    made = {}
    if read["id"] is None:
        assert len(found["id"]) == 32
        made["id"] = found["id"]
    if read["queued"] is None:
        assert abs(found["queued"] - time.time() * 1e6) < 60e6
        made["queued"] = found["queued"]
    return {**read, **made}


def nested(levels: int, inner: Any = 1) -> Any:
    for level in range(levels):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


odd_ids = st.sampled_from(['"', "\\", "\n", "é", "\x7f", "a" * 400])


ids = st.uuids().map(lambda value: value.hex) | texts.filter(bool) | odd_ids


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)


values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


exact = 2**33 * 1_000_000  # from here on, a double does not hold every microsecond


moments = st.integers(1, exact - 1) | st.integers(NOW - 10**12, NOW + 10**12)


records = st.fixed_dictionaries(
    {
        "id": ids,
        "task": st.sampled_from([a_task.name for a_task in UNTYPED]),
        "priority": st.sampled_from(PRIORITIES),
        "params": st.dictionaries(texts, values, max_size=5),
        "queued": moments,
        "execute_after": st.none() | moments,
        "rate_limit_attempt": st.integers(0, 2**31 - 1) | st.just(0),
        "retry_attempt": st.integers(0, 2**31 - 1) | st.just(0),
        "from_run_id": st.just("") | ids,
        "root_run_id": st.just("") | ids,
        "extra": st.just({}) | st.dictionaries(texts.filter(lambda name: name not in FIELDS), values, max_size=3),
    }
)


def same(found: Any, expected: Any) -> None:
    """Equal, and of the same types all the way down: True is not 1, and 1 is not 1.0."""
    assert found == expected
    assert repr(found) == repr(expected) or repr(plainly(found)) == repr(plainly(expected))


def plainly(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plainly(item) for name, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, list | tuple):
        return [plainly(item) for item in value]
    return str(value) if isinstance(value, str) else value


def outcome(call: Callable[[], TaskRun[Any, Any]]) -> dict[str, Any] | None:
    """A record, or None where the payload is refused; what is raised is of the three kinds."""
    try:
        return record_of(call())
    except REFUSALS:
        return None


def expected_of(read: Callable[[bytes, Any], dict[str, Any]], payload: bytes) -> dict[str, Any] | None:
    try:
        return read(payload, DEFAULTS)
    except Refused:
        return None


def check_json(payload: bytes) -> None:
    """Both ways of reading JSON find what the model finds, or refuse what it refuses."""
    expected = expected_of(read_json, payload)
    found = outcome(lambda: JSON_CODEC.decode(payload, None))
    general = outcome(lambda: JSON_CODEC.decode_object(payload, None, None))
    if expected is None:
        assert found is None, payload
        assert general is None, payload
    else:
        assert found is not None, payload
        assert general is not None, payload
        same(found, made_up(found, expected))
        same(general, made_up(general, expected))


def check_msgpack(payload: bytes) -> None:
    """What is read is what the model reads. Some of what the model reads is refused: numbers of the wrong type."""
    found = outcome(lambda: PACKER.decode(payload, None))
    if found is not None:
        expected = expected_of(read_msgpack, payload)
        assert expected is not None, payload
        same(found, made_up(found, expected))


known_task = st.sampled_from([a_task.name for a_task in UNTYPED])


first_bytes = st.sampled_from([bytes((byte,)) for byte in (*range(0x90, 0xA0), 0xDC, 0xDD)]) | st.sampled_from(
    [b"{", b'{"', b'{"id":"', b'{"task":"work",', b"[", b'"', b"", b"\xef\xbb\xbf{", b" {", b"\x00"]
)
