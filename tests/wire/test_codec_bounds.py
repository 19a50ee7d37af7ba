"""Limits of depth, size and number, and values that a payload cannot hold."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits.codec_kit import JSON_CODEC, PACKER, REFUSALS, TASKS, check_json, nested, record_of, run_of, same, the_record
from models.codec_model import depth

from fluidfast import TaskRun
from fluidfast.core.params import Params
from fluidfast.errors import (
    ParamsError,
    PayloadError,
    PayloadTooLargeError,
    TaskRunError,
)
from fluidfast.wire._codec import Codec


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
