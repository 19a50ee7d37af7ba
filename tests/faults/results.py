"""The page of results: figures are kept in ``results.json`` by row, form and scenario, and ``RESULTS.md`` is written
out of it and of ``NOTES.md``, which is written by hand."""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEAD = """\
# What the fault campaign measured

Written by `python tests/faults/campaign.py`, or `pytest tests/faults -m soak --faults-report` (without `-m soak`: the
short forms).
Each line is a run: of a scenario's long form the newest two that had different seeds, of its short form the newest one.
The seed repeats it (`--fault-seed N`), as far as real processes repeat; the commit is what was measured.
Rows are those of the list of faults; what the words of the oracle mean stands in `fluidfast/commands/trials/ledger.py`.
"""
KEPT = {"long": 2, "short": 1}
"""Runs of a scenario, by form."""


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


def write_results(
    data: Path, page: Path, lines: list[dict[str, Any]], *, machine: str, commit: str = ""
) -> list[dict[str, Any]]:
    """Put new lines before the older ones of the same scenario, and write the page. Gives the new ones.

    Under a lock: of two that report at the same time, none loses what the other wrote.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    new = [{**line, "at": now, "machine": machine, "commit": commit} for line in lines]
    with data.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        ordered = merge(json.loads(file.read() or "[]"), new)
        file.truncate(0)
        file.write("[\n" + ",\n".join(json.dumps(line) for line in ordered) + "\n]\n")
        page.write_text(render(ordered, data.with_name("NOTES.md")))
    return new


def merge(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each scenario's runs that are kept, the newest first. The same seed again replaces what it gave before."""
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in (*known[::-1], *new):  # the oldest of a scenario first
        older = [run for run in runs.get(key(line), []) if run["seed"] != line["seed"]]
        runs[key(line)] = [line, *older][: KEPT[line["form"]]]
    scenarios = sorted(runs, key=lambda scenario: (scenario[1] != "long", scenario))
    return [run for scenario in scenarios for run in runs[scenario]]


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["row"], line["form"], line["what"]


def render(lines: list[dict[str, Any]], notes: Path) -> str:
    parts = [HEAD]
    for form in KEPT:
        chosen = [line for line in lines if line["form"] == form]
        parts += [f"\n## {form.capitalize()} form\n\n", table(chosen)] if chosen else []
    machines = sorted({line["machine"] for line in lines})
    parts.append("\nMachine: " + "; ".join(machines) + "\n")
    if notes.exists():
        parts.append("\n" + notes.read_text())
    return "".join(parts)


def table(lines: list[dict[str, Any]]) -> str:
    """One run a line; a scenario's second has no name of its own."""
    rows = ["| row | scenario | figures | seed | took | when | commit |\n|---|---|---|---|---|---|---|\n"]
    above = None
    for line in lines:
        name = f"| {line['row']} | {line['what']} |" if key(line) != above else "| | |"
        above = key(line)
        values = ", ".join(f"{name.replace('_', ' ')} {show(value)}" for name, value in line["values"].items())
        rows.append(
            f"{name} {values} | {line['seed']} | {line['took']} s | {line['at']} | {line.get('commit') or '-'} |\n"
        )
    return "".join(rows)


def commit_of(root: Path, *written: str) -> str:
    """The commit that is checked out, short, with "-dirty" if a file that git knows is not as it is there, other than
    those that we write (paths below ``root``). Empty where git, or a clone, is not."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        excluded = [f":(exclude){path}" for path in written]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
