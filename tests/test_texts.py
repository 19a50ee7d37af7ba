"""Text from elsewhere is shown without what could forge a line, steer a terminal or fill a log."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluidfast.texts import UNSAFE, describe, error_text, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain-id_1", "plain-id_1"),
        ("Grüße, 世界 🎉", "Grüße, 世界 🎉"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("abc\u202edef", "abc\\u202edef"),
        ("half \ud800", "half \\ud800"),
        ("line\u2028end", "line\\u2028end"),
        ("nul\0", "nul\\x00"),
    ],
)
def test_unsafe_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert printable("x" * 1_000_000, 10) == "xxxxxxxxxx... (1,000,000 characters)"


def test_line_ends_may_be_kept() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@given(st.text(), st.integers(1, 50))
def test_whatever_comes_is_safe_and_short(text: str, limit: int) -> None:
    shown = printable(text, limit)
    shown.encode()
    assert not {unicodedata.category(character) for character in shown} & UNSAFE
    assert len(shown) <= limit + len(f"... ({len(text):,} characters)")


class BrokenText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class NotText(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("exc", "shown"),
    [
        (ValueError("too small"), "ValueError: too small"),
        (KeyError(), "KeyError"),
        (ValueError("a\x1b\nb"), "ValueError: a\\x1b\\nb"),
        (BrokenText(), "BrokenText: <its text is not available: __str__ raised ValueError>"),
        (NotText(), "NotText: <its text is not available: __str__ raised TypeError>"),
    ],
)
def test_any_exception_is_described(exc: BaseException, shown: str) -> None:
    assert describe(exc) == shown


def test_a_long_error_is_cut() -> None:
    assert error_text(ValueError("x" * 5_000_000), 100) == "x" * 100 + "... (5,000,000 characters)"
