"""Everything side by side: the limits of the machine, fluidfast, aio-fluid and the other libraries, on one server.

    python -m bench.compare --quick        # fluidfast, aio-fluid and the limits, about 3 minutes
    python -m bench.compare                # all, less than 25 minutes

Writes bench/RESULTS.md and bench/results.svg. What cannot be measured stands in the tables with its reason. The exit
code is 1 if a measurement of fluidfast failed or lost a task.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

from .aims import AIM_HEAD, aims, micro_groups
from .common import ROOT, BenchError, Child, Server, begin
from .peers import PEERS, Peer
from .results import OURS, Results, number
from .tables import draw, markdown
from .venvs import ensure

sys.path.insert(0, str(ROOT / "tests"))

from kits.servers import RedisServer, ServerBinary, find_servers, probe

HERE = Path(__file__).resolve().parent
URL = "{url}"
"""Stands in a command for the server's."""


@dataclass(frozen=True)
class Piece:
    """One measurement: a program that prints JSON. ``once``: in the first repeat only."""

    subject: str
    name: str
    command: tuple[str, ...]
    timeout: float = 120.0
    once: bool = False


# What a piece is compared with, if that has another name.
SAME = {"buffered": "one", "many": "gather", "bulk": "gather", "local": "memory e2e"}
# Tasks of a piece: quick, full.
SIZES = {
    "one": (20_000, 60_000),  # two seconds, as long as the others: a round trip has two states (PROFILE.md)
    "gather": (30_000, 100_000),
    "buffered": (60_000, 300_000),
    "many": (100_000, 500_000),
    "drain": (60_000, 200_000),
    "memory": (200_000, 1_000_000),
    "probes": (50, 100),
    "backlog": (60_000, 200_000),
    "waiting": (1_500_000, 10_000_000),
}


def limits_pieces(quick: bool) -> Iterator[Piece]:
    seconds = "0.3" if quick else "1.0"
    command = (sys.executable, "-m", "bench.limits", "--url", URL, "--json", "--seconds", seconds)
    yield Piece("limits", "limits", command)


def our_pieces(quick: bool) -> Iterator[Piece]:
    size = {name: str(sizes[0 if quick else 1]) for name, sizes in SIZES.items()}

    def load(name: str, *arguments: str, broker: str = URL, timeout: float = 120.0, once: bool = False) -> Piece:
        command = (sys.executable, "-m", "bench.load", *arguments, "--broker", broker, "--json")
        return Piece(OURS, name, command, timeout, once)

    for style in ("one", "gather", "buffered", "many"):
        yield load(style, "produce", "--style", style, "--tasks", size[style])
    yield load("many msgpack", "produce", "--style", "many", "--wire", "msgpack", "--tasks", size["many"])
    yield load("drain", "drain", "--tasks", size["drain"])
    for kind in ("mapping", "pydantic"):
        yield load(f"drain {kind}", "drain", "--params", kind, "--tasks", size["drain"])
    yield load("e2e", "e2e", "--tasks", size["drain"])
    yield load("latency", "latency", "--tasks", size["probes"], "--idle", "0")
    yield load("idle", "latency", "--tasks", "10", once=True)
    for name, mode, style in (("one", "produce", "one"), ("many", "produce", "many"), ("e2e", "e2e", "many")):
        tasks = size["memory"]
        yield load(f"memory {name}", mode, "--style", style, "--tasks", tasks, broker="memory://")
    yield load("latency under load", "latency", "--tasks", size["probes"], "--load", "5000", once=True)
    yield load(
        "backlog", "backlog", "--tasks", size["backlog"], "--waiting", "10000", size["waiting"], timeout=600, once=True
    )
    if not quick:
        yield load("rtt", "rtt", "--tasks", "20000", timeout=300, once=True)
        yield load("shapes", "shapes", timeout=300, once=True)


