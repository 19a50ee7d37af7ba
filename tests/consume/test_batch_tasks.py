"""Tasks that take a batch of runs: ``@task(batch=..., batch_wait=...)``."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec
import pytest
from kits.broker_kit import places, put
from kits.manager_kit import consuming, managing, take_runs, waiting
from kits.waiting import until, within
from pydantic import BaseModel

from fluidfast import RetryPolicy, Task, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.core.params import Params
from fluidfast.errors import TaskAbortedError, TaskDecoratorError, TaskRunError

MANY = 10


class Row(msgspec.Struct):
    n: int


class Item(BaseModel):
    n: int


class Writer:
    """A batch task that notes what it was given, and does with it what the test says."""

    def __init__(self, act: Callable[[list[TaskRun[Row]]], Any] | None = None, **options: Any) -> None:
        self.batches: list[list[int]] = []
        self.tries: Counter[int] = Counter()
        self.entered = asyncio.Event()
        self.act = act

        @task(**{"name": "write", "batch": MANY, **options})
        async def write(runs: list[TaskRun[Row]]) -> Any:
            assert {str(run.state) for run in runs} == {"running"}
            numbers = [run.params.n for run in runs]
            self.batches.append(numbers)
            self.tries.update(numbers)
            self.entered.set()
            if self.act is None:
                return None
            result = self.act(runs)
            return await result if asyncio.iscoroutine(result) else result

        self.task: Task[Row] = write

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    @property
    def seen(self) -> list[int]:
        return [n for batch in self.batches for n in batch]


class Ends:
    """In which state each run came to its end, told by events."""

    def __init__(self, manager: TaskManager) -> None:
        self.states: dict[int, list[str]] = {}
        for state in ("success", "failure", "aborted", "interrupted"):
            manager.dispatcher.register_handler(state, self)

    def __call__(self, run: TaskRun[Any, Any]) -> None:
        self.states.setdefault(run.params.n, []).append(str(run.state))


def rows(count: int, start: int = 0) -> list[Row]:
    return [Row(n) for n in range(start, start + count)]


async def settled(consumer: TaskConsumer, count: int) -> None:
    """Until so many runs have come to their end, and the broker was told."""
    await until(lambda: consumer.engine.finished >= count)
    await until(lambda: not consumer.engine.settler.leases)
    assert consumer.engine.finished == count


# -- sizes and waits


@pytest.mark.parametrize("count", [1, 9, 10, 11, 25, 230])
async def test_full_batches_and_a_rest(broker_url: str, count: int) -> None:
    writer = Writer(batch_wait=0.3)
    async with managing(broker_url, writer.task) as manager:
        await manager.queue_many(writer.task, rows(count))
        async with consuming(broker_url, writer.task) as consumer:
            await settled(consumer, count)
        assert writer.seen == list(range(count))
        full, rest = divmod(count, MANY)
        assert writer.sizes == [MANY] * full + [rest] * bool(rest)
        assert await places(manager.broker) == {}


async def test_without_a_wait(broker_url: str) -> None:
    """What is there at the same time goes together, and nothing waits for more."""
    writer = Writer(batch=100)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        begin = monotonic()
        await manager.queue(writer.task, n=0)
        await settled(consumer, 1)
        assert monotonic() - begin < 5
        await manager.queue_many(writer.task, rows(400, 1))
        await settled(consumer, 401)
        assert max(writer.sizes) <= 100
        assert len(writer.batches) < 40, "not one by one"
        assert sorted(writer.seen) == list(range(401))


async def test_a_batch_that_does_not_fill_waits_so_long(broker_url: str) -> None:
    begin = 0.0
    waited: list[float] = []
    writer = Writer(lambda runs: waited.append(monotonic() - begin), batch_wait=0.2)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        begin = monotonic()
        for n in range(3):
            await manager.queue(writer.task, n=n)
        await settled(consumer, 3)
        assert writer.batches == [[0, 1, 2]]
        assert 0.19 < waited[0] < 5


async def test_a_full_batch_does_not_wait(broker_url: str) -> None:
    writer = Writer(batch_wait=60)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        await manager.queue_many(writer.task, rows(2 * MANY))
        await settled(consumer, 2 * MANY)
        assert writer.sizes == [MANY, MANY]


async def test_batches_run_beside_each_other(broker_url: str) -> None:
    meeting = asyncio.Barrier(3)

    async def meet(runs: list[TaskRun[Row]]) -> None:
        await within(meeting.wait())

    writer = Writer(meet, batch_wait=60)
    async with managing(broker_url, writer.task) as manager:
        await manager.queue_many(writer.task, rows(3 * MANY))
        async with consuming(broker_url, writer.task, max_concurrent_tasks=3) as consumer:
            await settled(consumer, 3 * MANY)


async def test_a_batch_takes_one_slot(broker_url: str) -> None:
    now = most = 0

    async def count(runs: list[TaskRun[Row]]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    writer = Writer(count)
    async with managing(broker_url, writer.task) as manager:
        await manager.queue_many(writer.task, rows(300))
        async with consuming(broker_url, writer.task, max_concurrent_tasks=2) as consumer:
            await settled(consumer, 300)
        assert most == 2


async def test_others_go_on_while_a_batch_fills(broker_url: str) -> None:
    """Tasks of one run each, and another batch, beside one that waits for more; in a consumer with one slot."""
    slow = Writer(name="slow", batch_wait=60)
    quick = Writer(name="quick", batch=3, batch_wait=60)
    seen: list[int] = []

    @task
    async def single(ctx: TaskRun[Row]) -> None:
        seen.append(ctx.params.n)

    tasks = (slow.task, quick.task, single)
    async with managing(broker_url, *tasks) as manager:
        async with consuming(broker_url, *tasks, max_concurrent_tasks=1) as consumer:
            await manager.queue(slow.task, n=0)
            await until(lambda: consumer.engine.slots.collected == 1)
            await manager.queue_many(single, rows(50))
            await manager.queue_many(quick.task, rows(6))
            await until(lambda: consumer.engine.finished == 56)
            assert seen == list(range(50))
            assert quick.batches == [[0, 1, 2], [3, 4, 5]]
            assert slow.batches == []
        # at shutdown what was collected goes back
        assert [(run.name, run.params.n) for run in await take_runs(manager)] == [("slow", 0)]


# -- how its runs end


async def test_each_run_ends(broker_url: str) -> None:
    writer = Writer(batch_wait=0.1)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        waits = [manager.queue_and_wait(writer.task, n=n, timeout=20) for n in range(5)]
        finished = await asyncio.gather(*waits)
        assert [str(run.state) for run in finished] == ["success"] * 5
        assert all(run.start is not None and run.end is not None for run in finished)
        assert ends.states == {n: ["success"] for n in range(5)}
        [info] = await manager.broker.get_tasks_info("write")
        assert str(info.last_run_state) == "success"


async def test_some_fail_and_are_tried_again(broker_url: str) -> None:
    """Those in the mapping that it returns, with the exception beside their id; by the task's policy."""

    def act(runs: list[TaskRun[Row]]) -> dict[str, Any]:
        result: dict[str, Any] = {"no run of ours": ValueError("ignored")}
        for run in runs:
            n = run.params.n
            if n == 3 or (n == 5 and run.retry_attempt < 2):
                result[run.id] = ConnectionError("not now")
            elif n == 7:
                result[run.id] = KeyError("never")
            elif n == 8:
                result[run.id] = None
        return result

    policy = RetryPolicy(max_attempts=2, wait=0.01, backoff=1, exceptions=(ConnectionError,))
    writer = Writer(act, batch_wait=0.02, retry=policy)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(10))
        await settled(consumer, 10)
        assert writer.tries == {**dict.fromkeys(range(10), 1), 3: 3, 5: 3}
        assert ends.states == {
            **{n: ["success"] for n in range(10)},
            3: ["failure"] * 3,
            5: ["failure", "failure", "success"],
            7: ["failure"],
        }
        dead = {
            manager.broker.codec.decode(payload, None).params.n: header
            for header, payload in await manager.broker.dead()
        }
        assert "ConnectionError after 2 retries: not now" in dead[3]
        assert "KeyError" in dead[7]
        assert sorted(dead) == [3, 7]


