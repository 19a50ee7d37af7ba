"""MessagePack against the model of the wire, byte by byte; runs of typed models."""

import struct
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kits.codec_kit import (
    DEFAULTS,
    JSON_CODEC,
    LONG,
    NOW,
    PACKER,
    Mail,
    check_msgpack,
    foreign,
    nested,
    outcome,
    record_of,
    records,
    run_of,
    same,
    texts,
    the_record,
)
from models.codec_model import pack, read_msgpack, unpack

from fluidfast.errors import (
    ParamsError,
)
from fluidfast.wire._codec import Codec


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