def peer_pieces(peer: Peer, python: str, quick: bool) -> Iterator[Piece]:
    def tasks(name: str) -> str:
        return str(max(300, peer.tasks[name] // (2 if quick else 1)))

    for variant in peer.variants:
        subject = f"{peer.name} {variant}".strip()
        common = ("--url", URL, f"--variant={variant}")
        if variant == peer.variants[0]:
            for style in ("one", "gather", "bulk"):
                if style in peer.tasks:
                    arguments = ("produce", *common, "--style", style, "--tasks", tasks(style))
                    yield Piece(subject, style, (python, "-m", peer.module, *arguments), 60.0)
        arguments = ("drain", *common, "--tasks", tasks("drain"), "--timeout", "60")
        yield Piece(subject, "drain", (python, "-m", peer.module, *arguments), 100.0)
        arguments = ("latency", *common, "--tasks", str(SIZES["probes"][0 if quick else 1]), "--idle", "0")
        yield Piece(subject, "latency", (python, "-m", peer.module, *arguments), 100.0)
        yield Piece(subject, "idle", (python, "-m", peer.module, "latency", *common, "--tasks", "10"), 100.0, True)
        if "local" in peer.tasks:
            yield Piece(subject, "local", (python, "-m", peer.module, "local", "--tasks", tasks("local")), 60.0)


def side_by_side(pieces: Sequence[Piece]) -> list[Piece]:
    """The same measurement of one after the other, so that what is compared is measured within the same minutes: a
    machine that others use, too, changes its speed."""
    order = list(dict.fromkeys(SAME.get(piece.name, piece.name) for piece in pieces))
    return sorted(pieces, key=lambda piece: order.index(SAME.get(piece.name, piece.name)))


def measure(piece: Piece, server: RedisServer) -> dict[str, Any]:
    """Empty the server and run the program. Raises BenchError."""
    with Server(server.url) as connection:
        connection.command("FLUSHALL")
    command = [word.replace(URL, server.url) for word in piece.command]
    with Child(command) as child:
        found = child.result(piece.timeout)
    if found.get("lost"):
        say(f"  {piece.subject} {piece.name}: LOST {found['lost']} of {found['tasks']}")
    return found


def say(words: str, end: str = "\n") -> None:
    print(words, end=end, file=sys.stderr, flush=True)


def summary(found: dict[str, Any]) -> str:
    if "rate" in found:
        return f"{number(found['rate'])}/s"
    if "p50_ms" in found:
        return f"{number(found['p50_ms'])} / {number(found['p99_ms'])} ms"
    return "done"


def measure_all(pieces: Sequence[Piece], server: RedisServer, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each piece, in turns. Gives what was found and why what was not could not be, by subject and piece."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    failures: dict[str, dict[str, str]] = {}
    for repeat in range(repeats):
        for piece in pieces:
            if piece.once and repeat:
                continue
            say(f"[{repeat + 1}/{repeats}] {piece.subject:<16} {piece.name:<20}", end="")
            started = monotonic()
            try:
                if not server.is_running:
                    raise BenchError("the server has ended")
                found = measure(piece, server)
            except BenchError as exc:
                failures.setdefault(piece.subject, {})[piece.name] = str(exc)
                say(f"failed: {exc}")
            else:
                runs.setdefault(piece.subject, {}).setdefault(piece.name, []).append(found)
                say(f"{summary(found):<20} {monotonic() - started:5.1f} s")
    return runs, failures


def micro(quick: bool) -> dict[str, Any]:
    """The report of the micro-benchmarks. Raises BenchError."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "micro.json"
        command = [
            sys.executable, "-m", "pytest", "bench/micro", "--benchmark-only", "-o", "addopts=", "-q", "-p",
            "no:cacheprovider", f"--benchmark-json={report}",
        ]  # fmt: skip
        if quick:
            command += ["--benchmark-min-rounds=3", "--benchmark-max-time=0.3"]
        with Child(command) as child:
            try:
                code = child.process.wait(600)
            except subprocess.TimeoutExpired:
                raise BenchError("did not end within 600 s") from None
            if not report.exists() or not report.read_text():
                raise BenchError(f"pytest ended with {code}: {child.why()}")
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def machine(server: RedisServer) -> dict[str, str]:
    def installed(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    model = platform.processor() or platform.machine()
    memory = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    git = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": f"{model}{memory}",
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "server": server_name(server.binary),
        "Python of fluidfast": platform.python_version(),
        "with": ", ".join(map(installed, ("uvloop", "msgspec", "redis", "hiredis", "pydantic"))),
        "commit": git.stdout.strip() or "unknown",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }


def server_name(binary: ServerBinary) -> str:
    return f"{'Valkey' if binary.kind == 'valkey' else 'Redis'} {binary.version}"


def choose_server(wanted: str) -> ServerBinary:
    """A kind of `python tests/kits/servers.py`, or the path of a binary; by default Redis 7, else what there is."""
    if os.sep in wanted:
        return probe(wanted)
    found = find_servers()
    kind = wanted or ("redis7" if "redis7" in found else next(iter(found), ""))
    if kind not in found:
        raise SystemExit(f"no server {wanted or ''}: found {', '.join(map(str, found.values())) or 'none'}")
    return found[kind]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [OURS, *(peer.name for peer in PEERS)]
    parser.add_argument("--quick", action="store_true", help="small sizes; fluidfast and aio-fluid unless --only says")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--server", default="", help="redis7, valkey, ... (python tests/kits/servers.py), or a path")
    parser.add_argument("--no-micro", action="store_true", help="leave bench/micro out")
    parser.add_argument("--output", type=Path, default=HERE, help="directory of RESULTS.md and results.svg")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep all numbers")
    parser.add_argument("--render", type=Path, metavar="FILE", help="measure nothing, write these numbers' tables")
    options = parser.parse_args()
    if options.render:
        return write(json.loads(options.render.read_text()), options.output)

    begin()
    started = monotonic()
    binary = choose_server(options.server)
    chosen = options.only or (["fluidfast", "aio-fluid"] if options.quick else names)
    failures: dict[str, dict[str, str]] = {}
    pieces = [*limits_pieces(options.quick)]
    if OURS in chosen:
        pieces += our_pieces(options.quick)
    for peer in PEERS:
        if peer.name not in chosen:
            continue
        say(f"environment of {peer.name} ...", end=" ")
        try:
            if peer.redis and (binary.kind == "valkey" or binary.version_info < peer.redis):
                lowest = ".".join(map(str, peer.redis))
                raise BenchError(f"uses commands of Redis {lowest}; this server is {server_name(binary)}")
            python = ensure(peer)
        except BenchError as exc:
            failures[peer.name] = {"": str(exc)}
            say(str(exc))
        else:
            pieces += peer_pieces(peer, python, options.quick)
            say("ready")
    with RedisServer(binary) as server:
        about = machine(server)
        runs, failed = measure_all(side_by_side(pieces), server, options.repeats)
    failures.update(failed)
    groups: list[dict[str, Any]] = []
    if OURS in chosen and not options.no_micro:
        say("bench/micro ...", end=" ")
        try:
            groups = micro_groups([micro(options.quick) for _ in range(options.repeats)])
            say(f"{len(groups)} groups")
        except BenchError as exc:
            failures["micro"] = {"": str(exc)}
            say(f"failed: {exc}")
    about["load average at the end"] = f"{os.getloadavg()[0]:.1f}"
    data = {
        "command": shlex.join(["python", "-m", "bench.compare", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": monotonic() - started,
        "quick": options.quick,
        "repeats": options.repeats,
        "machine": about,
        "subjects": list(dict.fromkeys([*(piece.subject for piece in pieces), *failures])),
        "runs": runs,
        "failures": failures,
        "micro": groups,
    }
    if options.json:
        options.json.write_text(json.dumps(data))
    return write(data, options.output)


def write(data: dict[str, Any], output: Path) -> int:
    """The tables and the plot. Gives the exit code."""
    results = Results(data)
    output.mkdir(parents=True, exist_ok=True)
    (output / "RESULTS.md").write_text(markdown(results))
    draw(results, output / "results.svg")
    for aim in aims(results):
        name, _, _, ours, reference, _, _, least, wanted = aim.cells
        print(f"{name}\n    {OURS} {ours}; aio-fluid {reference}; {AIM_HEAD[7]}: {least}; {AIM_HEAD[8]}: {wanted}")
    print(f"written: {output / 'RESULTS.md'}, {output / 'results.svg'}")
    problems = results.problems() if OURS in data["subjects"] else []
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
