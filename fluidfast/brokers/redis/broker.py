"""The broker contract on Redis or Valkey (6.2 or newer): ``servers`` finds the server, ``link`` talks to it.

Verbs are Lua scripts (``lua/``), so that a run moves from one place to the next in one step. They go over one ``Link``
that all of a process's managers of this broker share; what blocks has links of its own; the rest (task info, locks,
statuses) goes through redis-py, as ``redis_cli``.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import redis
import redis.exceptions
from redis.asyncio import Redis

from ..._version import __version__
from ...core._time import keep_for_good, new_id
from ...core.places import has_place
from ...core.states import LETTERS, PRIORITIES, TaskPriority
from ...core.task import Task
from ...errors import BrokerLayoutError, BrokerURLError
from ...texts import printable
from .._leases import paired
from ..base import TaskBroker
from ..contract import (
    DEAD_AFTER,
    MAX_CLAIM,
    SUSPECT_AFTER,
    WORKER_DIED,
    Channel,
    Claim,
    Kind,
    Settlement,
    header,
    run_id_of,
)
from ..url import BrokerURL, number_option
from ._resp import pack
from .channel import RedisChannel
from .client import REPLY_SECONDS, RedisClient, milliseconds
from .inspect import RedisInspection, glob_escaped
from .keys import DEFAULT_NAME, LAYOUT, Keys
from .link import Link, LinkLost, ServerReply
from .lock import BrokerLock
from .rights import CONSUMER, PRODUCER
from .scripts import ROOM, command, cut, load
from .servers import OPTIONS
from .wakeup import MAX_FLAGS, Inboxes, WakeUp, enabled_by_name, renewals

__all__ = ["RedisTaskBroker"]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 5.0
"""After which aio-fluid's lock of a task opens by itself, for it and for us."""
DELAY_MS = 120_000
"""How long a call that delays runs is known: longer than it is sent again."""
REPLY_MS = 300_000
MAX_PROMOTED = 1000
"""Delayed runs that one step queues at most."""
MAX_REPLIES = 1000
"""Finished runs that are read at a time."""
MAX_VISIBLE_SECONDS = 365 * 86400
"""For how long at most aio-fluid is shown a run of a task with ``max_concurrency`` that nobody renews."""
GRANTED = {1: True, 0: False, -1: None}
"""Answers of acquire.lua."""
JUMP_SECONDS = 1.0
"""By how much the server's clock has to go back between two sweeps: less costs no more than that."""
NO_SHARD = -1