async def test_states_that_the_function_sets(broker_url: str) -> None:
    def act(runs: list[TaskRun[Row]]) -> dict[str, Exception]:
        for run in runs:
            if run.params.n < 4:
                run.set_state(("success", "failure", "aborted", "success")[run.params.n])
        # a run that was set to success is no failure any more
        return {run.id: ValueError("too late") for run in runs if run.params.n in (3, 4)}

    writer = Writer(act, batch_wait=0.1)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        finished = await asyncio.gather(*(manager.queue_and_wait(writer.task, n=n, timeout=20) for n in range(6)))
        expected = ["success", "failure", "aborted", "success", "failure", "success"]
        assert [str(run.state) for run in finished] == expected
        assert ends.states == {n: [state] for n, state in enumerate(expected)}, "each is told once"
        await settled(consumer, 6)
        assert await places(manager.broker) == {}


async def test_a_run_that_the_function_sets_to_failure_is_tried_again(broker_url: str) -> None:
    def act(runs: list[TaskRun[Row]]) -> None:
        for run in runs:
            if run.params.n == 1 and run.retry_attempt == 0:
                run.set_state("failure")

    writer = Writer(act, batch_wait=0.02, retry=RetryPolicy(max_attempts=1, wait=0.01))
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(3))
        await settled(consumer, 3)
        assert writer.tries == {0: 1, 1: 2, 2: 1}
        assert ends.states == {0: ["success"], 1: ["failure", "success"], 2: ["success"]}


