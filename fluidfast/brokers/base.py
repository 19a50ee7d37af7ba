"""``TaskBroker``, the contract of a broker: few operations, each with its promise for the case that it fails.

Until it is settled, a payload that a channel confirmed is in exactly one place: on a queue, under a lease, or delayed.
This holds whatever dies in between. ``tests/brokers/contract`` tests the contract on every broker.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from .. import settings
from ..checks import ENQUEUE_TIMEOUT, LEASE_SECONDS, PAYLOAD_BYTES, check_number
from ..core._run import TaskRun
from ..core._time import new_id, now_micros
from ..core.states import TaskPriority
from ..core.task import AnyTask, Task, TaskInfo, checked, place_of, same_function, task_within
from ..errors import BrokerURLError, ConfigError, TaskError, TaskNameTaken, UnknownTaskError
from ..texts import quoted
from ..wire._codec import Codec
from .contract import Channel, Claim, DeadAction, EnqueueBatch, Kind, Settlement, Sifter, TaskManagersStatus
from .url import BOUND, DURABILITIES, BrokerOptions, BrokerURL

__all__ = ["BUILT_IN", "TaskBroker", "TaskRegistry"]

MAX_REAP_SECONDS = 15.0
"""A consumer sweeps at least this often, in seconds, since others may have shorter leases."""


BUILT_IN = {
    "memory": "fluidfast.brokers.memory.broker:MemoryTaskBroker",
    "redis": "fluidfast.brokers.redis.sharded:redis_broker",
    "rediss": "fluidfast.brokers.redis.sharded:redis_broker",
    "unix": "fluidfast.brokers.redis.sharded:redis_broker",
    "redis+sentinel": "fluidfast.brokers.redis.sharded:redis_broker",
    "rediss+sentinel": "fluidfast.brokers.redis.sharded:redis_broker",
    "redis+cluster": "fluidfast.brokers.redis.sharded:redis_broker",
    "rediss+cluster": "fluidfast.brokers.redis.sharded:redis_broker",
}
"""Brokers by scheme, imported when a URL names them."""

_factories: dict[str, Callable[["BrokerURL"], "TaskBroker"]] = {}


class TaskRegistry(dict[str, Task[Any]]):
    """Tasks by name. A name belongs to one function: that of another is refused.

    Raises:
        TaskNameTaken: a task of a different function is set under a name that is taken.
        TaskUsageError: something else than a task is set.
    """

    def add(self, task: AnyTask, *, replace: bool = False) -> None:
        """Set a task under its name. ``replace``: also in place of a different function."""
        task = checked(task)
        name = task.name
        if replace:
            self.pop(name, None)
        self[name] = task

    def __setitem__(self, name: str, task: Task[Any]) -> None:
        present = self.get(name)
        if present is not None and present is not task:
            taken, wanted = (each.run_executor(in_process=True) for each in (present, task))
            if not same_function(taken, wanted):
                raise TaskNameTaken(
                    f"task {name!r} is already registered by {place_of(taken)}, and {place_of(wanted)} is a different "
                    f"function: give one of them a name of its own with @task(name=...), or pass replace=True to "
                    "register_task"
                )
        super().__setitem__(name, task)

    def periodic(self) -> Iterable[Task[Any]]:
        """Yield the tasks that have a schedule."""
        return (task for task in self.values() if task.schedule is not None)


def is_running(loop: asyncio.AbstractEventLoop | None) -> bool:
    return loop is not None and loop.is_running()


class TaskBroker(ABC):
    """Stores payloads and leases them to consumers; stores what changes about tasks.

    Attributes: ``url`` (``BrokerURL``), ``options`` (``BrokerOptions``), ``registry`` (``TaskRegistry``), ``codec``.
    """

    default_name = "fluidfast"
    url_options: tuple[str, ...] = ()
    consumes = False
    """A consumer sets this before it connects, so that ``connect`` checks a consumer's rights."""
    push_never_takes: ClassVar[bool] = False
    """``push`` always returns False, so callers skip it."""

    def __init__(self, url: BrokerURL | str) -> None:
        self.url = url if isinstance(url, BrokerURL) else BrokerURL(str(url))
        self.options = BrokerOptions.from_url(self.url, self.default_name, self.url_options)
        self.registry = TaskRegistry()
        self.codec = Codec(
            self.registry, msgpack=self.options.wire == "msgpack", max_bytes=self.options.max_payload_bytes
        )

        self.is_in_use: Callable[[asyncio.AbstractEventLoop | None], bool] = is_running
        """Whether somebody still uses the connections of this event loop, so that another loop may not replace them."""

    # -- which broker

    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop that the connections belong to, or None without connections."""
        return None

    @classmethod
    def from_url(cls, url: str | BrokerURL = "") -> "TaskBroker":
        """Return the broker of a URL. ``""``: the URL of the environment, else ``memory://``.

        Raises:
            BrokerURLError: the scheme or an option is unknown.
            ConfigError: the scheme's class is a broker of aio-fluid.
        """
        parsed = url if isinstance(url, BrokerURL) else BrokerURL(str(url) or settings.get_settings().broker_url)
        factory = _factories.get(parsed.scheme)
        if factory is None:
            if parsed.scheme not in BUILT_IN:
                known = ", ".join((*BUILT_IN, *_factories))
                raise BrokerURLError(f"Invalid broker {parsed}: unknown scheme {parsed.scheme!r}, known are {known}")
            module, _, name = BUILT_IN[parsed.scheme].partition(":")
            factory = getattr(import_module(module), name)
        elif missing := sorted(getattr(factory, "__abstractmethods__", ())):
            raise ConfigError(
                f"broker {parsed}: its class has no {missing[0]}() and {len(missing) - 1} more methods, by which "
                'workers of fluidfast lease and settle runs: port it as the guide "Moving from aio-fluid" says, or keep'
                " its processes on aio-fluid"
            )
        return factory(parsed)

    @classmethod
    def register_broker(cls, name: str, factory: Callable[[Any], "TaskBroker"]) -> None:
        """Serve URLs of the scheme ``name`` by ``factory(url)``."""
        _factories[name] = factory

    @property
    def name(self) -> str:
        """The prefix of its keys. Brokers of one name on one server share their queues."""
        return self.options.name

    def now(self) -> int:
        """The time by which delayed runs and schedules are due here, in microseconds since the epoch.

        By default this machine's clock; ``fluidfast.testing`` has a broker whose clock a test can move.
        """
        return now_micros()

    # -- producing

    @abstractmethod
    def push(self, priority: int, payload: bytes) -> bool:
        """Queue a payload if that needs no waiting. Return False if it does: then use a channel."""

    def waiting(self) -> int | None:
        """Return the number of queued runs if it is known without asking the server, else None."""
        return None

    @abstractmethod
    async def channel(self) -> Channel:
        """Return a live connection for batches of new runs. Raises BrokerConnectionError."""

    @abstractmethod
    async def forget(self, producer: str) -> None:
        """Drop the deduplication mark of a producer that is done."""

    @abstractmethod
    async def delay(self, entries: Sequence[tuple[float, int, bytes]]) -> None:
        """Store payloads until they are due: seconds from now, priority number, payload. Raises BrokerError."""

    # -- consuming

    def look_seconds(self, consumer: str) -> float:
        """Return how many seconds a consumer may ``wait``, again and again, before it claims to check the queues."""
        return 5.0

    @abstractmethod
    async def claim(
        self,
        consumer: str,
        limit: int,
        *,
        max_bytes: int = 8 << 20,
        idle: bool = True,
        waits: bool = False,
        tasks: Sequence[str] = (),
    ) -> Claim:
        """Claim up to ``limit`` payloads under a new lease, high priority first, FIFO within a priority.

        ``max_bytes``: the most bytes of all payloads together; one payload is always given. ``idle``: the consumer runs
        nothing. ``waits``: it will ``wait`` if the claim is empty. ``tasks``: names whose enabled flag to return. If
        the reply is lost, the claim is repeated and returns the same payloads.
        """

    @abstractmethod
    async def settle(self, settlement: Settlement) -> bool:
        """Settle the outcomes of runs. Return False if the batch has lost its lease; then nothing was changed."""

    @abstractmethod
    async def release(self, batch: str, fields: Sequence[str]) -> int:
        """Give runs that were claimed and not started back to their queues, in this order. Return their number.

        A suspect stays one.
        """

    @abstractmethod
    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]] = ()) -> list[str]:
        """Renew leases, and slots (task, slot). Return the batches that have lost their lease."""

    @abstractmethod
    def renewer(self, consumer: str) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]:
        """Return ``renew`` as a blocking call for a thread, with a connection of its own."""

    def releaser(self, consumer: str) -> Callable[[], object] | None:
        """Return a blocking call that gives the runs reserved for this consumer back to their queues.

        A thread calls it, at any time, while the event loop is blocked. None: this broker never reserves runs.
        """
        return None

    @abstractmethod
    async def reap(self) -> int:
        """Sweep once for the runs of dead consumers. Return how many runs went back to their queues.

        The second sweep that finds a lease expired, at least half of that lease after the first, takes it back.
        """

    def reap_seconds(self) -> float:
        """Return the seconds until a consumer's next sweep."""
        return max(0.05, min(self.options.lease_seconds / 2, MAX_REAP_SECONDS))

    @abstractmethod
    async def promote(self) -> float | None:
        """Queue delayed runs that are due. Return the seconds until the next one is due, or None if there is none."""

    @abstractmethod
    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        """Wait until there may be something to claim, at most ``timeout`` seconds.

        If the broker has reserved runs for the consumer, it may return them as a claim, with the flags of ``tasks``,
        unless ``tasks`` is None. The consumer has to claim all others.
        """

    async def stop_reserving(self, consumer: str) -> None:
        """Stop reserving runs for this consumer until it waits again."""
        return None

    @abstractmethod
    async def deregister(self, consumer: str) -> None:
        """Deregister a consumer that ends, and give the runs reserved for it back to their queues."""

    @abstractmethod
    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        """Take a slot under the task's ``max_concurrency``.

        ``slot`` is its name: ``FENCE RUN-ID``, the run's batch and field and then its id (``Claimed.slot``), so that
        runs of one id have a slot each. Return True if it was free. False: all are taken. None: all are taken, one of
        them by a run of the same id, which may be this very run at a dead worker; that slot will become free.
        """

    @abstractmethod
    async def free(self, slots: Sequence[tuple[str, str]]) -> None:
        """Free slots under ``max_concurrency`` (task, slot) without a settlement.

        Raises:
            BrokerError: they may stay taken until their lease expires.
        """

    # -- waiting for results

    @abstractmethod
    async def replies(self, address: str, timeout: float) -> list[bytes]:
        """Return the payloads of finished runs that were sent to this address; empty after ``timeout`` seconds.

        They are removed from the broker after they have arrived. If the connection ends before that, the next call
        returns them again, so a payload may come twice. An address has one reader at a time.
        """

    async def consumers_of(self, task_name: str) -> tuple[int, int] | None:
        """Return the number of live consumers, and of those that run this task. None: finding out would be expensive.

        Raises:
            BrokerError: the broker did not answer.
        """
        return None

    # -- what is there

    @property
    @abstractmethod
    def task_queue_names(self) -> tuple[str, ...]:
        """The names of the queues that this broker's consumers serve."""

    @abstractmethod
    async def queue_length(self) -> dict[str, int]:
        """Return the number of queued runs by priority."""

    async def queue_bytes(self) -> int | None:
        """Return about how many bytes the queued runs take, or None if the broker does not know."""
        return None

    async def fronts(self) -> list[bytes]:
        """The payloads that are claimed next, one of each queue that is not empty; none if the broker cannot tell."""
        return []

    @abstractmethod
    async def clear_queue(self, *priorities: TaskPriority) -> dict[str, int]:
        """Remove queued runs of these priorities, or of all. Return their number by priority."""

    @abstractmethod
    async def clear(self) -> int:
        """Remove everything that this broker stores. Return the number of keys."""

    @abstractmethod
    async def dead(
        self, limit: int = 100, offset: int = 0, *, oldest: bool = False, kind: Kind = "dead"
    ) -> list[tuple[str, bytes]]:
        """Read dead letters, or failed runs: header (milliseconds since the epoch, a space, the reason) and payload.

        Newest first, or ``oldest`` first, after the first ``offset`` of them.
        """

    @abstractmethod
    async def dead_length(self, kind: Kind = "dead") -> int:
        """Count the dead letters, or the failed runs."""

    @abstractmethod
    async def dead_trimmed(self, kind: Kind = "dead") -> int:
        """Count the entries that were trimmed so far, because there were too many."""

    @abstractmethod
    def sifter(self, kind: Kind = "dead") -> "Sifter":
        """Return an iterator over the dead letters, or failed runs, that can take some of them out."""

    async def take_dead(self, actions: Sequence[DeadAction], kind: Kind = "dead") -> int:
        """Remove entries of ``dead``, and requeue those with a priority. Return how many were there."""
        left = list(actions)
        taken = 0
        async with self.sifter(kind) as sifter:
            while left and (page := await sifter.turn()):
                there = set(page)
                chosen = [action for action in left if action[:2] in there]
                left = [action for action in left if action[:2] not in there]
                taken += await sifter.take(chosen)
        return taken

    @abstractmethod
    async def delayed_length(self) -> int:
        """Return the number of delayed runs."""

    @abstractmethod
    async def leased_length(self) -> int:
        """Return the number of runs that consumers hold: under a lease, or in the inbox of one that was woken.

        A run that goes under its lease during the call may be counted twice; none is missed.
        """

    async def has_runs(self) -> bool:
        """Return whether any run is queued, leased, in the inbox of a consumer that was woken, or delayed.

        A broker on a server sees all of it at one moment, each shard at its own.
        """
        return bool(
            sum((await self.queue_length()).values()) or await self.leased_length() or await self.delayed_length()
        )

    # -- tasks and managers

    @abstractmethod
    async def get_tasks_info(self, *task_names: str) -> list[TaskInfo]:
        """Return the info of these tasks, as far as they are registered; without names, of all."""

    @abstractmethod
    async def update_task(self, task: Task[Any], params: Mapping[str, Any]) -> TaskInfo:
        """Change a task's dynamic info (fields of ``TaskInfoUpdate``)."""

    @abstractmethod
    async def set_manager_status(self, manager_id: str, data: dict[str, Any], ttl: int) -> None:
        """Store the status of a manager for ``ttl`` seconds."""

    @abstractmethod
    async def get_all_manager_statuses(self) -> TaskManagersStatus:
        """Return the statuses of the running managers."""

    @abstractmethod
    async def current_task_runs(self, task_name: str) -> int:
        """Return how many runs of a task with ``max_concurrency`` hold a slot now."""

    @abstractmethod
    async def set_task_aborted(self, run_id: str, reason: str) -> None:
        """Store for a minute why a run was aborted."""

    @abstractmethod
    async def get_task_aborted(self, run_id: str) -> str | None:
        """Return why a run was aborted, or None."""

    @abstractmethod
    def lock(self, name: str, timeout: float | None = None) -> Any:
        """Return an async context manager with one holder of this name at a time, for ``timeout`` seconds at most."""

    @abstractmethod
    async def first(self, key: str, seconds: float) -> bool:
        """Return True to the first caller with this key within ``seconds``, over all processes."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections. A second call does nothing, and the broker may be used again."""

    async def connect(self) -> None:
        """Check that the server is available, and can do what the options demand.

        Raises:
            BrokerConnectionError: it is unavailable.
            BrokerAuthError: the user lacks a right.
            DurabilityUnsupportedError: it cannot confirm that runs are safe as ``durability`` demands.
        """
        return None

    # -- the same for every broker

    def new_uuid(self) -> str:
        """Return a new run id: 32 hex digits."""
        return new_id()

    def register_task(self, task: AnyTask, *, replace: bool = False) -> None:
        """Add a task to the registry, in place of one of the same name and function.

        ``replace``: also in place of a different function.

        Raises:
            TaskNameTaken: a different function has this name.
            TaskUsageError: it is something else than a task.
        """
        self.registry.add(task, replace=replace)

    def task_from_registry(self, task: str | AnyTask) -> Task[Any]:
        """Return the task of a name. A task object is registered and returned.

        Raises:
            UnknownTaskError: no task has this name.
            TaskNameTaken, TaskUsageError: as ``register_task``.
        """
        if not isinstance(task, str):
            given = task_within(task, self.registry)
            self.register_task(given)
            return given
        found = self.registry.get(task)
        if found is None:
            raise UnknownTaskError(f"unknown task {quoted(task)}: it is not registered with this manager")
        return found

    async def enable_task(self, task: str | AnyTask, enable: bool = True) -> TaskInfo:
        """Let a task run or not; a run of a disabled task ends as ``aborted``. Raises UnknownTaskError."""
        return await self.update_task(self.task_from_registry(task), {"enabled": enable})

    async def filter_tasks(self, scheduled: bool | None = None, enabled: bool | None = None) -> list[Task[Any]]:
        """Registered tasks that have a schedule or not, that are enabled or not; None: either."""
        tasks = [
            task for task in self.registry.values() if scheduled is None or (task.schedule is not None) is scheduled
        ]
        if enabled is None or not tasks:
            return tasks
        infos = {info.name: info for info in await self.get_tasks_info(*(task.name for task in tasks))}
        return [task for task in tasks if infos[task.name].enabled is enabled]

    async def queue_task(self, task_run: TaskRun[Any, Any]) -> None:
        """Queue one run and wait until it is safe. Managers batch, with a ``Producer``."""
        await self.queue_payload(task_run.prio, self.codec.encode(task_run))

    async def push_once(self, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        """Queue a payload, unless one was queued under this key within ``seconds``, by whichever process.

        Gives whether this call queued it; after an error the same call may be made again. A broker that outlives a
        process makes one step of it, so that a caller who dies has queued it or has not claimed the key.

        Raises:
            NotDurableError: this call queued it, but it is not as safe as ``durability`` demands.
            BrokerError: it is not known to be queued.
        """
        if not await self.first(key, seconds):
            return False
        await self.queue_payload(priority, payload)
        return True

    @abstractmethod
    async def push_after(
        self, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        """Queue a payload and set a mark to ``at``, unless the mark is there and is not ``after``. All in one step.

        Gives whether this call queued it, and what the mark is now. It is forgotten after ``seconds``. After an error
        the same call may be made again.

        Raises:
            NotDurableError, BrokerError: as ``push_once``.
        """

    @abstractmethod
    async def marks(self, *names: str) -> list[int]:
        """The marks of these names; 0 for one that is not there."""

    @abstractmethod
    async def set_marks(self, names: Sequence[str], value: int, seconds: float) -> None:
        """Set marks to a value, to be forgotten after ``seconds``."""

    async def queue_payload(self, priority: int, payload: bytes) -> None:
        """Queue one payload and wait until it is safe. Raises BrokerError."""
        if not self.push(priority, payload):
            groups: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
            groups[priority].append(payload)
            producer = self.new_uuid()
            confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def confirm(waiting: int, exc: Exception | None) -> None:
                if confirmed.done():
                    return
                if exc is None:
                    confirmed.set_result(None)
                else:
                    confirmed.set_exception(exc)

            (await self.channel())(EnqueueBatch(producer, 1, groups), confirm)
            await confirmed
            await self.forget(producer)

    async def get_task_run(self, task_manager: Any) -> TaskRun[Any, Any] | None:
        """Take one run off the queues, at most once: it is settled before it is given. Consumers use ``claim``.

        Raises:
            PayloadError, UnknownTaskError, TaskParamsError: it cannot be read; it went to the dead.
        """
        consumer = self.new_uuid()
        claim = await self.claim(consumer, 1)
        if not claim.items:
            return None
        item = claim.items[0]
        try:
            run = self.codec.decode(item.payload, task_manager, task_manager.dispatcher.listeners)
        except TaskError as exc:
            await self.settle(Settlement(claim.batch, whole=True, dead=[(item.field, str(exc))], survived=[item.field]))
            raise
        await self.settle(Settlement(claim.batch, whole=True, survived=[item.field]))
        return run

    def use(
        self,
        *,
        lease_seconds: float | None = None,
        max_payload_bytes: int | None = None,
        durability: str | None = None,
        enqueue_timeout: float | None = None,
        retry_floor: float | None = None,
        **bounds: int | None,
    ) -> None:
        """Apply options of a manager's config, which win over the URL. Raises ConfigError.

        ``bounds``: ``max_dead`` and the others of ``BOUNDS``.
        """
        for name, value in bounds.items():
            if value is not None:
                setattr(self.options, name, check_number(name, value, ConfigError, **BOUND))
        if durability is not None:
            if durability not in DURABILITIES:
                raise ConfigError(f"durability is {durability!r}, it must be one of {', '.join(DURABILITIES)}")
            self.options.durability = durability
        if enqueue_timeout is not None:
            self.options.enqueue_timeout = check_number(
                "enqueue_timeout", enqueue_timeout, ConfigError, **ENQUEUE_TIMEOUT
            )
        if retry_floor is not None:
            self.options.retry_floor = check_number("retry_floor", retry_floor, ConfigError)
        if lease_seconds is not None:
            self.options.lease_seconds = check_number("lease_seconds", lease_seconds, ConfigError, **LEASE_SECONDS)
        if max_payload_bytes is not None:
            check_number("max_payload_bytes", max_payload_bytes, ConfigError, **PAYLOAD_BYTES)
            self.options.max_payload_bytes = max_payload_bytes
            self.codec = Codec(self.registry, msgpack=self.codec.msgpack, max_bytes=max_payload_bytes)
