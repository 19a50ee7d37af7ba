"""The compiled codec against a model of the wire: what is written, what is read, and what is refused.

The kinds of params models are in test_params.py, payloads that were written once in test_golden.py.
"""

import copy
import gc
import itertools
import json
import pickle
import struct
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from models.codec_model import FIELDS, PRIORITIES, Refused, depth, pack, read_json, read_msgpack, unpack, write_json

from fluidfast import Task, TaskRun, TaskState, task
from fluidfast.core._machine import Listeners
from fluidfast.core.params import Params
from fluidfast.errors import (
    ParamsError,
    PayloadError,
    PayloadTooLargeError,
    TaskParamsError,
    TaskRunError,
    UnknownTaskError,
)
from fluidfast.wire._codec import Codec, TaskPlan, encode_json

SECRET = "canary-secret-value"
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


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(dict(TASKS))


@pytest.fixture(scope="module")
def packer() -> Codec:
    return Codec(dict(TASKS), msgpack=True)


JSON_CODEC, PACKER = Codec(dict(TASKS)), Codec(dict(TASKS), msgpack=True)


# --- records --------------------------------------------------------------------------------------


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


# --- round trips ----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(records)
@example(the_record())
@example(the_record(id="a"))
@example(the_record(id='"'))
@example(the_record(id="\x7f"))
@example(the_record(id="a\nb"))
@example(the_record(id="\x00"))
@example(the_record(id="\x1f\\"))
@example(the_record(queued=1))
@example(the_record(queued=999_999_999_999_999))
@example(the_record(queued=1_000_000_000_000_000))
@example(the_record(queued=8_589_934_591_999_999))
@example(the_record(task=foreign.name, priority="low", params={"a": [None, {"b": "ü"}]}))
@example(the_record(extra={"": None, "trace": {"id": [1]}}))
def test_json_round_trip(record: dict[str, Any]) -> None:
    payload = JSON_CODEC.encode(run_of(record))
    expected = write_json(record)
    written = json.loads(payload)
    assert list(written) == list(expected)
    times = json.loads(payload, parse_float=str)
    for name in ("queued", "execute_after"):
        if record[name] is None:
            assert name not in written
        else:
            assert times[name] == expected[name]
            written[name] = expected[name]
    same(written, expected)
    run = JSON_CODEC.decode(payload, "the manager")
    same(record_of(run), record)
    same(record, read_json(payload, DEFAULTS))
    assert run.state is TaskState.queued
    assert run.task_manager == "the manager"
    assert run.task is TASKS[record["task"]]
    assert type(run.params) is Params
    assert JSON_CODEC.encode(run) == payload
    same(record_of(JSON_CODEC.decode_object(payload, None, None)), record)


@settings(max_examples=50)
@given(records)
@example(the_record())
@example(the_record(id=ID.upper()))
@example(the_record(id=" ".join(["0a"] * 11)[:32]))
@example(the_record(id="0" * 31 + "é"))
@example(the_record(queued=8_589_934_591_999_999))
def test_msgpack_round_trip(record: dict[str, Any]) -> None:
    payload = PACKER.encode(run_of(record))
    assert payload[0] >> 4 == 9
    same(read_msgpack(payload, DEFAULTS), record)
    # whatever it writes, a codec reads both
    for reader in (PACKER, JSON_CODEC):
        run = reader.decode(payload, None)
        same(record_of(run), record)
        assert run.state is TaskState.queued
        assert PACKER.encode(run) == payload
    same(record_of(JSON_CODEC.decode(JSON_CODEC.encode(run), None)), record)


@settings(max_examples=25)
@given(st.lists(records, max_size=6), st.booleans())
def test_many(many: list[dict[str, Any]], packed: bool) -> None:
    codec = PACKER if packed else JSON_CODEC
    runs = [run_of(record) for record in many]
    payloads = map(codec.encode, runs)
    decoded = codec.decode_many(payloads, None)
    for run, record in zip(decoded, many, strict=True):
        assert isinstance(run, TaskRun)
        same(record_of(run), record)


@settings(max_examples=50)
@given(records, st.randoms())
def test_any_order_of_keys(record: dict[str, Any], random: Any) -> None:
    written = json.loads(JSON_CODEC.encode(run_of(record)))
    keys = list(written)
    random.shuffle(keys)
    shuffled = json.dumps({name: written[name] for name in keys}, ensure_ascii=random.random() < 0.5, indent=1)
    same(record_of(JSON_CODEC.decode(shuffled.encode(), None)), record)


@settings(max_examples=50)
@given(records, st.sampled_from(["init", "queued", "running", "success", "interrupted"]))
def test_whatever_is_on_a_queue_is_queued(record: dict[str, Any], state: str) -> None:
    run = run_of(record, state)
    for codec in (JSON_CODEC, PACKER):
        payload = codec.encode(run)
        if codec is JSON_CODEC:
            assert json.loads(payload)["state"] == state
        decoded = codec.decode(payload, None)
        assert decoded.state is TaskState.queued
        assert decoded.start is decoded.end is None
        same(record_of(decoded), record)


def test_the_layout_of_a_queued_run(codec: Codec, packer: Codec) -> None:
    run = run_of(the_record(params={"a": 1}))
    assert codec.encode(run) == (
        b'{"id":"0123456789abcdef0123456789abcdef","task":"work","priority":"medium","state":"queued",'
        b'"queued":1764000000.123456,"params":{"a":1}}'
    )
    assert packer.encode(run) == (
        b"\x96\xc4\x10\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef\xa4work\x01\x81\xa1a\x01\x01"
        b"\xcb\x41\xda\x49\x20\x40\x07\xe6\xb4"
    )


def test_further_keys_stay_with_a_run_that_is_tried_again(codec: Codec, packer: Codec) -> None:
    payload = (
        b'{"x":[1, 2.50,"\\u00e9"],"task":"work","trace":{"a":null},"priority":"low","params":{"a":1},"id":"7","z":1e2}'
    )
    run = codec.decode(payload, None)
    assert run.extra == {"x": b'[1, 2.50,"\\u00e9"]', "trace": b'{"a":null}', "z": b"1e2"}
    again = run._again(NOW, False)
    for writer in (codec, packer):
        read = codec.decode(writer.encode(again), None)
        assert read.extra == run.extra
        assert (read.id, read.retry_attempt, micros(read.execute_after)) == ("7", 1, NOW)
    assert b'"x":[1, 2.50,"\\u00e9"],"trace":{"a":null},"z":1e2,"params":{"a":1}}' in codec.encode(again)


def test_the_last_of_two_equal_keys_counts(codec: Codec) -> None:
    payload = b'{"id":"1","task":"mail","task":"work","id":"2","params":{"a":1},"params":{"b":2,"b":3},"x":1,"x":2}'
    run = codec.decode(payload, None)
    assert (run.id, run.name, run.params, run.extra) == ("2", "work", {"b": 3}, {"x": b"2"})


# --- what may be missing --------------------------------------------------------------------------


def test_nothing_but_a_task(codec: Codec) -> None:
    runs = [codec.decode(b'{"task":"worl"}', None) for _ in range(2)]
    assert runs[0].id != runs[1].id
    for run in runs:
        read = {**the_record(id=None, task="worl", priority="low", queued=None)}
        assert record_of(run) == made_up(record_of(run), read)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "task"])
