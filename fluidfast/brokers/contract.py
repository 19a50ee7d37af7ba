"""The objects and numbers that every broker shares with producers and consumers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ..core.model import Model
from ..texts import printable
from ._leases import Claimed

__all__ = [
    "DEAD_AFTER",
    "MAX_CLAIM",
    "MAX_ENQUEUED",
    "PAGE_BYTES",
    "PAGE_ENTRIES",
    "SUSPECT_AFTER",
    "WORKER_DIED",
    "Channel",
    "Claim",
    "Confirm",
    "DeadAction",
    "EnqueueBatch",
    "Kind",
    "Settlement",
    "Sifter",
    "TaskManagerStatus",
    "TaskManagersStatus",
    "consumers_among",
    "gave_up_at",
    "header",
    "run_id_of",
]

MAX_CLAIM = 1000
"""Runs that one claim gives at most."""
MAX_ENQUEUED = 3000
"""Payloads that an ``EnqueueBatch`` has at most."""
SUSPECT_AFTER = 2
"""Workers that died holding a run, after which it is claimed alone."""
DEAD_AFTER = 3
"""Workers that died holding a run, after which it goes to the dead letters."""
WORKER_DIED = f"its worker died {DEAD_AFTER} times while holding it"
"""The reason of such a dead letter."""

REASON = 1000
"""Characters of a reason that are kept with a run that gave up."""
PAGE_ENTRIES = 200
PAGE_BYTES = 512 << 10
"""Entries of a list, and bytes of them, that the server reads in one step."""

Kind = Literal["dead", "failed"]
"""Which list: runs that gave up, or runs of a task without ``retry`` that failed."""


@dataclass
class TaskManagerStatus(Model):
    """The status that a running manager reports: its kind, and its workers by name."""

    kind: str
    status: dict[str, Any]


@dataclass
class TaskManagersStatus(Model):
    """All running managers, and runs waiting by priority."""

    workers: list[TaskManagerStatus]
    queues: dict[str, int] = field(default_factory=dict)


def consumers_among(tasks: "Iterable[Collection[str] | None]", task_name: str) -> tuple[int, int] | None:
    """How many consumers there are, and how many of them run a task, given the tasks that each runs.

    ``tasks``: None for a consumer that does not say (of an older release); empty for one that only schedules. Returns
    None if it may be one of those that do not say.
    """
    told = [names for names in tasks if names is None or names]
    knowing = sum(names is not None and task_name in names for names in told)
    return None if None in told and not knowing else (len(told), knowing)


@dataclass(slots=True)
class Claim:
    """The runs of one claim. The batch is the fence: without its lease, nothing can be settled under it.

    ``enabled``: the flag of each task that the claim named. ``alone``: a suspect, to be run with nothing beside it.
    ``suspects``: how many wait for a consumer that runs nothing. ``at``: the broker's time in microseconds, by which
    delayed runs are due; 0: unknown.
    """

    batch: str
    items: list[Claimed]
    enabled: dict[str, bool] = field(default_factory=dict)
    alone: bool = False
    suspects: int = 0
    at: int = field(default=0, compare=False)


@dataclass(slots=True)
class Settlement:
    """The outcomes of runs of one batch; all of them take effect, or none.

    ``done``: fields that leave the broker (also those that are named below). ``whole``: the lease holds nothing else.
    ``retries``: seconds from now, priority number, new payload. ``dead``: field, reason. ``failed``: field, reason of a
    failed run whose task has no ``retry``. ``info``: task -> end (ISO text), duration (seconds), state of its last run.
    ``replies``: address, payload of the finished run. ``slots``: task, slot (see ``acquire``). ``survived``: fields
    with strikes that did not kill their worker.
    """

    batch: str
    whole: bool = False
    done: list[str] = field(default_factory=list)
    retries: list[tuple[float, int, bytes]] = field(default_factory=list)
    dead: list[tuple[str, str]] = field(default_factory=list)
    info: dict[str, tuple[str, float, str]] = field(default_factory=dict)
    replies: list[tuple[str, bytes]] = field(default_factory=list)
    slots: list[tuple[str, str]] = field(default_factory=list)
    survived: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class EnqueueBatch:
    """Payloads to queue. ``producer`` and ``sequence`` make sending it twice the same as once.

    ``groups``: payloads by priority number, MAX_ENQUEUED of them at most, since all are pushed in one step.
    A producer's sequence numbers rise, and its batches are sent in their order. ``behind``: the sequence number of the
    batch that was sent before this one and is not confirmed, else 0. ``fresh``: nothing of it was ever sent, and the
    answer need not say how many runs wait.
    """

    producer: str
    sequence: int
    groups: tuple[list[bytes], list[bytes], list[bytes]]
    behind: int = 0
    fresh: bool = False

    def __len__(self) -> int:
        return len(self.groups[0]) + len(self.groups[1]) + len(self.groups[2])


Confirm = Callable[[int, Exception | None], None]
"""Called with the outcome of a batch: the number of queued runs in all (-1: not asked) and None; or 0 and an error.

ConnectionLostError: the connection ended before the answer. Another BrokerError: the server refused, and kept nothing
of the batch."""

Channel = Callable[[EnqueueBatch, Confirm], None]
"""Sends batches on one live connection. It confirms them in the order of sending."""


def run_id_of(slot: str) -> str:
    """Return the run's id in the name of a slot under ``max_concurrency`` (``FENCE RUN-ID``)."""
    fence, space, run_id = slot.partition(" ")
    return run_id if fence and space else slot


DeadAction = tuple[str, bytes, int | None, bytes]
"""An entry's header and payload, the priority number to requeue it with (None: purge it), and the payload to push."""


class Sifter(ABC):
    """Reads the dead letters, or failed runs, a page at a time, oldest first, and takes some out.

    An async context manager. It returns each entry that was there when it was entered, once, whatever others take out
    or add meanwhile.
    """

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(self, *exc_info: object) -> None: ...

    @abstractmethod
    async def turn(self, limit: int = PAGE_ENTRIES) -> list[tuple[str, bytes]]:
        """Return the next page of entries; ``[]`` at the end."""

    @abstractmethod
    async def take(self, actions: Sequence[DeadAction]) -> int:
        """Remove entries of this page, and requeue those with a priority. Return how many were still there."""


def header(reason: str) -> str:
    """Return the first line of an entry of what gave up: when, in milliseconds since the epoch, and why."""
    return f"{int(time.time() * 1000)} {printable(' '.join(reason.split())[:REASON], REASON)}"


def gave_up_at(header: str) -> int:
    """Return the time in such a line, in milliseconds since the epoch; 0 if it cannot be read."""
    text = header.partition(" ")[0]
    return int(text) if len(text) < 16 and text.isascii() and text.isdecimal() else 0
