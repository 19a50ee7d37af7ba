"""One broker over several shards (``?shards=N``): each is a Redis broker with a prefix of its own, ``{NAME:0}`` to
``{NAME:N-1}``, so that the nodes of a Cluster share the load of one queue.

A batch of runs lives and ends on the shard that it was queued to, where each step is one script as ever. The state that
all of them share (slots under ``max_concurrency``, locks, statuses of managers, why a run was aborted) is kept on
the first shard, ``home``.

The price: order, by priority and by age, is that of each shard. A run of high priority may wait behind one claim
from each of the other shards. And queueing needs every shard: a producer's batches go round, and each is confirmed in
its turn. Consumers go on with the shards that answer.
"""

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self, TypeVar
from zlib import crc32

import msgspec

from ...core._time import keep_for_good
from ...core.places import has_place
from ...core.states import TaskPriority
from ...core.task import Task, TaskInfo
from ...errors import BrokerConnectionError, BrokerError, BrokerURLError
from ..base import TaskBroker
from ..contract import (
    PAGE_ENTRIES,
    Channel,
    Claim,
    Confirm,
    DeadAction,
    EnqueueBatch,
    Kind,
    Settlement,
    Sifter,
    TaskManagersStatus,
    gave_up_at,
)
from ..url import BrokerURL, option
from .broker import NO_SHARD, RedisTaskBroker
from .channel import RedisChannel
from .keys import DEFAULT_NAME

