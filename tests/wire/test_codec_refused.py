"""Payloads that are no run, unknown tasks and params that do not fit: the error, and what it names."""

import copy
import gc
import json
import pickle
import sys
import time
from typing import Any

import pytest
from kits.codec_kit import ID, NOW, expected_of, foreign, mail, micros, run_of, same, the_record, work
from models.codec_model import pack, read_json

from fluidfast import TaskState
from fluidfast.core.params import Params
from fluidfast.errors import (
    ParamsError,
    PayloadError,
    TaskParamsError,
    UnknownTaskError,
)
from fluidfast.wire._codec import Codec, encode_json


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
