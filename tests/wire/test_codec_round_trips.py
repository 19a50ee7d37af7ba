"""The compiled codec against a model of the wire: what is written is read again, whatever may be missing, and every
form of a time.

The kinds of params models are in test_params.py, payloads that were written once in test_golden.py.
"""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from kits.codec_kit import (
    DEFAULTS,
    EPOCH,
    ID,
    JSON_CODEC,
    NOW,
    PACKER,
    TASKS,
    check_json,
    exact,
    foreign,
    made_up,
    micros,
    record_of,
    records,
    run_of,
    same,
    the_record,
)
from models.codec_model import FIELDS, pack, read_json, read_msgpack, write_json

from fluidfast import TaskRun, TaskState
from fluidfast.core.params import Params
from fluidfast.wire._codec import Codec


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