__all__ = ["ShardedRedisBroker", "redis_broker"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_SHARDS = 256
LATE_SECONDS = 1.0
"""How long one shard may keep the others waiting."""


def redis_broker(url: BrokerURL) -> TaskBroker:
    """The broker of a Redis URL, with ``shards`` or without. Raises BrokerURLError."""
    return RedisTaskBroker(url) if shards_of(url) == 1 else ShardedRedisBroker(url)


def shards_of(url: BrokerURL) -> int:
    count: int = option(url, "shards", up_to_most, 1, f"a whole number from 1 to {MAX_SHARDS}")
    return count


def up_to_most(text: str) -> int:
    if not 1 <= (count := int(text)) <= MAX_SHARDS:
        raise ValueError(text)
    return count


class ShardedRedisBroker(TaskBroker):
    """The contract over ``shards``, each a ``RedisTaskBroker``.

    ``home`` is the first of them. ``redis_cli`` is redis-py's client of the server where that is.

    Raises:
        BrokerURLError: the URL is none, or an option of it.
    """

    default_name = DEFAULT_NAME
    url_options = RedisTaskBroker.url_options

    def __init__(self, url: BrokerURL | str) -> None:
        super().__init__(url)
        if self.options.fleet == "mixed":
            raise BrokerURLError(
                f"broker {self.url}: fleet=mixed and shards do not go together: aio-fluid has one queue, not shards"
            )
        self.shards = [RedisTaskBroker(self.url, shard=number) for number in range(shards_of(self.url))]
        for shard in self.shards:
            shard.become_shard_of(self, len(self.shards))
        self.home = self.shards[0]
        self.redis_cli = self.home.redis_cli
        self._agreed = False
        self._threads: list[ThreadPoolExecutor] = []
        self._turn = random.randrange(len(self.shards))  # processes do not go round in step
        self._woken: set[int] = set()
        self._suspects: set[int] = set()
        self._waiting = [0] * len(self.shards)  # runs, as last seen
        self._under_way: dict[tuple[str, int], asyncio.Task[Any]] = {}
        has_place(self)

    def use(self, **options: Any) -> None:
        super().use(**options)
        for shard in self.shards:
            shard.become_shard_of(self, len(self.shards))

    def _forked(self) -> None:
        keep_for_good(dict(self._under_way), list(self._threads))
        self._under_way.clear()
        self._threads.clear()

    def loop_in_use(self) -> asyncio.AbstractEventLoop | None:
        return self.home.loop_in_use()

    # -- which shard

    def number_of(self, key: str, sequence: int = 0) -> int:
        """The shard of a key; of a producer's batches in turn, and always the same one for the same batch."""
        return (crc32(key.encode()) + sequence) % len(self.shards)

    def held_by(self, batch: str) -> tuple[int, str] | None:
        """The number of the shard of a claimed batch, and its name there. None: it is no batch of ours."""
        number, colon, name = batch.partition(":")
        if not colon or not number.isdecimal() or int(number) >= len(self.shards):
            return None
        return int(number), name

    def apart(self, batches: Sequence[str]) -> tuple[list[list[str]], list[str]]:
        """Batches by shard, under their names there; and those that are none of ours."""
        by_shard: list[list[str]] = [[] for _ in self.shards]
        strange = []
        for batch in batches:
            if (held := self.held_by(batch)) is None:
                strange.append(batch)
            else:
                by_shard[held[0]].append(held[1])
        return by_shard, strange

    # -- asking several of them

    async def _each(self, call: Callable[[RedisTaskBroker], Awaitable[T]]) -> list[T]:
        """Ask all at once. One that fails keeps none of the others from it; its error is raised in the end."""
        answers = await asyncio.gather(*map(call, self.shards), return_exceptions=True)
        given: list[T] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            given.append(answer)
        return given

    async def _in_time(
        self, verb: str, call: Callable[[RedisTaskBroker], Awaitable[Any]], seconds: float, until: str
    ) -> list[Any]:
        """Ask all at once; what answers later is given next time, and not asked again until then."""
        for number, shard in enumerate(self.shards):
            before = self._under_way.get((verb, number))
            if before is None or before.cancelled() or before.get_loop() is not asyncio.get_running_loop():
                self._under_way[verb, number] = asyncio.ensure_future(call(shard))
        asked = {number: self._under_way[verb, number] for number in range(len(self.shards))}
        await asyncio.wait(asked.values(), timeout=seconds, return_when=until)
        answers = []
        error: BaseException | None = None
        for number, task in asked.items():
            if not task.done() or task.cancelled():
                continue
            del self._under_way[verb, number]
            if (exc := task.exception()) is None:
                answers.append(task.result())
            else:
                error = error or exc
        if error is not None and not any(answers):
            raise error
        return answers

    async def connect(self) -> None:
        await self.agree()
        for shard in self.shards:
            shard.consumes = self.consumes
        await self._each(lambda shard: shard.connect())

    async def agree(self) -> None:
        """Find out, before anything is queued, whether all others give this number of shards. Raises BrokerURLError."""
        if self._agreed:
            return
        # under the bare name, where a process without shards looks too: in a Cluster that may be a node of its own
        common = RedisTaskBroker(self.url, shard=NO_SHARD)
        try:
            await common.agree(len(self.shards))
        finally:
            await common.close()
        self._agreed = True

    async def close(self) -> None:
        self._agreed = False
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)  # what is under way ends by its timeout
        self._threads.clear()
        loop = asyncio.get_running_loop()
        under_way = [task for task in self._under_way.values() if task.get_loop() is loop]
        self._under_way.clear()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._each(lambda shard: shard.close())

    # -- producing

    push_never_takes = True

    def push(self, priority: int, payload: bytes) -> bool:
        return False

    async def channel(self) -> Channel:
        await self.agree()

        async def opened(number: int, shard: RedisTaskBroker) -> Channel:
            channel = await shard.channel()
            try:
                self.note_waiting(number, sum((await shard.queue_length()).values()))
            except BrokerError as exc:  # then it is known when this shard has confirmed something
                logger.debug("broker %s: shard %d: %s", self.url, number, exc)
            return channel

        return ShardedChannel(self, await asyncio.gather(*map(opened, range(len(self.shards)), self.shards)))

    def note_waiting(self, number: int, waiting: int) -> None:
        """Note how many runs wait on a shard."""
        self._waiting[number] = waiting

    def known_waiting(self) -> int:
        """Return how many runs waited on all shards, as last seen."""
        return sum(self._waiting)

    async def forget(self, producer: str) -> None:
        await self._each(lambda shard: shard.forget(producer))

    async def push_once(self, key: str, seconds: float, priority: int, payload: bytes) -> bool:
        await self.agree()
        return await self.shards[self.number_of(key)].push_once(key, seconds, priority, payload)

    async def push_after(
        self, mark: str, after: int, at: int, seconds: float, priority: int, payload: bytes
    ) -> tuple[bool, int]:
        await self.agree()
        return await self.home.push_after(mark, after, at, seconds, priority, payload)

    async def marks(self, *names: str) -> list[int]:
        return await self.home.marks(*names)

    async def set_marks(self, names: Sequence[str], value: int, seconds: float) -> None:
        await self.home.set_marks(names, value, seconds)

    async def queue_payload(self, priority: int, payload: bytes) -> None:
        await self.agree()
        await self._next().queue_payload(priority, payload)

    async def delay(self, entries: Sequence[tuple[float, int, bytes]]) -> None:
        await self.agree()
        await self._next().delay(entries)

    def _next(self) -> RedisTaskBroker:
        self._turn = (self._turn + 1) % len(self.shards)
        return self.shards[self._turn]

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
        """Claim from the next shard that has something, up to ``limit``: one claim is of one shard.

        A shard that does not answer is passed over until it does.

        Raises:
            BrokerConnectionError: none answers.
        """
        empty: Claim | None = None
        suspects = 0
        for number in self._order(idle):
            self._woken.discard(number)
            claim = await self._ask(number, consumer, limit, max_bytes=max_bytes, idle=idle, waits=waits, tasks=tasks)
            if claim is None:
                continue
            (self._suspects.add if claim.suspects else self._suspects.discard)(number)
            suspects += claim.suspects
            claim.batch = f"{number}:{claim.batch}"
            claim.suspects = suspects
            if claim.items:
                self._turn = number + 1
                return claim
            empty = claim
        if empty is None:
            raise BrokerConnectionError(f"broker {self.url}: none of its {len(self.shards)} shards answers")
        return empty

    def _order(self, idle: bool) -> list[int]:
        """Shards in the order in which they are asked: where a suspect waits for one that may have it, then where
        something was pushed while we waited, then in turn."""
        count = len(self.shards)
        return sorted(
            range(count),
            key=lambda n: (not (idle and n in self._suspects), n not in self._woken, (n - self._turn) % count),
        )

    async def _ask(self, number: int, consumer: str, limit: int, **options: Any) -> Claim | None:
        """Claim from one shard. None: it does not answer now; what it gives later goes back."""
        place = ("claim", number)
        before = self._under_way.get(place)
        if before is not None and not before.done() and before.get_loop() is asyncio.get_running_loop():
            return None
        shard = self.shards[number]
        asking = asyncio.ensure_future(shard.claim(consumer, limit, **options))
        try:
            await asyncio.wait([asking], timeout=LATE_SECONDS)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if asking.done():
            return asking.result()
        logger.warning("broker %s: shard %d does not answer, the others are served", self.url, number)
        self._under_way[place] = asyncio.ensure_future(give_back(shard, asking))
        return None

    async def settle(self, settlement: Settlement) -> bool:
        if (held := self.held_by(settlement.batch)) is None:
            return False
        number, name = held
        shard = self.shards[number]
        if settlement.slots:
            # They are at home, and are freed before anything is settled, so that a retry finds them free; only while
            # the lease is ours, and once, however often this settlement is sent.
            if not await shard.settle(Settlement(name)):
                return False
            try:
                await self.free(settlement.slots)
            except BrokerError as exc:  # the keeper renews them no more
                logger.warning("broker %s: slots are free only after a lease: %s", self.url, exc)
            settlement.slots = []
        return await shard.settle(replace(settlement, batch=name))

    async def release(self, batch: str, fields: Sequence[str]) -> int:
        if (held := self.held_by(batch)) is None:
            return 0
        return await self.shards[held[0]].release(held[1], fields)

    async def renew(self, consumer: str, batches: Sequence[str], slots: Sequence[tuple[str, str]] = ()) -> list[str]:
        by_shard, lost = self.apart(batches)
        at_home = [slots, *([()] * (len(self.shards) - 1))]
        asked = [number for number, names in enumerate(by_shard) if names or at_home[number]]
        answers = await asyncio.gather(
            *(self.shards[number].renew(consumer, by_shard[number], at_home[number]) for number in asked)
        )
        for number, gone in zip(asked, answers, strict=True):
            lost += [f"{number}:{name}" for name in gone]
        return lost

    def renewer(self, consumer: str) -> Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]:
        renewers = [shard.renewer(consumer) for shard in self.shards]
        threads = self._pool("leases")

        def renew(batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
            by_shard, lost = self.apart(batches)
            # at once: a node that hangs is not to cost the leases of the others
            asked = [
                threads.submit(renewed, by_shard[number], slots if number == 0 else ())
                for number, renewed in enumerate(renewers)
            ]
            error: BaseException | None = None
            for number, answer in enumerate(asked):
                if (exc := answer.exception()) is not None:
                    error = error or exc
                else:
                    lost += [f"{number}:{name}" for name in answer.result()]
            if error is not None and not lost:
                raise error
            return lost

        return renew

    def releaser(self, consumer: str) -> Callable[[], object] | None:
        releasers = [found for shard in self.shards if (found := shard.releaser(consumer)) is not None]
        threads = self._pool("yield")

        def give_all_back() -> object:
            return [answer.result() for answer in [threads.submit(give) for give in releasers]]

        return give_all_back

    def _pool(self, word: str) -> ThreadPoolExecutor:
        """A thread for each shard, until this broker is closed."""
        threads = ThreadPoolExecutor(len(self.shards), thread_name_prefix=f"fluidfast-{word}")
        self._threads.append(threads)
        return threads

    async def reap(self) -> int:
        return sum(await self._in_time("reap", lambda shard: shard.reap(), LATE_SECONDS, asyncio.ALL_COMPLETED))

    def reap_seconds(self) -> float:
        return min(shard.reap_seconds() for shard in self.shards)

    async def promote(self) -> float | None:
        dues = await self._in_time("promote", lambda shard: shard.promote(), LATE_SECONDS, asyncio.ALL_COMPLETED)
        return min((due for due in dues if due is not None), default=None)

    async def wait(self, consumer: str, timeout: float, tasks: Sequence[str] | None = None) -> Claim | None:
        # In a task of its own: when we are cancelled, what a shard has given in that moment has to go back.
        no_more = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(self._wait(consumer, timeout, tasks, no_more))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            no_more.set_result(None)
            ending = self._under_way["wait", -1] = asyncio.ensure_future(give_back(self, waiting))
            await asyncio.wait([ending])
            raise

    async def _wait(
        self, consumer: str, timeout: float, tasks: Sequence[str] | None, no_more: "asyncio.Future[None]"
    ) -> Claim | None:
        waits = {
            asyncio.ensure_future(shard.wait(consumer, timeout, tasks)): number
            for number, shard in enumerate(self.shards)
        }
        any_of: list[asyncio.Future[Any]] = [*waits, no_more]
        await asyncio.wait(any_of, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        done = [task for task in waits if task.done()]
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        self._woken.update(waits[task] for task in done)
        first: Claim | None = None
        for task, number in waits.items():
            if task.cancelled() or task.exception() is not None or (claim := task.result()) is None:
                continue
            if first is None:
                first = claim
                first.batch = f"{number}:{claim.batch}"
            else:  # one at a time
                back = self._under_way["wait", number] = asyncio.ensure_future(give_back(self.shards[number], task))
                await asyncio.wait([back], timeout=LATE_SECONDS)
        if first is None:
            for task in done:
                task.result()
        return first

    async def stop_reserving(self, consumer: str) -> None:
        try:
            async with asyncio.timeout(LATE_SECONDS):
                await self._each(lambda shard: shard.stop_reserving(consumer))
        except TimeoutError:  # the server of a shard is not there: the consumer asks again when it is busy again
            logger.debug("broker %s: a shard does not hear that %s is busy", self.url, consumer)

    async def deregister(self, consumer: str) -> None:
        await self._each(lambda shard: shard.deregister(consumer))

    async def acquire(self, task: Task[Any], slot: str) -> bool | None:
        return await self.home.acquire(task, slot)

    async def free(self, slots: Sequence[tuple[str, str]]) -> None:
        await self.home.free(slots)

    async def replies(self, address: str, timeout: float) -> list[bytes]:
        # A run is answered where it is settled, in the same step. An answer that one shard gives while we get
        # another's is in its task, and comes next time.
        answers = await self._in_time(
            f"replies {address}",
            lambda shard: shard.replies(address, timeout),
            timeout,
            asyncio.FIRST_COMPLETED,
        )
        return [payload for payloads in answers for payload in payloads]

    async def consumers_of(self, task_name: str) -> tuple[int, int] | None:
        return await self.home.consumers_of(task_name)

    # -- what is there

    @property
    def task_queue_names(self) -> tuple[str, ...]:
        return tuple(name for shard in self.shards for name in shard.task_queue_names)

    async def queue_length(self) -> dict[str, int]:
        lengths = await self._each(lambda shard: shard.queue_length())
        self._waiting = [sum(length.values()) for length in lengths]
        return added(lengths)

    async def queue_bytes(self) -> int:
        return sum(await self._each(lambda shard: shard.queue_bytes()))

    async def fronts(self) -> list[bytes]:
        return [payload for found in await self._each(lambda shard: shard.fronts()) for payload in found]

    async def clear_queue(self, *priorities: TaskPriority) -> dict[str, int]:
        return added(await self._each(lambda shard: shard.clear_queue(*priorities)))

    async def clear(self) -> int:
        """As ever; then a broker of this name may be spread over another number of shards. That key is not counted."""
        await self.agree()
        count = sum(await self._each(lambda shard: shard.clear()))
        common = RedisTaskBroker(self.url, shard=NO_SHARD)
        try:
            await common.client.redis(lambda: common.redis_cli.unlink(common.keys.shards))
        finally:
            await common.close()
            self._agreed = False
        return count

    async def dead_length(self, kind: Kind = "dead") -> int:
        return sum(await self._each(lambda shard: shard.dead_length(kind)))

    async def dead_trimmed(self, kind: Kind = "dead") -> int:
        return sum(await self._each(lambda shard: shard.dead_trimmed(kind)))

    async def dead(
        self, limit: int = 100, offset: int = 0, *, oldest: bool = False, kind: Kind = "dead"
    ) -> list[tuple[str, bytes]]:
        if limit <= 0:
            return []
        parts = await self._each(lambda shard: shard.dead(offset + limit, oldest=oldest, kind=kind))
        return list(
            islice(
                heapq.merge(*parts, key=lambda entry: gave_up_at(entry[0]), reverse=not oldest), offset, offset + limit
            )
        )

    def sifter(self, kind: Kind = "dead") -> Sifter:
        return ShardedSifter([shard.sifter(kind) for shard in self.shards])

    async def delayed_length(self) -> int:
        return sum(await self._each(lambda shard: shard.delayed_length()))

    async def has_runs(self) -> bool:
        return any(await self._each(lambda shard: shard.has_runs()))

    async def leased_length(self) -> int:
        return sum(await self._each(lambda shard: shard.leased_length()))

    # -- tasks and managers

    async def get_tasks_info(self, *task_names: str) -> list[TaskInfo]:
        """As ever; a task's last run is the last one on any shard that answers."""
        # A consumer asks before it runs what it has claimed, so a shard that is not there is not waited for.
        asked = [asyncio.ensure_future(shard.get_tasks_info(*task_names)) for shard in self.shards]
        try:
            await asyncio.wait(asked, timeout=LATE_SECONDS)
        finally:
            for task in asked:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
        there = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not there:
            for answer in answers:
                if isinstance(answer, BrokerError):
                    raise answer
            raise BrokerConnectionError(f"broker {self.url}: none of its {len(self.shards)} shards answers")
        return [latest(infos) for infos in zip(*there, strict=True)]

    async def update_task(self, task: Task[Any], params: Mapping[str, Any]) -> TaskInfo:
        """On every shard, where claims see it; after an error the same call may be made again."""
        return latest(await self._each(lambda shard: shard.update_task(task, params)))

    async def set_manager_status(self, manager_id: str, data: dict[str, Any], ttl: int) -> None:
        await self.home.set_manager_status(manager_id, data, ttl)

    async def get_all_manager_statuses(self) -> TaskManagersStatus:
        statuses = await self.home.get_all_manager_statuses()
        statuses.queues = await self.queue_length()
        return statuses

    async def current_task_runs(self, task_name: str) -> int:
        return await self.home.current_task_runs(task_name)

    async def set_task_aborted(self, run_id: str, reason: str) -> None:
        await self.home.set_task_aborted(run_id, reason)

    async def get_task_aborted(self, run_id: str) -> str | None:
        return await self.home.get_task_aborted(run_id)

    def lock(self, name: str, timeout: float | None = None) -> Any:
        return self.home.lock(name, timeout)

    async def first(self, key: str, seconds: float) -> bool:
        return await self.shards[self.number_of(key)].first(key, seconds)


class ShardedSifter(Sifter):
    """Goes through one shard after the other."""

    def __init__(self, sifters: Sequence[Sifter]) -> None:
        self.sifters = sifters
        self.at = 0

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(sifter.__aenter__() for sifter in self.sifters))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(sifter.__aexit__(*exc_info) for sifter in self.sifters))

    async def turn(self, limit: int = PAGE_ENTRIES) -> list[tuple[str, bytes]]:
        while self.at < len(self.sifters):
            if page := await self.sifters[self.at].turn(limit):
                return page
            self.at += 1
        return []

    async def take(self, actions: Sequence[DeadAction]) -> int:
        return await self.sifters[self.at].take(actions)