def test_null_is_as_good_as_nothing(codec: Codec, packer: Codec, name: str) -> None:
    run = codec.decode(b'{"task":"worl","%s":null}' % name.encode(), None)
    read = the_record(id=None, task="worl", priority="low", queued=None)
    assert record_of(run) == made_up(record_of(run), read)


def test_null_in_msgpack(codec: Codec) -> None:
    run = codec.decode(pack([None, "worl", 2, None, 1, *[None] * 4]), None)
    read = the_record(id=None, task="worl", priority="low", queued=None)
    assert record_of(run) == made_up(record_of(run), read)


def test_an_empty_id(codec: Codec, packer: Codec) -> None:
    canonical = codec.encode(run_of(the_record())).replace(ID.encode(), b"")
    for payload in (
        canonical,
        b'{"id":"","task":"work"}',
        packer.encode(run_of(the_record())).replace(b"\xc4\x10" + bytes.fromhex(ID), b"\xc4\x00"),
    ):
        assert len(codec.decode(payload, None).id) == 32


def test_a_newer_version_may_append(codec: Codec) -> None:
    fields = ["i", "work", 0, {"a": 1}, 1, NOW / 1e6, None, None, None, 0, 0, "f", "r", {"x": b"1"}, "new", [2]]
    run = codec.decode(pack(fields), None)
    assert (run.id, run.params, run.from_run_id, run.extra) == ("i", {"a": 1}, "f", {"x": b"1"})


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"1764000000.123456", NOW),
        (b"1764000000", NOW - 123456),
        (b"1764000000.1", NOW - 23456),
        (b"1.764000000123456e9", NOW),
        (b'"2025-11-24T16:00:00.123456Z"', NOW),
        (b'"2025-11-24T16:00:00.123456+00:00"', NOW),
        (b'"2025-11-24T18:00:00.123456+02:00"', NOW),
        (b'"2025-11-24T16:00:00.123456"', NOW),
        (b'"2025-11-24T16:00:00Z"', NOW - 123456),
        (b'"20251124T160000Z"', NOW - 123456),
        (b"1764000000123", NOW - 456),
        (b"1764000000123.456", NOW),
        (b"20000000000", 20_000_000_000_000_000),
        (b"20000000001", 20_000_000_001_000),
        (b"-20000000001", -20_000_000_001_000),
        (b'"1764000000"', NOW - 123456),
        (b'"+1764000000"', NOW - 123456),
        (b'"1764000000.123456"', NOW),
        (b'"1764000000123"', NOW - 456),
        (b'"1764000000123.456"', NOW),
        (b'"20251124"', 20_251_124_000_000),
        (b'"2025-11-24t16:00:00z"', NOW - 123456),
        (b'"2700-01-01T00:00:00.500000Z"', 23036572800500000),
        (b"-0.5", -500000),
        (b'"1969-12-31T23:59:59.500000Z"', -500000),
    ],
)
@pytest.mark.parametrize("name", ["queued", "execute_after"])
def test_times(codec: Codec, name: str, written: bytes, expected: int) -> None:
    run = codec.decode(b'{"task":"work","%s":%s}' % (name.encode(), written), None)
    assert micros(getattr(run, name)) == expected
    again = codec.decode(codec.encode(run), None)
    assert micros(getattr(again, name)) == expected


@given(
    st.datetimes() | st.datetimes(datetime(1969, 12, 1), datetime(1973, 4, 1)),
    st.sampled_from(["seconds", "microseconds", "milliseconds"]),
    st.sampled_from(["Z", "+00:00", ""]),
)
@example(datetime(1969, 12, 31, 23, 59, 59, 999999), "microseconds", "Z")
@example(datetime(2000, 2, 29), "microseconds", "Z")
@example(datetime(2000, 3, 1), "microseconds", "Z")
@example(datetime(2100, 2, 28), "microseconds", "Z")
@example(datetime(2100, 3, 1), "microseconds", "Z")
@example(datetime(9999, 12, 31, 23, 59, 59, 999999), "microseconds", "Z")
def test_times_in_iso(moment: datetime, timespec: str, zone: str) -> None:
    written = moment.isoformat(timespec=timespec) + zone
    expected = datetime.fromisoformat(written).replace(tzinfo=UTC)
    assume(expected != EPOCH)  # which is no time
    run = JSON_CODEC.decode(b'{"task":"work","queued":"%s"}' % written.encode(), None)
    assert run.queued == expected


@pytest.mark.parametrize(
    "written",
    [
        "2025-00-24T16:00:00Z",
        "2025-13-24T16:00:00Z",
        "2025-11-00T16:00:00Z",
        "2025-11-31T16:00:00Z",
        "2025-02-29T16:00:00Z",
        "2100-02-29T16:00:00Z",
        "2025-11-24T25:00:00Z",
        "2025-11-24T16:60:00Z",
        "2025-11-24T16:00:61Z",
        "2025-11-24T16:00:00.12345xZ",
        "2025-11-24T16:00:00.123456",
        "2025-11-24T16:00:00.1234567",
        "2025-11-24T16:00:0\u0661Z",
        "2025-11-24T16:00:00.12345é",
        "é025-11-24T16:00:00.123456Z",
    ],
)
def test_times_in_iso_that_are_none(written: str) -> None:
    check_json(json.dumps({"task": "work", "queued": written}).encode())
    check_json(json.dumps({"task": "work", "queued": written}, ensure_ascii=False).encode())


@given(st.integers(exact, 253402300799999999))
@example(exact)
@example(10**16 - 1)
@example(10**16)
@example(253402300799999999)
def test_distant_times(moment: int) -> None:
    """They are written to the microsecond, and read as doubles: the fast way keeps off them."""
    record = the_record(queued=moment, execute_after=moment)
    for codec in (JSON_CODEC, PACKER):
        payload = codec.encode(run_of(record))
        run = codec.decode(payload, None)
        assert run.queued == run.execute_after
        found = micros(run.queued)
        assert found is not None
        assert abs(found - moment) <= 16
    assert json.loads(JSON_CODEC.encode(run_of(record)), parse_float=str)["queued"] == write_json(record)["queued"]
    check_json(JSON_CODEC.encode(run_of(the_record(queued=moment))))


# --- the fast way and the general way -------------------------------------------------------------

CANONICAL = [
    the_record(params={"user_id": 7, "email": "a@b.c", "amount": 12.5, "tags": ["x", "é"], "none": None}),
    the_record(id="short", task="worl", priority="low"),
    the_record(task=foreign.name, priority="high", params={"a": {"b": [[]]}}),
]


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


def perturbed(payload: bytes, every_byte: bool) -> Iterator[bytes]:
    """The payload with each byte replaced, dropped, doubled, and with others put before it."""
    others = range(256) if every_byte else b'\x00\x1f "\\/0129.-+eE,:{}[]nulatrfsbx\x7f\x80\xc3\xff'
    inserted = b'\x00 "\\019.-e,:{}[]n\xc3\xa9'
    for i, byte in enumerate(payload):
        yield payload[:i] + payload[i + 1 :]
        yield payload[:i] + payload[i : i + 1] * 2 + payload[i + 1 :]
        for other in others:
            if other != byte:
                yield payload[:i] + bytes((other,)) + payload[i + 1 :]
        for other in inserted:
            yield payload[:i] + bytes((other,)) + payload[i:]