async def test_an_exception_fails_all_that_are_not_done(broker_url: str) -> None:
    def act(runs: list[TaskRun[Row]]) -> None:
        if runs[0].retry_attempt == 0:
            runs[0].set_state("success")
            runs[1].set_state("aborted")
            raise LookupError("no database")

    writer = Writer(act, batch_wait=0.05, retry=RetryPolicy(max_attempts=1, wait=0.01))
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(5))
        await settled(consumer, 5)
        assert [sorted(batch) for batch in writer.batches] == [[0, 1, 2, 3, 4], [2, 3, 4]]
        again = ["failure", "success"]
        assert ends.states == {0: ["success"], 1: ["aborted"], 2: again, 3: again, 4: again}


async def test_abort(broker_url: str) -> None:
    """All that are not done are aborted, and none is tried again; in the mapping, only the one."""

    def act(runs: list[TaskRun[Row]]) -> dict[str, Exception]:
        if runs[0].params.n == 0:
            runs[0].set_state("success")
            runs[1].abort("no use")
        return {runs[0].id: TaskAbortedError("this one")}

    writer = Writer(act, batch=3, batch_wait=60, retry=RetryPolicy(max_attempts=5, wait=0.01))
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(6))
        await settled(consumer, 6)
        assert writer.batches == [[0, 1, 2], [3, 4, 5]]
        states = ["success", "aborted", "aborted", "aborted", "success", "success"]
        assert ends.states == {n: [state] for n, state in enumerate(states)}
        assert await places(manager.broker) == {}


async def test_a_timeout_fails_all_that_are_not_done(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def act(runs: list[TaskRun[Row]]) -> None:
        if runs[0].retry_attempt == 0:
            runs[0].set_state("success")
            await asyncio.Event().wait()

    policy = RetryPolicy(max_attempts=1, wait=0.01, exceptions=(TimeoutError,))
    writer = Writer(act, batch_wait=0.05, timeout_seconds=0.1, retry=policy)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(3))
        await settled(consumer, 3)
        assert [sorted(batch) for batch in writer.batches] == [[0, 1, 2], [1, 2]]
        assert ends.states == {0: ["success"], 1: ["failure", "success"], 2: ["failure", "success"]}
        assert "it took longer than 0.1 s" in caplog.text
        # the slot is as good as before
        await manager.queue_many(writer.task, rows(1, 3))
        await until(lambda: consumer.engine.finished == 4 or writer.tries[3] == 2)


async def test_a_function_that_cancels_itself(broker_url: str) -> None:
    async def act(runs: list[TaskRun[Row]]) -> None:
        if len(runs) > 1:
            raise asyncio.CancelledError

    writer = Writer(act, batch_wait=0.05)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(3))
        await settled(consumer, 3)
        assert ends.states == {n: ["failure"] for n in range(3)}
        await manager.queue(writer.task, n=3)
        await settled(consumer, 4)
        assert ends.states[3] == ["success"]


@pytest.mark.parametrize("result", [7, "text", [1], {"x": 1}, True], ids=repr)
async def test_what_else_it_may_return(broker_url: str, result: Any) -> None:
    writer = Writer(lambda runs: result, batch_wait=0.02)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(writer.task, rows(2))
        await settled(consumer, 2)
        assert ends.states == {0: ["success"], 1: ["success"]}


async def test_a_plain_function(broker_url: str) -> None:
    """Runs in a thread, with the same say."""
    names: list[str] = []

    @task(batch=MANY, batch_wait=0.05)
    def write(runs: list[TaskRun[Row]]) -> dict[str, Exception]:
        names.append(threading.current_thread().name)
        runs[0].set_state("aborted")
        return {runs[1].id: ValueError("no")}

    async with managing(broker_url, write) as manager, consuming(broker_url, write) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(write, rows(4))
        await settled(consumer, 4)
        assert ends.states == {0: ["aborted"], 1: ["failure"], 2: ["success"], 3: ["success"]}
        assert names != [threading.current_thread().name]


