"""Every Redis key, in one place. All of one broker (of one shard, ``NAME:0``, where it has several) stand on one hash
tag, so one Cluster slot.

The first group is aio-fluid's, so that both libraries share one set of queues; the ``ff:`` group is ours and
invisible to it.
"""

from dataclasses import dataclass

from ...core.states import TaskPriority

__all__ = ["DEFAULT_NAME", "Keys"]

DEFAULT_NAME = "redis-task-broker"


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

    # ours (the scripts in lua/ derive the same names from the prefix)

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
