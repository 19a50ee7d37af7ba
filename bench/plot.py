"""Plots as SVG, written by hand: they look the same wherever they are made, and a change of numbers is a small diff."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
INK, SOFT, GRID, PAPER = "#1f2328", "#656d76", "#e4e7eb", "#ffffff"
OURS, REFERENCE, PEER, LOSSY, LIMIT = "#0969da", "#bc4c00", "#8c959f", "#d0d7de", "#1a7f37"


def text(
    x: float, y: float, words: str, *, size: int = 12, fill: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def short(value: float) -> str:
    """A rate in few characters: 874, 5.5k, 412k, 1.2M."""
    if value >= 999_500:
        return f"{value / 1e6:.2g}M" if value < 9.95e6 else f"{value / 1e6:.0f}M"
    if value >= 9950:
        return f"{value / 1e3:.0f}k"
    return f"{value / 1e3:.2g}k" if value >= 1000 else f"{value:.0f}"


def document(width: float, height: float, label: str, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="{escape(FONT)}" role="img" aria-label="{escape(label)}">',
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="{PAPER}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


@dataclass(frozen=True)
class Bar:
    """``kind``: ``ours``, ``reference`` (aio-fluid), ``peer``, or ``lossy`` (a peer that delivers at most once)."""

    label: str
    value: float
    kind: str


@dataclass(frozen=True)
class Panel:
    """Bars of one measurement, with the limit of the same run."""

    title: str
    note: str
    bars: Sequence[Bar]
    limit: float | None
    limit_label: str


COLOURS = {"ours": OURS, "reference": REFERENCE, "peer": PEER, "lossy": LOSSY}
NAMES = (("ours", "fluidfast"), ("reference", "aio-fluid"), ("peer", "others"), ("lossy", "others, at most once"))
LEFT, RIGHT, PLOT, BAR, GAP, HEAD = 190, 86, 620, 18, 7, 58


def bars(title: str, subtitle: str, panels: Sequence[Panel], path: Path) -> None:
    """Panels of horizontal bars on one logarithmic axis."""
    values = [bar.value for panel in panels for bar in panel.bars] + [p.limit for p in panels if p.limit]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))

    def x(value: float) -> float:
        return LEFT + PLOT * (log10(value) - low) / (high - low)

    width = LEFT + PLOT + RIGHT
    body = [text(24, 36, title, size=18, bold=True), text(24, 57, subtitle, fill=SOFT)]
    body += legend()
    top = 112.0
    for panel in panels:
        height = len(panel.bars) * (BAR + GAP)
        body.append(text(24, top + 18, panel.title, size=14, bold=True))
        body.append(text(24, top + 35, panel.note, fill=SOFT, size=11))
        first = top + HEAD
        for power in range(low, high + 1):
            at = x(10**power)
            body.append(
                f'<line x1="{at:.1f}" y1="{first - 6:.1f}" x2="{at:.1f}" y2="{first + height:.1f}" stroke="{GRID}"/>'
            )
            body.append(text(at, first + height + 14, short(10**power), size=10, fill=SOFT, anchor="middle"))
        if panel.limit:
            at = x(panel.limit)
            body.append(
                f'<line x1="{at:.1f}" y1="{first - 8:.1f}" x2="{at:.1f}" y2="{first + height:.1f}" stroke="{LIMIT}" '
                'stroke-width="1.5" stroke-dasharray="5 3"/>'
            )
            words = f"{panel.limit_label}: {short(panel.limit)}"
            anchor = "end" if at > LEFT + 250 else "start"
            body.append(text(at + 4, first - 12, words, size=11, fill=LIMIT, anchor=anchor))
        for row, bar in enumerate(sorted(panel.bars, key=lambda bar: -bar.value)):
            y = first + row * (BAR + GAP)
            mine = bar.kind in ("ours", "reference")
            body.append(text(LEFT - 10, y + 13, bar.label, anchor="end", bold=mine, fill=INK if mine else SOFT))
            body.append(
                f'<rect x="{LEFT}" y="{y:.1f}" width="{max(1.0, x(bar.value) - LEFT):.1f}" height="{BAR}" rx="2" '
                f'fill="{COLOURS[bar.kind]}"/>'
            )
            value = short(bar.value)
            room = 7 * len(value)
            # where the line of the limit passes, it passes behind the number
            body.append(
                f'<rect x="{x(bar.value) + 4:.1f}" y="{y + 2:.1f}" width="{room}" height="{BAR - 4}" fill="{PAPER}"/>'
            )
            body.append(text(x(bar.value) + 6, y + 13, value, size=11, bold=mine))
        top = first + height + 34
    path.write_text(document(width, top + 4, title, body))


def legend() -> Iterator[str]:
    at = 24.0
    for kind, name in NAMES:
        yield f'<rect x="{at:.1f}" y="74" width="12" height="12" rx="2" fill="{COLOURS[kind]}"/>'
        yield text(at + 18, 84, name, fill=SOFT)
        at += 40 + 6.6 * len(name)


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[float, float]]
    colour: str


def lines(title: str, subtitle: str, series: Sequence[Line], unit: str, path: Path) -> None:
    """Curves over seconds, from zero up."""
    left, plot_width, plot_height, first = 64.0, 700.0, 260.0, 84.0
    end = max(point[0] for line in series for point in line.points) or 1.0
    most = max(point[1] for line in series for point in line.points)
    step = nice(most / 4)
    top = step * ceil(most / step)

    def place(point: tuple[float, float]) -> str:
        return f"{left + plot_width * point[0] / end:.1f},{first + plot_height * (1 - point[1] / top):.1f}"

    body = [text(24, 36, title, size=18, bold=True), text(24, 57, subtitle, fill=SOFT)]
    for number in range(round(top / step) + 1):
        y = first + plot_height * (1 - number * step / top)
        body.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + plot_width}" y2="{y:.1f}" stroke="{GRID}"/>')
        body.append(text(left - 8, y + 4, f"{number * step:g}", size=10, fill=SOFT, anchor="end"))
    pace = nice(end / 8)
    for number in range(int(end / pace) + 1):
        at = left + plot_width * number * pace / end
        body.append(text(at, first + plot_height + 16, f"{number * pace:g}", size=10, fill=SOFT, anchor="middle"))
    body.append(text(left + plot_width, first + plot_height + 32, "seconds", size=10, fill=SOFT, anchor="end"))
    body.append(text(24, first - 10, unit, size=10, fill=SOFT))
    for row, line in enumerate(series):
        points = " ".join(place(point) for point in line.points)
        body.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"/>')
        y = first + plot_height + 34 + 18 * row
        body.append(f'<rect x="{left}" y="{y - 10:.1f}" width="12" height="12" rx="2" fill="{line.colour}"/>')
        body.append(text(left + 18, y, line.label, fill=SOFT))
    path.write_text(document(left + plot_width + 24, first + plot_height + 44 + 18 * len(series), title, body))


def nice(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below."""
    power = 10.0 ** floor(log10(value)) if value > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def memory(found: dict[str, Any], path: Path) -> None:
    """Memory over time of a ``drain`` or ``e2e`` of ``load``."""
    series = []
    for name, report, colour in (
        ("producer", found.get("produce", {}).get("memory"), REFERENCE),
        ("worker", found.get("memory"), OURS),
    ):
        if report and report["samples"]:
            tasks = f"{found['tasks']:,} tasks in {report['samples'][-1][0]:.0f} s"
            series.append(Line(f"{name}: {tasks}, peak {report['peak_mb']:.0f} MiB", report["samples"], colour))
    if not series:
        raise ValueError(f"{found['mode']} has no memory over time")
    counts = f"lost {found['lost']:,}, duplicated {found['duplicated']:,}"
    title = f"{found['tasks']:,} tasks: private memory"
    lines(title, f"{found['package']} {found['version']}, {counts}", series, "MiB", path)
