"""Commands on the wire, beside what hiredis makes of them."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluidfast.brokers.redis._resp import pack

ARGUMENTS = st.one_of(
    st.text(), st.binary(max_size=300), st.integers(), st.floats(), st.sampled_from([b"", "", "é", 0, -1, 0.1, -0.0])
)


@given(st.lists(ARGUMENTS, min_size=1, max_size=40).map(tuple))
@example(("LPUSH", "queue", *[b"x" * size for size in (0, 1, 9, 10, 11, 99, 100, 101, 999, 1000, 9999, 10_000)]))
@example(tuple(str(i) for i in range(1000)))
@example(("€" * 100, "\U0001f600", "a\x00b", "\r\n"))
@example((10**30, -(10**30), 2**63, -(2**63), float("inf"), 1e-300, 1e22))
def test_as_hiredis_does(command: tuple[Any, ...]) -> None:
    packed = pack(command)
    assert packed == hiredis.pack_command(command)
    reader = hiredis.Reader()
    reader.feed(packed)
    assert reader.gets() == [as_bytes(argument) for argument in command]
    assert reader.gets() is False


def as_bytes(argument: str | bytes | int | float) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


def test_nothing() -> None:
    assert pack(()) == b"*0\r\n"


class Letter(StrEnum):
    A = "a"


class Number(IntEnum):
    SEVEN = 7


class Raw(bytes):
    pass


def test_kinds_of_our_own() -> None:
    """By their value, whatever they call themselves."""
    assert pack((Letter.A, Number.SEVEN, Raw(b"r"))) == pack(("a", 7, b"r"))


@pytest.mark.parametrize("argument", [None, True, False, [], ("a",), bytearray(b"a"), memoryview(b"a"), object()])
def test_what_is_no_argument(argument: Any) -> None:
    with pytest.raises(TypeError, match=f"str, bytes, int or float, not {type(argument).__name__}"):
        pack(("SET", "key", argument))


def test_what_is_no_command() -> None:
    with pytest.raises(UnicodeEncodeError):
        pack(("SET", "key", "\ud800"))
    for command in (None, ["GET", "key"], "GET"):
        with pytest.raises(TypeError):
            pack(command)  # type: ignore[arg-type]