class RedisTaskBroker(RedisInspection):
    """A broker on Redis or Valkey: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://``,
    ``redis+cluster://``.

    The URL is redis-py's (user, password, host, port, ``/db``); behind ``?`` stand our options (``BrokerOptions``) and
    redis-py's for TLS (``ssl_ca_certs`` ...).

    ``shard``: the number of this one among the shards of a ``ShardedRedisBroker``; ``NO_SHARD``: what all of them have
    in common, which has no queues.

    Raises:
        BrokerURLError: the URL is none, or an option of it.
    """

    default_name = DEFAULT_NAME
    url_options = (*OPTIONS, "shards")

    def __init__(self, url: BrokerURL | str, redis_cli: "Redis | None" = None, *, shard: int | None = None) -> None:
        super().__init__(url)
        if shard is None and number_option(self.url, "shards", 1, least=1, whole=True) > 1:
            raise BrokerURLError(f"broker {self.url}: this is a broker of one shard, TaskBroker.from_url gives several")
        self.keys = Keys(self.name if shard in (None, NO_SHARD) else f"{self.name}:{shard}")
        self._alone = shard is None
        self.parts = 1  # over how many shards what is bounded is spread
        self._agreed = False
        self.client = RedisClient(
            self.url,
            self.options,
            self.keys,
            redis_cli,
            is_in_use=lambda loop: self.is_in_use(loop),
            left=self._left_loop,
        )
        self.redis_cli = self.client.redis_cli
        self._declare = self.client.declare
        self.inboxes = Inboxes(self.client)
        self._wakeups: dict[str, WakeUp] = {}
        self._renewing: dict[str, redis.Redis] = {}  # of the threads that renew, by consumer
        self._seen_expired: dict[bytes, Sighting] = {}
        self._seen_replies: dict[str, tuple[int, Link | None]] = {}  # how many, on which connection
        self._seen_silent: dict[bytes, Sighting] = {}
        self._shortest_lease = math.inf  # in seconds, of whoever's lease ends first
        self._server_ahead = -math.inf, math.inf  # of our monotonic clock, in seconds: at least, at most
        self._went_back = False
        self._none_delayed = False  # when we looked last
        has_place(self)

    @property
    def redis(self) -> RedisClient:
        """The client, whose ``redis_cli`` is redis-py's (a name of aio-fluid 1.x)."""
        return self.client

    def become_shard_of(self, whole: TaskBroker, parts: int) -> None:
        """Share the options, the registry, the codec and the event loop of a broker over so many shards."""
        self.options = self.client.options = whole.options
        self.registry = whole.registry
        self.codec = whole.codec
        self.is_in_use = lambda loop: whole.is_in_use(loop)
        self.parts = parts

    # -- names (aio-fluid's)

    @property
    def prefix(self) -> str:
        """Prefix of all keys, with the braces that make it a Cluster hash tag."""
        return self.keys.prefix

    def task_queue_name(self, priority: TaskPriority) -> str:
        """Key of the queue of a priority."""
        return self.keys.queue(priority)

    @property
    def task_queue_names(self) -> tuple[str, ...]:
        return tuple(self.keys.queue(priority) for priority in self.options.queues)

    def task_hash_name(self, name: str) -> str:
        """Key of a task's info."""
        return self.keys.task(name)

    def task_run_key(self, task_name: str, run_id: str) -> str:
        """Key that marks a run of a task with ``max_concurrency`` as running."""
        return self.keys.task_run(task_name, run_id)

    def manager_status_key(self, manager_id: str) -> str:
        """Key of a manager's status."""
        return self.keys.manager(manager_id)

    def task_aborted_key(self, run_id: str) -> str:
        """Key of why a run was aborted."""
        return self.keys.aborted(run_id)

    # -- connections

    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        return self.client.loop

    def _left_loop(self) -> None:
        self._wakeups.clear()
        self.inboxes.left()

    def _forked(self) -> None:
        keep_for_good(dict(self._wakeups), self.inboxes.adopting)
        self._left_loop()

    async def connect(self) -> None:
        async def once() -> None:
            link = await (self.client.link_for(CONSUMER) if self.consumes else self.client.link())
            await self.client.check_durability(link)
            if self._alone:
                await self.agree(1)

        await self.client.patiently(once)

    async def agree(self, shards: int) -> None:
        """Find out whether all others spread this broker over as many shards, with a layout of keys that is known here.

        A process that gives another number would never see some of the runs, or queue where nobody looks. One that
        does not know the layout would misread the keys.

        Raises:
            BrokerURLError: they spread it over another number.
            BrokerLayoutError: a newer release has changed the layout.
        """
        if self._agreed:
            return
        key = self.keys.shards

        async def once() -> list[Any]:
            link = await self.client.link()
            try:
                if shards > 1:
                    await link.call(pack(("SET", key, shards, "NX")))
                return await asyncio.gather(*(link.call(pack(("GET", name))) for name in (self.keys.layout, key)))
            except (ServerReply, LinkLost) as exc:
                raise self.client.error(exc, link) from exc

        layout, there = await self.client.patiently(once)
        if layout not in (None, b"%d" % LAYOUT):
            raise BrokerLayoutError(
                f"broker {self.url}: a newer release of fluidfast keeps its keys in layout "
                f"{printable(layout.decode(errors='replace'))}, and this one ({__version__}) knows layout {LAYOUT}: "
                f"upgrade fluidfast in this process"
            )
        if there is not None and there != b"%d" % shards:
            known = there.decode(errors="replace")
            raise BrokerURLError(
                f"broker {self.url}: shards={shards}, but it is spread over {known}: all processes have to give the "
                f"same number. To change it, let its queues run empty, stop all processes, and await clear() of the "
                f"broker with shards={known} (dead letters go too), or delete the key {key}"
            )
        self._agreed = True

    async def close(self) -> None:
        self.client.enter_loop()
        self._agreed = False
        for wakeup in list(self._wakeups.values()):
            await wakeup.close()
        self._wakeups.clear()
        for renewing in self._renewing.values():
            renewing.close()  # it connects again if its thread goes on
        self._renewing.clear()
        self.inboxes.close()
        await self.client.close()

    # -- producing

    push_never_takes = True

    def push(self, priority: int, payload: bytes) -> bool:
        return False

    async def channel(self) -> Channel:
        durable = self.client.durable_command()

        async def once() -> Link:
            link = await self.client.link_for(PRODUCER)
            if self._alone:
                await self.agree(1)
            return link if durable is None else await self.client.durable_link()

        return RedisChannel(self.client, await self.client.patiently(once), durable)

    async def forget(self, producer: str) -> None:
        link = await self.client.link()
        try:
            await link.call(pack(("DEL", self.keys.producer(producer))))
        except (ServerReply, LinkLost) as exc:
            raise self.client.error(exc) from exc

    async def push_once(self, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        # A producer of one batch: its mark and the push are one script.
        counts = [int(priority == number) for number in range(3)]
        arguments = (1, milliseconds(seconds), 0, *counts, payload)
        (pushed, _), durable = await self.client.durably("enqueue", self._declare.enqueue(f"once:{key}"), *arguments)
        if pushed and not durable:  # else it was another call's, which was told
            raise self.client.not_durable(1)
        return bool(pushed)

    async def push_after(
        self, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        declared = self._declare.fire(mark, PRIORITIES[priority])
        (pushed, found), durable = await self.client.durably(
            "fire", declared, after, at, milliseconds(seconds), payload
        )
        if pushed and not durable:
            raise self.client.not_durable(1)
        return bool(pushed), int(found)

    async def marks(self, *names: str) -> list[int]:
        if not names:
            return []
        keys = [self.keys.mark(name) for name in names]
        return [int(value or 0) for value in await self.client.redis(lambda: self.redis_cli.mget(keys))]

    async def set_marks(self, names: Sequence[str], value: int, seconds: float) -> None:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for name in names:
                pipe.set(self.keys.mark(name), value, px=milliseconds(seconds))
            return await pipe.execute()

        if names:
            await self.client.redis(action)

    async def delay(self, entries: Sequence[tuple[float, int, bytes]]) -> None:
        are_safe = True
        for part in cut(entries, 2):
            flat: list[Any] = [DELAY_MS]
            for seconds, priority, payload in part:
                flat += (milliseconds(seconds), LETTERS[priority].encode() + payload)
            _, durable = await self.client.durably("delay", self._declare.delay(new_id()), *flat)
            are_safe = are_safe and durable
        if not are_safe:
            raise self.client.not_durable(len(entries))

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
        self.client.enter_loop()
        inboxes = self.inboxes
        await inboxes.adopt()
        batch = inboxes.new_batch()
        letters = "".join(LETTERS[PRIORITIES.index(priority)] for priority in self.options.queues)
        count, lease = min(limit, MAX_CLAIM), milliseconds(self.options.lease_seconds)
        known: dict[str, bool] = {}
        if len(tasks) > MAX_FLAGS:  # first: what is claimed is not to wait for it
            known, tasks = await self._enabled(tasks[MAX_FLAGS:]), tasks[:MAX_FLAGS]
        declared = self._declare.claim(consumer, batch, self.options.queues, tasks)

        def packed(lost: int) -> bytes:
            # An answer that was lost may be too much for this connection. So half goes back, and others may have it.
            # Each try asks for less than the one before: a try that reaches the server late takes nothing back.
            limit = min(count, max(1, count >> lost))
            return command(
                "claim", declared, consumer, batch, limit, max(1, max_bytes >> lost), lease, letters,
                int(idle) + 2 * int(waits),
            )  # fmt: skip

        inboxes.claiming.add(batch)
        inboxes.asking[consumer] += 1
        emptied = b""
        try:
            given, flags, suspects, strikes, alone, at, emptied = await self.client.ask(packed)
        except BaseException:  # the server may do it yet
            inboxes.unsure.add(consumer)
            raise
        finally:
            inboxes.claiming.discard(batch)
            inboxes.asking[consumer] -= 1
            if inboxes.asking[consumer] <= 0:
                del inboxes.asking[consumer]
            if consumer in inboxes.unsure:
                emptied = b"*"
            if (wakeup := self._wakeups.get(consumer)) is not None:
                wakeup.claimed(emptied.decode())
        inboxes.unsure.discard(consumer)  # what was asked before on this connection has been done before
        items = paired(given)
        if strikes:
            struck = {strikes[i].decode(): int(strikes[i + 1]) for i in range(0, len(strikes), 2)}
            for item in items:
                item.strikes = struck.get(item.field, 0)
        enabled = enabled_by_name(tasks, flags) | known
        # a claim whose reply was lost gives what it gave, and no longer knows where that came from
        suspect = bool(alone) or (bool(strikes) and any(item.strikes >= SUSPECT_AFTER for item in items))
        return Claim(batch, items, enabled, alone=suspect, suspects=suspects, at=at)

    async def _enabled(self, tasks: Sequence[str]) -> dict[str, bool]:
        async def action() -> Any:
            pipe = self.redis_cli.pipeline(transaction=False)
            for name in tasks:
                pipe.hget(self.keys.task(name), "enabled")
            return await pipe.execute()

        return enabled_by_name(tasks, await self.client.redis(action))

    def look_seconds(self, consumer: str) -> float:
        wakeup = self._wakeups.get(consumer)
        if wakeup is not None and wakeup.unclaimed:  # it came in the moment in which the waiting was over
            return 0.0
        return 30.0 if wakeup is not None and wakeup.is_sure else super().look_seconds(consumer)

    async def settle(self, settlement: Settlement) -> bool:
        await self.inboxes.adopt()
        if arguments_of(settlement) <= ROOM:
            return await self._settle(settlement)
        for part in parts(settlement):
            if not await self._settle(part):
                return False
        return True

    async def _settle(self, s: Settlement) -> bool:
        arguments: list[Any] = [
            s.batch, REPLY_MS, "*" if s.whole else len(s.done), len(s.retries), len(s.dead) + len(s.failed),
            len(s.info), len(s.replies), len(s.slots), len(s.survived),
        ]  # fmt: skip
        if not s.whole:
            arguments += s.done
        for seconds, priority, payload in s.retries:
            arguments += (milliseconds(seconds), LETTERS[priority].encode() + payload)
        for field, reason in s.dead:
            arguments += ("d" + field, header(reason))
        for field, reason in s.failed:
            arguments += ("f" + field, header(reason))
        for end, duration, state in s.info.values():
            arguments += (f'"{end}"', msgspec.json.encode(timedelta(seconds=duration)), f'"{state}"')
        arguments += [payload for _, payload in s.replies]
        arguments += [slot for _, slot in s.slots]
        arguments += s.survived
        if s.dead or s.failed:
            arguments += (*self.bounds("dead"), *self.bounds("failed"))
        answer = await self.client.script("settle", self._declare.settle(s), *arguments)
        if isinstance(answer, bytes):
            reason = printable(answer.decode(errors="replace"))
            logger.error("broker %s: runs are settled, but not all of their records: %s", self.url, reason)
        return bool(answer)

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """How many entries of what gave up this shard keeps, and how many bytes of them."""
        count, size = self.options.bounds(kind)
        return -(-count // self.parts), -(-size // self.parts)

    async def release(self, batch: str, fields: Sequence[str]) -> int:
        await self.inboxes.adopt()
        return int(await self.client.script("release", self._declare.release(batch), batch, SUSPECT_AFTER, *fields))

    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]] = ()) -> list[str]:
        return await self.inboxes.renew(consumer, batches, slots)

    def renewer(self, consumer: str) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]:
        lease = self.options.lease_seconds
        client = self._renewing[consumer] = self.client.server.sync_client(max(0.5, lease / 3))
        script = load("renew")

        def renew(batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
            began = monotonic()
            wakeup = self._wakeups.get(consumer)
            claiming = [*self.inboxes.claiming.copy(), *self.inboxes.adoptions.copy()]
            lost: list[Any] = []
            nonlocal client
            try:
                for some, held in renewals([*batches, *claiming], slots):
                    keys, names = self._declare.renew(held), [slot for _, slot in held]
                    arguments: list[Any] = [*keys, consumer, milliseconds(lease), len(some), *some, *names]
                    try:
                        answer: Any = client.evalsha(script.sha.decode(), len(keys), *arguments)
                    except redis.exceptions.NoScriptError:
                        answer = client.eval(script.text.decode(), len(keys), *arguments)
                    lost += answer
            except redis.exceptions.RedisError:  # the keys may be elsewhere by now
                client.close()
                client = self._renewing[consumer] = self.client.server.sync_client(max(0.5, lease / 3))
                raise
            if wakeup is not None:
                wakeup.lives(began)
            return [text for batch in lost if (text := batch.decode()) not in claiming]

        return renew

    def releaser(self, consumer: str) -> Callable[[], object] | None:
        patience = max(0.5, self.options.lease_seconds / 3)
        client = self.client.server.sync_client(patience)
        script, keys = load("deregister"), self._declare.deregister(consumer)
        wakeup = self._wakeups.setdefault(
            consumer, WakeUp(self.client, self.inboxes, consumer)
        )  # it may wait while we give back

        def give_back() -> object:
            alone = wakeup.gives_back()
            try:
                count: object = client.eval(script.text.decode(), len(keys), *keys, consumer, 0, alone)
            except BaseException:  # the server may do it yet
                wakeup.gave_back(monotonic() + patience)
                raise
            finally:
                client.close()  # it is a rare thing, not worth a connection
            wakeup.gave_back()
            return count

        return give_back

    async def reap(self) -> int:
        now = monotonic()
        batches, consumers = (
            [(name, seen.deadline) for name, seen in before.items() if now >= seen.confirmed_at]
            for before in (self._seen_expired, self._seen_silent)
        )
        declared = self._declare.reap([name for name, _ in batches], [name for name, _ in consumers])
        expired, silent, taken, server_ms, shortest = await self.client.script(
            "reap", declared, SUSPECT_AFTER, DEAD_AFTER, milliseconds(self.options.lease_seconds),
            header(WORKER_DIED), int(self._went_back),
            len(batches), *(part for pair in batches for part in pair),
            len(consumers), *(part for pair in consumers for part in pair), *self.bounds("dead"),
        )  # fmt: skip
        # whatever time the answer took, and whenever within it the server looked at its clock
        at_least, at_most = self._server_ahead
        self._server_ahead = server_ms / 1000 - monotonic(), server_ms / 1000 - now
        self._went_back = self._server_ahead[1] < at_least - JUMP_SECONDS
        leapt = self._server_ahead[0] > at_most + JUMP_SECONDS
        self._seen_expired = sightings(self._seen_expired, expired, now, leapt)
        self._seen_silent = sightings(self._seen_silent, silent, now, leapt)
        self._shortest_lease = shortest / 1000 or math.inf
        if self._went_back:
            logger.warning("broker %s: the server's clock went back: leases are counted by its new time", self.url)
        if taken:
            logger.warning("broker %s: took back %d runs of consumers that fell silent", self.url, taken)
            for wakeup in self._wakeups.values():  # nothing wakes them for a suspect
                wakeup.wake()
        return int(taken)

    def reap_seconds(self) -> float:
        return max(0.05, min(super().reap_seconds(), self._shortest_lease / 2))

    async def promote(self) -> float | None:
        if self._none_delayed and not await self.client.call(pack(("ZRANGE", self.keys.delayed, 0, 0))):
            return None  # what an idle consumer asks once a second costs one command
        moved, wait = await self.client.script("promote", self._declare.promote(), MAX_PROMOTED)
        self._none_delayed = wait < 0
        if moved >= MAX_PROMOTED:
            return 0.0
        return None if wait < 0 else wait / 1000

    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        self.client.enter_loop()
        wakeup = self._wakeups.get(consumer)
        if wakeup is None:
            wakeup = self._wakeups[consumer] = WakeUp(self.client, self.inboxes, consumer)
        return await wakeup.wait(timeout, tasks)

    async def stop_reserving(self, consumer: str) -> None:
        """Nothing more is to be moved to this consumer's inbox until it waits again; what was, is for others."""
        if (wakeup := self._wakeups.get(consumer)) is not None and (wakeup.pending or wakeup.moved):
            await wakeup.unblock()
            await self.inboxes.adopt()
            wakeup.claimed("*")  # with one that did not end in time
            await self.client.script("deregister", self._declare.deregister(consumer), consumer, 0, "")
            wakeup.moved = False

    async def deregister(self, consumer: str) -> None:
        wakeup = self._wakeups.pop(consumer, None)
        no_more = True
        if wakeup is not None:
            try:
                await wakeup.unblock()
                no_more = wakeup.is_sure and not wakeup.pending
            finally:
                await wakeup.close()
        await self.inboxes.adopt()
        # One whose inbox may yet get something stays known until its lease has run out: that is then taken back.
        await self.client.script("deregister", self._declare.deregister(consumer), consumer, int(no_more), "")
        self.inboxes.unsure.discard(consumer)

    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        if self.options.fleet == "own":
            return await self._acquire(task, slot)

        async def action() -> Any:
            # the lock under which aio-fluid counts what runs and adds to it
            async with self.redis_cli.lock(f"tasks:{task.name}", timeout=LOCK_SECONDS, sleep=0.02) as lock:
                running = await self._foreign_runs(task.name)
                await lock.reacquire()  # it has opened if that took too long, and then this raises
                return await self._acquire(task, slot, running)

        granted: bool | None = await self.client.redis(action)
        return granted

    async def _acquire(self, task: Task[Any], slot: str, running: Sequence[bytes] = ()) -> bool | None:
        """Take a slot. ``running``: ids of runs that aio-fluid's keys name."""
        seconds = min(task.timeout_seconds, MAX_VISIBLE_SECONDS)
        visible = math.ceil(seconds + min(10, max(1, seconds / 2)))
        lease = milliseconds(self.options.lease_seconds)
        expired: list[str] = []
        while True:
            arguments = [slot, task.max_concurrency, lease, visible, self.options.fleet, len(expired), *expired]
            if running:
                # an id that is no text is not one of ours; that there is one counts
                ids = [run_id.decode(errors="replace") for run_id in running]
                arguments.append(msgspec.msgpack.encode(ids))
            answer = await self.client.script("acquire", self._declare.acquire(task.name, slot, expired), *arguments)
            if not isinstance(answer, list):
                return GRANTED[answer]
            # dead workers' slots: the script frees those whose keys it is given
            expired = [name.decode() for name in answer]
            freed = {run_id_of(name).encode() for name in expired}
            running = [run_id for run_id in running if run_id not in freed]

    async def free(self, slots: Sequence[tuple[str, str]]) -> None:
        for part in cut(slots, 3):
            await self.client.script("free", self._declare.free(part), *(slot for _, slot in part))

    async def _foreign_runs(self, task_name: str) -> list[bytes]:
        """Ids of the runs of a task that have one of aio-fluid's keys, which our own runs have too."""
        pattern = glob_escaped(self.keys.task_run(task_name, "")) + "*"
        names: list[Any] = [key async for key in self.redis_cli.scan_iter(pattern, count=1000)]
        ids: list[Any] = await self.redis_cli.mget(*names) if names else []
        # the pattern of task "a" fits the keys of task "a-b" as well
        prefix = self.keys.task_run(task_name, "").encode()
        return [found for name, found in zip(names, ids, strict=True) if found is not None and name == prefix + found]

    async def replies(self, address: str, timeout: float) -> list[bytes]:
        link = await self.client.reply_link()
        key = self.keys.reply(address)
        seconds = f"{min(timeout, REPLY_SECONDS / 2):.3f}"
        # in one write: remove those of the last call; move one to where it is, which waits for one and takes none away;
        # read. If the connection was lost, those that were not removed come once more
        commands = pack(("BLMOVE", key, key, "LEFT", "LEFT", seconds)) + pack(("LRANGE", key, 0, MAX_REPLIES - 1))
        count = 2
        seen, on = self._seen_replies.pop(address, (0, None))
        if on is link:
            commands = pack(("LPOP", key, seen)) + commands
            count = 3
        *removed, moved, found = link.calls(commands, count)
        for each in removed:
            each.cancel()  # nobody needs its answer
        try:
            await moved
            payloads: list[bytes] = await found
        except (ServerReply, LinkLost) as exc:
            found.cancel()
            raise self.client.error(exc) from exc
        except asyncio.CancelledError:
            found.cancel()
            link.abort()  # it blocks still, and nobody takes its answer
            raise
        if payloads:
            self._seen_replies[address] = len(payloads), link
        return payloads

    # -- tasks and managers

    def lock(self, name: str, timeout: float | None = None) -> Any:
        self.client.enter_loop()
        if self.url.scheme.endswith("+cluster"):  # which only speaks to the node of our slot
            name = self.keys.lock(name)
        return BrokerLock(self.client, name, timeout)

    async def clear(self) -> int:
        if self._alone:
            await self.agree(1)
        return await super().clear()

    async def first(self, key: str, seconds: float) -> bool:
        full = self.keys.first(key)
        return bool(await self.client.redis(lambda: self.redis_cli.set(full, b"1", nx=True, px=milliseconds(seconds))))


def arguments_of(s: Settlement) -> int:
    """How many arguments a settlement takes, but for the few that each takes."""
    kept = len(s.retries) + len(s.dead) + len(s.failed)
    records = 4 * len(s.info) + 2 * len(s.replies) + 3 * len(s.slots) + len(s.survived)
    return (0 if s.whole else len(s.done)) + 2 * kept + records


def parts(s: Settlement) -> Iterator[Settlement]:
    """Cut a settlement that is too long for one call.

    The records come first, while the lease holds the runs: then they are refused if it is lost, and sent once more
    with a settlement that is. All that moves runs is the last part, one step as ever: a batch has 1000 of them at most.
    """
    for info in cut(list(s.info.items()), 4):
        yield Settlement(s.batch, info=dict(info))
    for replies in cut(s.replies, 2):
        yield Settlement(s.batch, replies=list(replies))
    for slots in cut(s.slots, 3):
        yield Settlement(s.batch, slots=list(slots))
    if s.survived:
        yield Settlement(s.batch, survived=s.survived)
    yield Settlement(s.batch, s.whole, s.done, s.retries, s.dead, failed=s.failed)


class Sighting(NamedTuple):
    """A deadline that has passed, and from when on, by our monotonic clock, a second look may act on it."""

    deadline: bytes
    confirmed_at: float


def sightings(before: dict[bytes, Sighting], flat: list[Any], now: float, leapt: bool) -> dict[bytes, Sighting]:
    """Note the deadlines that a sweep saw passed: flat triples of name, deadline and lease in ms.

    Those that are still the same half a lease later are confirmed; a whole lease later if the server's clock ``leapt``
    forward, since then every deadline has passed, and the living need the time to renew that their lease gives them.
    """
    after = {}
    for name, deadline, lease_ms in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        known = before.get(name)
        if known is None or known.deadline != deadline:
            # half of it is more than the third in which the living renew
            known = Sighting(deadline, now + lease_ms / (1000 if leapt else 2000))
        after[name] = known
    return after
