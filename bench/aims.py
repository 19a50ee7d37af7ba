"""The aims of the design (performance.md), each judged by the medians of one comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .results import OURS, REFERENCE, Results, number, ratio, spread


@dataclass
class Check:
    """One condition: what is asked, what was found, whether that is enough (None: one of the numbers is missing)."""

    asked: str
    found: str
    met: bool | None


def at_least(asked: str, value: float | None, bound: float, unit: str = "") -> Check:
    return Check(asked, f"{number(value)}{unit}", None if value is None else value >= bound)


def at_most(asked: str, value: float | None, bound: float, unit: str = "") -> Check:
    return Check(asked, f"{number(value)}{unit}", None if value is None else value <= bound)


@dataclass
class Aim:
    """A row of the aims of performance.md."""

    name: str
    ours: str
    least: list[Check]
    aim: list[Check]
    reference: str = "-"
    peer: str = "-"
    limit: str = "-"

    def verdict(self, checks: list[Check]) -> str:
        missed = [f"{check.found} ({check.asked})" for check in checks if check.met is False]
        unknown = [check.asked for check in checks if check.met is None]
        words = [f"**no**: {', '.join(missed)}"] if missed else []
        if unknown:
            words.append(f"not measured: {', '.join(unknown)}")
        return "; ".join(words) or ("yes" if checks else "-")

    @property
    def cells(self) -> list[str]:
        return [
            self.name,
            ", ".join(check.asked for check in self.least),
            ", ".join(check.asked for check in self.aim) or "-",
            self.ours,
            self.reference,
            self.peer,
            self.limit,
            self.verdict(self.least),
            self.verdict(self.aim),
        ]


AIM_HEAD = ("", "at least", "aim", "fluidfast", "aio-fluid", "best peer", "limit", "at least met", "aim met")


def aims(results: Results) -> list[Aim]:
    """Every row of "Aims", judged by the medians of this run."""
    get = results.get
    push, pop = get("limits", "limits", "lpush_1000_values"), get("limits", "limits", "rpop_100_values")
    trips = max((t for n in ("", "_awake") if (t := get("limits", "limits", f"round_trips_lpush{n}"))), default=None)
    aio_one, aio_many, aio_drain = (get(REFERENCE, piece) for piece in ("one", "gather", "drain"))

    def ours(piece: str, name: str = "rate") -> str:
        values = results.values(OURS, piece, name)
        return spread(values) if values else f"failed: {results.why(OURS, piece) or 'not measured'}"

    def rival(found: tuple[str, float] | None) -> str:
        if found is None:
            return "-"
        guarantee = results.about(found[0]).get("guarantee", "?")
        return f"{number(found[1])} ({found[0]}, {guarantee})"

    def limit(value: float | None, words: str) -> str:
        return f"{number(value)} ({words})" if value else "-"

    rows = []
    best_many = results.best(("bulk", "gather", "one"))
    many = get(OURS, "many")
    rows.append(
        Aim(
            "`queue_many`, Redis, confirmed, /s",
            ours("many"),
            [
                at_least("400,000", many, 400_000),
                at_least("80x aio-fluid", ratio(many, aio_many), 80, "x"),
                at_least("5x best peer", ratio(many, best_many[1] if best_many else None), 5, "x"),
            ],
            [at_least("1,000,000", many, 1e6), at_least("0.5 of the limit", ratio(many, push), 0.5)],
            number(aio_many),
            rival(best_many),
            limit(push, "LPUSH of 1000"),
        )
    )
    one = get(OURS, "one")
    rows.append(
        Aim(
            "`await queue()` in a loop, Redis, confirmed each, /s",
            ours("one"),
            [at_least("5x aio-fluid", ratio(one, aio_one), 5, "x")],
            [at_least("0.5 of the raw round trips", ratio(one, trips), 0.5)],
            number(aio_one),
            rival(results.best(("one",))),
            limit(trips, "raw round trips"),
        )
    )
    buffered = get(OURS, "buffered")
    rows.append(
        Aim(
            'the same loop with `delivery="buffered"`, /s',
            ours("buffered"),
            [at_least("60x aio-fluid", ratio(buffered, aio_one), 60, "x")],
            [at_least("1,000,000", buffered, 1e6), at_least("0.5 of the limit", ratio(buffered, push), 0.5)],
            number(aio_one),
            rival(results.best(("one",))),
            limit(push, "LPUSH of 1000"),
        )
    )
    gather = get(OURS, "gather")
    rows.append(
        Aim(
            "1000 concurrent `queue()`, confirmed, /s",
            ours("gather"),
            [at_least("40x aio-fluid", ratio(gather, aio_many), 40, "x")],
            [at_least("250,000", gather, 250_000)],
            number(aio_many),
            rival(results.best(("gather",))),
            limit(push, "LPUSH of 1000"),
        )
    )
    keeper, fastest = results.best(("drain",), keeps=True), results.best(("drain",))
    drain = get(OURS, "drain")
    rivals = rival(keeper) if keeper == fastest else f"{rival(keeper)}; {rival(fastest)}"
    rows.append(
        Aim(
            "one worker drains no-ops, at least once, settled, /s",
            ours("drain"),
            [
                at_least("70,000", drain, 70_000),
                at_least("100x aio-fluid", ratio(drain, aio_drain), 100, "x"),
                at_least("2x the best peer that does not lose", ratio(drain, keeper[1] if keeper else None), 2, "x"),
            ],
            [at_least("150,000", drain, 150_000)],
            f"{number(aio_drain)} (at most once)",
            rivals,
            limit(pop, "RPOP of 100"),
        )
    )
    pydantic = get(OURS, "drain pydantic")
    rows.append(
        Aim(
            "the same with pydantic params, /s",
            ours("drain pydantic"),
            [at_least("40x aio-fluid", ratio(pydantic, aio_drain), 40, "x")],
            [at_least("80,000", pydantic, 80_000)],
            f"{number(aio_drain)} (at most once)",
            "-",
            limit(pop, "RPOP of 100"),
        )
    )
    p50, p99 = (get(OURS, "latency", name) for name in ("p50_ms", "p99_ms"))
    idle = get(OURS, "idle", "idle_commands_per_second")
    quick = [(subject, value) for subject in results.peers if (value := get(subject, "latency", "p50_ms")) is not None]
    quickest = min(quick, key=lambda pair: pair[1]) if quick else None

    def pickup(subject: str) -> str:
        found = [get(subject, "latency", name) for name in ("p50_ms", "p99_ms")]
        found.append(get(subject, "idle", "idle_commands_per_second"))
        if found[0] is None:
            return f"failed: {results.why(subject, 'latency') or 'not measured'}"
        return f"{number(found[0])} / {number(found[1])}; {number(found[2])}"

    rows.append(
        Aim(
            "idle pick-up, p50 / p99 ms; commands/s when idle",
            pickup(OURS),
            [
                at_most("p50 < 1", p50, 1),
                at_most("p99 < 3", p99, 3),
                at_most("idle < 2 commands/s", idle, 2),
            ],
            [at_most("p50 < 0.3", p50, 0.3), at_most("p99 < 1", p99, 1)],
            pickup(REFERENCE),
            f"{pickup(quickest[0])} ({quickest[0]})" if quickest else "-",
            f"{number(1e3 / trips)} (a round trip)" if trips else "-",
        )
    )
    json_bytes, msgpack_bytes = get(OURS, "drain", "bytes_per_task"), get(OURS, "many msgpack", "bytes_per_task")
    lightest = [
        (subject, value) for subject in results.peers if (value := get(subject, "drain", "bytes_per_task")) is not None
    ]
    light = min(lightest, key=lambda pair: pair[1]) if lightest else None
    rows.append(
        Aim(
            "bytes in Redis a task, JSON / MessagePack",
            f"{number(json_bytes)} / {number(msgpack_bytes)}",
            [at_most("230", json_bytes, 230), at_most("130", msgpack_bytes, 130)],
            [at_most("200", json_bytes, 200), at_most("110", msgpack_bytes, 110)],
            number(get(REFERENCE, "drain", "bytes_per_task")),
            f"{number(light[1])} ({light[0]})" if light else "-",
            "-",
        )
    )
    whole = get(OURS, "memory e2e")
    huey = get("huey", "local")
    rows.append(
        Aim(
            "memory://, queue and run in one process, /s",
            ours("memory e2e"),
            [at_least("150,000", whole, 150_000)],
            [at_least("400,000", whole, 400_000)],
            "-",
            f"{number(huey)} (huey in memory, none)" if huey else "-",
            "-",
        )
    )
    in_memory = get(OURS, "memory many")
    huey_in = get("huey", "local", "produce_rate")
    rows.append(
        Aim(
            "memory://, queue only, `queue_many` (a loop of `await queue()`), /s",
            f"{ours('memory many')} ({ours('memory one')})",
            [at_least("500,000", in_memory, 500_000)],
            [at_least("1,500,000", in_memory, 1.5e6)],
            "-",
            f"{number(huey_in)} (huey in memory, a loop)" if huey_in else "-",
            "-",
        )
    )
    rows += backlog_aims(results)
    rows.append(micro_aim(results))
    return rows


def backlog_aims(results: Results) -> list[Aim]:
    found = results.one(OURS, "backlog")
    names = ("resident memory of a producer", "rate with a long backlog, against a short one")
    if found is None:
        why = f"failed: {results.why(OURS, 'backlog') or 'not measured'}"
        asked = (("flat", "flat"), ("0.9", "1.0"))
        return [
            Aim(name, why, [Check(least, "-", None)], [Check(aim, "-", None)])
            for name, (least, aim) in zip(names, asked, strict=True)
        ]
    few, most = found["levels"][0], found["levels"][-1]
    memory = most["producer_memory"]
    growth = memory["growth_mb"]
    flat = None if growth is None else growth <= max(5.0, 0.1 * memory["peak_mb"])
    rates = {name: ratio(most[f"{name}_rate"], few[f"{name}_rate"]) for name in ("produce", "drain")}
    worst = min((value for value in rates.values() if value is not None), default=None)
    words = f"{most['waiting']:,} against {few['waiting']:,}"
    return [
        Aim(
            f"resident memory of a producer of {most['waiting']:,}",
            f"{number(memory['peak_mb'])} MiB, {number(growth)} more at the end than after its start",
            [Check("flat", f"{number(growth)} MiB more", flat)],
            [Check("flat", f"{number(growth)} MiB more", flat)],
        ),
        Aim(
            f"backlog of {words}: rate of queueing; of running",
            f"{number(rates['produce'])}; {number(rates['drain'])}",
            [at_least("0.9", worst, 0.9)],
            [at_least("1.0", worst, 1.0)],
        ),
    ]


# --- micro-benchmarks -----------------------------------------------------------------------------

# File, what its group's name begins with, what the baseline's name contains, how many times faster is aimed at, words.
MICRO = (
    ("pqueue", "push + pop, 1,000,000", "heapq", 10.0, "queue push + pop against heapq at 1M"),
    ("machine", "", "dict", 5.0, "state transition against a dict"),
    ("codec", "", "msgspec", 1.5, "codec against bare msgspec"),
)


def micro_aim(results: Results) -> Aim:
    groups = results.data.get("micro") or []
    found, least, aim = [], [], []
    for word, start, against, factor, words in MICRO:
        ratios = [
            row["faster"]
            for group in groups
            if word in group["file"] and group["group"].startswith(start)
            for row in group["baselines"]
            if against in row["name"]
        ]
        if not ratios:
            least.append(Check(f"{words}: faster", "-", None))
            aim.append(Check(f"{words}: {factor:g}x", "-", None))
            continue
        low, high = min(ratios), max(ratios)
        found.append(f"{words}: {number(low)}x to {number(high)}x")
        least.append(at_least(f"{words}: faster", low, 1.0, "x"))
        aim.append(at_least(f"{words}: {factor:g}x", low, factor, "x"))
    why = results.failures.get("micro", {}).get("", "not measured")
    return Aim("compiled modules against their baselines", "; ".join(found) or why, least, aim)


def micro_groups(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """pytest-benchmark's reports by group: ours, and what stands beside it.

    ``seconds``: the median over the reports. ``faster``: the median of what each report has for the two, which were
    measured one right after the other there, so that a machine that changes its speed in between counts once.
    """
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for report in reports:
        for entry in report["benchmarks"]:
            file = Path(entry["fullname"].split("::", 1)[0]).stem.removeprefix("test_").removeprefix("bench_")
            case = entry["name"].partition("[")[2].rstrip("]") or entry["name"].removeprefix("test_")
            name = "-".join(part for part in case.split("-") if not part.isdigit()) or case
            rows = groups.setdefault((file, entry["group"] or entry["name"]), {})
            rows.setdefault(name, []).append(entry["stats"]["median"])
    found = []
    for (file, group), rows in groups.items():
        ours = next((name for name in rows if is_ours(name, file)), next(iter(rows)))
        others = [name for name in rows if name != ours and not is_ours(name, file)]
        found.append(
            {
                "file": file,
                "group": group,
                "ours": {"name": ours, "seconds": median(rows[ours])},
                "baselines": [
                    {
                        "name": name,
                        "seconds": median(rows[name]),
                        "faster": median(theirs / own for theirs, own in zip(rows[name], rows[ours], strict=True)),
                    }
                    for name in others
                ],
            }
        )
    return found


def is_ours(name: str, file: str) -> bool:
    """Whether a case is the compiled module's, by its name: ``ours``, ``fluidfast``, or the module's own."""
    return any(word in name for word in ("ours", "fluidfast", file))
