"""Stints: threads that take plain functions from what is ready, one by one, and give their ends back together."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kits.broker_kit import places
from kits.waiting import until, within

from fluidfast import TaskConsumer, TaskManager, TaskRun, task
from fluidfast.core.context import RUN
from fluidfast.execute.threads import NAME
from fluidfast.observe import RunFilter

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
Consuming = Callable[..., Any]


class Seen:
    """What the functions of a test tell it, and what some of them wait for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ran: Counter[Any] = Counter()
        self.now = self.most = 0
        self.open = threading.Event()
        self.blocked = threading.Event()
        self.wrong: list[Any] = []

    def enter(self, n: Any) -> None:
        with self.lock:
            self.ran[n] += 1
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1


@task
def quick(ctx: TaskRun[Any, Seen]) -> None:
    """Ends at once, unless it is told to block."""
    seen = ctx.deps
    seen.enter(ctx.params.get("n"))
    if RUN.get() is not ctx or tenant.get() != "nobody":
        seen.wrong.append((RUN.get(), tenant.get()))
    tenant.set("left behind")
    if ctx.params.get("blocks"):
        seen.blocked.set()
        assert seen.open.wait(60)
    seen.leave()


@task
def slow(ctx: TaskRun[Any, Seen]) -> None:
    ctx.deps.enter(ctx.params.get("n"))
    time.sleep(0.002)
    ctx.deps.leave()


@task
async def in_loop(ctx: TaskRun[Any, Seen]) -> None:
    ctx.deps.enter(ctx.params.get("n"))
    await asyncio.sleep(0.001 * (ctx.params["n"] % 2))
    ctx.deps.leave()


@pytest.fixture
async def seen() -> AsyncIterator[Seen]:
    seen = Seen()
    yield seen
    seen.open.set()
    await until(lambda: not any(thread.name.startswith(NAME) for thread in threading.enumerate()))


@pytest.fixture
def consuming(broker_url: str, seen: Seen, no_leaked_keys: Any) -> Consuming:
    no_leaked_keys.allow("*-tasks-*", "*-dead*", "*-failed*")
    RunFilter()  # somebody reads RUN

    @asynccontextmanager
    async def consuming(*tasks: Any, slots: int = 8, grace: float = 5.0) -> Any:
        consumer = TaskConsumer(
            broker_url=broker_url, deps=seen, max_concurrent_tasks=slots, stopping_grace_period=grace
        )
        for one in (quick, slow, in_loop, *tasks):
            consumer.register_task(one)
        await consumer.startup()
        try:
            yield consumer
        finally:
            seen.open.set()
            await within(consumer.shutdown())
            await consumer.broker.close()

    return consuming


async def make_quick(consumer: TaskConsumer, *names: str) -> None:
    """Have a consumer find out that functions are quick, so that a runner runs them."""
    for name in names or ("quick",):
        finished = consumer.engine.finished
        await consumer.queue_many(name, ({"n": "warm up"} for _ in range(100)))
        await until(lambda finished=finished: consumer.engine.finished >= finished + 100)


@pytest.mark.parametrize("listens", [False, True])
async def test_each_run_starts_once_in_a_context_of_its_own(consuming: Consuming, seen: Seen, listens: bool) -> None:
    """Quick and slow functions and coroutines together, in no more than the slots."""
    told: Counter[str] = Counter()

    def hears(run: TaskRun[Any, Seen]) -> None:
        told[run.id] += 1
        if RUN.get().id != run.id or tenant.get() != "nobody" or not run.is_done or run.duration_ms is None:
            seen.wrong.append((run.name, RUN.get(), tenant.get(), run.is_done, run.duration_ms))
        tenant.set("left by a handler")

    async with consuming() as consumer:
        if listens:
            consumer.dispatcher.register_handler("success.test", hears)
        chosen = random.Random(7).choices(["quick", "in_loop", "slow"], [6, 3, 1], k=1500)
        await asyncio.gather(*(consumer.queue(name, n=n) for n, name in enumerate(chosen)))
        await until(lambda: consumer.engine.finished == 1500)
        assert seen.ran == Counter(range(1500))
        assert seen.wrong == []
        assert seen.most <= 8
        assert (len(told), told.total()) == ((1500, 1500) if listens else (0, 0))
        assert await until(lambda: places_empty(consumer), every=0.02)


