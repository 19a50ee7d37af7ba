"""RESULTS.md and results.svg, from the numbers of one comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import plot
from .aims import AIM_HEAD, aims
from .results import OURS, REFERENCE, Results, number, ratio, spread, table, times

SIDE_HEAD = (
    "library", "version", "Python", "delivery", "queue one by one /s", "1000 at once /s", "its call for many /s",
    "one worker runs /s", "against aio-fluid", "idle pick-up p50 / p99 ms", "bytes a task",
    "commands a task in + out", "idle commands/s, sent + in scripts", "lost / twice",
)  # fmt: skip


def side_by_side(results: Results) -> list[str]:
    reference = results.get(REFERENCE, "drain")
    rows = []
    for subject in (OURS, REFERENCE, *results.peers):
        about = results.about(subject)
        if not about:
            rows.append([subject, *["-"] * 3, f"failed: {results.why(subject, 'drain')}", *["-"] * 9])
            continue

        def rate(piece: str, subject: str = subject) -> str:
            values = results.values(subject, piece)
            if values:
                return spread(values)
            why = results.why(subject, piece)
            return f"failed: {why}" if why else "-"

        latency = [results.get(subject, "latency", name) for name in ("p50_ms", "p99_ms")]
        idle = [results.get(subject, "idle", f"idle_commands_{name}per_second") for name in ("", "in_scripts_")]
        why = results.why(subject, "latency")
        commands = [results.get(subject, "drain", f"commands_per_task_{way}") for way in ("in", "out")]
        counts = [sum(map(int, results.values(subject, "drain", name))) for name in ("lost", "duplicated")]
        drained = results.values(subject, "drain")
        rows.append(
            [
                subject,
                about["version"],
                about["python"],
                about["guarantee"],
                rate("one"),
                rate("gather"),
                rate("many" if subject == OURS else "bulk"),
                rate("drain"),
                times(results.get(subject, "drain"), reference),
                f"{number(latency[0])} / {number(latency[1])}" if latency[0] else (f"failed: {why}" if why else "-"),
                number(results.get(subject, "drain", "bytes_per_task")),
                " + ".join(map(number, commands)) if drained else "-",
                f"{number(idle[0])} + {number(idle[1])}" if idle[0] is not None else "-",
                " / ".join(map(str, counts)) if drained else "-",
            ]
        )
    return table(SIDE_HEAD, rows)


LIMITS = (
    ("lpush_1000_values", "LPUSH of 1000 values a command, values/s"),
    ("lpush_pipelined_100", "LPUSH of one value, pipelined by 100, /s"),
    ("lpush_pipelined_1000", "LPUSH of one value, pipelined by 1000, /s"),
    ("rpop_100_values", "RPOP of 100 a command, pipelined, values/s"),
    ("round_trips_ping", "round trips of PING, uvloop Protocol, /s"),
    ("round_trips_ping_asyncio", "round trips of PING, asyncio Protocol, /s"),
    ("round_trips_lpush", "round trips of LPUSH of one value, uvloop Protocol, /s"),
    ("round_trips_lpush_awake", "the same by an event loop that never sleeps, /s"),
    (
        "round_trips_once_awake",
        "... with the mark that makes it once however often it is sent (MULTI, SET, LPUSH, EXEC), /s",
    ),
    ("round_trips_once_busy", "... by a program that has 10 us of other work between two of them, /s"),
)

DETAILS = (
    ("one", "`await queue()` in a loop"),
    ("buffered", 'the same with `delivery="buffered"`, flushed'),
    ("gather", "1000 concurrent `queue()`"),
    ("many", "`queue_many`, JSON"),
    ("many msgpack", "`queue_many`, MessagePack"),
    ("drain", "one worker runs, params a msgspec.Struct"),
    ("drain mapping", "one worker runs, params a mapping"),
    ("drain pydantic", "one worker runs, params a pydantic model"),
    ("e2e", "queue and run at the same time"),
    ("memory one", "memory://, `await queue()` in a loop"),
    ("memory many", "memory://, `queue_many`"),
    ("memory e2e", "memory://, queue and run"),
)


def details(results: Results) -> list[str]:
    push = results.get("limits", "limits", "lpush_1000_values")
    rows = []
    for piece, words in DETAILS:
        values = results.values(OURS, piece)
        if not values and not results.why(OURS, piece):
            continue
        memory = "-"
        for run in results.runs.get(OURS, {}).get(piece, [])[:1]:
            peak = (run.get("memory") or {}).get("peak_mb")
            memory = number(peak)
        rate = results.get(OURS, piece)
        of_limit = number(ratio(rate, push)) if not piece.startswith("memory") else "-"
        rows.append(
            [
                words,
                f"{int(results.get(OURS, piece, 'tasks') or 0):,}",
                spread(values) if values else f"failed: {results.why(OURS, piece)}",
                number(1e6 / rate) if rate else "-",
                of_limit,
                number(results.get(OURS, piece, "bytes_per_task")),
                memory,
            ]
        )
    head = ("fluidfast", "tasks", "/s", "us a task", "of LPUSH of 1000", "bytes a task", "memory MiB")
    return table(head, rows)


def extras(results: Results) -> list[str]:
    """The pieces that are made once: backlog, round trips of milliseconds, the public shapes, latency under load."""
    lines: list[str] = []
    if found := results.one(OURS, "backlog"):
        lines += ["### With tasks waiting behind", ""]
        rows = [
            [
                f"{level['waiting']:,}",
                number(level["produce_rate"]),
                number(level["drain_rate"]),
                number(level["fill_rate"]),
                number(level["bytes_per_task"]),
                number(level["producer_memory"]["peak_mb"]),
                number(level["worker_memory"]["peak_mb"]),
            ]
            for level in found["levels"]
        ]
        head = (
            "waiting", "queue_many /s", "one worker runs /s", "filled at /s", "bytes a task", "producer MiB",
            "worker MiB",
        )  # fmt: skip
        lines += table(head, rows)
    if found := results.one(OURS, "rtt"):
        lines += ["### With a server that is milliseconds away (a delaying proxy on loopback)", ""]
        rows = [
            [f"{row['delay_ms']:g}", number(row["round_trip_ms"]),
             *(number(row[name]) for name in ("one", "gather", "buffered", "many", "drain"))]
            for row in found["rows"]
        ]  # fmt: skip
        head = (
            "ms each way", "round trip ms", "one by one /s", "1000 at once /s", "buffered /s", "queue_many /s",
            "one worker runs /s",
        )  # fmt: skip
        lines += table(head, rows)
    if found := results.one(OURS, "shapes"):
        lines += ["### Public shapes", ""]
        rows = [
            [row["shape"], f"{row['tasks']:,}", number(row["queue_seconds"]), number(row["run_seconds"]),
             number(row["rate"]), f"{row['lost']} / {row['duplicated']}"]
            for row in found["rows"]
        ]  # fmt: skip
        lines += table(("", "tasks", "queued in s", "run in s", "/s", "lost / twice"), rows)
    if found := results.one(OURS, "latency under load"):
        p50, p90, p99 = (number(found[name]) for name in ("p50_ms", "p90_ms", "p99_ms"))
        lines += [
            f"Under {number(found['flood']['rate'])} other tasks/s, enqueue to start takes {p50} ms at p50, {p90} at "
            f"p90, {p99} at p99 ({found['probes']} probes).",
            "",
        ]
    for piece in ("backlog", "rtt", "shapes", "latency under load"):
        if why := results.why(OURS, piece):
            lines += [f"{piece} failed: {why}", ""]
    return lines


NOTES = """\
- The payload is `{user_id: int, email: str, amount: float, tags: [str, str]}` everywhere; the task counts its run in
  memory that the processes share, and does nothing else. Lost and twice are counts of that, over all repeats.
