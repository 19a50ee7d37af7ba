"""Every Redis key, in one place. All of one broker (of one shard, ``NAME:0``, where it has several) stand on one hash
tag, so one Cluster slot.

The first group is aio-fluid's, so that both libraries share one set of queues; the ``ff:`` group is ours and
invisible to it. ``ScriptKeys`` puts them together for each script.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.states import PRIORITIES, TaskPriority
from ..contract import Settlement, run_id_of

__all__ = ["DEFAULT_NAME", "LAYOUT", "Declared", "Keys", "ScriptKeys"]

DEFAULT_NAME = "redis-task-broker"
LAYOUT = 1
"""Raise it with each change of the ``ff:`` keys that an older release would misread, and have the change write it
to ``Keys.layout`` once no consumer of an older release is alive."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of the broker called ``name``."""

    name: str = DEFAULT_NAME

    @property
    def prefix(self) -> str:
        return "{" + self.name + "}"

    # shared with aio-fluid

    def queue(self, priority: TaskPriority | str) -> str:
        """List of payloads: LPUSH in, RPOP out."""
        return f"{self.prefix}-queue-{priority}"

    def task(self, task_name: str) -> str:
        """Hash of a task's dynamic info (``enabled``, ``last_run_*``), values in JSON."""
        return f"{self.prefix}-tasks-{task_name}"

    def task_run(self, task_name: str, run_id: str) -> str:
        """String with a TTL for each running run of a task with ``max_concurrency``."""
        return f"{self.prefix}-task-run-{task_name}-{run_id}"

    def manager(self, manager_id: str) -> str:
        """String with a TTL: status of a running manager, in JSON."""
        return f"{self.prefix}-manager-{manager_id}"

    def aborted(self, run_id: str) -> str:
        """String with a TTL: why a run was aborted."""
        return f"{self.prefix}-aborted-{run_id}"

    # ours

    @property
    def nothing(self) -> str:
        """A key that is empty between calls: scripts test their user's rights on it.

        Every script declares it first. A Cluster node that is moving the slot to another one answers such a call with
        ASK or TRYAGAIN, since it does not have all of the keys, and so runs no script on half of them.
        """
        return f"{self.prefix}-ff:nothing"

    def lease(self, batch: str) -> str:
        """Hash: field (priority letter and index) -> payload, of one claimed batch."""
        return f"{self.prefix}-ff:lease:{batch}"

    @property
    def leases(self) -> str:
        """Sorted set: batch -> deadline, in server milliseconds. A batch's name ends with its lease in ms."""
        return f"{self.prefix}-ff:leases"

    @property
    def consumers(self) -> str:
        """Sorted set: consumer id -> when its lease ends if it stays silent, in server milliseconds."""
        return f"{self.prefix}-ff:consumers"

    @property
    def consumer_leases(self) -> str:
        """Hash: consumer id -> its ``lease_seconds``, in milliseconds."""
        return f"{self.prefix}-ff:consumer-leases"

    def inbox(self, consumer: str, priority: TaskPriority | str) -> str:
        """List: what a blocked consumer's wake-up moved to it."""
        return f"{self.prefix}-ff:inbox:{consumer}:{priority}"

    @property
    def delayed(self) -> str:
        """Sorted set: priority letter and payload -> when it is due, in server milliseconds."""
        return f"{self.prefix}-ff:delayed"

    @property
    def strikes(self) -> str:
        """Hash: SHA-1 of a payload -> how many workers died holding it."""
        return f"{self.prefix}-ff:strikes"

    @property
    def suspect(self) -> str:
        """List: what may be poison, claimed alone. Priority letter and payload."""
        return f"{self.prefix}-ff:suspect"

    def gave_up(self, kind: str) -> str:
        """List, newest first: runs that gave up (``dead``), or that failed without a retry (``failed``).

        An entry is a header line (milliseconds, reason), a newline, the payload's bytes.
        """
        return f"{self.prefix}-ff:{kind}"

    @property
    def dead(self) -> str:
        """``gave_up("dead")``."""
        return self.gave_up("dead")

    @property
    def kept(self) -> str:
        """Hash with a TTL of a year: bytes in each list of ``gave_up``, and how many entries it has dropped."""
        return f"{self.prefix}-ff:kept"

    @property
    def sifts(self) -> str:
        """Hash with a TTL: cursors of those who go through a list of ``gave_up`` to requeue or purge."""
        return f"{self.prefix}-ff:sifts"

    def producer(self, producer: str) -> str:
        """String with a TTL: the last sequence number that this producer pushed."""
        return f"{self.prefix}-ff:producer:{producer}"

    def reply(self, address: str) -> str:
        """List with a TTL: finished runs that an event loop of one process waits for."""
        return f"{self.prefix}-ff:reply:{address}"

    def slots(self, task_name: str) -> str:
        """Sorted set: slot (a run's batch and field, then its id) -> deadline in server milliseconds, of a task with
        ``max_concurrency``."""
        return f"{self.prefix}-ff:slots:{task_name}"

    @property
    def shards(self) -> str:
        """String, under the broker's name without a number: over how many shards it is spread."""
        return f"{self.prefix}-ff:shards"

    @property
    def layout(self) -> str:
        """String, under the broker's name without a number: the number of the layout of these keys.

        Absent: 1, the layout of the releases that did not read it.
        """
        return f"{self.prefix}-ff:layout"

    def lock(self, name: str) -> str:
        """String with a TTL: a lock, in a Cluster. Elsewhere its key is its bare name, as aio-fluid's is."""
        return f"{self.prefix}-ff:lock:{name}"

    def mark(self, name: str) -> str:
        """String with a TTL, a number: when a schedule fired last (``fired:TASK``), or until when somebody looked at it
        (``looked:TASK``), in microseconds since the epoch."""
        return f"{self.prefix}-ff:mark:{name}"

    def first(self, key: str) -> str:
        """String with a TTL: somebody was the first to do this (a due time of a schedule)."""
        return f"{self.prefix}-ff:first:{key}"