@pytest.mark.parametrize("record", CANONICAL, ids=["params", "short", "foreign"])
def test_canonical_payloads_byte_by_byte(record: dict[str, Any]) -> None:
    payload = JSON_CODEC.encode(run_of(record))
    check_json(payload)
    for changed in perturbed(payload, every_byte=record is CANONICAL[1]):
        # set the plan that the fast way tries first
        JSON_CODEC.decode(payload, None)
        check_json(changed)


@pytest.mark.parametrize("extra", ["", ',"trace":[1,"\\u00e9"]'], ids=["known", "further"])
def test_a_payload_of_aio_fluid_byte_by_byte(extra: str) -> None:
    payload = (
        '{"id":"7","task":"work","priority":"low","params":{"a":[1.5]},"state":"queued","queued":'
        f'"2024-12-31T16:00:09.123456Z","execute_after":null,"retry_attempt":0{extra},"root_run_id":"é"}}'
    ).encode()
    check_json(payload)
    for changed in perturbed(payload, every_byte=False):
        # set whether the general way expects further keys
        JSON_CODEC.decode_object(payload, None, None)
        check_json(changed)


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_truncated_at_every_offset(codec: Codec) -> None:
    record = the_record(
        params={"a": [1, {"b": "é"}], "c": 2.5}, retry_attempt=3, root_run_id="r", extra={"x": [1]}, execute_after=NOW
    )
    for changes in ({}, {"id": "é"}, {"retry_attempt": 0, "root_run_id": "", "extra": {}, "execute_after": None}):
        payload = codec.encode(run_of({**record, **changes}))
        for length in range(len(payload)):
            assert outcome(lambda part=payload[:length]: codec.decode(part, None)) is None  # type: ignore[misc]
        for tail in (b"x", b"}", b"\x00", b"\xc0", payload):
            assert outcome(lambda more=payload + tail: codec.decode(more, None)) is None  # type: ignore[misc]


def test_the_fast_way_follows_the_registry() -> None:
    """A task that is replaced, removed or comes back between two payloads."""
    registry = dict(TASKS)
    codec = Codec(registry)
    payload = codec.encode(run_of(the_record(params={"to": "x"})))
    other = codec.encode(run_of(the_record(task="worl")))
    assert codec.decode(payload, None).task is work

    @task(name="work")
    async def replaced(ctx: TaskRun[Mail]) -> None: ...

    registry["work"] = replaced
    run = codec.decode(payload, None)
    assert run.task is replaced
    assert run.params == Mail("x")
    assert codec.decode(other, None).task is neighbour
    del registry["work"]
    with pytest.raises(UnknownTaskError):
        codec.decode(payload, None)
    registry["work"] = work
    assert codec.decode(payload, None).params == {"to": "x"}


@pytest.mark.parametrize("msgpack", [False, True])
def test_the_fast_way_follows_the_registry_to_other_models(msgpack: bool) -> None:
    class Other(msgspec.Struct):
        to: str
        copies: int | str = 7

    @task(name="mail", params_model=Other)
    async def replaced(ctx: TaskRun) -> None: ...

    registry = dict(TASKS)
    codec = Codec(registry, msgpack=msgpack)
    payload = codec.encode(run_of(the_record(task="mail", params=Mail("x"))))
    other = codec.encode(run_of(the_record(task=LONG.name, params=Mail("y"))))
    for _ in range(2):
        assert codec.decode(payload, None).params == Mail("x")
        registry["mail"] = replaced
        run = codec.decode(payload, None)
        assert (run.task, run.params) == (replaced, Other("x", 1))
        assert codec.decode(other, None).task is LONG
        assert codec.decode(payload, None).task is replaced
        del registry["mail"]
        with pytest.raises(UnknownTaskError):
            codec.decode(payload, None)
        registry["mail"] = mail


def test_heads_of_tasks_that_begin_alike(codec: Codec) -> None:
    payloads = [
        codec.encode(run_of(the_record(task=a_task.name, priority=priority)))
        for a_task in UNTYPED
        for priority in PRIORITIES
    ]
    for payload, other in itertools.product(payloads, payloads):
        codec.decode(payload, None)
        run = codec.decode(other, None)
        assert codec.encode(run) == other


# --- MessagePack, byte by byte --------------------------------------------------------------------


def check_msgpack(payload: bytes) -> None:
    """What is read is what the model reads. Some of what the model reads is refused: numbers of the wrong type."""
    found = outcome(lambda: PACKER.decode(payload, None))
    if found is not None:
        expected = expected_of(read_msgpack, payload)
        assert expected is not None, payload
        same(found, made_up(found, expected))


@pytest.mark.parametrize(
    "record",
    [
        the_record(params={"a": 7, "é": [1.5, None, True]}),
        the_record(id="é", task=foreign.name, execute_after=NOW, retry_attempt=1, root_run_id="r", extra={"x": [1]}),
    ],
    ids=["short", "long"],
)
def test_msgpack_byte_by_byte(record: dict[str, Any]) -> None:
    payload = PACKER.encode(run_of(record))
    assert outcome(lambda: PACKER.decode(payload, None)) is not None
    for i in range(len(payload)):
        check_msgpack(payload[:i] + payload[i + 1 :])
        for other in range(256):
            check_msgpack(payload[:i] + bytes((other,)) + payload[i + 1 :])
            if 0x90 <= payload[0] <= 0x9E:
                check_msgpack(bytes((payload[0] + 1,)) + payload[1:] + bytes((other,)))


def check_typed(payload: bytes, codec: Codec) -> None:
    """The fast way to read MessagePack and the general way agree, params of a model included."""
    found = outcome(lambda: codec.decode(payload, None))
    try:
        general = outcome(lambda: codec.decode_packed(payload, None, None))
    except TypeError:
        assert found is None
        return
    if general is None or found is None:
        # a model's reader passes over a field that it does not know, even if its name is no text
        assert found is None or has_broken_text(payload), payload
        assert general is None, payload
        return
    same(found["params"], general["params"])
    drift = abs(found["queued"] - general["queued"])  # zero, or both were queued just now
    assert drift == 0 or abs(general["queued"] - time.time() * 1e6) < 60e6 > drift, payload
    same({**found, "queued": 0, "id": ""}, {**general, "queued": 0, "id": ""})
    assert found["id"] == general["id"] or len(found["id"]) == 32


def has_broken_text(payload: bytes) -> bool:
    try:
        unpack(payload, 0)
    except UnicodeDecodeError:
        return True
    return False


@pytest.mark.parametrize("params", [Mail("é", 3, ["x", "y"]), Mail("")], ids=["all", "least"])
def test_msgpack_of_a_model_byte_by_byte(params: Mail) -> None:
    payload = PACKER.encode(run_of(the_record(task="mail", params=params)))
    assert PACKER.decode(payload, None).params == params
    for i in range(len(payload)):
        for changed in (payload[:i] + payload[i + 1 :], payload[:i], payload[: i + 1] + payload[i:]):
            check_typed(changed, PACKER)
        for other in range(256):
            check_typed(payload[:i] + bytes((other,)) + payload[i + 1 :], PACKER)
            # again, with the plan of the last payload set to this one or to another
            PACKER.decode(payload, None)


