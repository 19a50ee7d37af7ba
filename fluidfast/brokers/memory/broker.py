"""The broker contract without a server, in one process: the compiled queue, the real codec, real leases.

``memory://NAME`` is shared by all managers of this process that name it (``memory://`` is a name too). It is gone
with the process, and another process that names it has one of its own: nothing can tell it so.
"""

import asyncio
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Self

import msgspec

from ...checks import check_number
from ...core._time import keep_for_good, new_id
from ...core.places import has_place
from ...core.states import LETTERS, PRIORITIES, TaskPriority
from ...core.task import Task, TaskInfo, TaskInfoUpdate
from ...errors import BrokerURLError, ConfigError
from ...texts import writable
from .._leases import numbered
from ..base import TaskBroker
from ..contract import (
    DEAD_AFTER,
    MAX_CLAIM,
    PAGE_ENTRIES,
    SUSPECT_AFTER,
    WORKER_DIED,
    Channel,
    Claim,
    DeadAction,
    Kind,
    Settlement,
    Sifter,
    TaskManagersStatus,
    TaskManagerStatus,
    consumers_among,
    header,
    run_id_of,
)
from ..url import BrokerURL
from ._pqueue import PriorityQueue

__all__ = ["MemoryTaskBroker"]


class Store:
    """The state that the brokers of one name share."""

    def __init__(self) -> None:
        self.queue: PriorityQueue[bytes] = PriorityQueue()
        self.leases: dict[str, HeldBatch] = {}
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.strikes: dict[bytes, int] = {}
        self.suspects: deque[tuple[int, bytes]] = deque()
        self.dead = Kept()
        self.failed = Kept()
        self.replies: dict[str, deque[bytes]] = {}
        self.reply_waiters: dict[str, asyncio.Future[None]] = {}
        self.info: dict[str, dict[str, Any]] = {}
        self.slots: dict[str, dict[str, float]] = {}
        self.statuses: dict[str, tuple[float, dict[str, Any]]] = {}
        self.aborted: dict[str, tuple[float, str]] = {}
        self.firsts: dict[str, float] = {}
        self.marks: dict[str, tuple[int, float]] = {}
        self.locks: dict[str, MemoryLock] = {}
        has_place(self)

    def _forked(self) -> None:
        """The child of a fork begins with nothing: these runs, and who waits for them, are the parent's."""
        keep_for_good(list(self.waiters), dict(self.reply_waiters), dict(self.locks))
        self.waiters.clear()
        self.reply_waiters.clear()
        self.locks.clear()
        self.dead, self.failed = Kept(), Kept()  # their locks may have been held
        self.clear()

    def clear(self) -> None:
        """Remove everything that is kept."""
        self.queue.clear()
        self.queue.clear_delayed()
        everything: tuple[Any, ...] = (
            self.leases, self.strikes, self.suspects, self.dead, self.failed, self.replies, self.info, self.slots,
            self.statuses, self.aborted, self.firsts, self.marks,
        )  # fmt: skip
        for kept in everything:
            kept.clear()

    def kept(self, kind: Kind) -> "Kept":
        """The list of runs that gave up, or of those that failed."""
        return self.dead if kind == "dead" else self.failed


class Kept:
    """Entries of what gave up, by a number that rises: header and payload. It drops the oldest.

    Others may take entries out at the same time, in other threads: each is given to one of them.
    """

    def __init__(self) -> None:
        self.entries: OrderedDict[int, tuple[str, bytes]] = OrderedDict()  # which a dict is slower than at its front
        self.bytes = 0
        self.trimmed = 0
        self._last = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.entries)

    def push(self, reason: str, payload: bytes, bounds: tuple[int, int]) -> None:
        entry = (header(reason), payload)
        most, most_bytes = bounds
        with self._lock:
            self._last += 1
            self.entries[self._last] = entry
            self.bytes += size(entry)
            while self.entries and (len(self.entries) > most or self.bytes > most_bytes):
                self.bytes -= size(self.entries.popitem(last=False)[1])
                self.trimmed += 1

    def pop(self, number: int) -> bool:
        """Whether it was there."""
        with self._lock:
            entry = self.entries.pop(number, None)
            self.bytes -= 0 if entry is None else size(entry)
        return entry is not None

    def numbers(self) -> list[int]:
        """From the oldest to the newest."""
        with self._lock:
            return list(self.entries)

    def clear(self) -> None:
        with self._lock:
            self.entries.clear()
            self.bytes = 0


