"""Random and changed payloads: the codec and the model of the wire accept and refuse the same."""

import json
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kits.codec_kit import (
    JSON_CODEC,
    PACKER,
    check_json,
    check_msgpack,
    expected_of,
    first_bytes,
    known_task,
    made_up,
    numbers,
    outcome,
    records,
    run_of,
    same,
    texts,
)
from models.codec_model import FIELDS, pack, read_json

anything = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.sampled_from(["high", "queued", "work", "worl", "2025-11-24"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


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