- One producer process, one worker process, the server on loopback without persistence; medians over the repeats,
  each of which has the limits first, then each measurement, of all libraries one after the other: ours and aio-fluid's
  within seconds. ± is half of the range. Rates of running are between the first look that saw tasks done and the last
  task; starting up is not in them.
- Each library in its fastest documented way: results not kept, no line of log a task, uvloop where it works, many
  slots, hiredis where it is redis-py. What that is for each stands in `bench/peers/NAME.py`. A `-` under "1000 at once"
  or "its call for many" is a library without asyncio, or without such a call.
- Delivery is part of a row: "at most once" loses what a dying worker held, and saves a library the acknowledging. Such
  a row is not a like for like rival of "at least once".
- Commands are counted by the server (INFO commandstats), those inside of scripts too. Bytes are used_memory's growth.
- Idle pick-up is from before the call that queues to the first line of the task, a probe at a time; most pauses are 5
  to 30 ms, every 25th is 1.1 s. aio-fluid sleeps a second after each second without a task unless it is configured not
  to, as here.
- The cores are shared with whatever else runs on the machine: compare within a table, not between two.
"""


def markdown(results: Results) -> str:
    data = results.data
    machine = data["machine"]
    value_bytes = results.get("limits", "limits", "value_bytes")
    limits = [[words, spread(results.values("limits", "limits", name))] for name, words in LIMITS]
    lines = [
        "# Results",
        "",
        f"`{data['command']}`, {data['date']}, {data['seconds'] / 60:.1f} minutes, {data['repeats']} repeats"
        + (", quick sizes" if data["quick"] else "")
        + ".",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        "![rates of queueing and running](results.svg)",
        "",
        "## Aims",
        "",
        *table(AIM_HEAD, [aim.cells for aim in aims(results)]),
        "## Side by side",
        "",
        *side_by_side(results),
        "## Limits of this machine in this run",
        "",
        f"Prebuilt bytes over one raw connection, no library in between; values of {number(value_bytes)} bytes.",
        "",
        *table(("", "median"), limits),
        "## fluidfast in detail",
        "",
        *details(results),
        *extras(results),
    ]
    if data.get("micro"):
        lines += ["## Compiled modules against their baselines", "", *micro_table(data["micro"])]
    failed = [
        f"- {subject}{': ' + piece if piece else ''}: {why}"
        for subject, pieces in results.failures.items()
        for piece, why in pieces.items()
    ]
    if failed:
        lines += ["## What could not be measured", "", *failed, ""]
    return "\n".join([*lines, "## How", "", NOTES])


def draw(results: Results, path: Path) -> None:
    """The plot: queueing one by one, queueing many, running."""

    def kind(subject: str) -> str:
        if subject == OURS:
            return "ours"
        if subject == REFERENCE:
            return "reference"
        return "lossy" if results.about(subject).get("guarantee") == "at most once" else "peer"

    def bar_list(choices: dict[str, Sequence[str]], default: Sequence[str]) -> list[plot.Bar]:
        found = []
        for subject in (OURS, REFERENCE, *results.peers):
            rates = [value for piece in choices.get(subject, default) if (value := results.get(subject, piece))]
            if rates:
                found.append(plot.Bar(subject, max(rates), kind(subject)))
        return found

    round_trips, push, pop = (
        results.get("limits", "limits", name)
        for name in ("round_trips_lpush_awake", "lpush_1000_values", "rpop_100_values")
    )
    panels = [
        plot.Panel(
            "Queue one by one", "tasks a second, each call done before the next",
            bar_list({}, ("one",)), round_trips, "raw round trips",
        ),
        plot.Panel(
            "Queue many", "tasks a second, each library's fastest way",
            bar_list({OURS: ("many",)}, ("bulk", "gather", "one")), push, "prebuilt bytes, raw socket",
        ),
        plot.Panel(
            "Run", "no-op tasks a second, one worker process",
            bar_list({}, ("drain",)), pop, "RPOP by 100, raw socket",
        ),
    ]  # fmt: skip
    panels = [panel for panel in panels if panel.bars]
    if panels:
        machine = results.data["machine"]
        server = f"{machine['server']} on loopback, {machine['cores']} shared cores"
        words = f"{server}; logarithmic scale; aio-fluid delivers at most once"
        plot.bars("Tasks a second, same payload, same server", words, panels, path)


def micro_table(groups: Sequence[dict[str, Any]]) -> list[str]:
    def duration(seconds: float) -> str:
        for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
            if seconds * factor >= 1:
                return f"{number(seconds * factor)} {unit}"
        return f"{number(seconds * 1e9)} ns"

    rows = [
        [group["file"], group["group"], duration(group["ours"]["seconds"]), row["name"], duration(row["seconds"]),
         times(row["faster"], 1.0)]
        for group in groups
        for row in group["baselines"]
    ]  # fmt: skip
    return table(("module", "case", "fluidfast", "baseline", "takes", "faster"), rows)