def size(entry: tuple[str, bytes]) -> int:
    return len(entry[0]) + 1 + len(entry[1])


class MemorySifter(Sifter):
    """Goes through what was there at the beginning, by number."""

    def __init__(self, kept: Kept, push: Callable[[int, bytes], object]) -> None:
        self.kept = kept
        self.push = push
        self.numbers: deque[int] = deque()
        self.page: dict[tuple[str, bytes], list[int]] = {}

    async def __aenter__(self) -> Self:
        self.numbers.extend(self.kept.numbers())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.numbers.clear()

    async def turn(self, limit: int = PAGE_ENTRIES) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        self.page = {}
        while self.numbers and len(found) < limit:
            number = self.numbers.popleft()
            if (entry := self.kept.entries.get(number)) is not None:
                self.page.setdefault(entry, []).append(number)
                found.append(entry)
        return found

    async def take(self, actions: Sequence[DeadAction]) -> int:
        count = 0
        for head, payload, priority, again in actions:
            numbers = self.page.get((head, payload))
            if not numbers or not self.kept.pop(numbers.pop(0)):
                continue
            count += 1
            if priority is not None:
                self.push(priority, again)
        return count


class HeldBatch:
    """A claimed batch: payloads by field, and when it runs out (monotonic seconds)."""

    __slots__ = ("confirmed_at", "deadline", "held", "seconds", "seen")

    def __init__(self, seconds: float, held: dict[str, bytes]) -> None:
        self.seconds = seconds
        self.deadline = monotonic() + seconds
        self.held = held
        self.seen = 0.0  # the deadline that a sweep found expired
        self.confirmed_at = 0.0  # from when on another sweep may act on it


_stores: "weakref.WeakValueDictionary[str, Store]" = weakref.WeakValueDictionary()


def wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class MemoryTaskBroker(TaskBroker):
    """A broker within this process: ``memory://NAME?lease_seconds=...``."""

    url_options = ("shards",)  # refused below, in clearer words

    def __init__(self, url: BrokerURL | str) -> None:
        super().__init__(url)
        if "shards" in self.url.query:
            raise BrokerURLError(f"broker {self.url}: memory:// is one process and has no shards: leave shards out")
        if self.url.host:
            self.options.name = self.url.host
        store = _stores.get(self.name)
        if store is None:
            store = _stores[self.name] = Store()
        self.store = store
        self._push = store.queue.push
        self._waiters = store.waiters
        self._mask = sum(1 << PRIORITIES.index(priority) for priority in self.options.queues)

    @property
    def prefix(self) -> str:
        """Prefix of the queues' names."""
        return "{" + self.name + "}"

    def task_queue_name(self, priority: TaskPriority) -> str:
        """Name of the queue of a priority."""
        return f"{self.prefix}-queue-{priority}"

    @property
    def task_queue_names(self) -> tuple[str, ...]:
        return tuple(self.task_queue_name(priority) for priority in self.options.queues)

    # -- producing

    def push(self, priority: int, payload: bytes) -> bool:
        self._push(priority, payload)
        if self._waiters:
            self._wake_one()
        return True

    def _wake_one(self) -> None:
        while True:
            try:
                waiter = self._waiters.popleft()
            except IndexError:  # nobody waits, or another thread was quicker
                return
            if waiter.done():
                continue
            loop = waiter.get_loop()
            if loop is asyncio._get_running_loop():
                waiter.set_result(None)
                return
            try:
                loop.call_soon_threadsafe(wake, waiter)
            except RuntimeError:  # that loop is closed
                continue
            return

    def waiting(self) -> int:
        return len(self.store.queue)

    async def channel(self) -> Channel:
        raise AssertionError("push always takes")

    async def forget(self, producer: str) -> None:
        return None

    async def delay(self, entries: Sequence[tuple[float, int, bytes]]) -> None:
        now = self.now()
        for seconds, priority, payload in entries:
            self.store.queue.push_later(now + int(max(0.0, seconds) * 1e6), priority, payload)
        self._wake_one()  # so that somebody sees when the first is due

    # -- consuming

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
        store = self.store
        alone = False
        if idle and store.suspects:
            taken = [store.suspects.popleft()]
            alone = True
        else:
            taken = store.queue.pop_many(min(limit, MAX_CLAIM), max_bytes, self._mask)
        items = numbered(taken)
        batch = new_id()
        if items:
            store.leases[batch] = HeldBatch(self.options.lease_seconds, {item.field: item.payload for item in items})
            if store.strikes:
                for item in items:
                    item.strikes = store.strikes.get(item.payload, 0)
        enabled = {name: bool(store.info.get(name, {}).get("enabled", True)) for name in tasks}
        return Claim(batch, items, enabled, alone=alone, suspects=len(store.suspects))

    async def settle(self, settlement: Settlement) -> bool:
        store = self.store
        lease = store.leases.get(settlement.batch)
        if lease is None:
            return False
        held = lease.held
        for field in settlement.survived:
            store.strikes.pop(held.get(field, b""), None)
        if settlement.dead:
            self._keep("dead", settlement.dead, held)
        if settlement.failed:
            self._keep("failed", settlement.failed, held)
        if settlement.whole:
            del store.leases[settlement.batch]
        else:
            for field in settlement.done:
                held.pop(field, None)
            if not held:
                del store.leases[settlement.batch]
        if settlement.retries:
            await self.delay(settlement.retries)
        for task, (end, duration, state) in settlement.info.items():
            store.info.setdefault(task, {}).update(last_run_end=end, last_run_duration=duration, last_run_state=state)
        for manager_id, payload in settlement.replies:
            store.replies.setdefault(manager_id, deque()).append(payload)
            if (waiter := store.reply_waiters.pop(manager_id, None)) is not None and not waiter.done():
                waiter.get_loop().call_soon_threadsafe(wake, waiter)
        await self.free(settlement.slots)
        return True

    def _keep(self, kind: Kind, gave_up: Sequence[tuple[str, str]], held: Mapping[str, bytes]) -> None:
        for field, reason in gave_up:
            if (payload := held.get(field)) is not None:
                self.store.kept(kind).push(reason, payload, self.options.bounds(kind))

    async def release(self, batch: str, fields: Sequence[str]) -> int:
        lease = self.store.leases.get(batch)
        if lease is None:
            return 0
        count = 0
        for field in reversed(fields):
            payload = lease.held.pop(field, None)
            if payload is not None:
                priority = LETTERS.index(field[0])
                if self.store.strikes.get(payload, 0) >= SUSPECT_AFTER:
                    self.store.suspects.appendleft((priority, payload))
                else:
                    self.store.queue.push_front(priority, payload)
                count += 1
        if not lease.held:
            del self.store.leases[batch]
        for _ in range(count):
            self._wake_one()
        return count

    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]] = ()) -> list[str]:
        return self._renew(batches, slots)

    def renewer(self, consumer: str) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]:
        return self._renew

    def _renew(self, batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
        deadline = monotonic() + self.options.lease_seconds
        lost = []
        for batch in batches:
            lease = self.store.leases.get(batch)
            if lease is None:
                lost.append(batch)
            else:
                lease.deadline = max(lease.deadline, deadline)
        for task, slot in slots:
            if slot in self.store.slots.get(task, {}):
                self.store.slots[task][slot] = deadline
        return lost

    async def reap(self) -> int:
        store = self.store
        now = monotonic()
        taken = 0
        for batch, lease in list(store.leases.items()):
            if lease.deadline > now:
                continue
            if lease.seen != lease.deadline:
                lease.seen = lease.deadline
                lease.confirmed_at = now + lease.seconds / 2
            if now < lease.confirmed_at:
                continue
            suspects = []
            for field, payload in sorted(lease.held.items(), key=lambda item: -int(item[0][1:])):
                priority = LETTERS.index(field[0])
                strikes = store.strikes[payload] = store.strikes.get(payload, 0) + 1
                if strikes >= DEAD_AFTER:
                    del store.strikes[payload]
                    store.dead.push(WORKER_DIED, payload, self.options.bounds("dead"))
                elif strikes >= SUSPECT_AFTER:
                    suspects.append((priority, payload))
                else:
                    store.queue.push_front(priority, payload)
                taken += 1
                self._wake_one()
            store.suspects.extend(reversed(suspects))
            del store.leases[batch]
        return taken

    async def promote(self) -> float | None:
        queue = self.store.queue
        moved = queue.promote(self.now())
        for _ in range(min(moved, len(self._waiters))):
            self._wake_one()
        due = queue.next_due()
        return None if due is None else max(0.0, (due - self.now()) / 1e6)

    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> None:
        if self._something_waits():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            # once more: another thread may have pushed when there was nobody to wake
            if not self._something_waits():
                async with asyncio.timeout(timeout):
                    await waiter
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if waiter not in self._waiters:  # woken and cancelled at once: somebody else has to look
                self._wake_one()
            raise
        finally:
            try:
                self._waiters.remove(waiter)
            except ValueError:  # who wakes it took it out
                pass

    def _something_waits(self) -> bool:
        return any(self.store.queue.length(p) for p in range(3) if self._mask >> p & 1)

    async def deregister(self, consumer: str) -> None:
        self.store.statuses.pop(consumer, None)

    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        now = monotonic()
        slots = self.store.slots.setdefault(task.name, {})
        for other in [other for other, deadline in slots.items() if deadline <= now]:
            del slots[other]
        if slot not in slots and len(slots) >= task.max_concurrency:
            return None if run_id_of(slot) in map(run_id_of, slots) else False
        slots[slot] = now + self.options.lease_seconds
        return True

    async def free(self, slots: Sequence[tuple[str, str]]) -> None:
        for task, slot in slots:
            self.store.slots.get(task, {}).pop(slot, None)

    async def replies(self, address: str, timeout: float) -> list[bytes]:
        store = self.store
        if not store.replies.get(address):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            store.reply_waiters[address] = waiter
            try:
                if not store.replies.get(address):  # once more: as in wait
                    async with asyncio.timeout(timeout):
                        await waiter
            except TimeoutError:
                pass
            finally:
                store.reply_waiters.pop(address, None)
        return list(store.replies.pop(address, ()))

    async def consumers_of(self, task_name: str) -> tuple[int, int] | None:
        now = monotonic()
        alive = [data for end, data in list(self.store.statuses.values()) if end > now]
        return consumers_among((data.get("tasks") for data in alive), task_name)

    # -- what is there

    async def queue_length(self) -> dict[str, int]:
        return {str(priority): n for priority, n in zip(PRIORITIES, self.store.queue.lengths(), strict=True)}

    async def fronts(self) -> list[bytes]:
        found = (self.store.queue.first(priority) for priority in range(len(PRIORITIES)))
        return [payload for payload in found if payload is not None]

    async def clear_queue(self, *priorities: TaskPriority) -> dict[str, int]:
        targets = tuple(TaskPriority(priority) for priority in priorities) or PRIORITIES
        removed = self.store.queue.clear(sum(1 << PRIORITIES.index(priority) for priority in targets))
        return {str(priority): removed[PRIORITIES.index(priority)] for priority in targets}

    async def clear(self) -> int:
        store = self.store
        count = sum(1 for n in (*store.queue.lengths(), store.queue.delayed_length()) if n)
        count += len(store.leases) + len(store.info) + len(store.statuses) + len(store.aborted) + len(store.replies)
        store.clear()
        return count

    async def dead_length(self, kind: Kind = "dead") -> int:
        return len(self.store.kept(kind))

    async def dead_trimmed(self, kind: Kind = "dead") -> int:
        return self.store.kept(kind).trimmed

    def sifter(self, kind: Kind = "dead") -> Sifter:
        return MemorySifter(self.store.kept(kind), self.push)

    async def dead(
        self, limit: int = 100, offset: int = 0, *, oldest: bool = False, kind: Kind = "dead"
    ) -> list[tuple[str, bytes]]:
        kept = self.store.kept(kind)
        numbers = kept.numbers()
        if not oldest:
            numbers.reverse()
        found = (kept.entries.get(number) for number in numbers[offset : offset + max(0, limit)])
        return [entry for entry in found if entry is not None]

    async def delayed_length(self) -> int:
        return self.store.queue.delayed_length()

    async def leased_length(self) -> int:
        return sum(len(lease.held) for lease in self.store.leases.values())

    # -- tasks and managers

    async def get_tasks_info(self, *task_names: str) -> list[TaskInfo]:
        names = [name for name in (task_names or self.registry) if name in self.registry]
        return [self._info(self.registry[name]) for name in names]

    def _info(self, task: Task[Any]) -> TaskInfo:
        update = msgspec.convert(self.store.info.get(task.name, {}), TaskInfoUpdate, strict=False)
        return task.info(**{name: getattr(update, name) for name in self.store.info.get(task.name, {})})

    async def update_task(self, task: Task[Any], params: Mapping[str, Any]) -> TaskInfo:
        update = msgspec.convert(dict(params), TaskInfoUpdate)
        self.store.info.setdefault(task.name, {}).update((name, getattr(update, name)) for name in params)
        return self._info(task)

    async def set_manager_status(self, manager_id: str, data: dict[str, Any], ttl: int) -> None:
        self.store.statuses[manager_id] = (monotonic() + ttl, data)

    async def get_all_manager_statuses(self) -> TaskManagersStatus:
        now = monotonic()
        alive = [data for end, data in self.store.statuses.values() if end > now]
        return TaskManagersStatus(
            workers=[msgspec.convert(data, TaskManagerStatus) for data in alive], queues=await self.queue_length()
        )

    async def current_task_runs(self, task_name: str) -> int:
        now = monotonic()
        return sum(deadline > now for deadline in self.store.slots.get(task_name, {}).values())

    async def set_task_aborted(self, run_id: str, reason: str) -> None:
        now = monotonic()
        aborted = self.store.aborted
        for old in [old for old, (end, _) in aborted.items() if end <= now]:
            del aborted[old]
        aborted[run_id] = (now + 60, writable(reason))

    async def get_task_aborted(self, run_id: str) -> str | None:
        end, reason = self.store.aborted.get(run_id, (0.0, ""))
        return reason if end > monotonic() else None

    def lock(self, name: str, timeout: float | None = None) -> Any:
        return MemoryLock(self.store.locks, name, timeout)

    async def first(self, key: str, seconds: float) -> bool:
        now = monotonic()
        firsts = self.store.firsts
        for old in [old for old, end in firsts.items() if end <= now]:
            del firsts[old]
        if key in firsts:
            return False
        firsts[key] = now + seconds
        return True

    async def push_after(
        self, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        (present,) = await self.marks(mark)
        if present not in (0, after):
            return False, present
        self.store.marks[mark] = at, monotonic() + seconds
        self.push(priority, payload)
        return True, at

    async def marks(self, *names: str) -> list[int]:
        now = monotonic()
        marks = self.store.marks
        for old in [name for name, (_, end) in marks.items() if end <= now]:
            del marks[old]
        return [marks.get(name, (0, 0.0))[0] for name in names]

    async def set_marks(self, names: Sequence[str], value: int, seconds: float) -> None:
        self.store.marks.update(dict.fromkeys(names, (value, monotonic() + seconds)))

    async def close(self) -> None:
        return None


class MemoryLock:
    """One holder at a time of a name; opens by itself ``timeout`` seconds after it was taken (None: never)."""

    def __init__(self, held: "dict[str, MemoryLock]", name: str, timeout: float | None) -> None:
        if timeout is not None:
            check_number("timeout", timeout, ConfigError, least=0.001)
        self.held = held
        self.name = name
        self.timeout = timeout
        self.deadline = float("inf")
        self.released: asyncio.Future[None] | None = None

    async def acquire(self) -> bool:
        """Wait until the lock is free, and take it."""
        loop = asyncio.get_running_loop()
        while (holder := self.held.get(self.name)) is not None and holder.deadline > monotonic():
            assert holder.released is not None
            left = holder.deadline - monotonic()
            try:
                async with asyncio.timeout(None if left == float("inf") else left):
                    await asyncio.shield(holder.released)
            except TimeoutError:
                continue
        self.released = loop.create_future()
        self.deadline = float("inf") if self.timeout is None else monotonic() + self.timeout
        self.held[self.name] = self
        return True

    async def release(self) -> None:
        """Let go of the lock; of one that has opened by itself: nothing."""
        if self.held.get(self.name) is self:
            del self.held[self.name]
        if self.released is not None and not self.released.done():
            self.released.set_result(None)

    async def __aenter__(self) -> "MemoryLock":
        await self.acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()