@dataclass(slots=True)
class Sent:
    """A batch on its way to a shard, and what became of it."""

    number: int
    batch: EnqueueBatch
    confirm: Confirm
    answer: tuple[Exception | None] | None = None


class ShardedChannel:
    """Sends a producer's batches to the shards in turn, and says what became of them in the order of sending."""

    def __init__(self, broker: ShardedRedisBroker, channels: Sequence[Channel]) -> None:
        self.broker = broker
        self.channels = channels
        self.sent: deque[Sent] = deque()

    def __call__(self, batch: EnqueueBatch, confirm: Confirm) -> None:
        broker = self.broker
        number = broker.number_of(batch.producer, batch.sequence)
        # A shard remembers its own last number of a producer, so what has to be there first is what went there.
        behind = 0
        for sent in self.sent:
            if sent.number == number and sent.batch.producer == batch.producer:
                behind = sent.batch.sequence
        now = Sent(number, batch, confirm)
        self.sent.append(now)

        def answered(waiting: int, exc: Exception | None) -> None:
            now.answer = (exc,)
            if exc is None and waiting >= 0:
                broker.note_waiting(number, waiting)
            while self.sent and (answer := self.sent[0].answer) is not None:
                told = 0 if answer[0] is not None else broker.known_waiting()
                self.sent.popleft().confirm(told, answer[0])

        self.channels[number](replace(batch, behind=behind), answered)

    def abort(self) -> None:
        """End the connections to the shards that have not answered: what is in flight there is lost."""
        for number in {sent.number for sent in self.sent if sent.answer is None}:
            channel = self.channels[number]
            if isinstance(channel, RedisChannel):
                channel.abort()


async def give_back(broker: TaskBroker, asking: "asyncio.Future[Claim] | asyncio.Task[Claim | None]") -> None:
    """Give runs that were claimed too late back to where they came from."""
    try:
        claim = await asking
        if claim is not None and claim.items:
            await broker.release(claim.batch, [item.field for item in claim.items])
    except BrokerError as exc:
        logger.debug("broker %s: a late claim: %s", broker.url, exc)


def added(lengths: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(length[name] for length in lengths) for name in lengths[0]}


def latest(infos: Sequence[TaskInfo]) -> TaskInfo:
    """Return the info of one task that the first shard has, with the last run of all shards."""
    ended = [info for info in infos if info.last_run_end is not None]
    if not ended:
        return infos[0]
    last = max(ended, key=lambda info: info.last_run_end)  # type: ignore[arg-type, return-value]
    return msgspec.structs.replace(
        infos[0],
        last_run_end=last.last_run_end,
        last_run_duration=last.last_run_duration,
        last_run_state=last.last_run_state,
    )
