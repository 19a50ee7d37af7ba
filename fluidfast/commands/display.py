"""Output of the commands: progress on a terminal, tables that fit, errors that are one line."""

import sys
from collections.abc import Iterable, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..texts import MAX_ERROR, error_text, printable

if TYPE_CHECKING:  # the process of a CPU-bound run shows nothing, and starts sooner without it
    from rich.console import Console

__all__ = ["Progress", "one_line", "print_pairs", "print_table", "ranges"]

SECONDS_BETWEEN = 0.1
"""Least time between two drawings of a bar."""


NAME_WIDTH = 24
"""Columns that a name takes in a table, at most."""


def console() -> "Console":
    """The terminal, or the file or pipe that stdout is: 80 columns wide then, unless COLUMNS says otherwise."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise

    return Screen(highlight=False, markup=False, emoji=False)


class Progress:
    """A bar on stderr if that is a terminal, nothing otherwise. ``total`` 0: how much there is is not known.

    As a context manager it takes the bar away at the end, also if that is an error or Ctrl-C.
    """

    def __init__(self, label: str, total: int = 0) -> None:
        self.started = self.shown = monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._begin(label, total)

    def _begin(self, label: str, total: int) -> None:
        from rich import progress
        from rich.console import Console

        columns: list[progress.ProgressColumn] = [progress.TextColumn(label.strip(), markup=False)]
        if total:
            columns += [progress.BarColumn(30), progress.TaskProgressColumn()]
        columns.append(progress.TextColumn("{task.fields[note]}", markup=False))
        if total:
            columns += [progress.TimeRemainingColumn(compact=True), progress.TextColumn("left")]
        self._bar = progress.Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            auto_refresh=False,  # no thread beside what is measured
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(label, total=total or None, note="")
        self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, done: int, note: str = "") -> None:
        """Draw ``done`` of the total, at most ten times a second."""
        now = monotonic()
        if self._bar is None or now - self.shown < SECONDS_BETWEEN:
            return
        self.shown = now
        self._bar.update(self._task, completed=done, note=note or f"{done:,}  {done / (now - self.started):,.0f}/s")
        self._bar.refresh()

    def clear(self) -> None:
        """Take the bar away for good."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names to the left, values to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console().print(table)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a line for each row. The last column gets what is left of the width, and the one before it at most 24."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=True)
    *others, last = headings
    for number, heading in enumerate(others):
        width = max(len(heading), *(cell_len(row[number]) for row in rows))
        if number == len(others) - 1:
            width = min(width, NAME_WIDTH)
        table.add_column(heading, no_wrap=True, width=width)
    table.add_column(last, no_wrap=True, ratio=1)
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


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