@given(
    st.floats()
    | st.integers(1, 2**40).map(lambda n: n / 128)
    | st.integers(1, 253402300799).map(lambda n: n + 0.5 / 2**19)
)
@example(0.0)
@example(-1.0)
@example(1e-10)
@example(1764000000 + 1 / 128)
@example(250000000000.0)
@example(253402300799.999999)
def test_any_double_for_a_time(seconds: float) -> None:
    payload = PACKER.encode(run_of(the_record(task="mail", params=Mail("x"))))
    check_typed(payload[:-8] + struct.pack(">d", seconds), PACKER)
    check_typed(payload[:-9] + pack(seconds) + b"\x00", PACKER)


mails = st.builds(Mail, texts, st.integers(-(2**63), 2**64 - 1), st.lists(texts, max_size=4))


@settings(max_examples=50)
@given(records, mails, st.sampled_from(["mail", LONG.name]))
def test_runs_of_a_model(record: dict[str, Any], params: Mail, name: str) -> None:
    least = {name: the_record()[name] for name in record if name not in ("id", "priority", "queued")}
    for changes in ({}, least, *({**least, name: record[name]} for name in least)):
        expected = {**record, **changes, "task": name, "params": params}
        run = run_of(expected)
        for writer, reader in ((JSON_CODEC, PACKER), (PACKER, JSON_CODEC), (PACKER, PACKER)):
            payload = writer.encode(run)
            assert record_of(reader.decode(payload, None)) == expected
            if writer is PACKER:
                assert read_msgpack(payload, DEFAULTS) == {
                    **expected,
                    "params": {"to": params.to, "copies": params.copies, "tags": params.tags},
                }
                check_typed(payload, reader)
                check_typed(payload[:-1] + b"\x01", reader)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to", "\ud800"),
        ("to", object()),
        ("copies", 2**64),
        ("tags", ["\udfff"]),
        ("tags", [float("nan")]),
        ("tags", nested(64)),
        ("tags", {"a": {1, float("inf")}}),
    ],
)
def test_models_that_cannot_be_written(field: str, value: Any) -> None:
    params = Mail("x")
    setattr(params, field, value)
    run = run_of(the_record(task="mail", params=params))
    with pytest.raises(ParamsError, match="invalid params for task 'mail'"):
        PACKER.encode(run)
    if value != 2**64:
        with pytest.raises(ParamsError, match="invalid params for task 'mail'"):
            JSON_CODEC.encode(run)


@pytest.mark.parametrize("params", [-5, -1, 7, [], ["x"], "x", None, True, 1.5, b"x"])
def test_models_that_are_no_object(params: Any) -> None:
    run = run_of(the_record(task="mail", params=params))
    for codec in (JSON_CODEC, PACKER):
        with pytest.raises(ParamsError, match="invalid params for task 'mail'"):
            codec.encode(run)


# --- fuzz -----------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.sampled_from(["high", "queued", "work", "worl", "2025-11-24"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
known_task = st.sampled_from([a_task.name for a_task in UNTYPED])


@given(st.dictionaries(st.sampled_from(FIELDS) | texts, anything, max_size=8), known_task | anything)
def test_objects_with_values_of_any_type(found: dict[str, Any], name: Any) -> None:
    payload = json.dumps({**found, "task": name}).encode()
    check_json(payload)


packable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-3, 9)
    | st.floats()
    | texts
    | st.binary(max_size=17),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(0, 9), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(packable, max_size=12), packable, known_task | packable, st.integers(-1, 3) | packable, packable)
def test_arrays_with_values_of_any_type(rest: list[Any], run_id: Any, name: Any, priority: Any, params: Any) -> None:
    check_msgpack(pack([run_id, name, priority, params, *rest]))


first_bytes = st.sampled_from([bytes((byte,)) for byte in (*range(0x90, 0xA0), 0xDC, 0xDD)]) | st.sampled_from(
    [b"{", b'{"', b'{"id":"', b'{"task":"work",', b"[", b'"', b"", b"\xef\xbb\xbf{", b" {", b"\x00"]
)


@settings(max_examples=300)
@given(first_bytes, st.binary(max_size=80))
def test_random_bytes(first: bytes, rest: bytes) -> None:
    payload = first + rest
    outcome(lambda: JSON_CODEC.decode(payload, None))
    outcome(lambda: PACKER.decode(payload, None))
    assert len(PACKER.decode_many([payload, payload], None)) == 2


