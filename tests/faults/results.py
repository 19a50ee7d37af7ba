"""The page of results: figures are kept in ``results.json`` by row, form and scenario, the newest of each, and
``RESULTS.md`` is written out of it and of ``NOTES.md``, which is written by hand."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEAD = """\
# What the fault campaign measured

Written by `pytest tests/faults -m soak --faults-report` (and without `-m soak` for the short forms).
Each line is the newest run of its scenario; the seed repeats it (`--fault-seed N`), as far as real processes repeat.
Rows are those of the list of faults; what the words of the oracle mean stands in `fluidfast/commands/ledger.py`.
"""


class Figures:
    """What the scenarios measured: ``figures.add(row, what, name=value, ...)``, one line of the table a call."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.lines: list[dict[str, Any]] = []
        self.form = "short"
        self.began = 0.0

    def add(self, row: int, what: str, **values: Any) -> None:
        """``row``: of faults.md; ``what``: the scenario in a few words; values: numbers or short texts."""
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
        line = {
            "row": row,
            "form": self.form,
            "what": what,
            "seed": self.seed,
            "took": round(time.monotonic() - self.began, 1),
            "values": rounded,
        }
        self.lines.append(line)
        print(f"figures: row {row} ({self.form}) {what}: {rounded}")


def write_results(data: Path, page: Path, lines: list[dict[str, Any]], machine: str) -> None:
    """Put new lines over the old ones of the same scenario, and write the page."""
    known = {key(line): line for line in (json.loads(data.read_text()) if data.exists() else [])}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    for line in lines:
        known[key(line)] = {**line, "at": now, "machine": machine}
    ordered = sorted(known.values(), key=lambda line: (line["form"] != "long", line["row"], line["what"]))
    data.write_text("[\n" + ",\n".join(json.dumps(line) for line in ordered) + "\n]\n")
    page.write_text(render(ordered, data.with_name("NOTES.md")))


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["row"], line["form"], line["what"]


def render(lines: list[dict[str, Any]], notes: Path) -> str:
    parts = [HEAD]
    for form in ("long", "short"):
        chosen = [line for line in lines if line["form"] == form]
        if not chosen:
            continue
        parts.append(
            f"\n## {form.capitalize()} form\n\n"
            "| row | scenario | figures | seed | took | when |\n|---|---|---|---|---|---|\n"
        )
        for line in chosen:
            values = ", ".join(f"{name.replace('_', ' ')} {show(value)}" for name, value in line["values"].items())
            took = f"{line['took']} s"
            parts.append(f"| {line['row']} | {line['what']} | {values} | {line['seed']} | {took} | {line['at']} |\n")
    machines = sorted({line["machine"] for line in lines})
    parts.append("\nMachine: " + "; ".join(machines) + "\n")
    if notes.exists():
        parts.append("\n" + notes.read_text())
    return "".join(parts)


def show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