async def test_a_task_of_one_run_may_set_its_state_too(broker_url: str) -> None:
    """The state that the function set counts, not how it ended."""

    @task(retry=RetryPolicy(max_attempts=1, wait=0.01))
    async def single(ctx: TaskRun[Row]) -> None:
        if ctx.retry_attempt == 0:
            ctx.set_state(("success", "failure", "aborted")[ctx.params.n % 3])
            if ctx.params.n > 2:
                raise LookupError("afterwards")

    async with managing(broker_url, single) as manager, consuming(broker_url, single) as consumer:
        ends = Ends(consumer)
        await manager.queue_many(single, rows(6))
        await settled(consumer, 6)
        states = (["success"], ["failure", "success"], ["aborted"])
        assert ends.states == {n: states[n % 3] for n in range(6)}
        assert await places(manager.broker) == {}


async def test_bad_payloads_do_not_come_into_a_batch(broker_url: str) -> None:
    writer = Writer(batch_wait=0.05)
    async with managing(broker_url, writer.task) as manager:
        good = [manager.create_task_run(writer.task, n=n).queue_dump_json() for n in range(3)]
        await put(manager.broker, good[0], b"nonsense", good[1].replace(b'"n":1', b'"n":"x"'), good[2])
        async with consuming(broker_url, writer.task) as consumer:
            await until(lambda: consumer.engine.finished == 3)
            await until(lambda: not consumer.engine.settler.leases)
        assert writer.batches == [[0, 2]]
        assert await places(manager.broker) == {"dead": 2}


# -- execute()


async def test_execute(broker_url: str) -> None:
    def act(runs: list[TaskRun[Row]]) -> Any:
        [run] = runs
        match run.params.n:
            case 1:
                return {run.id: LookupError("no such row")}
            case 2:
                raise KeyError("all of them")
            case 3:
                run.abort("no use")
            case 4:
                return {run.id: TaskAbortedError("no use")}
            case 5:
                run.set_state("aborted")
            case 6:
                run.set_state("success")
            case 7:
                run.set_state("failure")
            case 8:
                run.set_state("success")
                raise KeyError("afterwards")
        return None

    writer = Writer(act)
    async with managing(broker_url, writer.task) as manager:

        async def state(n: int) -> str:
            return str((await manager.execute(writer.task, n=n)).state)

        assert await state(0) == "success"
        with pytest.raises(LookupError, match="no such row"):
            await state(1)
        with pytest.raises(KeyError, match="all of them"):
            await state(2)
        assert await state(3) == "aborted"
        assert await state(4) == "aborted"
        assert await state(5) == "aborted"
        assert await state(6) == "success"
        with pytest.raises(TaskRunError, match="set it to failure"):
            await state(7)
        with pytest.raises(KeyError, match="afterwards"):
            await state(8)
        run = manager.create_task_run(writer.task, n=1)
        with pytest.raises(LookupError):
            await run.execute()
        assert str(run.state) == "failure"
        done = manager.create_task_run(writer.task, n=8)
        with pytest.raises(KeyError):
            await done.execute()
        assert str(done.state) == "success", "it was set before"


async def test_execute_takes_too_long() -> None:
    writer = Writer(lambda runs: asyncio.sleep(60), timeout_seconds=0.05)
    async with TaskManager() as manager:
        run = manager.create_task_run(writer.task, n=0)
        with pytest.raises(TimeoutError):
            await run.execute()
        assert str(run.state) == "failure"


# -- shutdown, leases


async def test_shutdown_in_the_middle_gives_back(broker_url: str) -> None:
    """What runs is interrupted after the grace period, and goes back; so does what waits, in its order."""
    writer = Writer(lambda runs: asyncio.sleep(60), batch_wait=0)
    async with managing(broker_url, writer.task) as manager:
        await manager.queue_many(writer.task, rows(35))
        consumer = TaskConsumer(broker_url=broker_url, max_concurrent_tasks=2, stopping_grace_period=0.05)
        consumer.register_task(writer.task)
        ends = Ends(consumer)
        await consumer.startup()
        await until(lambda: len(writer.batches) == 2)
        await within(consumer.shutdown())
        running = writer.seen
        assert await places(manager.broker) == {"medium": 35}
        assert ends.states == {n: ["interrupted"] for n in running}
        found = [run.params.n for run in await take_runs(manager)]
        assert sorted(found) == list(range(35))
        assert [n for n in found if n not in running] == [n for n in range(35) if n not in running]


