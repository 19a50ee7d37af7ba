"""Whatever a user's code raises ends that run, or that call, and never a slot or a loop of the consumer; nothing of a
run is seen in the next one."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from typing import Any

import pytest
from kits.broker_kit import places
from kits.consumer_kit import Notes, Start, dead_count, empty, told
from kits.waiting import until, within
from msgspec import Struct

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.core.events import AsyncTaskDispatcher
from fluidfast.core.workers import AsyncConsumer, WorkerFunction
from fluidfast.errors import QueueFullError


class Done(StopIteration):
    """A subclass, which an ``await`` takes for a result."""


ODD = [GeneratorExit, asyncio.CancelledError, SystemExit, KeyboardInterrupt, StopIteration, Done, StopAsyncIteration]


def named(kind: type[BaseException]) -> str:
    return kind.__name__


async def goes_on(consumer: TaskConsumer) -> None:
    """The consumer, with its one slot, still runs what is queued."""
    assert str((await within(consumer.queue_and_wait("note", n=1))).state) == "success"


# -- what a task raises


@pytest.mark.parametrize("kind", ODD, ids=named)
@pytest.mark.parametrize("way", ["async", "thread", "batch", "batch_thread"])
async def test_whatever_a_task_raises_fails_its_run(
    start: Start, caplog: pytest.LogCaptureFixture, kind: type[BaseException], way: str
) -> None:
    async def in_async(ctx: Any) -> None:
        raise kind

    def in_thread(ctx: Any) -> None:
        raise kind

    function = in_thread if "thread" in way else in_async
    odd = task(name="odd", timeout_seconds=60, **({"batch": 2} if "batch" in way else {}))(function)
    consumer = await start(odd, max_concurrent_tasks=1)
    run = await within(consumer.queue_and_wait("odd"))
    assert str(run.state) == "failure"
    assert kind.__name__ in caplog.text or "cancelled from within" in caplog.text
    await goes_on(consumer)
    assert "another takes its place" not in caplog.text
    await until(lambda: empty(consumer))


@pytest.mark.parametrize("kind", ODD, ids=named)
@pytest.mark.parametrize("threaded", [False, True])
async def test_whatever_execute_meets_is_raised(kind: type[BaseException], threaded: bool) -> None:
    @task(name="odd")
    async def in_async(ctx: TaskRun[Any, Any]) -> None:
        raise kind

    @task(name="odd")
    def in_thread(ctx: TaskRun[Any, Any]) -> None:
        raise kind

    states: list[str] = []
    async with TaskManager(broker_url="memory://execute") as manager:
        manager.register_task(in_thread if threaded else in_async)
        for state in ("success", "interrupted", "failure"):
            manager.dispatcher.register_handler(f"{state}.x", lambda run: states.append(str(run.state)))
        raised: BaseException | None = None
        try:
            await within(manager.execute("odd"))
        except BaseException as exc:
            raised = exc
    assert states == ["failure"]
    assert raised is not None
    assert not isinstance(raised, (StopIteration, asyncio.CancelledError))
    assert isinstance(raised, kind) or isinstance(raised.__cause__, kind)


# -- what handlers of events raise


@pytest.mark.parametrize("kind", ODD, ids=named)
async def test_whatever_a_handler_raises_is_logged(
    start: Start, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    consumer = await start(max_concurrent_tasks=1)

    def fails(run: TaskRun[Any, Any]) -> None:
        raise kind

    heard: list[str] = []
    for state in ("running", "success", "failure", "aborted"):
        consumer.dispatcher.register_handler(f"{state}.a", fails)
        consumer.dispatcher.register_handler(f"{state}.b", lambda run: heard.append(str(run.state)))
    assert str((await within(consumer.queue_and_wait("note", n=1))).state) == "success"
    assert str((await within(consumer.queue_and_wait("failing"))).state) == "failure"
    await consumer.broker.enable_task("strict", False)

    async def sees_that() -> bool:
        await consumer.queue("strict", n=1)
        await asyncio.sleep(0.02)
        return "aborted" in heard

    await until(sees_that)
    await goes_on(consumer)
    assert heard[:4] == ["running", "success", "running", "failure"]
    assert "handler of event aborted, tag 'a'" in caplog.text
    await until(lambda: empty(consumer))


@pytest.mark.parametrize("kind", ODD, ids=named)
@pytest.mark.parametrize("many", [False, True])
async def test_whatever_an_async_handler_raises_is_logged(
    caplog: pytest.LogCaptureFixture, kind: type[BaseException], many: bool
) -> None:
    heard: list[str] = []

    @task
    async def any_task(ctx: TaskRun[Any, Any]) -> None: ...

    async def fails(run: TaskRun[Any, Any]) -> None:
        if run.id == "1":
            raise kind
        heard.append(run.id)

    async def hears(run: TaskRun[Any, Any]) -> None:
        heard.append(run.id)

    dispatcher = AsyncTaskDispatcher()
    dispatcher.register_handler("init.a", fails)
    if many:
        dispatcher.register_handler("init.b", hears)
    async with AsyncConsumer(dispatcher) as worker:
        worker.send(TaskRun(id="1", task=any_task))
        worker.send(TaskRun(id="2", task=any_task))
        await until(lambda: heard == (["1", "2", "2"] if many else ["2"]))
    assert "handler of event init, tag 'a', failed for run 1" in caplog.text


async def test_a_worker_that_raises_generator_exit_has_ended() -> None:
    async def leaves() -> None:
        raise GeneratorExit

    worker = WorkerFunction(leaves)
    await worker.startup()
    with pytest.raises(GeneratorExit):
        await within(worker.wait_for_shutdown())
    assert worker.is_stopped()


# -- what the params raise when the consumer reads them

bad: list[type[BaseException]] = []


class Asks(Struct):
    x: int

    def __post_init__(self) -> None:
        if bad:
            raise bad[0]


@pytest.mark.parametrize("kind", ODD, ids=named)
async def test_whatever_params_raise_makes_a_dead_letter(
    start: Start, keeps: list[str], kind: type[BaseException]
) -> None:
    keeps.append("dead")
    keeps.append("ff:dead")

    @task
    async def asks(ctx: TaskRun[Asks, Notes]) -> None:
        ctx.deps.done.append(ctx.params.x)

    consumer = await start(asks, max_concurrent_tasks=1)
    bad.append(kind)
    try:
        bad.clear()
        run = consumer.create_task_run("asks", x=1)
        payload = consumer.broker.codec.submit(run)
        bad.append(kind)
        await consumer.broker.delay([(0.0, 1, payload)])
        await until(lambda: dead_count(consumer, 1))
    finally:
        bad.clear()
    assert kind.__name__ in (await consumer.dead.list())[0].reason
    await goes_on(consumer)


# -- what ends is replaced


@pytest.mark.parametrize("name", ["task-worker-1", "claim_loop", "reap_loop", "promote_loop"])
async def test_a_part_that_is_cancelled_is_replaced(start: Start, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """Somebody cancels a task that is none of his."""
    consumer = await start(max_concurrent_tasks=1)
    await goes_on(consumer)
    for _ in range(3):
        (found,) = [one for one in asyncio.all_tasks() if one.get_name().endswith(name)]
        found.cancel()
        await asyncio.wait([found])
        await goes_on(consumer)
    assert caplog.text.count("another takes its place") == 3
    assert consumer.is_running()


async def test_a_run_that_cancels_its_own_task_fails(start: Start, notes: Notes) -> None:
    @task
    async def cancels_itself(ctx: TaskRun[Any, Notes]) -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(60)

    consumer = await start(cancels_itself, max_concurrent_tasks=1)
    assert str((await within(consumer.queue_and_wait("cancels_itself"))).state) == "failure"
    await goes_on(consumer)


# -- context variables

tenant = contextvars.ContextVar("tenant", default="nobody")


class Unequal:
    def __eq__(self, other: object) -> bool:
        raise TypeError("cannot be compared")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("value", ["acme", Unequal()], ids=["text", "cannot be compared"])
@pytest.mark.parametrize("kind", ["async", "batch"])
async def test_nothing_of_a_run_is_seen_in_the_next(start: Start, notes: Notes, kind: str, value: object) -> None:
    async def look(deps: Notes) -> None:
        deps.done.append(tenant.get())
        tenant.set(value)  # type: ignore[arg-type]

    @task(name="look")
    async def one(ctx: TaskRun[Any, Notes]) -> None:
        await look(ctx.deps)

    @task(name="look", batch=1)
    async def several(runs: list[TaskRun[Any, Notes]]) -> None:
        await look(runs[0].deps)

    bound = tenant.set("of the consumer")
    try:
        consumer = await start(one if kind == "async" else several, max_concurrent_tasks=1)
    finally:
        tenant.reset(bound)
    for _ in range(4):
        await within(consumer.queue_and_wait("look"))
    assert notes.done == ["of the consumer"] * 4


async def test_a_run_sees_what_a_handler_of_running_bound(start: Start, notes: Notes) -> None:
    @task
    async def look(ctx: TaskRun[Any, Notes]) -> None:
        async def inner() -> None:
            ctx.deps.done.append(tenant.get())

        await asyncio.gather(inner())

    consumer = await start(look, max_concurrent_tasks=2)
    consumer.dispatcher.register_handler("running.bind", lambda run: tenant.set(run.params.get("who", "nobody")))
    for who in ("acme", "globex", None):
        await within(consumer.queue_and_wait("look", **({"who": who} if who else {})))
    assert notes.done == ["acme", "globex", "nobody"]


async def test_what_is_set_and_reset_costs_no_task(start: Start, notes: Notes) -> None:
    @task
    async def binds(ctx: TaskRun[Any, Notes]) -> None:
        bound = tenant.set("acme")
        tenant.reset(bound)
        ctx.deps.done.append(asyncio.current_task())

    consumer = await start(binds, max_concurrent_tasks=1)
    for _ in range(3):
        await within(consumer.queue_and_wait("binds"))
    assert len(set(notes.done)) == 1


# -- callables, timers


async def test_a_callable_without_a_hash_runs(start: Start, notes: Notes) -> None:
    @dataclasses.dataclass
    class Sender:
        host: str

        async def __call__(self, ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.done.append(self.host)

    @dataclasses.dataclass
    class Blocking:
        host: str

        def __call__(self, ctx: TaskRun[Any, Notes]) -> None:
            ctx.deps.done.append(self.host)

    tasks = [task(name=f"send-{n}")(kind(f"{n}")) for n, kind in enumerate((Sender, Blocking, Sender, Blocking))]
    consumer = await start(*tasks, max_concurrent_tasks=1)
    for n in (0, 1, 2, 3, 0, 1):
        assert str((await within(consumer.queue_and_wait(f"send-{n}"))).state) == "success"
    assert notes.done == ["0", "1", "2", "3", "0", "1"]


async def test_delayed_retries_cost_one_timer(start: Start, keeps: list[str], notes: Notes) -> None:
    keeps += ["delayed", "ff:delayed", "dead", "ff:dead"]

    @task(retry=RetryPolicy(max_attempts=1, wait=3600, max_wait=3600))
    async def later(ctx: TaskRun[Any, Notes]) -> None:
        raise ValueError("the service is down")

    @task(retry=RetryPolicy(max_attempts=1, wait=0.3))
    async def soon(ctx: TaskRun[Any, Notes]) -> None:
        ctx.deps.done.append(asyncio.get_running_loop().time())
        raise ValueError("the service is down")

    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at
    consumer = await start(later, soon)
    loop.call_at = lambda when, *rest, **more: timers.append(when) or call_at(when, *rest, **more)  # type: ignore
    try:
        consumer.engine.promote_in(0.9)
        consumer.engine.promote_in(0.5)  # takes its place
        consumer.engine.promote_in(0.7)  # is behind it
        assert [round(when - loop.time(), 1) for when in timers[-2:]] == [0.9, 0.5]
        for _ in range(100):
            await consumer.queue("later")
        await until(lambda: delayed(consumer, 100))
        assert not [when for when in timers if when > loop.time() + 300]
    finally:
        del loop.call_at
    await consumer.queue("soon")
    await until(lambda: len(notes.done) == 2)
    assert notes.done[1] - notes.done[0] < 0.8  # it comes before the timer that was there, and does not wait for a look


async def delayed(consumer: TaskConsumer, count: int) -> bool:
    return await places(consumer.broker) == {"delayed": count}


# -- a run that queues


async def test_a_run_is_not_held_by_the_queue_that_it_should_empty(start: Start, notes: Notes) -> None:
    @task
    async def parent(ctx: TaskRun[Any, Notes]) -> None:
        if ctx.params.get("gather"):
            await asyncio.gather(*[ctx.task_manager.queue("note", n=n) for n in range(30)])
        for n in range(30):
            await ctx.task_manager.queue("note", n=n)
        await ctx.task_manager.queue_many("note", ({"n": n} for n in range(30)))

    loop = asyncio.get_running_loop()

    @task
    def in_thread(ctx: TaskRun[Any, Notes]) -> None:
        for n in range(30):
            asyncio.run_coroutine_threadsafe(ctx.task_manager.queue("note", n=n), loop).result(20)

    consumer = await start(parent, in_thread, max_concurrent_tasks=2, max_queue_length=10)
    for n in range(4):
        await within(consumer.queue("parent", gather=n % 2))
        await within(consumer.queue("in_thread"))
    await until(lambda: len(notes.done) == 4 * 60 + 2 * 30 + 4 * 30)
    await until(lambda: empty(consumer))


async def test_others_are_held_as_ever(start: Start, notes: Notes) -> None:
    consumer = await start(max_concurrent_tasks=1, max_queue_length=2, full_timeout=0.2)
    events = told(consumer)
    await consumer.queue("gated", n=0)
    await until(lambda: notes.running == 1)

    async def queue_on() -> None:
        for n in range(1, 40):
            await consumer.queue("gated", n=n)

    with pytest.raises(QueueFullError, match="max_queue_length is 2"):
        await queue_on()
    notes.gate.set()
    await until(lambda: empty(consumer))
    assert ("gated", "failure") not in events
