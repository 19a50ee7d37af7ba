"""Output of the commands: a progress bar on a terminal, aligned tables, help that fits, errors that are one line."""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import Self

from ..texts import MAX_ERROR, error_text, printable

__all__ = ["HelpFormatter", "Progress", "one_line", "ranges", "table"]

WIDTH = 30


class HelpFormatter(argparse.HelpFormatter):
    """Wraps each paragraph to the terminal; examples, and lines that are indented, stay as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = []
        for paragraph in re.split(r"\n{2,}", text.strip("\n")):
            if paragraph.startswith("example") or "\n  " in paragraph:
                filled.append(textwrap.indent(paragraph, indent))
            else:
                filled.append(textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent))
        return "\n\n".join(filled)


class Progress:
    """A bar on stderr if that is a terminal, nothing otherwise. ``total`` 0: how much there is is not known.

    As a context manager it takes the bar away at the end, also if that is an error or Ctrl-C.
    """

    def __init__(self, label: str, total: int = 0) -> None:
        self.label, self.total = label, total
        self.started = self.shown = monotonic()
        self.visible = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, done: int, note: str = "") -> None:
        """Draw ``done`` of the total, at most ten times a second."""
        now = monotonic()
        if not self.visible or now - self.shown < 0.1:
            return
        self.shown = now
        filled = min(WIDTH, WIDTH * done // self.total) if self.total else 0
        bar = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {100 * done // self.total:3d} %  " if self.total else ""
        note = note or f"{done:,}  {done / (now - self.started):,.0f}/s"
        sys.stderr.write(f"\r\x1b[K{self.label}  {bar}{note}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self.visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names to the left, values to the right."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}   {value}".rstrip() for name, value in rows)


def one_line(error: BaseException | str, limit: int = MAX_ERROR) -> str:
    """Return a text, or that of an error, as one line without control characters, cut to ``limit`` characters."""
    try:
        text = str(error) or type(error).__name__
    except Exception:
        text = error_text(error) if isinstance(error, BaseException) else ""
    return printable("".join(c if c.isprintable() else " " for c in " ".join(text.split())), limit)


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Rising numbers as text: ``3-5, 9``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in spans[:most]]
    return ", ".join(texts) + (", ..." if len(spans) > most else "")
