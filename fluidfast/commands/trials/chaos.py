"""``chaos``: kills, pauses and cuts off processes of its own under load, and counts what became of each run."""

import asyncio
import math
import os
import random
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import click
import msgspec

from ...brokers.base import TaskBroker
from ...brokers.memory.broker import MemoryTaskBroker
from ...errors import BrokerConnectionError, TaskError
from ...execute.cpubound import PARENT
from ...manage.manager import TaskManager
from ...texts import printable
from ...wire.peek import read_fields
from ..display import Progress
from ..loops import on_signals, run_loop
from ..target import CommandError, at_least_one, check_writable, first_of, url_of_its_own, write_result
from .bench_load import left_on
from .ledger import ACKNOWLEDGED, FINISHED, NOTE, REFUSED, Oracle

__all__ = ["chaos"]

LEASE_SECONDS = 2.0
FAULTS = ("kill", "pause", "cut")
PAUSE_SECONDS = (1.5 * LEASE_SECONDS, 2.5 * LEASE_SECONDS)
EVERY_SECONDS = (0.3, 1.0)
"""Between one fault and the next, at random."""
CONCURRENCY = 20
DRAIN_SECONDS = 60.0
"""Without any run that ends, before what is left is given up."""
QUIET_SECONDS = 5 * LEASE_SECONDS
"""With nothing left on the queues, before what has not ended is lost: the rest lies where it is found by then."""
STOP_SECONDS = 20.0
EARLY_ENDS = 5
"""Processes in a row that end by themselves: none will do."""
SHOWN_KEYS = 5

DESCRIPTION = f"""\
Start workers and a producer on a server. For some minutes kill them (SIGKILL), pause them for longer than a lease, and
cut their connections. Then let the workers finish, and count the outcome of each run. The evidence is in files outside
the server, to which all processes append.

It uses its own broker name, with leases of {LEASE_SECONDS:g} s, and removes its keys at the end, also after Ctrl-C. The
other options of the URL (durability, wire) apply.
"""

EPILOG = """\
exit codes: 0; 1 if a run was lost, ran without being queued, or ran twice without a fault, if a process ended by
itself, or if the campaign failed; 130 after Ctrl-C

\b
example:
  fluidfast chaos --broker redis://localhost:6379/9 --minutes 5
"""


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise click.BadParameter(f"{printable(text)!r} is not a number")
    return value


def rate(text: str) -> float:
    value = finite(text)
    if value < 0:
        raise click.BadParameter(f"{value:g} is not 0 or more")
    return value


