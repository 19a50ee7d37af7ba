"""The codec reads the payloads that it wrote itself in a fast way, everything else in a general one: both must agree,
byte by byte.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from kits.codec_kit import (
    JSON_CODEC,
    LONG,
    NOW,
    PACKER,
    TASKS,
    UNTYPED,
    Mail,
    check_json,
    foreign,
    mail,
    neighbour,
    outcome,
    run_of,
    the_record,
    work,
)
from models.codec_model import PRIORITIES

from fluidfast import TaskRun, task
from fluidfast.errors import (
    UnknownTaskError,
)
from fluidfast.wire._codec import Codec

CANONICAL = [
    the_record(params={"user_id": 7, "email": "a@b.c", "amount": 12.5, "tags": ["x", "é"], "none": None}),
    the_record(id="short", task="worl", priority="low"),
    the_record(task=foreign.name, priority="high", params={"a": {"b": [[]]}}),
]


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