async def places_empty(consumer: TaskConsumer) -> bool:
    return await places(consumer.broker) == {}


async def test_a_stint_runs_many_and_others_what_it_holds_up(
    consuming: Consuming, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with consuming() as consumer:
        await make_quick(consumer)
        functions, stints = consumer.engine.functions, 0
        serve = functions.serve

        async def counted(slot: Any, stint: Any) -> None:
            nonlocal stints
            stints += 1
            await serve(slot, stint)

        monkeypatch.setattr(functions, "serve", counted)
        await consumer.queue_many("quick", ({"n": n} for n in range(1000)))
        await until(lambda: sum(seen.ran[n] for n in range(1000)) == 1000)
        assert stints < 500
        await make_quick(consumer)
        await consumer.queue_many("quick", ({"n": -n, "blocks": n == 1} for n in range(1, 301)))
        await until(lambda: sum(seen.ran[-n] for n in range(1, 301)) == 300)
        assert seen.now == 1


async def test_a_function_that_never_ends_stops_nothing_else(consuming: Consuming, seen: Seen) -> None:
    """It times out, alone; its thread hangs; the slot goes on."""
    brief = quick._replace(name="brief", timeout_seconds=0.2)
    async with consuming(brief) as consumer:
        await make_quick(consumer, "brief")
        ended: dict[Any, str] = {}
        for state in ("success", "failure"):
            consumer.dispatcher.register_handler(
                f"{state}.test", lambda run: ended.__setitem__(run.params["n"], str(run.state))
            )
        await consumer.queue_many("brief", ({"n": n, "blocks": n in (50, 51)} for n in range(200)))
        await until(lambda: len(ended) == 200)
        assert {n for n, state in ended.items() if state == "failure"} == {50, 51}
        assert seen.ran == Counter({"warm up": 100, **dict.fromkeys(range(200), 1)})
        assert consumer.engine.functions.hung == 2
        assert consumer.engine.concurrency == 8
        seen.open.set()
        await until(lambda: consumer.engine.functions.hung == 0)
        assert consumer.engine.finished == 300  # their late ends are nobody's


async def test_what_waits_under_a_lost_lease_does_not_start(consuming: Consuming, seen: Seen) -> None:
    async with consuming(slots=1) as consumer:
        await make_quick(consumer)
        await consumer.queue_many("quick", ({"n": n, "blocks": n == 0} for n in range(20)))
        await until(seen.blocked.is_set)
        engine = consumer.engine
        await until(lambda: engine.slots.oldest() < float("inf"))
        ran = sum(seen.ran[n] for n in range(20))
        engine.timeouts.lose_batches(list(engine.settler.leases))
        seen.open.set()
        await until(lambda: engine.slots.running == 0 and not engine.settler.leases)
        assert sum(seen.ran[n] for n in range(20)) == ran
        await consumer.broker.clear()


async def test_what_waits_behind_a_long_function_goes_to_others(consuming: Consuming, seen: Seen) -> None:
    async with consuming(slots=1) as busy:
        await make_quick(busy)
        await busy.queue_many("quick", ({"n": n, "blocks": n == 0} for n in range(50)))
        await until(seen.blocked.is_set)
        async with consuming(slots=2) as other:
            await until(lambda: sum(seen.ran[n] for n in range(50)) == 50)
            assert other.engine.finished >= 1
            assert seen.now == 1


async def test_a_consumer_may_leave_in_the_middle_again_and_again(
    consuming: Consuming, seen: Seen, broker_url: str
) -> None:
    """Nothing is lost and nothing runs twice, also of what is set aside for a thread that is behind."""
    runs = 2000
    async with TaskManager(broker_url=broker_url) as manager:
        for one in (quick, in_loop):
            manager.register_task(one)
        await asyncio.gather(*(manager.queue(("quick", "in_loop")[n % 4 == 3], n=n) for n in range(runs)))
    for wanted in (300, 600, 900, 1200, 1500, 1800, runs):
        async with consuming(slots=4) as consumer:
            await until(lambda wanted=wanted: seen.ran.total() >= wanted, every=0.0)
            await within(consumer.shutdown())
            assert consumer.engine.slots.take_ready() == []
            if seen.ran.total() < runs:
                assert sum((await places(consumer.broker)).values()) == runs - seen.ran.total()
    assert seen.ran == Counter(range(runs))


async def test_what_runs_in_a_stint_at_shutdown_goes_back(consuming: Consuming, seen: Seen) -> None:
    async with consuming(slots=1, grace=0.1) as consumer:
        await make_quick(consumer)
        await consumer.queue_many("quick", ({"n": n, "blocks": n == 0} for n in range(20)))
        await until(seen.blocked.is_set)
        await within(consumer.shutdown())
        ran = sum(seen.ran[n] for n in range(20))
        assert (await places(consumer.broker)).get("medium") == 20 - ran + 1
        await consumer.broker.clear()


async def test_however_a_function_ends_in_the_middle_of_others(consuming: Consuming, seen: Seen) -> None:
    """As it would alone, and those before and behind it are as they were."""

    async def returned(fails: bool) -> None:
        await asyncio.sleep(0)
        if fails:
            raise ZeroDivisionError

    def generator() -> Any:
        yield

    ways: dict[str, Callable[[Any], Any]] = {
        "success": lambda ctx: {"a": "result"},
        "success by a coroutine": lambda ctx: returned(False),
        "failure by a coroutine": lambda ctx: returned(True),
        "failure by a generator": lambda ctx: generator(),
        "failure that it set": lambda ctx: ctx.set_state("failure"),
        "success that it set": lambda ctx: ctx.set_state("success"),
        "aborted": lambda ctx: ctx.abort("enough"),
        **{
            f"failure by {error.__name__}": lambda ctx, error=error: throw(error)
            for error in (StopIteration, GeneratorExit, KeyboardInterrupt, SystemExit, asyncio.CancelledError, OSError)
        },
    }

    def throw(error: type[BaseException]) -> None:
        raise error

    @task
    def varied(ctx: TaskRun[Any, Seen]) -> Coroutine[Any, Any, None] | None:
        ctx.deps.enter(ctx.params["n"])
        ctx.deps.leave()
        return ways[ctx.params["way"]](ctx) if "way" in ctx.params else None

    async with consuming(varied, slots=2) as consumer:
        ended: dict[Any, str] = {}
        await make_quick(consumer, "varied")
        for state in ("success", "failure", "aborted"):
            consumer.dispatcher.register_handler(
                f"{state}.test", lambda run: ended.__setitem__(run.params["n"], str(run.state))
            )
        params = [{"n": f"{way} {n}"} | ({"way": way} if n == 5 else {}) for way in ways for n in range(10)]
        await consumer.queue_many("varied", params)
        await until(lambda: len(ended) == len(params))
        await until(lambda: consumer.engine.slots.running == 0)
        for one in params:
            wanted = str(one.get("way", "success")).split()[0]
            assert ended[one["n"]] == wanted, one
        assert seen.ran == Counter({"warm up": 100, **{one["n"]: 1 for one in params}})
        assert consumer.engine.functions.hung == 0


async def test_those_who_want_to_see_the_start_see_it_before_the_function(consuming: Consuming, seen: Seen) -> None:
    """An event handler, a hook: for them each run is started by the event loop, also if they come late."""
    order: list[tuple[str, Any]] = []

    @task
    def noted(ctx: TaskRun[Any, Seen]) -> None:
        order.append(("ran", ctx.params["n"]))

    async def hook(run: Any, go: Any) -> None:
        order.append(("hook", run.params["n"]))
        await go()

    async with consuming(noted, slots=1) as consumer:
        await make_quick(consumer, "noted")
        order.clear()
        consumer.dispatcher.register_handler("running.test", lambda run: order.append(("told", run.params["n"])))
        consumer.hooks.around_running(hook)
        await consumer.queue_many("noted", ({"n": n} for n in range(20)))
        await until(lambda: len(order) == 60)
        assert order == [(what, n) for n in range(20) for what in ("told", "hook", "ran")]
