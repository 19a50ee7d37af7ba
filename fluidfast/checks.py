"""One check for every option that takes a number: its kind, its range, and an error that names both."""

import math
import reprlib
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

__all__ = [
    "CENTURY",
    "LEASE_SECONDS",
    "MAX_CONCURRENT",
    "MAX_COUNT",
    "PAYLOAD_BYTES",
    "check_number",
    "read_number",
    "shown",
]

CENTURY = 100 * 365 * 86400.0
"""Seconds; the longest finite time that an option may name. Every clock, timer and server counts that far."""

MAX_COUNT = 10**9
"""The most of anything that is counted: attempts, runs at the same time."""
ENQUEUE_TIMEOUT: dict[str, Any] = {"above": True, "infinite": True}
"""Range of ``enqueue_timeout``."""
LEASE_SECONDS: dict[str, Any] = {"least": 0.001}
"""Range of ``lease_seconds``."""
PAYLOAD_BYTES: dict[str, Any] = {"least": 1, "most": 512 << 20, "whole": True}
"""Range of ``max_payload_bytes``; the most is what a server takes in one value."""
MAX_CONCURRENT: dict[str, Any] = {"most": 1_000_000, "whole": True}
"""Range of ``max_concurrent_tasks``."""


def check_number(
    option: str,
    value: Any,
    error: type[Exception],
    *,
    least: float = 0,
    most: float = CENTURY,
    above: bool = False,
    whole: bool = False,
    infinite: bool = False,
    text: str | None = None,
) -> Any:
    """Return ``value`` as an int or a float if it is a number from ``least`` to ``most``.

    ``above``: it must be above ``least``. ``whole``: it must be a whole number. ``infinite``: it may also be
    ``math.inf``. ``text``: what the value was read from. A bool is not a number here, nor is text, nor NaN.

    Raises:
        error: anything else was given; its text names ``option`` and the range.
    """
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if is_number:
        in_range = (value > least if above else value >= least) and value <= most
        if in_range or (infinite and value == math.inf):
            if whole:
                return int(value)
            return value if isinstance(value, int | float) else float(value)
    kind = "" if is_number else "a whole number, " if whole else "a number, "
    wanted = f"{kind}{'above' if above else 'at least'} {least:,g}"
    if most < math.inf:
        wanted += f" and at most {most:,.0f}"
        if infinite:
            wanted += ", or math.inf"
    given = f"{option} is {shown(value)}, it" if text is None else f"{option}={shown(text)}"
    raise error(f"{given} must be {wanted}")


def read_number(option: str, text: str, error: type[Exception], **ranges: Any) -> Any:
    """``check_number`` of a number that is written as text: in a URL, in the environment, on a command line."""
    value: Any = text
    with suppress(ValueError):
        value = int(text) if ranges.get("whole") else float(text)
    return check_number(option, value, error, text=text, **ranges)


def shown(value: object) -> str:
    """Return the repr of a value that somebody gave, cut short; control characters are escaped."""
    try:
        return reprlib.repr(value)
    except Exception:  # an integer of thousands of digits has no text
        return f"{type(value).__name__} that cannot be shown"
