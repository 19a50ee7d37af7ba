"""Leases are prolonged from a thread: a handler that blocks the event loop keeps what it holds, but not for ever."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from kits.broker_kit import places, with_options
from kits.manager_kit import consuming, managing
from kits.servers import RedisServer
from kits.waiting import DEADLINE_SECONDS, until, within

from fluidfast import RetryPolicy, Task, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.consume.keeper import Held, LeaseKeeper

LEASE = 0.6
"""Seconds. A lease that is not prolonged is somebody else's after this and two sweeps, of half as much each."""

Start = Callable[..., RedisServer]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


@contextmanager
def consuming_in_a_thread(url: str, *tasks: Task[Any], after: threading.Event | None = None) -> Iterator[TaskConsumer]:
    """A consumer in an event loop of its own, started when ``after`` is set; shut down at the end."""
    made: list[TaskConsumer] = []
    ready, end = threading.Event(), threading.Event()

    async def consume() -> None:
        if after is not None:
            await asyncio.to_thread(after.wait, DEADLINE_SECONDS)
        async with consuming(url, *tasks, stopping_grace_period=1) as consumer:
            made.append(consumer)
            ready.set()
            await asyncio.to_thread(end.wait, 3 * DEADLINE_SECONDS)

    thread = threading.Thread(target=lambda: asyncio.run(consume()), name="another-consumer")
    thread.start()
    try:
        if after is None:
            assert ready.wait(DEADLINE_SECONDS)
            yield made[0]
        else:
            yield None  # type: ignore[misc]  # there is none yet
    finally:
        if after is not None:
            after.set()
        end.set()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


# -- the handler blocks the loop


class Blocker:
    """A task whose first run blocks its event loop for three leases."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.entered = threading.Event()

        @task
        async def block(ctx: TaskRun) -> None:
            self.runs.append(threading.current_thread().name)
            if len(self.runs) == 1:
                self.entered.set()
                time.sleep(3 * LEASE)  # noqa: ASYNC251  # that is what this is about

        self.task: Task[Any] = block

    async def run(self, url: str) -> None:
        """Run it in this thread's loop, with a second consumer in another one."""
        async with managing(url, self.task) as manager:
            await manager.queue(self.task)  # before one waits for it, which would start it before it is under a lease
            async with consuming(url, self.task) as consumer:
                with consuming_in_a_thread(url, self.task, after=self.entered):
                    await until(lambda: consumer.engine.finished)
                    await until(lambda: not consumer.engine.settler.leases)
                assert await places(manager.broker) == {}


async def test_a_handler_that_blocks_the_loop_runs_once(redis_url: str) -> None:
    blocker = Blocker()
    await blocker.run(with_options(redis_url, lease_seconds=LEASE))
    assert blocker.runs == ["MainThread"]


