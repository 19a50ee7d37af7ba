"""The true events, written down outside Redis.

The tests of faults and ``chaos`` count by it; it needs nothing of fluidfast. Each process has a ledger: a file that it
appends one short line to, by one ``write`` of an O_APPEND descriptor, at the moment at which something is so. Lines
from before a ``kill -9`` are in the file: the kernel has them.

    A id time     attempted: about to be handed to ``queue``
    K id time     acknowledged: ``queue`` returned
    R id time     refused: ``queue`` raised an error that says that nothing was queued
    S id time     started: first statement of the task
    F id time     finished: last statement of the task
    N text time   a note: "ready", "settle BATCH yes 7", whatever a scenario wants to know

Times are CLOCK_MONOTONIC, which all processes of a machine share. ``Oracle(directory).verdict()`` reads all ledgers.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "ACKNOWLEDGED", "ATTEMPTED", "FINISHED", "NOTE", "REFUSED", "STARTED", "Ledger", "Line", "Oracle", "Verdict",
    "in_a_line",
]  # fmt: skip

ATTEMPTED, ACKNOWLEDGED, REFUSED, STARTED, FINISHED, NOTE = "A", "K", "R", "S", "F", "N"


def in_a_line(id: str) -> str:
    """An id as the ledger has it: as it is, unless it would be more than one line or cannot be written."""
    return id if id.isascii() and id.isprintable() else ascii(id)


class Ledger:
    """The file of one process. Safe after a fork only if parent and child say different things."""

    def __init__(self, directory: str | os.PathLike[str], who: str) -> None:
        self.who = who
        path = Path(directory) / f"{who}.ledger"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _say(self, word: str, *ids: str) -> None:
        now = time.monotonic()
        text = "".join([f"{word} {in_a_line(each)} {now:.4f}\n" for each in ids]).encode()
        if os.write(self._fd, text) != len(text):
            raise OSError("a ledger was not written in one piece")

    def attempted(self, *ids: str) -> None:
        """Before they are handed to the producer."""
        self._say(ATTEMPTED, *ids)

    def acknowledged(self, *ids: str) -> None:
        """After the producer said that they are safe."""
        self._say(ACKNOWLEDGED, *ids)

    def refused(self, *ids: str) -> None:
        """After the producer said that they are not queued."""
        self._say(REFUSED, *ids)

    def started(self, id: str) -> None:
        """First statement of a task."""
        self._say(STARTED, id)

    def finished(self, id: str) -> None:
        """Last statement of a task."""
        self._say(FINISHED, id)

    def note(self, text: str) -> None:
        """Something else; no newline in it."""
        self._say(NOTE, text)

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Line:
    who: str
    word: str
    id: str
    at: float


@dataclass
class Verdict:
    """Every id that anybody spoke of is in exactly one of the lists (or counts among ``ok`` or ``open``).

    ``lost``: acknowledged, not finished, and not among the dead letters that the caller named. ``dead``: those.
    ``unexpected``: started or finished although nobody attempted it, or although it was refused. ``duplicated``:
    finished twice or more. ``recovered``: finished once, started more often (whoever had it died, or lost it).
    ``open``: never acknowledged (its producer died, or was told that it is unknown) and never finished.
    ``ok``: the rest. ``starts``: id -> (who, when) of each start, of ids that were started more than once.
    """

    attempted: int = 0
    acknowledged: int = 0
    refused: int = 0
    ok: int = 0
    open: int = 0
    lost: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    starts: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """All of it as numbers, for the table of figures."""
        numbers = {name: getattr(self, name) for name in ("attempted", "acknowledged", "refused", "ok", "open")}
        lists = ("lost", "dead", "unexpected", "duplicated", "recovered")
        return {**numbers, **{name: len(getattr(self, name)) for name in lists}}

    def unexplained(self, killed: Collection[str], stopped: Collection[str] = ()) -> list[str]:
        """Ids that were started again although who had started them before was not killed.

        ``stopped``: processes that stood still. They lose what they have as well, and may start some of it later.
        """
        found = []
        for id, starts in self.starts.items():
            ordered = sorted((start for start in starts if start[0] not in stopped), key=lambda start: start[1])
            if any(who not in killed for who, _ in ordered[:-1]):
                found.append(id)
        return found

    def again_per_process(self) -> Counter[str]:
        """For each process, how many of the runs that it had started were started again elsewhere."""
        again: Counter[str] = Counter()
        for starts in self.starts.values():
            again.update(who for who, _ in sorted(starts, key=lambda start: start[1])[:-1])
        return again

    def check(
        self, *, seed: object = None, killed: Collection[str] | None = None, stopped: Collection[str] = ()
    ) -> Verdict:
        """Print the counts; raise AssertionError if something was lost or was unexpected.

        ``killed``, ``stopped``: names of processes; given, only what they had may run twice.
        """
        print(f"oracle: seed {seed}, {self}")
        assert not self.lost, f"seed {seed}: lost {len(self.lost)}: {self.lost[:5]}; {self}"
        assert not self.unexpected, f"seed {seed}: unexpected {self.unexpected[:5]}; {self}"
        if killed is not None:
            found = self.unexplained(killed, stopped)
            assert not found, f"seed {seed}: {len(found)} ran twice without a reason: {found[:5]}; {self}"
        return self

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.counts().items())


class Oracle:
    """All ledgers of a scenario: the files in one directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def ledger(self, who: str) -> Ledger:
        """A ledger for this process, or for one that is given the directory and the name."""
        return Ledger(self.directory, who)

    def lines(self, words: str = "AKRSFN", who: str | None = None) -> Iterator[Line]:
        """Return the lines so far, process by process, each in its order."""
        for path in sorted(self.directory.glob("*.ledger")):
            name = path.name.removesuffix(".ledger")
            if who is not None and name != who:
                continue
            with path.open(encoding="utf-8") as file:
                for line in file:
                    if line[0] in words and line.endswith("\n"):  # the last one of a living process may be half there
                        text, _, at = line[2:-1].rpartition(" ")
                        yield Line(name, line[0], text, float(at))

    def count(self, word: str) -> int:
        """How many lines with this word there are; quick enough to be polled."""
        start = word.encode() + b" "
        total = 0
        for path in self.directory.glob("*.ledger"):
            data = path.read_bytes()
            total += data.count(b"\n" + start) + data.startswith(start)
        return total

    def notes(self, who: str | None = None) -> list[Line]:
        return list(self.lines(NOTE, who))

    def verdict(self, dead: Iterable[str] = ()) -> Verdict:
        """``dead``: ids in the broker's dead list; those are not lost."""
        said: dict[str, set[str]] = {ATTEMPTED: set(), ACKNOWLEDGED: set(), REFUSED: set()}
        first: dict[str, tuple[str, float]] = {}
        starts: dict[str, list[tuple[str, float]]] = {}
        finished: set[str] = set()
        twice: set[str] = set()
        for line in self.lines("AKRSF"):
            if line.word == STARTED:
                if line.id in first:
                    starts.setdefault(line.id, [first[line.id]]).append((line.who, line.at))
                else:
                    first[line.id] = (line.who, line.at)
            elif line.word == FINISHED:
                if line.id in finished:
                    twice.add(line.id)
                finished.add(line.id)
            else:
                said[line.word].add(line.id)
        attempted, acknowledged, refused = said[ATTEMPTED], said[ACKNOWLEDGED], said[REFUSED]
        dead = set(dead)
        verdict = Verdict(len(attempted), len(acknowledged), len(refused), starts=starts)
        for id in attempted | acknowledged | first.keys() | finished:
            if (id in first or id in finished) and (id not in attempted or id in refused):
                verdict.unexpected.append(id)
            elif id in twice:
                verdict.duplicated.append(id)
            elif id in finished:
                if id in starts:
                    verdict.recovered.append(id)
                else:
                    verdict.ok += 1
            elif id in dead:
                verdict.dead.append(id)
            elif id in acknowledged:
                verdict.lost.append(id)
            else:
                verdict.open += 1
        return verdict