def minutes(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise click.BadParameter(f"{value:g} is not above 0")
    return value


@click.command(
    epilog=EPILOG,
    help=DESCRIPTION,
    short_help="Kill, pause and cut off its own workers under load, and count the outcome of each run.",
)
@click.option("--broker", required=True, metavar="URL", help="An empty server.")
@click.option("--minutes", type=minutes, default="1", show_default=True, metavar="M", help="How long.")
@click.option("--workers", type=at_least_one, default=3, show_default=True, metavar="N", help="Worker processes.")
@click.option("--seed", type=int, metavar="S", help="Seed of the random faults.  [default: random]")
@click.option("--rate", type=rate, default="200", show_default=True, metavar="R", help="Runs per second; 0: no limit.")
@click.option("--json", "json_file", metavar="FILE", help="Also write the result as JSON to a file; -: only to stdout.")
@click.option("--force", is_flag=True, help="Accept a server that holds other keys.")
@click.pass_context
def chaos(
    ctx: click.Context,
    broker: str,
    minutes: float,
    workers: int,
    seed: int | None,
    rate: float,
    json_file: str | None,
    force: bool,
) -> None:
    if json_file not in (None, "-"):
        check_writable(Path(json_file))
    if seed is None:
        seed = random.SystemRandom().randrange(1, 1_000_000)
    result, error = run_loop(campaign(broker, minutes, workers, seed, rate, force=force))
    write_result(result.as_dict(), result.rows(), json_file)
    if error is not None:
        raise error
    ctx.exit(130 if result.interrupted else 0 if result.passed else 1)


@dataclass
class Result:
    """The counts, in the words of ``ledger.Verdict``, and the faults that were made.

    ``exits``: processes that ended though nobody had killed them, each with its last words.
    """

    broker: str
    seed: int
    minutes: float
    workers: int
    rate: float
    attempted: int = 0
    acknowledged: int = 0
    refused: int = 0
    ok: int = 0
    recovered: int = 0
    duplicated: int = 0
    duplicated_explained: int = 0
    unexplained: int = 0
    lost: int = 0
    dead: int = 0
    unexpected: int = 0
    open: int = 0
    kills: int = 0
    pauses: int = 0
    cuts: int = 0
    connections_cut: int = 0
    exits: list[str] = field(default_factory=list)
    left_on_broker: int = 0
    longest_gap_seconds: float | None = None
    runs_per_second: float | None = None
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        bad = self.lost or self.unexpected or self.unexplained or self.exits or self.left_on_broker
        return not bad and self.attempted > 0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "passed": self.passed and not self.interrupted}

    def rows(self) -> list[tuple[str, str]]:
        gap, speed = self.longest_gap_seconds, self.runs_per_second
        rows = [
            ("broker", self.broker),
            ("seed", f"{self.seed}"),
            ("faults", f"{self.kills:,} kills, {self.pauses:,} pauses, {self.cuts:,} cuts "
                       f"({self.connections_cut:,} connections)"),
            ("attempted", f"{self.attempted:,}, of which {self.acknowledged:,} acknowledged, {self.refused:,} refused"),
            ("ok", f"{self.ok:,}"),
            ("recovered", f"{self.recovered:,}   started again, ended once"),
            ("duplicated", f"{self.duplicated:,}   ended twice: {self.duplicated_explained:,} explained by a fault"),
            ("unexplained", f"{self.unexplained:,}   started again though who had it was neither killed nor paused"),
            ("lost", f"{self.lost:,}"),
            ("unexpected", f"{self.unexpected:,}   ran though not queued"),
            ("dead letters", f"{self.dead:,}"),
            ("open", f"{self.open:,}   never acknowledged, never ran"),
            ("ended by themselves", ", ".join(self.exits) or "0"),
            ("longest gap", "-" if gap is None else f"{gap:.2f} s without a run that ended"),
            ("runs", "-" if speed is None else f"{speed:,.0f} /s for {self.seconds:.1f} s, with the draining"),
        ]  # fmt: skip
        if self.left_on_broker:
            rows.insert(9, ("left on the broker", f"{self.left_on_broker:,}   counted among the lost"))
        if self.interrupted:
            rows.insert(0, ("INTERRUPTED", "what had not ended was dropped, and counts as lost"))
        return rows


