"""Dead letters: list, requeue or purge runs that gave up.

There are two lists. ``dead`` has payloads that are not a run, runs of unknown tasks, runs whose params do not fit, runs
with exhausted retries, and runs whose worker died three times. ``failed`` has failed runs of tasks without a ``retry``.
Both keep the bytes intact. Both are bounded and drop their oldest entries.
"""

import asyncio
import hashlib
import heapq
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from typing import Any

from ..brokers.base import TaskBroker
from ..brokers.contract import PAGE_ENTRIES, Kind, gave_up_at
from ..checks import check_number
from ..core.states import PRIORITIES, TaskPriority
from ..wire.peek import afresh, read_fields

__all__ = ["KINDS", "DeadLetter", "DeadLetters"]

KINDS: tuple[Kind, ...] = ("dead", "failed")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry. It consists of ``header`` and ``payload``; the other attributes are read from them, if possible.

    ``id``: 16 hex digits of the entry's SHA-1. ``at``: the time it gave up, UTC. ``attempts``: the number of retries.
    ``kind``: ``"dead"``, or ``"failed"`` if its task has no ``retry``.
    """

    header: str
    payload: bytes = field(repr=False)  # may hold secrets
    fields: dict[str, Any] = field(repr=False)
    kind: Kind = "dead"

    @classmethod
    def read(cls, header: str, payload: bytes, kind: Kind = "dead") -> "DeadLetter":
        """Return the entry for a header and a payload of the broker."""
        return cls(header, payload, read_fields(payload), kind)

    @property
    def id(self) -> str:
        return hashlib.sha1(entry(self.header, self.payload), usedforsecurity=False).hexdigest()[:16]

    @property
    def milliseconds(self) -> int:
        """The time it gave up, in milliseconds since the epoch; 0 if it is unreadable."""
        return gave_up_at(self.header)

    @property
    def at(self) -> datetime | None:
        try:
            return datetime.fromtimestamp(int(self.header.partition(" ")[0]) / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return None

    @property
    def reason(self) -> str:
        return self.header.partition(" ")[2]

    @property
    def task(self) -> str:
        """The task's name; ``""`` if the payload is not a run."""
        name = self.fields.get("task")
        return name if isinstance(name, str) else ""

    @property
    def run_id(self) -> str:
        identity = self.fields.get("id")
        return identity if isinstance(identity, str) else ""

    @property
    def priority(self) -> TaskPriority:
        found = self.fields.get("priority")
        return TaskPriority(found) if found in PRIORITIES else TaskPriority.medium

    @property
    def params(self) -> Any:
        return self.fields.get("params")

    @property
    def attempts(self) -> int:
        found = self.fields.get("retry_attempt")
        return found if isinstance(found, int) else 0


Match = Callable[[DeadLetter], bool]