async def test_without_the_keeper_it_runs_twice(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration of the test above: it is the keeper that makes the difference."""
    monkeypatch.setattr(LeaseKeeper, "_run", lambda self: None)
    blocker = Blocker()
    await blocker.run(with_options(redis_url, lease_seconds=LEASE))
    assert blocker.runs == ["MainThread", "another-consumer"]


async def test_handlers_much_longer_than_a_lease(broker_url: str) -> None:
    runs: list[int] = []

    @task
    async def slow(ctx: TaskRun) -> None:
        runs.append(ctx.params["n"])
        await asyncio.sleep(3 * LEASE)

    url = with_options(broker_url, lease_seconds=LEASE)
    async with managing(url, slow) as manager, consuming(url, slow) as one, consuming(url, slow) as two:
        await manager.queue_many(slow, [{"n": n} for n in range(10)])
        await until(lambda: one.engine.finished + two.engine.finished == 10)
        assert sorted(runs) == list(range(10))


async def test_a_server_that_is_away_for_a_moment(start_server: Start) -> None:
    """The keeper goes on when it is back, within the lease."""
    server = start_server(appendonly="always")
    entered = asyncio.Event()
    runs: list[int] = []

    @task
    async def slow(ctx: TaskRun) -> None:
        runs.append(1)
        entered.set()
        await asyncio.sleep(3)

    url = with_options(server.url, lease_seconds=1.5)
    async with managing(url, slow) as manager, consuming(url, slow) as one, consuming(url, slow) as two:
        await manager.queue(slow)
        await within(entered.wait())
        server.kill()
        await asyncio.to_thread(server.restart)
        await until(lambda: one.engine.finished + two.engine.finished == 1)
        assert runs == [1]
        assert await places(manager.broker) == {}


# -- but not for ever


class Hung:
    """A task whose first run (of each number) does not end, and does not let itself be cancelled."""

    def __init__(self, *, batch: int = 0) -> None:
        self.runs: list[int] = []
        self.go_on = asyncio.Event()
        self.entered = asyncio.Event()

        async def hang(*numbers: int) -> None:
            first = not set(numbers) & set(self.runs)
            self.runs += numbers
            self.entered.set()
            while first and not self.go_on.is_set():
                try:
                    await self.go_on.wait()
                except asyncio.CancelledError:
                    pass

        @task(timeout_seconds=0.1)
        async def one(ctx: TaskRun) -> None:
            await hang(ctx.params["n"])

        @task(timeout_seconds=0.1, batch=batch, batch_wait=0.2 if batch else 0)
        async def several(runs: list[TaskRun]) -> None:
            await hang(*(run.params["n"] for run in runs))

        self.task: Task[Any] = several if batch else one


@pytest.mark.parametrize("batch", [0, 3])
async def test_a_hung_handler_does_not_hold_its_lease(
    broker_url: str, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its time is over, and it does not end: others get its runs, and what it says in the end does not count."""
    hung = Hung(batch=batch)
    count = max(1, batch)
    url = with_options(broker_url, lease_seconds=LEASE)
    async with managing(url, hung.task) as manager, consuming(url, hung.task) as one:
        await manager.queue_many(hung.task, [{"n": n} for n in range(count)])
        await within(hung.entered.wait())
        assert hung.runs == list(range(count))
        async with consuming(url, hung.task) as two:
            try:
                await until(lambda: one.engine.finished + two.engine.finished == count)
            finally:
                hung.go_on.set()
        assert sorted(hung.runs) == sorted([*range(count)] * 2)
        await until(lambda: not one.engine.settler.leases and not one.engine.slots.running)
        assert await places(manager.broker) == {}
        assert "was lost" in caplog.text


async def test_a_hung_handler_does_not_hold_up_the_shutdown(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    hung = Hung()
    url = with_options(broker_url, lease_seconds=LEASE)
    async with managing(url, hung.task) as manager:
        consumer = TaskConsumer(broker_url=url, stopping_grace_period=0.1)
        consumer.register_task(hung.task)
        await consumer.startup()
        await manager.queue(hung.task, n=0)
        await within(hung.entered.wait())
        try:
            await within(consumer.shutdown(), 10)
            assert "1 tasks ignored cancellation" in caplog.text
            async with consuming(url, hung.task) as other:
                await until(lambda: other.engine.finished == 1)
            assert hung.runs == [0, 0]
        finally:
            hung.go_on.set()


async def test_a_loop_that_is_blocked_for_good(redis_url: str) -> None:
    """It holds nothing for ever either: not what blocks it, and not what else its consumer had claimed."""
    entered, go_on = threading.Event(), threading.Event()
    runs: list[int] = []

    @task(timeout_seconds=0.1)
    async def block(ctx: TaskRun) -> None:
        runs.append(-1)
        if not entered.is_set():
            entered.set()
            go_on.wait(2 * DEADLINE_SECONDS)

    @task(batch=100, batch_wait=0.2)
    async def collect(batch: list[TaskRun]) -> None:
        runs.extend(run.params["n"] for run in batch)

    url = with_options(redis_url, lease_seconds=LEASE)
    async with managing(url, block, collect) as manager:
        try:
            with consuming_in_a_thread(url, block, collect) as blocked:
                await manager.queue_many(collect, [{"n": n} for n in range(5)])
                await until(lambda: blocked.engine.slots.collected == 5)
                await manager.queue(block, "high")
                await until(entered.is_set)
                async with consuming(url, block, collect) as other:
                    await until(lambda: other.engine.finished == 6)
                assert sorted(runs) == [-1, -1, 0, 1, 2, 3, 4]
                go_on.set()
        finally:
            go_on.set()
        assert runs.count(-1) == 2
        assert await places(manager.broker) == {}


# -- lost


async def leased(manager: TaskManager) -> bool:
    return await places(manager.broker) == {"leased": 1}


async def test_a_lost_lease_cancels_its_run(broker_url: str) -> None:
    cancelled: list[int] = []
    entered: list[int] = []

    @task
    async def wait(ctx: TaskRun) -> None:
        entered.append(len(entered) + 1)
        if entered[-1] == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(1)
                raise

    url = with_options(broker_url, lease_seconds=LEASE)
    async with managing(url, wait) as manager, consuming(url, wait) as consumer:
        ends: list[str] = []
        for state in ("success", "failure", "aborted", "interrupted"):
            consumer.dispatcher.register_handler(state, lambda run: ends.append(str(run.state)))
        await manager.queue(wait)
        await until(lambda: entered)
        await until(lambda: leased(manager))  # it started out of the inbox
        [lost] = consumer.engine.settler.leases
        assert await manager.broker.release(lost, ["m1"]) == 1
        await until(lambda: cancelled)
        await until(lambda: consumer.engine.finished == 1)
        await until(lambda: not consumer.engine.settler.leases)
        assert ends == ["success"], "nothing is said of the one that was cancelled"
        assert (entered, cancelled) == ([1, 2], [1])
        assert await places(manager.broker) == {}


async def test_what_is_said_under_a_lost_lease_is_refused(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that goes on all the same: its outcome, its retry and its place among the dead change nothing."""
    entered, go_on = asyncio.Event(), asyncio.Event()
    tries: list[int] = []

    @task(retry=RetryPolicy(max_attempts=3, wait=0))
    async def stubborn(ctx: TaskRun) -> None:
        tries.append(ctx.retry_attempt)
        if len(tries) == 1:
            entered.set()
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    go_on.set()
            raise LookupError("too late")

    url = with_options(broker_url, lease_seconds=LEASE)
    async with managing(url, stubborn) as manager, consuming(url, stubborn) as consumer:
        await manager.queue(stubborn)
        await within(entered.wait())
        await until(lambda: leased(manager))  # it started out of the inbox
        [lost] = consumer.engine.settler.leases
        assert await manager.broker.release(lost, ["m1"]) == 1
        await until(lambda: go_on.is_set() and consumer.engine.finished == 1)
        await until(lambda: not consumer.engine.settler.leases and not consumer.engine.settler._sends)
        assert tries == [0, 0], "again as it was, and not as a retry"
        assert "was lost (it ran out)" in caplog.text
        assert await places(manager.broker) == {}


# -- the thread


class Fake:
    """What a keeper asks and tells."""

    def __init__(self) -> None:
        self.renewed: list[tuple[list[str], list[tuple[str, str]]]] = []
        self.lost: list[list[str]] = []
        self.answers: list[list[str] | Exception] = []
        self.held: Held | None = (["a", "b"], [("task", "run")])
        self.called = threading.Semaphore(0)
        self.blocked = False
        self.stalls = 0

    def soon(self, call: Callable[[], None]) -> None:
        if not self.blocked:
            call()

    def stall(self) -> None:
        self.stalls += 1
        self.called.release()

    def renew(self, batches: Sequence[str], slots: Sequence[tuple[str, str]]) -> list[str]:
        self.renewed.append((list(batches), list(slots)))
        self.called.release()
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    def calls(self, count: int) -> None:
        for _ in range(count):
            assert self.called.acquire(timeout=DEADLINE_SECONDS)

    @contextmanager
    def keeping(self, period: float = 0.01) -> Iterator[LeaseKeeper]:
        keeper = LeaseKeeper(
            self.renew, lambda: self.held, self.lost.append, period_seconds=period, soon=self.soon, stalled=self.stall
        )
        keeper.start()
        try:
            yield keeper
        finally:
            keeper.stop()
            keeper._thread.join(DEADLINE_SECONDS)
            assert not keeper._thread.is_alive()


def test_it_asks_again_and_again() -> None:
    fake = Fake()
    with fake.keeping():
        fake.calls(3)
    assert fake.renewed[0] == (["a", "b"], [("task", "run")])
    assert fake.lost == []


def test_it_tells_what_was_lost() -> None:
    fake = Fake()
    fake.answers = [[], ["b"], []]
    with fake.keeping():
        fake.calls(4)
    assert fake.lost == [["b"]]


def test_it_goes_on_after_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Said once for as long as it lasts; tried again sooner than a long period would have it."""
    fake = Fake()
    fake.answers = [ConnectionError("gone"), OSError("gone"), [], ValueError("odd"), ["a"]]
    with fake.keeping():
        fake.calls(6)
    assert fake.lost == [["a"]]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot renew leases, trying again: gone",
        "cannot renew leases, trying again: odd",
    ]


def test_nothing_is_prolonged_while_there_is_nothing_to_hold() -> None:
    fake = Fake()
    fake.held = None
    asked = threading.Event()
    keeper = LeaseKeeper(
        fake.renew,
        lambda: asked.set(),
        fake.lost.append,
        period_seconds=0.01,
        soon=fake.soon,  # type: ignore[arg-type]
    )
    keeper.start()
    assert asked.wait(DEADLINE_SECONDS)
    keeper.stop()
    keeper._thread.join(DEADLINE_SECONDS)
    assert fake.renewed == []


def test_it_sees_a_loop_that_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between its periods; and it says nothing of one that gets on."""
    monkeypatch.setattr("fluidfast.consume.keeper.STALLED_SECONDS", 0.01)
    fake = Fake()
    with fake.keeping():
        fake.calls(5)
    assert fake.stalls == 0
    blocked = Fake()
    blocked.blocked = True
    with blocked.keeping(period=3600):
        blocked.calls(3)
    assert blocked.renewed == []


def test_it_stops_at_once() -> None:
    fake = Fake()
    begin = time.monotonic()
    with fake.keeping(period=3600):
        pass
    assert time.monotonic() - begin < DEADLINE_SECONDS / 2
    assert fake.renewed == []


async def test_its_thread_ends_with_the_consumer(broker_url: str) -> None:
    def threads() -> int:
        return sum(thread.name == "fluidfast-leases" for thread in threading.enumerate())

    before = threads()
    consumer = TaskConsumer(broker_url=with_options(broker_url, lease_seconds=LEASE))
    await consumer.startup()
    await until(lambda: threads() == before + 1)
    await consumer.shutdown()
    await until(lambda: threads() == before)
    async with TaskManager(broker_url=broker_url) as manager:
        await manager.broker.clear()