async def test_shutdown_lets_a_batch_finish(broker_url: str) -> None:
    writer = Writer(lambda runs: asyncio.sleep(0.1), batch_wait=0)
    async with managing(broker_url, writer.task) as manager:
        await manager.queue_many(writer.task, rows(5))
        async with consuming(broker_url, writer.task, max_concurrent_tasks=5) as consumer:
            await within(writer.entered.wait())
            started = len(writer.seen)
        assert consumer.engine.finished == started
        assert await waiting(manager) == 5 - started


async def test_runs_that_are_done_are_settled_when_a_batch_is_interrupted(broker_url: str) -> None:
    async def act(runs: list[TaskRun[Row]]) -> None:
        for run in runs[:2]:
            run.set_state("success")
        await asyncio.sleep(60)

    writer = Writer(act, batch_wait=0.3)
    async with managing(broker_url, writer.task) as manager:
        await manager.queue_many(writer.task, rows(5))
        consumer = TaskConsumer(broker_url=broker_url, stopping_grace_period=0.05)
        consumer.register_task(writer.task)
        await consumer.startup()
        await within(writer.entered.wait())
        assert writer.batches == [[0, 1, 2, 3, 4]]
        await within(consumer.shutdown())
        assert sorted(run.params.n for run in await take_runs(manager)) == [2, 3, 4]
        assert await places(manager.broker) == {}


async def test_a_lease_that_is_lost(broker_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of a batch out of two leases one is lost: its run is somebody else's, the other one is settled."""
    go_on = asyncio.Event()

    async def act(runs: list[TaskRun[Row]]) -> None:
        await within(go_on.wait())

    writer = Writer(act, batch=2, batch_wait=60)
    async with managing(broker_url, writer.task) as manager, consuming(broker_url, writer.task) as consumer:
        ends = Ends(consumer)
        await manager.queue(writer.task, n=0)
        await until(lambda: consumer.engine.slots.collected == 1)
        [lost] = consumer.engine.settler.leases
        await manager.queue(writer.task, n=1)
        await within(writer.entered.wait())
        assert writer.batches == [[0, 1]]
        assert len(consumer.engine.settler.leases) == 2
        other = TaskManager(broker_url=broker_url)
        assert await other.broker.release(lost, ["m1"]) == 1
        go_on.set()
        await until(lambda: "was lost" in caplog.text)
        await other.on_shutdown()
        # it is back on the queue; a second one makes the batch full
        await manager.queue(writer.task, n=2)
        await until(lambda: len(writer.batches) == 2)
        await until(lambda: not consumer.engine.settler.leases)
        assert writer.batches[1] == [0, 2]
        assert ends.states[1] == ends.states[2] == ["success"]
        assert await places(manager.broker) == {}


# -- the decorator


def named(function: Callable[..., Any]) -> Any:
    return task(batch=2)(function).params_model


def test_annotations() -> None:
    async def text(runs: list[TaskRun[Row]]) -> None: ...

    async def pydantic(runs: list[TaskRun[Item]]) -> None: ...

    async def with_deps(runs: list[TaskRun[Row, dict[str, int]]]) -> None: ...

    async def bare(runs: list[TaskRun]) -> None: ...

    async def nothing(runs) -> None: ...  # type: ignore[no-untyped-def]

    async def real(runs: Any) -> None: ...

    real.__annotations__["runs"] = list[TaskRun[Row]]

    assert named(text) is Row
    assert named(pydantic) is Item
    assert named(with_deps) is Row
    assert named(real) is Row
    assert named(functools.partial(text)) is Row
    assert named(bare) is named(nothing) is Params


def test_options() -> None:
    @task(batch=500, batch_wait=0.05)
    async def write(runs: list[TaskRun[Row]]) -> None: ...

    assert (write.batch, write.batch_wait) == (500, 0.05)

    @task
    async def single(ctx: TaskRun[Row]) -> None: ...

    assert (single.batch, single.batch_wait) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": -1}, "batch"),
        ({"batch": 2, "batch_wait": -0.1}, "batch_wait"),
        ({"batch": 2, "max_concurrency": 1}, "max_concurrency"),
        ({"batch": 2, "cpu_bound": True}, "cpu_bound"),
        ({"batchsize": 2}, "batchsize"),
        ({"batch_wait": 0.1}, "batch=500"),
        ({"batch": 0, "batch_wait": 0.1}, "batch=500"),
    ],
)
def test_decorator_errors(options: dict[str, Any], message: str) -> None:
    async def write(runs: list[TaskRun[Row]]) -> None: ...

    with pytest.raises(TaskDecoratorError, match=message):
        task(**options)(write)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
