"""The whole campaign, from one command: the long form of each row, and the table of its figures at the end.

    python tests/faults/campaign.py                    about 30 minutes, with a seed at random
    python tests/faults/campaign.py --seeds 7 8        once with each
    python tests/faults/campaign.py --rows 2 14        some rows only

Rows whose figures are those of a machine that has nothing else to do run first and alone. The others run in lanes
beside each other: the one that takes longest, those that are busy all the time, and those that mostly wait. A lane is a
pytest of its own, whose output is shown with the lane's name before each line; all report to ``RESULTS.md``. Row 14
needs a Python with aio-fluid (``FLUIDFAST_AIO_PYTHON``), or one of 3.12 or newer to make it an environment.

Exit code: 0 if all passed, 1 if not, 130 after Ctrl-C, which ends the lanes; what has been measured is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import results

HERE = Path(__file__).parent
PHASES: tuple[dict[str, tuple[int, ...]], ...] = (
    {"alone": (10, 12)},
    {"kills": (1,), "busy": (2, 3, 4, 5, 8, 9, 15, 22), "waiting": (6, 7, 11, 13, 14, 16, *range(17, 22), 23, 24)},
)
"""One after the other; the lanes of each at the same time. Rows by lane."""
ROWS = sorted(row for lanes in PHASES for rows in lanes.values() for row in rows)
END_SECONDS = 60.0
"""For what a lane has to put away when it is interrupted."""


def command(rows: list[int], seed: int) -> list[str]:
    """The pytest of a lane."""
    files = [str(path) for row in rows for path in sorted(HERE.glob(f"test_{row}_*.py"))]
    options = ["-m", "soak", "--faults-report", "--fault-seed", str(seed)]
    options += ["-v", "-rs", "-n", "0", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *options, *files]


def run_lanes(commands: dict[str, list[str]]) -> dict[str, int]:
    """Run commands beside each other, by the names of their lanes. Gives their exit codes. None is left, whatever
    happens."""
    # sessions of their own: a terminal's Ctrl-C is for us, who hand it on, once
    lanes = {
        name: subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", cwd=HERE.parents[1], env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )
        for name, command in commands.items()
    }  # fmt: skip
    readers = [threading.Thread(target=show, args=lane) for lane in lanes.items()]
    for reader in readers:
        reader.start()
    try:
        return {name: process.wait() for name, process in lanes.items()}
    finally:
        end(list(lanes.values()))
        for reader in readers:
            reader.join()


def show(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            print(f"{name:<8}| {line}", end="", flush=True)


def end(processes: list[subprocess.Popen[str]]) -> None:
    """Interrupt them; what is still there after a while, or another Ctrl-C, is killed with all that it started."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    try:
        for process in processes:
            process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def campaign(rows: list[int], seed: int) -> bool:
    """Whether all passed."""
    print(f"seed {seed}: rows {', '.join(map(str, rows))}", flush=True)
    passed = True
    for phase in PHASES:
        chosen = {name: [row for row in rows if row in lane] for name, lane in phase.items()}
        codes = run_lanes({name: command(lane, seed) for name, lane in chosen.items() if lane})
        passed &= not any(codes.values())
        for name, code in codes.items():
            print(f"{name}: exit code {code}", flush=True)
    return passed


def report(rows: list[int], seeds: list[int]) -> None:
    """Print the table of what was measured, and name what was not."""
    lines = [
        line
        for line in json.loads((HERE / "results.json").read_text())
        if line["form"] == "long" and line["row"] in rows and line["seed"] in seeds
    ]
    print(results.table(lines))
    for seed in seeds:
        if missing := sorted(set(rows) - {line["row"] for line in lines if line["seed"] == seed}):
            print(f"seed {seed}: no figures of rows {', '.join(map(str, missing))}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="campaign.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="one campaign each (default: one, at random)")
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=ROWS, metavar="N", help="default: all")
    options = parser.parse_args(arguments)
    seeds = options.seeds or [random.SystemRandom().randrange(1, 1_000_000)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also where they came ignored, as with nohup and &
        signal.signal(number, signal.default_int_handler)
    try:
        passed = [campaign(options.rows, seed) for seed in seeds]
    except KeyboardInterrupt:
        return 130
    report(options.rows, seeds)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
