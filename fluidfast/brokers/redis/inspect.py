"""The part of the contract that looks and administers, on Redis or Valkey. Most of it goes through redis-py."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from redis.asyncio import Redis

from ...core.states import PRIORITIES, TaskPriority
from ...core.task import Task, TaskInfo, TaskInfoUpdate
from ...texts import writable
from ..base import TaskBroker
from ..contract import (
    PAGE_ENTRIES,
    Kind,
    Sifter,
    TaskManagersStatus,
    TaskManagerStatus,
    consumers_among,
)
from ._resp import pack
from .client import RedisClient
from .dead import RedisSifter, parted
from .keys import Keys
from .link import LinkLost, ServerReply

__all__ = ["RedisInspection", "decode_info", "glob_escaped"]

logger = logging.getLogger(__name__)

MAX_ASKED = 100
"""Consumers that are asked whether they run a task, at most: those that were seen last."""
REPLY_BYTES = 8 << 20
"""Bytes of entries of what gave up in one reply, at most."""
SCAN_KEYS = 1000
"""Keys that the server looks at in one step."""


class Told(msgspec.Struct):
    """The part of a manager's status that is read here."""

    tasks: list[str] | None = None


class RedisInspection(TaskBroker):
    """The base of the broker on Redis. It needs a ``client`` and ``keys``."""

    client: RedisClient
    keys: Keys
    redis_cli: Redis

    # -- runs

    async def queue_length(self) -> dict[str, int]:
        lengths = await self._each("llen", PRIORITIES)
        return {str(priority): length for priority, length in zip(PRIORITIES, lengths, strict=True)}

    async def queue_bytes(self) -> int:
        # of a list the server looks at a few nodes, however long it is
        return sum(found or 0 for found in await self._each("memory_usage", PRIORITIES))

    async def fronts(self) -> list[bytes]:
        return [payload for payload in await self._each("lindex", PRIORITIES, -1) if payload is not None]

    async def _each(self, command: str, priorities: Sequence[TaskPriority], *arguments: Any) -> list[Any]:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for priority in priorities:
                getattr(pipe, command)(self.keys.queue(priority), *arguments)
            return await pipe.execute()

        return await self.client.redis(action)  # type: ignore[no-any-return]

    async def clear_queue(self, *priorities: TaskPriority) -> dict[str, int]:
        targets = tuple(TaskPriority(priority) for priority in priorities) or PRIORITIES

        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=True)
            for priority in targets:
                pipe.llen(self.keys.queue(priority))
                pipe.unlink(self.keys.queue(priority))
            return await pipe.execute()

        results = await self.client.redis(action)
        return {str(priority): results[2 * i] for i, priority in enumerate(targets)}

    async def clear(self) -> int:
        cursor: Any = 0
        count: int = 0

        async def some() -> tuple[Any, int]:
            following, keys = await self.redis_cli.scan(cursor, glob_escaped(self.keys.prefix) + "-*", SCAN_KEYS)
            return following, await self.redis_cli.unlink(*keys) if keys else 0

        while True:
            cursor, removed = await self.client.redis(some)
            count += int(removed)
            if not cursor:
                return count

    async def dead_length(self, kind: Kind = "dead") -> int:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            pipe.llen(self.keys.gave_up(kind))
            pipe.hget(self.keys.kept, f"{kind}:gone")
            return await pipe.execute()

        length, gone = await self.client.redis(action)
        return max(0, int(length) - int(gone or 0))

    async def dead_trimmed(self, kind: Kind = "dead") -> int:
        return int(await self.client.redis(lambda: self.redis_cli.hget(self.keys.kept, f"{kind}:trimmed")) or 0)

    def sifter(self, kind: Kind = "dead") -> Sifter:
        return RedisSifter(self.client, kind)

    async def dead(
        self, limit: int = 100, offset: int = 0, *, oldest: bool = False, kind: Kind = "dead"
    ) -> list[tuple[str, bytes]]:
        gone = await self.client.redis(lambda: self.redis_cli.hget(self.keys.kept, f"{kind}:gone"))
        # places where an entry was taken out are passed over one by one, as long as there are any
        at, skip = (0, offset) if int(gone or 0) else (offset, 0)
        key = self.keys.gave_up(kind)
        length = int(await self.client.redis(lambda: self.redis_cli.llen(key)))
        # Commands and no script, so that a user who only reads may; so few at a time that a reply is bounded, however
        # large they are.
        step = max(1, min(PAGE_ENTRIES, REPLY_BYTES // self.options.max_payload_bytes))
        entries: list[bytes] = []
        while (size := min(limit + skip - len(entries), step, length - at)) > 0:
            # places from the oldest: those that give up meanwhile come in front of the newest
            low = at if oldest else length - at - size
            page: list[bytes] = await self.client.redis(partial(self.redis_cli.lrange, key, -low - size, -low - 1))
            at += size
            entries += [entry for entry in (reversed(page) if oldest else page) if entry]
        return [parted(entry) for entry in entries[skip:]]

    async def delayed_length(self) -> int:
        return int(await self.client.redis(lambda: self.redis_cli.zcard(self.keys.delayed)))

    async def leased_length(self) -> int:
        async def action() -> int:
            # Inboxes first: a run moves from there under a lease, so that between the two reads none is missed.
            pipe = self.redis_cli.pipeline(transaction=False)
            consumers: Any = await self.redis_cli.zrange(self.keys.consumers, 0, -1)
            for consumer in consumers:
                for priority in PRIORITIES:
                    pipe.llen(self.keys.inbox(consumer.decode(), priority))
            reserved: int = sum(await pipe.execute())
            batches: Any = await self.redis_cli.zrange(self.keys.leases, 0, -1)
            for batch in batches:
                pipe.hlen(self.keys.lease(batch.decode()))
            leased: int = sum(await pipe.execute())
            return reserved + leased

        return int(await self.client.redis(action))

    async def has_runs(self) -> bool:
        keys, known = self.keys, set[bytes]()

        async def action() -> Any:
            # one transaction: a run that goes from one place to another is seen in one of them
            pipe = self.redis_cli.pipeline(transaction=True)
            pipe.zrange(keys.consumers, 0, -1)
            pipe.zcard(keys.leases)
            pipe.zcard(keys.delayed)
            for each in (keys.suspect, *map(keys.queue, PRIORITIES)):
                pipe.llen(each)
            for consumer in known:
                for priority in PRIORITIES:
                    pipe.llen(keys.inbox(consumer.decode(), priority))
            return await pipe.execute()

        while True:
            consumers, *counts = await self.client.redis(action)
            if any(counts):
                return True
            if known.issuperset(consumers):  # else there are inboxes that were not looked at
                return False
            known.update(consumers)

    # -- tasks and managers

    async def get_tasks_info(self, *task_names: str) -> list[TaskInfo]:
        names = [name for name in (task_names or self.registry) if name in self.registry]
        if not names:
            return []

        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(self.keys.task(name))
            return await pipe.execute()

        hashes = await self.client.redis(action)
        return [decode_info(self.registry[name], fields) for name, fields in zip(names, hashes, strict=True)]

    async def update_task(self, task: Task[Any], params: Mapping[str, Any]) -> TaskInfo:
        update = msgspec.convert(dict(params), TaskInfoUpdate)
        mapping: dict[Any, Any] = {name: msgspec.json.encode(getattr(update, name)) for name in params}

        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=True)
            if mapping:
                pipe.hset(self.keys.task(task.name), mapping=mapping)
            pipe.hgetall(self.keys.task(task.name))
            return await pipe.execute()

        return decode_info(task, (await self.client.redis(action))[-1])

    async def set_manager_status(self, manager_id: str, data: dict[str, Any], ttl: int) -> None:
        value = msgspec.json.encode(data)
        await self.client.redis(lambda: self.redis_cli.set(self.keys.manager(manager_id), value, ex=ttl))

    async def get_all_manager_statuses(self) -> TaskManagersStatus:
        async def action() -> Any:
            pattern = glob_escaped(self.keys.prefix) + "-manager-*"
            keys = [key async for key in self.redis_cli.scan_iter(pattern, count=SCAN_KEYS)]
            return await self.redis_cli.mget(*keys) if keys else []

        values = await self.client.redis(action)
        workers = []
        for value in values:
            try:
                workers.append(msgspec.json.decode(value or b"", type=TaskManagerStatus))
            except msgspec.DecodeError:  # it has just gone, or its key is somebody else's
                continue
        return TaskManagersStatus(workers=workers, queues=await self.queue_length())

    async def consumers_of(self, task_name: str) -> tuple[int, int] | None:
        link = await self.client.link()
        try:
            ids = await link.call(pack(("ZRANGE", self.keys.consumers, -MAX_ASKED, -1)))
            # one by one: an ACL ties GET to keys, and these are few
            statuses = await asyncio.gather(*(link.call(pack(("GET", self.keys.manager(i.decode())))) for i in ids))
        except (ServerReply, LinkLost) as exc:
            raise self.client.error(exc, link) from exc
        return consumers_among((tasks_of(status) for status in statuses if status is not None), task_name)

    async def current_task_runs(self, task_name: str) -> int:
        async def action() -> int:
            seconds, micros = await self.redis_cli.time()
            now = seconds * 1000 + micros // 1000  # slots of dead workers stay until the next acquire
            return int(await self.redis_cli.zcount(self.keys.slots(task_name), f"({now}", "+inf"))

        return int(await self.client.redis(action))

    async def set_task_aborted(self, run_id: str, reason: str) -> None:
        await self.client.redis(lambda: self.redis_cli.set(self.keys.aborted(run_id), writable(reason), ex=60))

    async def get_task_aborted(self, run_id: str) -> str | None:
        value = await self.client.redis(lambda: self.redis_cli.get(self.keys.aborted(run_id)))
        return None if value is None else value.decode()


def tasks_of(status: bytes) -> list[str] | None:
    """Return the tasks that a consumer runs, as its status says; None: it does not say."""
    try:
        return msgspec.json.decode(status, type=Told).tasks
    except msgspec.DecodeError:
        return None


def decode_info(task: Task[Any], fields: Mapping[bytes, bytes]) -> TaskInfo:
    """Return a task's info with the fields that the server keeps, as far as they can be read."""
    update = {}
    for name, value in fields.items():
        key = name.decode(errors="replace")
        if key not in TaskInfoUpdate.__struct_fields__:
            continue
        kind = TaskInfoUpdate.__annotations__[key]
        try:
            update[key] = msgspec.json.decode(value, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("task %s: its info %s on the broker cannot be read", task.name, key)
    return task.info(**update)


def glob_escaped(text: str) -> str:
    """Return the pattern that fits this text alone."""
    return "".join(f"\\{c}" if c in "*?[]\\^" else c for c in text)