Declared = tuple[str | bytes, ...]
"""The KEYS of one call of a script."""


class ScriptKeys:
    """The KEYS of each script in ``lua/``, in the order that its header says, by the method of the script's name.

    Names that hold no batch, consumer, task or producer are made once, as bytes.
    """

    def __init__(self, keys: Keys) -> None:
        def made(*names: str) -> tuple[bytes, ...]:
            return tuple(name.encode() for name in names)

        self.keys = keys
        self._inbox = f"{keys.prefix}-ff:inbox:"
        self._lease = keys.lease("")
        self._lease_bytes = self._lease.encode()
        self._nothing = made(keys.nothing)
        self._leases, self._delayed, self._strikes, self._suspect = made(
            keys.leases, keys.delayed, keys.strikes, keys.suspect
        )
        self._consumers = made(keys.consumers, keys.consumer_leases)
        self._queues = made(*map(keys.queue, PRIORITIES))
        self._queue_of = dict(zip(PRIORITIES, self._queues, strict=True))
        self._claim = self._leases, *self._consumers, self._suspect, self._strikes
        self._gave_up = made(keys.gave_up("dead"), keys.gave_up("failed"), keys.kept, keys.sifts)
        self._reap = (
            *self._nothing, self._leases, *self._consumers, self._strikes, self._suspect,
            *made(keys.dead, keys.kept, keys.sifts), *self._queues,
        )  # fmt: skip
        self._tasks: tuple[tuple[str, ...], tuple[bytes, ...]] = (), ()

    def enqueue(self, producer: str) -> Declared:
        return (*self._nothing, self.keys.producer(producer), *self._queues)

    def delay(self, call: str) -> Declared:
        return (*self._nothing, self.keys.producer(call), self._delayed)

    def fire(self, mark: str, priority: TaskPriority | str) -> Declared:
        return (*self._nothing, self.keys.mark(mark), self.keys.queue(priority))

    def promote(self) -> Declared:
        return (*self._nothing, self._delayed, *self._queues)

    def claim(
        self, consumer: str, batch: str, queues: Sequence[TaskPriority] = (), tasks: Sequence[str] = ()
    ) -> Declared:
        inbox = f"{self._inbox}{consumer}:"
        inboxes = [inbox + queue for queue in queues]
        served = [self._queue_of[queue] for queue in queues]
        return (*self._nothing, self._lease + batch, *self._claim, *inboxes, *served, *self.tasks(tasks))

    def peek(self, consumer: str, priority: TaskPriority, tasks: Sequence[str] = ()) -> Declared:
        inbox = f"{self._inbox}{consumer}:{priority}"
        return (*self._nothing, inbox, self._suspect, self._strikes, *self.tasks(tasks))

    def tasks(self, names: Sequence[str]) -> tuple[bytes, ...]:
        """The infos of tasks. A consumer asks for those of the same tasks again and again."""
        names = tuple(names)
        if self._tasks[0] != names:
            self._tasks = names, tuple(self.keys.task(name).encode() for name in names)
        return self._tasks[1]

    def adopt(self, consumer: str, batch: str, priority: TaskPriority) -> Declared:
        return (*self._nothing, self._lease + batch, self._leases, f"{self._inbox}{consumer}:{priority}")

    def settle(self, settlement: Settlement) -> Declared:
        s, keys = settlement, self.keys
        declared: list[str | bytes] = [*self._nothing, self._lease + s.batch, self._leases]
        if s.retries:
            declared.append(self._delayed)
        if s.dead or s.failed:
            declared += self._gave_up
        if s.survived:
            declared.append(self._strikes)
        declared += map(keys.task, s.info)
        if s.replies:
            declared += [keys.reply(address) for address, _ in s.replies]
        if s.slots:
            declared += self._slots(s.slots)
        return tuple(declared)

    def _slots(self, slots: Sequence[tuple[str, str]]) -> Declared:
        keys = self.keys
        return tuple(key for task, slot in slots for key in (keys.slots(task), keys.task_run(task, run_id_of(slot))))

    def release(self, batch: str) -> Declared:
        return (*self._nothing, self._lease + batch, self._leases, self._strikes, self._suspect, *self._queues)

    def renew(self, slots: Sequence[tuple[str, str]] = ()) -> Declared:
        return (*self._nothing, self._leases, *self._consumers, *self._slots(slots))

    def free(self, slots: Sequence[tuple[str, str]] = ()) -> Declared:
        return (*self._nothing, *self._slots(slots))

    def acquire(self, task: str, slot: str, expired: Sequence[str] = ()) -> Declared:
        runs = (self.keys.task_run(task, run_id_of(name)) for name in (slot, *expired))
        return (*self._nothing, self.keys.slots(task), *runs)

    def reap(self, batches: Sequence[bytes] = (), consumers: Sequence[bytes] = ()) -> Declared:
        inboxes = (b"%b%b:%b" % (self._inbox.encode(), name, p.encode()) for name in consumers for p in PRIORITIES)
        return (*self._reap, *(self._lease_bytes + batch for batch in batches), *inboxes)

    def deregister(self, consumer: str) -> Declared:
        inboxes = (f"{self._inbox}{consumer}:{priority}" for priority in PRIORITIES)
        return (*self._nothing, *self._consumers, *inboxes, *self._queues)

    def sift(self, kind: str) -> Declared:
        return (*self._nothing, self.keys.gave_up(kind), self.keys.sifts)

    def take_dead(self, kind: str) -> Declared:
        return (*self._nothing, self.keys.gave_up(kind), self.keys.kept, self.keys.sifts, *self._queues)