@settings(max_examples=150)
@given(records, st.booleans(), st.data())
def test_changed_bytes(record: dict[str, Any], packed: bool, data: st.DataObject) -> None:
    payload = bytearray((PACKER if packed else JSON_CODEC).encode(run_of(record)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        length = data.draw(st.integers(0, 3))
        payload[at : at + length] = data.draw(st.binary(max_size=3))
        assume(payload)
    (check_msgpack if payload[0] >> 4 == 9 or payload[0] in (0xDC, 0xDD) else check_loosely)(bytes(payload))


def check_loosely(payload: bytes) -> None:
    """As ``check_json``, but the codec may refuse what ``json`` reads: numbers beyond a double, lone surrogates."""
    found = outcome(lambda: JSON_CODEC.decode(payload, None))
    if found is not None:
        expected = expected_of(read_json, payload)
        assert expected is not None, payload
        same(found, made_up(found, expected))


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"{}",
        b'{"id":"x","params":{}}',
        b'{"task":null}',
        b'{"task":""}',
        b'{"task":7}',
        b'{"task":["work"]}',
        b'{"task":"work","priority":"urgent"}',
        b'{"task":"work","priority":1}',
        b'{"task":"work","priority":[]}',
        b'{"task":"work","state":"done"}',
        b'{"task":"work","state":3}',
        b'{"task":"work","id":7}',
        b'{"task":"work","id":["x"]}',
        b'{"task":"work","queued":"yesterday"}',
        b'{"task":"work","queued":[]}',
        b'{"task":"work","queued":1e300}',
        b'{"task":"work","queued":1764000000000000}',
        b'{"task":"work","execute_after":-62135596800001}',
        b'{"task":"work","retry_attempt":"1"}',
        b'{"task":"work","retry_attempt":-1}',
        b'{"task":"work","retry_attempt":1.5}',
        b'{"task":"work","retry_attempt":true}',
        b'{"task":"work","rate_limit_attempt":2147483648}',
        b'{"task":"work","rate_limit_attempt":1e999}',
        b'{"task":"work","from_run_id":7}',
        b'{"task":"work","root_run_id":{"a":1}}',
        b'{"task":"work","params":{"a":-NaN}}',
        b'{"task":"work","params":{"a":nan}}',
        b'{"task":"work","params":{"a":+Infinity}}',
        b'{"task":"work","params":{NaN:1}}',
        b'{"task":"work","params":{"a":NaN,"b":1e999}}',
        b'{"task":"work","params":{"a":NaN,"b":"\\ud800"}}',
        b'{"task":"work","queued":NaN}',
        b'{"task":"work","execute_after":Infinity}',
        b'{"task":"work","retry_attempt":NaN}',
        b'{"task":NaN}',
        b"NaN",
        b"[Infinity]",
        b'{"task":"work","params":{"a":1e999}}',
        b'{"task":"work","params":{"a":"\\ud800"}}',
        b'{"task":"work","params":{"\\udc00\\ud800":1}}',
        b'{"task":"work","params":{"a":"\xff"}}',
        b'{"task":"work","params":{"a":"\xed\xa0\x80"}}',
        b'{"task":"work","id":"\\ud800"}',
        b'{"task":"work","x":"\xff"}',
        b'{"task":"work","\xff":1}',
        b'{"task":"work","x":"\\q"}',
        b'{"task":"work","params":{"a":01}}',
        b'{"task":"work","params":{"a":1}}}',
        b'{"task":"work","params":{"a":1},}',
        b'{"task":"work","params":{"a":"\n"}}',
        b'\xef\xbb\xbf{"task":"work"}',
        '{"task":"work"}'.encode("utf-16"),
    ],
)
def test_json_that_is_no_run(codec: Codec, payload: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode(payload, None)
    assert expected_of(read_json, payload) is None
    assert isinstance(codec.decode_many([payload], None)[0], PayloadError)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["i"],
        ["i", "work", 1],
        [7, "work", 1, {}],
        [["i"], "work", 1, {}],
        ["i", b"work", 1, {}],
        ["i", None, 1, {}],
        ["i", "", 1, {}],
        ["i", "work", -1, {}],
        ["i", "work", 3, {}],
        ["i", "work", "high", {}],
        ["i", "work", None, {}],
        ["i", "work", 1, {}, 8],
        ["i", "work", 1, {}, -1],
        ["i", "work", 1, {}, None],
        ["i", "work", 1, {}, 1, "2025-11-24"],
        ["i", "work", 1, {}, 1, 1e300],
        ["i", "work", 1, {}, 1, float("nan")],
        ["i", "work", 1, {}, 1, float("inf")],
        ["i", "work", 1, {}, 1, None, None, None, float("nan")],
        ["i", "work", 1, {}, 1, None, None, None, None, -1],
        ["i", "work", 1, {}, 1, None, None, None, None, 2**31],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, "1"],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, None],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {"x": 1}],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {1: b"1"}],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {"x": b""}],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {"x": b'1,"params":{}'}],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {"x": b'"\xff"'}],
        ["i", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {"x": b"[" * 65 + b"]" * 65}],
    ],
)
def test_msgpack_that_is_no_run(packer: Codec, fields: list[Any]) -> None:
    with pytest.raises(PayloadError):
        packer.decode(pack(fields), None)


def test_further_keys_do_not_replace_ours(codec: Codec) -> None:
    extra = {"task": b'"worl"', "params": b'{"b":2}', "x": b"1"}
    run = codec.decode(pack(["i", "work", 1, {"a": 1}, 1, None, None, None, None, 0, 0, "", "", extra]), None)
    assert (run.name, run.params, run.extra) == ("work", {"a": 1}, {"x": b"1"})
    assert codec.decode(codec.encode(run), None).params == {"a": 1}


@pytest.mark.parametrize("name", ["wor", "work ", "WORK", "works", "\\u0077ork2", "x" * 1_000_000, "\\u0000", "é"])
def test_unknown_tasks(codec: Codec, name: str) -> None:
    for payload in (b'{"task":"%s"}' % name.encode(), pack(["i", json.loads(f'"{name}"'), 1, {}])):
        started = time.perf_counter()
        with pytest.raises(UnknownTaskError, match=r"unknown task .*: it is not registered") as caught:
            codec.decode(payload, None)
        assert len(str(caught.value)) < 500
        assert time.perf_counter() - started < 1


def test_an_unknown_task_with_a_known_neighbour(codec: Codec) -> None:
    with pytest.raises(UnknownTaskError, match=r"^unknown task 'maik': .*; did you mean 'mail'\?$"):
        codec.decode(b'{"task":"maik"}', None)
    with pytest.raises(UnknownTaskError, match=r"unknown task 'zzz': it is not registered with this manager$"):
        codec.decode(b'{"task":"zzz"}', None)


def test_a_name_with_an_escape_is_found(codec: Codec) -> None:
    assert codec.decode(b'{"task":"\\u0077ork"}', None).task is work
    assert codec.decode(json.dumps({"task": foreign.name}).encode(), None).task is foreign


@pytest.mark.parametrize(
    ("params", "field", "as_read"),
    [
        ({}, "to", {}),
        ({"copies": 2}, "to", {"copies": 2}),
        ({"to": 7}, "to", {"to": 7}),
        ({"to": None}, "to", {"to": None}),
        ({"to": "x", "tags": ["a", 7]}, "tags[1]", {"to": "x", "tags": ["a", 7]}),
        ({"to": "x", "copies": 1.5}, "copies", {"to": "x", "copies": 1.5}),
        ([], "", {}),
        ("x", "", {}),
        (7, "", {}),
        (None, "to", {}),
    ],
)
def test_params_that_do_not_fit(codec: Codec, packer: Codec, params: Any, field: str, as_read: Any) -> None:
    record = the_record(task="mail", retry_attempt=1, extra={"x": 1})
    canonical = codec.encode(run_of(the_record(task="mail", params={}))).replace(b"{}", json.dumps(params).encode())
    general = codec.encode(run_of({**record, "params": {}})).replace(b"{}", json.dumps(params).encode())
    payloads = [canonical, general, pack([ID, "mail", 1, params, 1, NOW / 1e6])]
    for payload in payloads:
        with pytest.raises(TaskParamsError, match="invalid params for task 'mail'") as caught:
            codec.decode(payload, "the manager")
        error = caught.value
        assert (error.task_name, error.field) == ("mail", field)
        assert field in str(error)
        run = error.task_run
        assert (run.id, run.task, run.params, run.task_manager) == (ID, mail, as_read, "the manager")
        assert run.state is TaskState.queued
        assert micros(run.queued) == NOW
    assert isinstance(error, ParamsError)
    found = codec.decode_many([payloads[1], payloads[0]], None)
    assert [type(item) for item in found] == [TaskParamsError, TaskParamsError]
    assert found[0].task_run.retry_attempt == 1
    assert found[0].task_run.extra == {"x": b"1"}


@pytest.mark.parametrize("params", [[], [["a", 1]], ["ab"], "x", 7, True, {1: 2}])
def test_params_of_no_model_are_an_object(codec: Codec, params: Any) -> None:
    payloads = [pack(["i", "work", 1, params])]
    if not isinstance(params, dict):
        payloads.append(json.dumps({"task": "work", "params": params}).encode())
    for payload in payloads:
        with pytest.raises(TaskParamsError, match="invalid params for task 'work'"):
            codec.decode(payload, None)


