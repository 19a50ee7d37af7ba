"""The numbers of one ``compare``, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

OURS, REFERENCE = "fluidfast", "aio-fluid"


class Results:
    """The numbers of one comparison, by subject ("fluidfast", "blitzq fast") and piece ("one", "drain")."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.runs: dict[str, dict[str, list[dict[str, Any]]]] = data["runs"]
        self.failures: dict[str, dict[str, str]] = data["failures"]

    def values(self, subject: str, piece: str, name: str = "rate") -> list[float]:
        found = [run.get(name) for run in self.runs.get(subject, {}).get(piece, [])]
        return [value for value in found if value is not None]

    def get(self, subject: str, piece: str, name: str = "rate") -> float | None:
        """The median over the repeats, or None if it was not measured."""
        found = self.values(subject, piece, name)
        return median(found) if found else None

    def one(self, subject: str, piece: str) -> dict[str, Any] | None:
        """The first run of a piece that is made once."""
        found = self.runs.get(subject, {}).get(piece)
        return found[0] if found else None

    def why(self, subject: str, piece: str) -> str | None:
        """Why there is no number."""
        failed = self.failures.get(subject, {})
        return failed.get(piece) or failed.get("")

    def about(self, subject: str) -> dict[str, Any]:
        for runs in self.runs.get(subject, {}).values():
            for run in runs:
                if "version" in run:
                    return run
        return {}

    @property
    def peers(self) -> list[str]:
        """The subjects beside ours and aio-fluid."""
        known = {**self.runs, **self.failures}
        return [name for name in self.data["subjects"] if name in known and name not in (OURS, REFERENCE, "limits")]

    def best(self, pieces: Sequence[str], keeps: bool = False) -> tuple[str, float] | None:
        """The peer with the highest rate in one of the pieces. ``keeps``: of those that deliver at least once."""
        found = [
            (subject, value)
            for subject in self.peers
            for piece in pieces
            if (value := self.get(subject, piece)) is not None
            and not (keeps and self.about(subject).get("guarantee") == "at most once")
        ]
        return max(found, key=lambda pair: pair[1]) if found else None

    def problems(self) -> list[str]:
        """What of ours failed, or lost tasks."""
        found = [f"{piece or OURS}: {why}" for piece, why in self.failures.get(OURS, {}).items()]
        for piece, runs in self.runs.get(OURS, {}).items():
            lost = sum(run.get("lost") or 0 for run in runs)
            if lost:
                found.append(f"{piece}: {lost} tasks were lost")
        return found


# --- how numbers are written ----------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """The median, and half of the range in percent of it."""
    if not values:
        return "-"
    middle = median(values)
    if len(values) < 2 or not middle:
        return number(middle)
    return f"{number(middle)} ±{(max(values) - min(values)) / 2 / middle * 100:.0f} %"


def times(value: float | None, base: float | None) -> str:
    return "-" if not value or not base else f"{number(value / base)}x"


def ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows), ""]