class DeadLetters:
    """The dead letters and failed runs of one broker: ``manager.dead``.

    ``kind``, in every method: ``"dead"`` or ``"failed"`` for one list only; None: both.

        await manager.dead.requeue(task="send", rate=100)
    """

    def __init__(self, broker: TaskBroker) -> None:
        self.broker = broker

    async def count(self, kind: Kind | None = None) -> int:
        """Return the number of entries."""
        return sum([await self.broker.dead_length(kind) for kind in kinds_of(kind)])

    async def trimmed(self, kind: Kind | None = None) -> int:
        """Return the number of entries that the broker has dropped to stay within its limits."""
        return sum([await self.broker.dead_trimmed(kind) for kind in kinds_of(kind)])

    async def list(
        self,
        limit: int = 100,
        offset: int = 0,
        *,
        task: str | None = None,
        reason: str | None = None,
        kind: Kind | None = None,
    ) -> "list[DeadLetter]":
        """Return up to ``limit`` entries, newest first, after skipping the newest ``offset``.

        ``task``: only entries of this task. ``reason``: only entries whose reason contains this text.
        """
        if limit <= 0:
            return []
        if task is not None or reason is not None:
            match = matching(None, task, reason)
            both = [[one async for one in self._matching(match, each, offset + limit)] for each in kinds_of(kind)]
        elif kind is not None:
            return [DeadLetter.read(*entry, kind) for entry in await self.broker.dead(limit, offset, kind=kind)]
        else:
            both = [await self.list(offset + limit, kind=kind) for kind in KINDS]
        return list(
            islice(heapq.merge(*both, key=lambda letter: letter.milliseconds, reverse=True), offset, offset + limit)
        )

    async def _matching(self, match: Match, kind: Kind, most: int) -> AsyncIterator[DeadLetter]:
        """The newest entries of one list that match, ``most`` of them."""
        offset = 0
        while page := await self.list(PAGE_ENTRIES, offset, kind=kind):
            offset += len(page)
            for letter in filter(match, page):
                yield letter
                most -= 1
                if not most:
                    return

    async def get(self, id: str) -> DeadLetter | None:
        """Return the entry whose id, or whose run's id, begins with ``id``; None if there is none."""
        for kind in KINDS:
            offset = 0
            while id and (page := await self.list(PAGE_ENTRIES, offset, kind=kind)):
                for letter in page:
                    if letter.id.startswith(id) or letter.run_id.startswith(id):
                        return letter
                offset += len(page)
        return None

    async def requeue(
        self,
        ids: Collection[str] | None = None,
        *,
        task: str | None = None,
        reason: str | None = None,
        kind: Kind | None = None,
        rate: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Requeue entries, oldest first, with attempts reset to zero. Return how many.

        An entry must match all arguments. ``ids``: ids of entries or of runs (None: all). ``task``: the task's name.
        ``reason``: text that the reason contains. ``rate``: the most entries per second, above 0.
        ``progress``: called with the number of requeued entries.

        It takes only entries present at the start: runs that give up again meanwhile stay. It skips entries that others
        requeue or purge at the same time. It requeues a payload that is not a run unchanged.
        """
        if rate is not None:
            check_number("rate", rate, ValueError, above=True)
        return await self._act(matching(ids, task, reason), kinds_of(kind), True, rate, progress)

    async def purge(
        self,
        ids: Collection[str] | None = None,
        *,
        task: str | None = None,
        reason: str | None = None,
        kind: Kind | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Delete entries for good, chosen as in ``requeue``. Return how many."""
        return await self._act(matching(ids, task, reason), kinds_of(kind), False, None, progress)

    async def _act(
        self,
        match: Match,
        kinds: Sequence[Kind],
        requeue: bool,
        rate: float | None,
        progress: Callable[[int], object] | None,
    ) -> int:
        done = 0
        started = monotonic()
        step = PAGE_ENTRIES if rate is None else max(1, min(PAGE_ENTRIES, int(rate / 10)))
        async with AsyncExitStack() as stack:
            sifters = [await stack.enter_async_context(self.broker.sifter(kind)) for kind in kinds]
            for sifter in sifters:
                while page := await sifter.turn():
                    letters = [DeadLetter.read(*entry) for entry in page]
                    chosen = [letter for letter in letters if match(letter)]
                    for first in range(0, len(chosen), step):
                        done += await sifter.take(
                            [
                                (
                                    letter.header,
                                    letter.payload,
                                    PRIORITIES.index(letter.priority) if requeue else None,
                                    afresh(letter.payload) if requeue else b"",
                                )
                                for letter in chosen[first : first + step]
                            ]
                        )
                        if progress is not None:
                            progress(done)
                        if rate is not None and (ahead := done / rate - (monotonic() - started)) > 0:
                            await asyncio.sleep(ahead)
        return done


def kinds_of(kind: Kind | None) -> tuple[Kind, ...]:
    if kind is None:
        return KINDS
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, it must be one of {', '.join(KINDS)}")
    return (kind,)


def matching(ids: Collection[str] | None, task: str | None, reason: str | None) -> Match:
    def match(letter: DeadLetter) -> bool:
        return (
            (ids is None or letter.id in ids or letter.run_id in ids)
            and (task is None or letter.task == task)
            and (reason is None or reason in letter.reason)
        )

    return match


def entry(header: str, payload: bytes) -> bytes:
    """Return an entry as the list stores it."""
    return header.encode("utf-8", "surrogateescape") + b"\n" + payload