@pytest.mark.parametrize("params", [{}, {"a": 1}, {"a": [{}]}, {str(n): [n] for n in range(100)}])
def test_params_that_were_read_are_like_any(codec: Codec, params: dict[str, Any]) -> None:
    payload = codec.encode(run_of(the_record(params=params)))
    gc.collect()
    held = sys.getrefcount(Params)
    for _ in range(100):
        read = codec.decode(payload, None).params
        assert type(read) is Params
        assert read == params
        for again in (copy.copy(read), copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
            same(again, Params(params))
        for n in range(20):
            setattr(read, f"b{n}", n)
        read.me = read
        assert gc.is_tracked(read)
        assert gc.get_referents(read).count(Params) == gc.get_referents(Params(me=read)).count(Params)
        del read, again
    gc.collect()
    assert sys.getrefcount(Params) == held


@pytest.mark.parametrize("payload", [b'{"task":"work","params":{"a":1}', b'{"task":"work","params":[1,2}', b"{"])
def test_broken_params_are_a_broken_payload(codec: Codec, payload: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode(payload, None)


def test_only_bytes_are_read(codec: Codec) -> None:
    for wrong in (None, "{}", bytearray(b"{}"), memoryview(b"{}"), 7):
        for call in (codec.decode, codec.decode_object, codec.decode_packed, codec.decode_finished):
            with pytest.raises(TypeError):
                call(wrong, None, None)
        with pytest.raises(TypeError):
            codec.decode_many([wrong], None)  # type: ignore[list-item]


def test_only_runs_are_written(codec: Codec, packer: Codec) -> None:
    for wrong in (None, {}, object()):
        for call in (codec.encode, packer.encode, codec.submit, encode_json):
            with pytest.raises(TypeError):
                call(wrong)  # type: ignore[arg-type]


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_depth_of_what_is_written(codec: Codec) -> None:
    # params are a level themselves
    record = the_record(params={"a": nested(63)})
    assert depth(record["params"]) == 64
    for changes in ({}, {"retry_attempt": 1}, {"extra": {"x": nested(64)}}):
        run = run_of({**record, **changes})
        same(record_of(codec.decode(codec.encode(run), None)), {**record, **changes})
    for levels in (64, 65, 200, 600):
        for inner in (1, None, float("nan")):
            with pytest.raises(ParamsError, match="invalid params for task 'work'"):
                codec.encode(run_of(the_record(params={"a": nested(levels, inner)})))
    with pytest.raises(ParamsError, match="nested deeper than 64 levels"):
        codec.encode(run_of(the_record(params={"a": nested(64)})))


def test_depth_without_end(codec: Codec, packer: Codec) -> None:
    endless: list[Any] = []
    endless.append(endless)
    for params in ({"a": endless}, {"a": nested(100_000)}):
        for writer in (codec, packer):
            with pytest.raises(ParamsError):
                writer.encode(run_of(the_record(params=params)))


@pytest.mark.parametrize("levels", [64, 65, 66, 100, 1_000, 100_000])
def test_depth_of_what_is_read(codec: Codec, levels: int) -> None:
    arrays = b"[" * levels + b"]" * levels
    objects = b'{"a":' * levels + b"1" + b"}" * levels
    head = codec.encode(run_of(the_record()))[:-3]
    for deep in (arrays, objects, b'{"a":%s}' % arrays):
        for payload in (
            b'{"task":"work","params":%s}' % deep,
            head + deep + b"}",
            b'{"x":%s,"task":"work"}' % deep,
            b'{"task":"work","id":%s}' % deep,
            deep,
            deep[: len(deep) // 2],
        ):
            check_json(payload) if levels < 200 else outcome_is_refusal(payload)


def outcome_is_refusal(payload: bytes) -> None:
    with pytest.raises(REFUSALS):
        JSON_CODEC.decode(payload, None)


@pytest.mark.parametrize("levels", [64, 65, 66, 100, 1_000, 100_000])
def test_depth_of_what_is_read_in_msgpack(codec: Codec, levels: int) -> None:
    head = b"\x96\xa1i\xa4work\x01"
    tail = b"\x01\xc0"
    for opening, innermost in ((b"\x81\xa1a", b"\x01"), (b"\x91", b"\x90"), (b"\xdc\x00\x01", b"\xc0")):
        deep = b"\x81\xa1a" + opening * (levels - 1) + innermost
        fits = levels + (innermost == b"\x90") <= 64
        for payload in (head + deep + tail, b"\x9e\xa1i\xa4work\x01\x80\x01" + deep * 8 + b"\x80", deep):
            if fits and payload.startswith(head):
                assert codec.decode(payload, None).id == "i"
            else:
                with pytest.raises(PayloadError):
                    codec.decode(payload, None)


def test_deep_text_is_not_deep(codec: Codec) -> None:
    record = the_record(params={"a": "[{" * 500, "b": '"[[' * 200, "c": "\\" * 99 + "[" * 99, "é": "\u0080" * 300})
    for writer in (codec, PACKER):
        same(record_of(codec.decode(writer.encode(run_of(record)), None)), record)
    wide = the_record(params={"a": [[], {}] * 500})
    for writer in (codec, PACKER):
        same(record_of(codec.decode(writer.encode(run_of(wide)), None)), wide)


@pytest.mark.parametrize("msgpack", [False, True])
def test_sizes(msgpack: bool) -> None:
    wide = Codec(dict(TASKS), msgpack=msgpack)
    run = run_of(the_record(params={"a": "x" * 1000}))
    payload = wide.encode(run)
    size = len(payload)
    exact = Codec(dict(TASKS), msgpack=msgpack, max_bytes=size)
    assert exact.encode(run) == payload
    assert exact.decode(payload, None).params == run.params
    short = Codec(dict(TASKS), msgpack=msgpack, max_bytes=size - 1)
    with pytest.raises(PayloadTooLargeError, match=f"task 'work' takes {size} bytes, the broker's limit is {size - 1}"):
        short.encode(run)
    with pytest.raises(PayloadError, match=f"payload of {size} bytes, the limit is {size - 1}"):
        short.decode(payload, None)
    assert (wide.max_bytes, wide.msgpack, short.max_bytes) == (1 << 20, msgpack, size - 1)


def test_a_payload_of_a_mebibyte(codec: Codec) -> None:
    run = run_of(the_record())
    room = (1 << 20) - len(codec.encode(run))
    run.params = Params(a="x" * (room - len('"a":""')))
    payload = codec.encode(run)
    assert len(payload) == 1 << 20
    assert codec.decode(payload, None).params == run.params
    run.params["a"] += "x"
    with pytest.raises(PayloadTooLargeError):
        codec.encode(run)


class Writes:
    """A value that writes another run while it is written."""

    def __init__(self, inner: TaskRun[Any, Any]) -> None:
        self.inner = inner
        self.payloads: list[bytes] = []

    def get_secret_value(self) -> str:
        self.payloads.append(JSON_CODEC.encode(self.inner))
        return "told"


@pytest.mark.parametrize("length", [1, 5_000, 20_000])
def test_a_run_that_is_written_while_another_is(length: int) -> None:
    inner = run_of(the_record(params={"b": "y" * length}))
    writes = Writes(inner)
    outer = run_of(the_record(params={"a": "x" * 50, "inner": writes, "c": "z" * 50}))
    for _ in range(3):
        found = JSON_CODEC.decode(JSON_CODEC.encode(outer), None)
        assert found.params == {"a": "x" * 50, "inner": "told", "c": "z" * 50}
        for payload in writes.payloads:
            assert JSON_CODEC.decode(payload, None).params == inner.params


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
@pytest.mark.parametrize("inner", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("put", [lambda x: x, lambda x: [x], lambda x: {"b": [1, {"c": (x,)}]}, lambda x: {x}])
def test_numbers_that_json_does_not_have(codec: Codec, inner: float, put: Callable[[float], Any]) -> None:
    run = run_of(the_record(params={"fine": None, "a": put(inner)}))
    with pytest.raises(ParamsError, match="task 'work', field 'a': NaN and infinity cannot be queued") as caught:
        codec.encode(run)
    assert (caught.value.task_name, caught.value.field) == ("work", "a")


@given(st.integers(2**64) | st.integers(max_value=-(2**63) - 1))
def test_huge_ints(number: int) -> None:
    record = the_record(params={"a": number})
    payload = JSON_CODEC.encode(run_of(record))
    same(record_of(JSON_CODEC.decode(payload, None)), record)
    with pytest.raises(ParamsError, match="invalid params for task 'work'"):
        PACKER.encode(run_of(record))


def test_endless_ints(codec: Codec) -> None:
    for digits in (500, 5_000, 900_000):
        payload = b'{"task":"work","params":{"a":%s}}' % (b"9" * digits)
        started = time.perf_counter()
        try:
            run = codec.decode(payload, None)
        except PayloadError as exc:
            assert "out of range" in str(exc)  # noqa: PT017
        else:
            assert run.params == {"a": 10**digits - 1}
        assert time.perf_counter() - started < 1
    with pytest.raises(PayloadError):
        codec.decode(b'{"task":"work","queued":%s}' % (b"9" * 900_000), None)


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_lone_surrogates(codec: Codec) -> None:
    for params in ({"a": "\ud800"}, {"\udfff": 1}, {"a": ["\ud800\ud800"]}):
        with pytest.raises(ParamsError, match="invalid params for task 'work'"):
            codec.encode(run_of(the_record(params=params)))
    for changes in ({"id": "\ud800"}, {"id": "\ud800" * 32}, {"from_run_id": "\ud800"}, {"root_run_id": "\ud800"}):
        with pytest.raises(TaskRunError, match="task 'work' has an id that cannot be written as UTF-8"):
            codec.encode(run_of(the_record(**changes)))
    with pytest.raises(TaskRunError):
        run_of(the_record(id="\ud800")).queue_dump_json()


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
@pytest.mark.parametrize("params", [7, [], "x", None, Params, lambda: None])
def test_params_that_are_no_object_are_not_written(codec: Codec, params: Any) -> None:
    with pytest.raises(ParamsError, match="invalid params for task 'work'"):
        codec.encode(run_of(the_record(params=params)))


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_values_that_cannot_be_written(codec: Codec) -> None:
    with pytest.raises(ParamsError, match="task 'work', field 'b': values of type object cannot be written") as caught:
        codec.encode(run_of(the_record(params={"a": 1, "b": object()})))
    assert (caught.value.task_name, caught.value.field) == ("work", "b")


# --- making runs ----------------------------------------------------------------------------------


def test_create(codec: Codec) -> None:
    listeners = Listeners(0)
    parent = run_of(the_record(id="parent", root_run_id="root"))
    run = codec.create("mail", None, "", {"to": "x"}, "the manager", listeners)
    assert (run.task, run.params, run.task_manager, run.state) == (mail, Mail("x"), "the manager", "init")
    assert (run.from_run_id, run.root_run_id, run.queued) == ("", "", None)
    assert len(run.id) == 32
    run = codec.create(neighbour, "high", "mine", {"a": 1}, None, None, parent)
    assert (run.id, run.priority, run.from_run_id, run.root_run_id) == ("mine", "high", "parent", "root")
    assert codec.create(neighbour, None, "", {}, None, None).priority == "low"
    run = codec.create(work, None, "", {}, None, None, run_of(the_record(id="first")))
    assert (run.from_run_id, run.root_run_id) == ("first", "first")


def test_create_does_not_share_its_params(codec: Codec) -> None:
    given = {"a": [1]}
    run = codec.create(work, None, "", given, None, None)
    given["b"] = [2]
    assert run.params == {"a": [1]}


def test_create_with(codec: Codec) -> None:
    class Keys(dict):  # type: ignore[type-arg]
        pass

    for value in ({"to": "x"}, Mail("x"), Keys(to="x")):
        run = codec.create_with("mail", None, "", value, None, None, run_of(the_record(id="p")))
        assert run.params == Mail("x")
        assert (run.from_run_id, run.root_run_id) == ("p", "p")
    for value in (None, 7, [], "x", Login(user="u", password=pydantic.SecretStr("p"))):
        with pytest.raises(ParamsError, match="invalid params for task 'mail'"):
            codec.create_with("mail", None, "", value, None, None)


@pytest.mark.parametrize("call", ["create", "create_with"])
def test_create_what_cannot_be(codec: Codec, call: str) -> None:
    create = getattr(codec, call)
    with pytest.raises(UnknownTaskError, match=r"unknown task 'maik'.*did you mean 'mail'"):
        create("maik", None, "", {}, None, None)
    with pytest.raises(ParamsError, match="invalid params for task 'mail', field 'copies'") as caught:
        create("mail", None, "", {"to": "x", "copies": "two"}, None, None)
    assert (caught.value.task_name, caught.value.field) == ("mail", "copies")
    with pytest.raises(ValueError, match="unknown priority 'urgent'"):
        create("mail", "urgent", "", {"to": "x"}, None, None)
    with pytest.raises(TypeError):
        create("mail", None, 7, {"to": "x"}, None, None)


def test_a_new_task_is_registered() -> None:
    codec = Codec({})
    with pytest.raises(UnknownTaskError):
        codec.create("work", None, "", {}, None, None)
    codec.create(work, None, "", {}, None, None)
    assert codec.registry == {"work": work}
    assert codec.create("work", None, "", {}, None, None).task is work


def test_a_run_of_a_task_that_is_not_registered_can_be_written() -> None:
    codec = Codec({})
    payload = codec.encode(run_of(the_record(task="mail", params=Mail("x"))))
    assert json.loads(payload)["params"] == {"to": "x", "copies": 1, "tags": []}
    assert codec.registry == {}
    with pytest.raises(UnknownTaskError):
        codec.decode(payload, None)


def test_submit(codec: Codec) -> None:
    run = codec.create(work, None, "", {"a": 1}, None, None)
    before = time.time_ns() // 1000
    payload = codec.submit(run)
    assert run.state is TaskState.queued
    queued = micros(run.queued)
    assert queued is not None
    assert before <= queued <= time.time_ns() // 1000
    same(record_of(codec.decode(payload, None)), record_of(run))
    with pytest.raises(TaskRunError, match="success -> queued"):
        codec.submit(run_of(the_record(), "success"))


def test_submit_tells_nobody(codec: Codec) -> None:
    class Manager:
        dispatcher = None

    run = codec.create(work, None, "", {}, Manager(), Listeners(255))
    codec.submit(run)
    assert run.state is TaskState.queued


def test_has_field(codec: Codec) -> None:
    assert codec.has_field("mail", "to")
    assert codec.has_field(login, "password")
    assert not codec.has_field("mail", "params")
    assert not codec.has_field("work", "to")
    with pytest.raises(UnknownTaskError):
        codec.has_field("none", "to")


def test_plan() -> None:
    plan = TaskPlan(mail)
    assert (plan.task, plan.name, plan.adapter.model) == (mail, "mail", Mail)


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_take(codec: Codec) -> None:
    ids: list[str] = []
    items = iter([{"to": "a"}, Mail("b"), {"to": "c"}, {"to": "d"}])
    payloads, size, count, ended = codec.take(mail, "high", items, 3, 1 << 20, None, ids, 0)
    assert (len(payloads), count, ended) == (3, 3, False)
    assert size == sum(map(len, payloads))
    runs = [codec.decode(payload, None) for payload in payloads]
    assert [run.params.to for run in runs] == ["a", "b", "c"]
    assert [run.id for run in runs] == ids
    assert len(set(ids)) == 3
    assert {run.priority for run in runs} == {"high"}
    payloads, _, count, ended = codec.take(mail, None, items, 3, 1 << 20, None, None, 3)
    assert (len(payloads), count, ended) == (1, 1, True)
    assert codec.take(mail, None, iter(()), 3, 1, None, None, 0) == ([], 0, 0, True)


def test_take_by_bytes(codec: Codec) -> None:
    one = len(codec.take(work, None, iter([{}]), 9, 1, None, None, 0)[0][0])
    payloads, size, count, ended = codec.take(work, None, iter([{}] * 9), 9, 2 * one + 1, None, None, 0)
    assert (len(payloads), size, count, ended) == (3, 3 * one, 3, False)


def test_take_what_does_not_fit(codec: Codec) -> None:
    items = [{"to": "a"}, {"to": 7}, {"to": "b"}, {}, {"to": "x" * (1 << 20)}]
    errors: list[tuple[int, Exception]] = []
    ids: list[str] = []
    payloads, _, count, ended = codec.take(mail, None, iter(items), 99, 1 << 30, errors, ids, 100)
    assert (len(payloads), len(ids), count, ended) == (2, 2, 5, True)
    assert [(index, type(error)) for index, error in errors] == [
        (101, ParamsError),
        (103, ParamsError),
        (104, PayloadTooLargeError),
    ]
    with pytest.raises(ParamsError, match="field 'to'") as caught:
        codec.take(mail, None, iter(items), 99, 1 << 30, None, None, 100)
    assert caught.value.index == 101
    assert [codec.decode(payload, None).params.to for payload in caught.value.taken] == ["a"]  # type: ignore[attr-defined]


def test_take_from_what_breaks(codec: Codec) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"to": "a"}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        codec.take(mail, None, broken(), 9, 1 << 20, None, None, 0)
    with pytest.raises(ValueError, match="unknown priority"):
        codec.take(mail, "urgent", iter([]), 9, 1 << 20, None, None, 0)
    with pytest.raises(UnknownTaskError):
        codec.take("none", None, iter([]), 9, 1 << 20, None, None, 0)


# --- finished runs --------------------------------------------------------------------------------


@settings(max_examples=50)
@given(records, st.sampled_from(["success", "failure", "aborted", "rate_limited", "interrupted"]))
def test_finished(record: dict[str, Any], state: str) -> None:
    run = run_of(record, state).model_copy(
        update={"start": EPOCH + timedelta(seconds=5), "end": EPOCH + timedelta(seconds=7)}
    )
    found = JSON_CODEC.decode_finished(run.queue_dump_json(), "the manager")
    same(record_of(found), record)
    assert found.state == state
    assert found.duration == timedelta(seconds=2)
    assert found.task_manager == "the manager"


def test_finished_with_params_that_do_not_fit(codec: Codec) -> None:
    run = codec.decode_finished(b'{"task":"mail","id":"x","state":"failure","end":7,"params":{"to":7}}', None)
    assert (run.id, run.state, run.params, micros(run.end)) == ("x", "failure", {"to": 7}, 7_000_000)
    assert run.start is None


@pytest.mark.parametrize(
    "rest",
    [b'"start":"soon"', b'"end":[]', b'"end":1e300', b'"state":"done"', b'"state":[1]', b'"state":7', b'"id":7', b"x"],
)
def test_finished_payloads_that_are_none(codec: Codec, rest: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode_finished(b'{"task":"work",%s}' % rest, None)
    with pytest.raises(UnknownTaskError):
        codec.decode_finished(b'{"task":"none"}', None)
    assert codec.decode_finished(b'{"task":"work","state":null}', None).state is TaskState.queued


# --- secrets --------------------------------------------------------------------------------------


def everything_said(error: BaseException) -> str:
    """The text of an error and of what is shown with it in a traceback."""
    said = [str(error), repr(error), str(vars(error))]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(said) + (everything_said(cause) if cause is not None else "")


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_secrets_are_in_the_payload_and_nowhere_else(codec: Codec) -> None:
    run = codec.create("login", None, "", {"user": "u", "password": SECRET}, None, None)
    assert SECRET.encode() in codec.submit(run)
    read = codec.decode(codec.encode(run), None)
    assert read.params.password.get_secret_value() == SECRET
    assert SECRET not in f"{run!r} {read!r} {run.params!r} {run.model_dump()} {run.model_dump_json()}"


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "params",
    [
        {"password": SECRET},
        {"user": "u", "password": [SECRET]},
        {"user": "u", "password": SECRET, "tries": SECRET},
        {"user": [SECRET], "password": SECRET},
    ],
)
def test_secrets_are_not_in_errors(codec: Codec, params: dict[str, Any]) -> None:
    for create in (codec.create, codec.create_with):
        with pytest.raises(ParamsError) as refused:
            create("login", None, "", params, None, None)
        assert SECRET not in everything_said(refused.value)
    payload = (
        pack([ID, "login", 1, params]) if codec.msgpack else json.dumps({"task": "login", "params": params}).encode()
    )
    with pytest.raises(TaskParamsError) as unread:
        codec.decode(payload, None)
    assert SECRET not in everything_said(unread.value)
    assert unread.value.task_run.params == params  # as they were read: for the dead list
    errors: list[tuple[int, Exception]] = []
    codec.take("login", None, iter([params]), 1, 1, errors, None, 0)
    assert SECRET not in everything_said(errors[0][1])


def test_secrets_are_not_in_errors_of_writing(codec: Codec) -> None:
    run = codec.create("login", None, "", {"user": "u", "password": SECRET}, None, None)
    run.params.tries = object()
    run.params.user = [SECRET, object()]
    with pytest.raises(ParamsError) as refused:
        codec.encode(run)
    assert SECRET not in everything_said(refused.value)
    small = Codec(dict(TASKS), max_bytes=9)
    with pytest.raises(PayloadTooLargeError) as refused_size:
        small.encode(codec.create("login", None, "", {"user": "u", "password": SECRET}, None, None))
    assert SECRET not in everything_said(refused_size.value)
