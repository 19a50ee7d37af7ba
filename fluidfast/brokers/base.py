"""The broker contract: few verbs, each with what it promises when it fails. Two brokers keep it, memory and Redis.

A payload that ``enqueue`` confirmed is, until it is settled, on a queue, under a lease, or delayed: in exactly one of
those places, whatever dies in between.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from .. import settings
from ..checks import LEASE_SECONDS, PAYLOAD_BYTES, check_number
from ..core._run import TaskRun
from ..core._time import new_id
from ..core.states import TaskPriority
from ..core.task import Task, TaskInfo, checked, place_of, same_function
from ..errors import BrokerURLError, ConfigError, TaskError, TaskNameTaken, UnknownTaskError
from ..texts import quoted
from ..wire._codec import Codec
from .contract import Channel, Claim, EnqueueBatch, Exhume, Kind, Settlement, Sifter, TaskManagersStatus
from .url import BOUND, DURABILITIES, BrokerOptions, BrokerURL

__all__ = ["BUILT_IN", "TaskBroker", "TaskRegistry"]

MAX_REAP_SECONDS = 15.0
"""A consumer sweeps at least this often, for consumers with shorter leases."""


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

    def add(self, task: Task[Any], *, replace: bool = False) -> None:
        """Set a task under its name. ``replace``: also in place of a different function."""
        name = checked(task).name
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
        """The tasks that have a schedule."""
        return (task for task in self.values() if task.schedule is not None)


def is_running(loop: asyncio.AbstractEventLoop | None) -> bool:
    return loop is not None and loop.is_running()


class TaskBroker(ABC):
    """Keeps payloads safe and leases them to consumers; keeps what changes about tasks.

    Attributes: ``url`` (``BrokerURL``), ``options`` (``BrokerOptions``), ``registry`` (``TaskRegistry``), ``codec``.
    """

    default_name = "fluidfast"
    url_options: tuple[str, ...] = ()
    consumes = False
    """A consumer sets this before it connects, for ``connect`` to see that it can."""
    never_takes: ClassVar[bool] = False
    """``push`` always gives False, and need not be asked."""

    def __init__(self, url: BrokerURL | str) -> None:
        self.url = url if isinstance(url, BrokerURL) else BrokerURL(str(url))
        self.options = BrokerOptions.from_url(self.url, self.default_name, self.url_options)
        self.registry = TaskRegistry()
        self.codec = Codec(
            self.registry, msgpack=self.options.wire == "msgpack", max_bytes=self.options.max_payload_bytes
        )

        self.is_in_use: Callable[[asyncio.AbstractEventLoop | None], bool] = is_running
        """Whether connections that belong to this event loop may not be left for those of another one."""

    # -- which broker

    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the connections belong to, if there are any."""
        return None

    @classmethod
    def from_url(cls, url: str | BrokerURL = "") -> "TaskBroker":
        """The broker of a URL; ``""``: of the environment, or ``memory://``.

        Raises:
            BrokerURLError: the scheme is unknown, or an option is.
        """
        parsed = url if isinstance(url, BrokerURL) else BrokerURL(str(url) or settings.get_settings().broker_url)
        factory = _factories.get(parsed.scheme)
        if factory is None:
            if parsed.scheme not in BUILT_IN:
                known = ", ".join((*BUILT_IN, *_factories))
                raise BrokerURLError(f"Invalid broker {parsed}: unknown scheme {parsed.scheme!r}, known are {known}")
            module, _, name = BUILT_IN[parsed.scheme].partition(":")
            factory = getattr(import_module(module), name)
        return factory(parsed)

    @classmethod
    def register_broker(cls, name: str, factory: Callable[[Any], "TaskBroker"]) -> None:
        """Serve URLs of the scheme ``name`` by ``factory(url)``."""
        _factories[name] = factory

    @property
    def name(self) -> str:
        """Brokers of one name on one server are one."""
        return self.options.name

    # -- producing

    @abstractmethod
    def push(self, priority: int, payload: bytes) -> bool:
        """Queue a payload at once, where that needs no waiting. False: it does, use a channel."""

    def waiting(self) -> int | None:
        """Runs waiting, where that is known without asking; None: it is not."""
        return None

    @abstractmethod
    async def channel(self) -> Channel:
        """A live way in for batches. Raises BrokerConnectionError."""

    @abstractmethod
    async def forget(self, producer: str) -> None:
        """This producer sends nothing more."""

    @abstractmethod
    async def delay(self, entries: Sequence[tuple[float, int, bytes]]) -> None:
        """Keep payloads (seconds from now, priority number, payload) until they are due. Raises BrokerError."""

    # -- consuming

    def look_seconds(self, consumer: str) -> float:
        """How long it may ``wait``, again and again, before it claims to be sure that there is nothing."""
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
        """Take up to ``limit`` payloads under a new lease, high priority first, FIFO within one.

        ``max_bytes`` bounds their sum, but one is always given. ``idle``: the consumer runs nothing. ``waits``: it will
        ``wait`` if it is given nothing. ``tasks``: whose
        enabled flag is wanted. If the reply is lost the same claim is asked again and gives the same payloads.
        """

    @abstractmethod
    async def settle(self, settlement: Settlement) -> bool:
        """Say what became of runs. False: the batch holds no lease any more and nothing was changed."""

    @abstractmethod
    async def release(self, batch: str, fields: Sequence[str]) -> int:
        """Give back what was claimed and not started, in the order given, to where it came from.

        A suspect stays one.
        """

    @abstractmethod
    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]] = ()) -> list[str]:
        """Prolong leases (and slots: task, slot). Gives the batches that hold none any more."""

    @abstractmethod
    def renewer(self, consumer: str) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]:
        """``renew`` as a blocking call for a thread, with a connection of its own."""

    def yielder(self, consumer: str) -> Callable[[], object] | None:
        """For a thread, while the event loop does not get on: what was set aside for this consumer is for others.

        A blocking call that may come at any time. None: nothing is ever set aside.
        """
        return None

    @abstractmethod
    async def reap(self) -> int:
        """Sweep once for what dead consumers held; gives how many runs were taken back.

        A lease is taken back by the second sweep that sees it expired, half of that lease after the first or later.
        """

    def reap_seconds(self) -> float:
        """How long a consumer waits until its next sweep."""
        return max(0.05, min(self.options.lease_seconds / 2, MAX_REAP_SECONDS))

    @abstractmethod
    async def promote(self) -> float | None:
        """Queue what is due. Gives seconds until the next one is due, or None if nothing is delayed."""

    @abstractmethod
    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        """Until there may be something to claim, or ``timeout`` seconds have passed.

        A broker that has set something aside for the consumer may give it as a claim does, with the flags of ``tasks``,
        unless they are None; what else there is has to be claimed.
        """

    async def idle_no_more(self, consumer: str) -> None:
        """The consumer has no free slot: nothing is to be set aside for it until it waits again."""
        return None

    @abstractmethod
    async def farewell(self, consumer: str) -> None:
        """The consumer leaves for good: nothing waits for it any more."""

    @abstractmethod
    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        """Take a slot under the task's ``max_concurrency``.

        ``slot`` names it: ``FENCE RUN-ID``, the run's batch and field and then its id (``Claimed.slot``), so that runs
        of one id have a slot each. False: all are taken. None: all are taken, and a run of the same id has one, which
        may be this very run at a worker that is gone: it will be free.
        """

    @abstractmethod
    async def free(self, slots: Sequence[tuple[str, str]]) -> None:
        """Give back slots under ``max_concurrency`` (task, slot) without a settlement.

        Raises:
            BrokerError: they may be taken until their lease has run out.
        """

    # -- waiting for results

    @abstractmethod
    async def replies(self, address: str, timeout: float) -> list[bytes]:
        """Payloads of finished runs that were answered to this address; empty after ``timeout`` seconds.

        They are removed once they are here. If the connection ends before, the next call gives them again; one that
        was given may come twice. An address has one reader at a time.
        """

    async def consumers_of(self, task_name: str) -> tuple[int, int] | None:
        """How many consumers are alive, and how many of them run this task. None: that cannot be told cheaply.

        Raises:
            BrokerError: the broker does not say.
        """
        return None

    # -- what is there

    @property
    @abstractmethod
    def task_queue_names(self) -> tuple[str, ...]:
        """Names of the queues that this broker's consumers serve."""

    @abstractmethod
    async def queue_length(self) -> dict[str, int]:
        """Runs waiting, by priority."""

    async def queue_bytes(self) -> int | None:
        """Bytes that the waiting runs take, about; None: the broker does not know."""
        return None

    @abstractmethod
    async def clear_queue(self, *priorities: TaskPriority) -> dict[str, int]:
        """Remove what waits (in these priorities; none: in all). Gives how many were removed, by priority."""

    @abstractmethod
    async def clear(self) -> int:
        """Remove everything that this broker keeps. Gives how many keys that were."""

    @abstractmethod
    async def dead(
        self, limit: int = 100, offset: int = 0, *, oldest: bool = False, kind: Kind = "dead"
    ) -> list[tuple[str, bytes]]:
        """Read runs that gave up: header (milliseconds since the epoch, a space, the reason), payload. Newest first, or
        oldest first; ``offset`` of them are passed over."""

    @abstractmethod
    async def dead_length(self, kind: Kind = "dead") -> int:
        """Count the runs that gave up."""

    @abstractmethod
    async def dead_trimmed(self, kind: Kind = "dead") -> int:
        """Count the entries that were dropped so far, because there were too many."""

    @abstractmethod
    def sifter(self, kind: Kind = "dead") -> "Sifter":
        """Return a way through the runs that gave up, to take some of them out."""

    async def exhume(self, actions: Sequence[Exhume], kind: Kind = "dead") -> int:
        """Remove entries of ``dead``, and queue those that have a priority. Gives how many were there."""
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
        """Runs that wait for their time."""

    @abstractmethod
    async def leased_length(self) -> int:
        """Return the number of runs that consumers hold: under a lease, or in the inbox of one that was woken.

        A run that goes under its lease during the call may be counted twice; none is missed.
        """

    # -- tasks and managers

    @abstractmethod
    async def get_tasks_info(self, *task_names: str) -> list[TaskInfo]:
        """Info of the named tasks that are registered; of all, if none is named."""

    @abstractmethod
    async def update_task(self, task: Task[Any], params: Mapping[str, Any]) -> TaskInfo:
        """Change a task's dynamic info (fields of ``TaskInfoUpdate``)."""

    @abstractmethod
    async def set_manager_status(self, manager_id: str, data: dict[str, Any], ttl: int) -> None:
        """Say how a manager is; forgotten after ``ttl`` seconds."""

    @abstractmethod
    async def get_all_manager_statuses(self) -> TaskManagersStatus:
        """How the running managers are."""

    @abstractmethod
    async def current_task_runs(self, task_name: str) -> int:
        """Runs of a task with ``max_concurrency`` that hold a slot now."""

    @abstractmethod
    async def set_task_aborted(self, run_id: str, reason: str) -> None:
        """Remember for a minute why a run was aborted."""

    @abstractmethod
    async def get_task_aborted(self, run_id: str) -> str | None:
        """Why a run was aborted, or None."""

    @abstractmethod
    def lock(self, name: str, timeout: float | None = None) -> Any:
        """An async context manager: one holder at a time of this name. Opens by itself after ``timeout`` seconds."""

    @abstractmethod
    async def first(self, key: str, seconds: float) -> bool:
        """True for the first caller with this key within ``seconds``, over all processes."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections. May be called twice; the broker may be used again."""

    async def connect(self) -> None:
        """See that the server is there, and that it can do what the options demand.

        Raises:
            BrokerConnectionError: it is not there.
            BrokerAuthError: the user lacks a right.
            DurabilityUnsupportedError: it cannot.
        """
        return None

    # -- the same for every broker

    def new_uuid(self) -> str:
        """A new run id: 32 hex digits."""
        return new_id()

    def register_task(self, task: Task[Any], *, replace: bool = False) -> None:
        """Add a task to the registry, in place of one of the same name and function.

        ``replace``: also in place of a different function.

        Raises:
            TaskNameTaken: a different function has this name.
            TaskUsageError: it is something else than a task.
        """
        self.registry.add(task, replace=replace)

    def task_from_registry(self, task: str | Task[Any]) -> Task[Any]:
        """The task of a name; a task object is registered and given back.

        Raises:
            UnknownTaskError: no task has this name.
            TaskNameTaken, TaskUsageError: as ``register_task``.
        """
        if not isinstance(task, str):
            self.register_task(task)
            return task
        found = self.registry.get(task)
        if found is None:
            raise UnknownTaskError(f"unknown task {quoted(task)}: it is not registered with this manager")
        return found

    async def enable_task(self, task: str | Task[Any], enable: bool = True) -> TaskInfo:
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
        if lease_seconds is not None:
            self.options.lease_seconds = check_number("lease_seconds", lease_seconds, ConfigError, **LEASE_SECONDS)
        if max_payload_bytes is not None:
            check_number("max_payload_bytes", max_payload_bytes, ConfigError, **PAYLOAD_BYTES)
            self.options.max_payload_bytes = max_payload_bytes
            self.codec = Codec(self.registry, msgpack=self.codec.msgpack, max_bytes=max_payload_bytes)