async def campaign(
    server: str, minutes: float, workers: int, seed: int, rate: float, *, force: bool
) -> tuple[Result, Exception | None]:
    """The campaign. Gives what was counted, and the error that ended it before its time."""
    url = url_of_its_own(server, "chaos", lease_seconds=f"{LEASE_SECONDS:g}")
    manager = TaskManager(broker_url=url)
    broker = manager.broker
    if isinstance(broker, MemoryTaskBroker):
        raise CommandError("memory:// ends with its process, which chaos would kill: give the URL of a server")
    result = Result(str(broker.url), seed, minutes, workers, rate)
    error: Exception | None = None
    try:
        if not force:
            await check_empty(broker)  # before a key of ours is there
        await broker.connect()
    except BaseException:
        await broker.close()
        raise
    with tempfile.TemporaryDirectory(prefix="fluidfast-chaos-") as directory:
        trial = Campaign(broker, url, Oracle(directory), result)
        running = asyncio.create_task(trial.run())
        on_signals(running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            result.interrupted = True
        except Exception as exc:
            error = exc
        try:
            await trial.count()
            await broker.clear()
        except TaskError as exc:
            error = error or CommandError(f"{exc}; keys of {broker.name!r} may remain on the server")
        finally:
            await broker.close()
    return result, error


async def check_empty(broker: TaskBroker) -> None:
    """Raises CommandError if the server (of a Cluster: any primary) holds keys, or does not let us look."""
    shard: Any = getattr(broker, "home", broker)  # the others are on the same server, or in the same Cluster
    await shard.connect()

    async def look(client: Any) -> tuple[int, list[bytes]]:
        count = await client.dbsize()
        names = [key async for key in client.scan_iter(count=100)] if 0 < count <= 100 else []
        if count and not names:
            _, names = await client.scan(0, count=100)
        return count, names

    try:
        seen = await shard.client.server.of_each_primary(look)
    except Exception as exc:  # an ACL may forbid it
        raise CommandError(
            f"broker {broker.url}: cannot check whether the server holds other keys ({exc}); --force skips this check"
        ) from exc
    count = sum(n for n, _ in seen)
    if not count:
        return
    names = [name for _, some in seen for name in some]
    shown = ", ".join(repr(key.decode(errors="replace")) for key in sorted(names)[:SHOWN_KEYS])
    more = ", ..." if count > SHOWN_KEYS else ""
    keys = "key" if count == 1 else "keys"
    raise CommandError(
        f"broker {broker.url}: the server holds {count:,} {keys} of others ({shown}{more}); use an empty one, "
        "or --force: chaos loads the server, and removes only its own keys"
    )


class Child:
    """A process of ours. ``who`` is its name in the ledgers."""

    def __init__(self, who: str, role: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.who, self.role, self.process, self.log = who, role, process, log
        self.paused = False
        self.expected = False  # its end is our doing

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def order(self, message: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(message + b"\n")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Campaign:
    """The processes, what is done to them, and the count at the end."""

    def __init__(self, broker: TaskBroker, url: str, oracle: Oracle, result: Result) -> None:
        self.broker, self.url, self.oracle, self.result = broker, url, oracle, result
        self.random = random.Random(result.seed)
        self.children: list[Child] = []
        self.killed: set[str] = set()
        self.stopped: set[str] = set()
        self.ends = 0  # in a row, that were not our doing
        self.started = 0
        self.began = monotonic()

    async def run(self) -> None:
        """Load and faults, then the draining. It leaves no process behind."""
        try:
            async with asyncio.TaskGroup() as keepers:
                kept = [keepers.create_task(self.keep("worker")) for _ in range(self.result.workers)]
                producer = keepers.create_task(self.keep("producer"))
                await self.all_up()
                await self.maltreat()
                producer.cancel()
                await self.stop("producer")
                await self.drain()
                for keeper in kept:
                    keeper.cancel()
            await self.stop("worker")
        except ExceptionGroup as group:
            raise first_of(group, CommandError, TaskError) or group from None
        finally:
            self.result.seconds = monotonic() - self.began
            for child in self.children:
                child.expected = True
                if child.process.returncode is None:
                    child.send(signal.SIGKILL)  # a process that stands still dies of it too
            await asyncio.gather(*(child.process.wait() for child in self.children))

    async def keep(self, role: str) -> None:
        """Keep one process of this role alive."""
        while True:
            child = await self.start(role)
            await child.process.wait()
            self.children.remove(child)
            if child.expected:
                self.ends = 0
                continue
            self.mourn(child)
            if self.ends >= EARLY_ENDS:
                raise CommandError(f"processes keep ending by themselves: {self.result.exits[-1]}")

    async def start(self, role: str) -> Child:
        self.started += 1
        who = f"{role}{self.started}"
        log = self.oracle.directory / f"{who}.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fluidfast.commands.trials.chaos_process",
                stdin=asyncio.subprocess.PIPE, stdout=file, stderr=file, env={**os.environ, PARENT: str(os.getpid())},
            )  # fmt: skip
        child = Child(who, role, process, log)
        self.children.append(child)
        request = {
            "role": role, "url": self.url, "ledgers": str(self.oracle.directory), "who": who,
            "concurrency": CONCURRENCY, "rate": self.result.rate, "seed": self.result.seed,
        }  # fmt: skip
        child.order(msgspec.json.encode(request))
        return child

    def mourn(self, child: Child) -> None:
        """A process ended, and we had no part in it; or did not end when it should."""
        self.ends += 1
        code, words = child.process.returncode, child.last_words()
        how = f"did not stop within {STOP_SECONDS:g} s" if code is None else f"ended with exit code {code}"
        self.result.exits.append(f"{child.who} {how}" + (f": {words}" if words else ""))

    async def all_up(self) -> None:
        """Their start is not part of the time that was asked for. ``keep`` gives up those that cannot start."""
        while not (len(self.children) > self.result.workers and all(map(self.is_up, self.children))):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        with suppress(TimeoutError):  # nor is the way to the first answer, which may need another connection
            async with asyncio.timeout(STOP_SECONDS):
                while not (self.oracle.count(ACKNOWLEDGED) or self.oracle.count(REFUSED)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    def is_up(self, child: Child) -> bool:
        """Whether it is connected, which is when it writes its first line. One whose first connection ends gives up."""
        ledger = self.oracle.directory / f"{child.who}.ledger"
        return ledger.exists() and ledger.stat().st_size > 0

    async def maltreat(self) -> None:
        """One fault after the other, each kind in turn, until the time is over; then all go on."""
        end = monotonic() + self.result.minutes * 60
        deck: list[str] = []
        with Progress("faults", round(self.result.minutes * 60)) as progress:
            async with asyncio.TaskGroup() as pauses:
                while (left := end - monotonic()) > 0:
                    await asyncio.sleep(min(left, self.random.uniform(*EVERY_SECONDS)))
                    if not deck:
                        deck = list(FAULTS)
                        self.random.shuffle(deck)
                    choice = [child for child in self.children if self.is_up(child) and not child.paused]
                    if not choice:
                        continue
                    child, fault = self.random.choice(choice), deck.pop()
                    if fault == "kill":
                        child.expected = True
                        self.killed.add(child.who)
                        child.send(signal.SIGKILL)
                        self.result.kills += 1
                    elif fault == "cut":
                        child.order(b"cut")
                        self.result.cuts += 1
                    else:
                        pauses.create_task(self.pause(child))
                    result = self.result
                    note = f"{result.kills:,} kills, {result.pauses:,} pauses, {result.cuts:,} cuts"
                    progress.show(round(self.result.minutes * 60 - left), note)

    async def pause(self, child: Child) -> None:
        """Have it stand still for longer than a lease."""
        child.paused = True
        self.stopped.add(child.who)
        child.send(signal.SIGSTOP)
        self.result.pauses += 1
        try:
            await asyncio.sleep(self.random.uniform(*PAUSE_SECONDS))
        finally:
            child.send(signal.SIGCONT)
            child.paused = False

    async def stop(self, role: str) -> None:
        """SIGTERM to those of a role, and wait."""
        children = [child for child in self.children if child.role == role and child.who not in self.killed]
        for child in children:
            child.expected = True
            child.send(signal.SIGTERM)
        for child in children:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await child.process.wait()
            if child.process.returncode not in (0, -signal.SIGTERM):  # the latter: it had only just been started
                self.mourn(child)

    async def drain(self) -> None:
        """Until all that was acknowledged has ended, or does not any more."""
        ended, changed = -1, monotonic()
        with Progress("drain ") as progress:
            while True:
                with suppress(BrokerConnectionError):
                    left = self.result.left_on_broker = await left_on(self.broker)
                    now = self.oracle.count(FINISHED)
                    if now != ended:
                        ended, changed = now, monotonic()
                    waited = monotonic() - changed
                    if left == 0 and (waited > QUIET_SECONDS or not self.oracle.verdict(await self.dead_ids()).lost):
                        break
                    if waited > DRAIN_SECONDS:
                        break
                    progress.show(left, f"{left:,} left")
                await asyncio.sleep(0.2)

    async def dead_ids(self) -> list[str]:
        letters = await self.broker.dead(await self.broker.dead_length())
        return [str(read_fields(payload).get("id", "")) for _, payload in letters]

    async def count(self) -> None:
        """Return the counts of the ledgers."""
        result = self.result
        verdict = self.oracle.verdict(await self.dead_ids())
        for name, number in verdict.counts().items():
            setattr(result, name, number)
        unexplained = set(verdict.unexplained(self.killed, self.stopped))
        result.unexplained = len(unexplained)
        result.duplicated_explained = len(set(verdict.duplicated) - unexplained)
        notes = [line.id.split() for line in self.oracle.lines(NOTE)]
        result.connections_cut = sum(int(words[1]) for words in notes if words[0] == "cut")
        ends = sorted(line.at for line in self.oracle.lines(FINISHED))
        if len(ends) > 1:
            result.longest_gap_seconds = round(max(b - a for a, b in pairwise(ends)), 3)
        if ends and result.seconds:
            result.runs_per_second = round(len(ends) / result.seconds, 1)
