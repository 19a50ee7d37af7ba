"""The command line of ``bench.day``."""

import argparse
import importlib
import inspect
import os
import pkgutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common import ROOT, BenchError, Child, begin
from ..driver import report, run
from ..load import broker
from . import Found, Way
from . import __doc__ as about
from . import __path__ as here

WAY_SECONDS = 600.0


def rows() -> list[str]:
    """The modules of this package that are rows."""
    return sorted(one.name for one in pkgutil.iter_modules(here) if not one.name.startswith("_"))


def load(row: str) -> Any:
    return importlib.import_module(f"{__package__}.{row}")


@contextmanager
def path_of(checkout: str) -> Iterator[dict[str, str]]:
    """What makes a process import ``bench`` from here, and ``fluidfast`` from another checkout ("": from here)."""
    if not checkout:
        yield {"PYTHONPATH": str(ROOT)}
        return
    other = Path(checkout).resolve()
    if not (other / "fluidfast").is_dir():
        raise BenchError(f"--before {checkout}: there is no fluidfast in it")
    with tempfile.TemporaryDirectory(prefix="fluidfast-bench-") as folder:
        for name in ("bench", "tests"):
            (Path(folder) / name).symlink_to(ROOT / name)
        yield {"PYTHONPATH": os.pathsep.join([folder, str(other)])}


def found_by(row: str, table: str, way: str, url: str, tasks: int, checkout: str) -> Found:
    """Have a process of its own measure a way."""
    with path_of(checkout) as environment:
        command = [sys.executable, "-P", "-m", __package__, row, "--way", table, way, "--broker", url]
        with Child([*command, "--tasks", str(tasks)], environment) as child:
            return child.result(WAY_SECONDS)


def measure_way(row: str, table: str, way: str, url: str, tasks: int) -> Found:
    """Measure a way, in this process."""

    async def called(function: Way) -> Found:
        found = function(url, tasks)
        return await found if inspect.isawaitable(found) else found

    return run(called(load(row).TABLES[table][way]))


def measure(row: str, tasks: int, rounds: int, before: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure each way of a row once a round, each on a name of its own on the server."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for title, ways in load(row).TABLES.items():
        columns = [(name, name, "") for name in ways]
        if before:
            columns = [one for name in ways for one in ((name, name, ""), (f"{name}, before", name, before))]
        found: dict[str, list[Found]] = {name: [] for name, _, _ in columns}
        failed: dict[str, str] = {}
        for _ in range(rounds):
            for name, way, checkout in columns:
                if name in failed:
                    continue
                try:
                    with broker(options) as url:
                        found[name].append(found_by(row, title, way, url, tasks, checkout))
                except BenchError as exc:
                    failed[name] = str(exc)
        tables[title] = [
            {"way": name, "failed": failed[name]} if name in failed else {"way": name, **summed_up(found, name)}
            for name, _, _ in columns
        ]
    return {"mode": "day", "row": row, "tasks": tasks, "rounds": rounds, "tables": tables}


def summed_up(found: dict[str, list[Found]], name: str) -> dict[str, Any]:
    """The medians of a way, and its ratios to the first."""
    base, *_ = found.values()
    figures: dict[str, Any] = {}
    for figure in found[name][0]:
        values = [one[figure] for one in found[name]]
        if None in values:
            figures[figure] = None
            continue
        pairs = [(a, b[figure]) for a, b in zip(values, base, strict=False) if b[figure]]
        ratio = statistics.median(a / b for a, b in pairs) if pairs else None  # type: ignore[operator]
        figures[figure] = {"median": statistics.median(values), "ratio": ratio}  # type: ignore[type-var]
    return {"figures": figures}


def show(found: dict[str, Any]) -> None:
    for title, ways in found["tables"].items():
        names = next((list(one["figures"]) for one in ways if "figures" in one), [])
        print(f"\n{title[:42]:<42}" + "".join(f"{name:>16}{'ratio':>8}" for name in names))
        for one in ways:
            line = f"{one['way'][:42]:<42}"
            for name in names if "figures" in one else ():
                figure = one["figures"][name] or {"median": None, "ratio": None}
                line += f"{shown(figure['median'], ',.1f'):>16}{shown(figure['ratio'], '.2f'):>8}"
            print(line + (f"  {one['failed']}" if "failed" in one else ""))


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.day", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", nargs="?", choices=rows())
    parser.add_argument("--broker", default="", help="URL; none: a server is started for each measurement")
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", default="", metavar="CHECKOUT", help="measure its fluidfast beside this one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    parser.set_defaults(wire="json")
    options = parser.parse_args()

    def call() -> dict[str, Any] | None:
        if options.row is None:
            for name in rows():
                print(f"{name:<20}{(load(name).__doc__ or '').strip().splitlines()[0]}")
            return None
        if options.way:
            return measure_way(options.row, *options.way, options.broker, options.tasks)
        begin()
        tasks = options.tasks or load(options.row).TASKS
        found = measure(options.row, tasks, options.rounds, options.before, options)
        if options.json:
            return found
        show(found)
        return None

    sys.exit(report(call, plain=not (options.json or options.way)))


if __name__ == "__main__":
    main()
