"""NaN and infinities in params that aio-fluid queued (Python's json writes NaN, Infinity, -Infinity) are read."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
import redis.asyncio

from fluidfast import RetryPolicy, TaskConsumer, TaskRun, task
from fluidfast.brokers.url import BrokerURL
from fluidfast.core.params import adapter_for, read_params, without_constants, write_params
from fluidfast.errors import ParamsError, PayloadError, TaskParamsError
from fluidfast.manage.dead import DeadLetter
from fluidfast.wire._codec import Codec
from fluidfast.wire.peek import afresh


class Struct(msgspec.Struct):
    f: float
    rows: list[dict[int, float | None]] = []


@dataclasses.dataclass
class Data:
    f: float
    rows: list[dict[int, float | None]] = dataclasses.field(default_factory=list)


@attrs.define
class Attrs:
    f: float
    rows: list[dict[int, float | None]] = attrs.field(factory=list)


class Model(pydantic.BaseModel):
    f: float
    rows: list[dict[int, float | None]] = []
    key: pydantic.SecretStr = pydantic.SecretStr("k")


MODELS: list[Any] = [None, dict[str, Any], Struct, Data, Attrs, Model]
models = pytest.mark.parametrize("model", MODELS, ids=str)
wires = pytest.mark.parametrize("msgpack", [False, True], ids=["json", "msgpack"])


def codec_of(model: Any, msgpack: bool = False) -> Codec:
    @task(name="work", params_model=model)
    async def work(ctx: TaskRun) -> None: ...

    return Codec({"work": work}, msgpack=msgpack)


def shown(params: Any) -> str:
    return repr(params).replace("'1'", "1")


@models
@wires
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_params_of_every_kind_are_read_and_tried_again(model: Any, msgpack: bool, number: float) -> None:
    codec = codec_of(model, msgpack)
    given = {"f": number, "rows": [{"1": number}, {"2": None}]}
    payload = json.dumps({"id": "x", "task": "work", "params": given, "more": ["NaN", number]}).encode()
    run = codec.decode(payload, None)
    f, rows = (run.params["f"], run.params["rows"]) if isinstance(run.params, dict) else (run.params.f, run.params.rows)
    assert repr(f) == repr(number)
    assert [repr(value) for row in rows for value in row.values()] == [repr(number), "None"]
    assert run.extra == {"more": b'["NaN", null]'}
    with pytest.raises(ParamsError, match="field 'f': NaN and infinity cannot be queued"):
        codec.encode(run)
    again = codec.decode(codec.encode(run._again(0, False)), None)
    assert shown(again.params) == shown(run.params)
    assert again.retry_attempt == 1
    adapter = adapter_for(run.task.params_model)
    assert shown(read_params(adapter, write_params(adapter, run.params))) == shown(run.params)


@models
def test_params_that_do_not_fit_are_named(model: Any) -> None:
    codec = codec_of(model)
    if model in (None, dict[str, Any]):
        payload = b'{"task":"work","params":[NaN]}'
    else:
        payload = b'{"task":"work","params":{"f":[NaN]}}'
    with pytest.raises(TaskParamsError, match="invalid params for task 'work'"):
        codec.decode(payload, None)


@pytest.mark.parametrize(
    "text",
    ['"NaN"', '"Infinity NaN"', '"\\\\"', '"\\" NaN"', '{"NaN":"-Infinity"}', "[null]"],
)
def test_texts_are_left_alone(text: str) -> None:
    assert without_constants(text.encode()) is None
    run = codec_of(None).decode(f'{{"task":"work","params":{{"a":{text},"b":NaN}}}}'.encode(), None)
    assert run.params["a"] == json.loads(text)
    assert math.isnan(run.params["b"])


@pytest.mark.parametrize(
    "payload",
    [
        b'{"task":"work","queued":NaN}',
        b'{"task":"work","params":{"a":NaN,"b":"\xff"}}',
        b'{"task":"work","params":{"a":NaN,"b":' + b"[" * 64 + b"]" * 64 + b"}}",
        b'{"task":"work","params":{"a":NaN',
        b'{"task":"work","params":{"a":NaNNaN}}',
    ],
)
def test_what_is_no_run_stays_none(payload: bytes) -> None:
    with pytest.raises(PayloadError):
        codec_of(None).decode(payload, None)


def test_a_dead_letter_with_a_nan_is_shown_and_begins_afresh() -> None:
    payload = b'{"id":"x","task":"work","retry_attempt":3,"params":{"f":[NaN,"NaN"]},"more":-Infinity}'
    letter = DeadLetter.read("1764000000000 why", payload)
    assert (letter.task, letter.run_id, letter.attempts) == ("work", "x", 3)
    assert repr(letter.params) == "{'f': [nan, 'NaN']}"
    run = codec_of(None).decode(afresh(payload), None)
    assert run.retry_attempt == 0
    assert repr(run.params) == "{'f': [nan, 'NaN']}"
    for broken in (b'{"task":"work","params":{"f":NaN}', b"[NaN]", b"NaN"):
        assert afresh(broken) == broken
        assert DeadLetter.read("", broken).task == ""


async def test_a_consumer_runs_and_retries_what_aio_fluid_queued(redis_url: str, no_leaked_keys: Any) -> None:
    got: dict[str, list[float]] = {}
    ended = asyncio.Event()

    @task(retry=RetryPolicy(max_attempts=1, wait=0.01))
    async def work(ctx: TaskRun) -> None:
        got.setdefault(ctx.id, []).append(ctx.params["f"])
        if sum(map(len, got.values())) == 6:
            ended.set()
        if ctx.retry_attempt == 0:
            raise ValueError("try again")

    consumer = TaskConsumer(broker_url=redis_url)
    consumer.register_task(work)
    client = redis.asyncio.Redis.from_url(redis_url.partition("?")[0])
    name = BrokerURL(redis_url).query["name"]
    for constant in ("NaN", "Infinity", "-Infinity"):
        payload = {"id": constant, "task": "work", "params": {"f": float(constant)}}
        await client.lpush(f"{{{name}}}-queue-medium", json.dumps(payload))
    await consumer.startup()
    try:
        async with asyncio.timeout(20):
            await ended.wait()
        assert {name: [repr(value) for value in values] for name, values in got.items()} == {
            "NaN": ["nan", "nan"],
            "Infinity": ["inf", "inf"],
            "-Infinity": ["-inf", "-inf"],
        }
        assert await consumer.dead.count() == 0
    finally:
        await consumer.shutdown()
        await client.aclose()
        no_leaked_keys.allow("*-tasks-*")
