"""Bound tasks: what they queue, with which options, and what they refuse."""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from kits.manager_kit import managing, take_runs, waiting
from kits.waiting import until

from fluidfast import RunHandle, RunOptions, Task, TaskConsumer, TaskManager, TaskManagerConfig, TaskRun, task
from fluidfast.core.config import ManagerOptions
from fluidfast.core.task import TaskOptions
from fluidfast.errors import ConfigError, ParamsError, QueueFullError, TaskDecoratorError, TaskUsageError


class Mail(msgspec.Struct):
    to: str
    copies: int = 1


class Tasks:
    """Bound tasks of one manager, and what they saw."""

    def __init__(self, manager: TaskManager) -> None:
        self.seen: list[Any] = []

        @manager.task
        async def send(to: str, copies: int = 1, *, note: str = "") -> str:
            self.seen.append((to, copies, note))
            return to

        @manager.task(priority="low")
        def plain(ctx: TaskRun, n: int, /, m: int = 0) -> int:
            self.seen.append((ctx.name, ctx.params.n, n, m))
            return n

        @manager.task
        async def mail(ctx: TaskRun[Mail]) -> None:
            self.seen.append(ctx.params)

        @manager.task(batch=10)
        async def batch(runs: list[TaskRun[Mail]]) -> None:
            self.seen += [run.params.to for run in runs]

        self.send, self.plain, self.mail, self.batch = send, plain, mail, batch


async def test_all_shapes_run(broker_url: str) -> None:
    consumer = TaskConsumer(broker_url=broker_url, stopping_grace_period=5)
    tasks = Tasks(consumer)
    async with consumer:
        await tasks.send.queue("grace", note="x")
        await tasks.send.queue(to="ada", copies=2)
        await tasks.plain.queue(1, m=2)
        await tasks.mail.queue(Mail("model"))
        await tasks.mail.queue({"to": "mapping"})
        await tasks.mail.queue(to="fields")
        await tasks.batch.queue(Mail("one"))
        await until(lambda: len(tasks.seen) == 7)
    assert sorted(map(str, tasks.seen)) == sorted(
        map(
            str,
            [
                ("grace", 1, "x"), ("ada", 2, ""), ("plain", 1, 1, 2), Mail("model"), Mail("mapping"), Mail("fields"),
                "one",
            ],
        )
    )  # fmt: skip


async def test_the_handle_has_the_id(broker_url: str) -> None:
    async with managing(broker_url) as manager:
        tasks = Tasks(manager)
        handles = [
            await tasks.send.queue("a"),
            await tasks.send.options(run_id="mine").queue("b"),
            await manager.enqueue(tasks.mail, Mail("c")),
        ]
        assert all(type(handle) is RunHandle for handle in handles)
        assert handles[1].id == "mine"
        assert {handle.id for handle in handles} == {run.id for run in await take_runs(manager)}


async def test_a_call_is_a_call(broker_url: str) -> None:
    async with managing(broker_url) as manager:
        tasks = Tasks(manager)
        assert await tasks.send("x", note="y") == "x"
        assert tasks.plain(manager.create_task_run(tasks.plain, n=3), 3) == 3
        assert tasks.seen == [("x", 1, "y"), ("plain", 3, 3, 0)]
        assert await waiting(manager) == 0
        assert tasks.send.__name__ == "send"
        assert list(inspect.signature(tasks.send).parameters) == ["to", "copies", "note"]


async def test_execute(broker_url: str) -> None:
    async with managing(broker_url) as manager:
        tasks = Tasks(manager)
        run = await tasks.send.execute("here")
        assert run.is_done
        assert tasks.seen == [("here", 1, "")]
        with pytest.raises(ParamsError):
            await tasks.send.execute(7)  # type: ignore[call-arg, arg-type]


async def test_where_a_task_is_taken(broker_url: str) -> None:
    consumer = TaskConsumer(broker_url=broker_url, stopping_grace_period=5)
    tasks = Tasks(consumer)
    async with consumer:
        await consumer.queue(tasks.send, to="queue")
        await consumer.queue_and_wait(tasks.send, to="wait")
        await consumer.queue_many(tasks.send, [{"to": "many"}])
        await consumer.execute(tasks.send, to="execute")
        await consumer.enqueue(tasks.send, {"to": "enqueue"})
        await asyncio.to_thread(consumer.sync.queue, tasks.send, to="sync")
        consumer.sync_queue(consumer.create_task_run(tasks.send, to="sync_queue"))
        assert (await consumer.broker.enable_task(tasks.send)).enabled
        await until(lambda: len(tasks.seen) == 7)
    assert {to for to, *_ in tasks.seen} == {"queue", "wait", "many", "execute", "enqueue", "sync", "sync_queue"}


async def test_params_may_have_the_names_of_keywords(broker_url: str) -> None:
    async with managing(broker_url) as manager:

        @manager.task
        async def work(task: str, priority: int, run_id: str, params: list[int], delay: float, self: str) -> None: ...

        given: dict[str, Any] = {
            "task": "t", "priority": 5, "run_id": "r", "params": [1], "delay": 0.5, "self": "s",
        }  # fmt: skip
        await work.queue(**given)
        await work.options(priority="high").queue(*given.values())
        await manager.enqueue(work, given)
        await work.queue_many([given])
        runs = await take_runs(manager)
        assert [msgspec.structs.asdict(run.params) for run in runs] == [given] * 4


# --- options


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
async def test_a_delay_is_waited_for(broker_url: str, many: bool, hooked: bool) -> None:
    async with managing(broker_url) as manager:
        tasks = Tasks(manager)
        if hooked:

            async def hook(run: Any, go: Callable[[], Any]) -> None:
                tasks.seen.append(run.priority)
                await go()

            manager.hooks.around_queueing(hook)
        options: list[RunOptions] = [
            {"delay": 3600, "priority": "high"},
            {"delay": timedelta(hours=1)},
            {"at": datetime.now(UTC) + timedelta(hours=1)},
        ]
        for each in options:
            optioned = tasks.send.options(**each)
            if many:
                assert (await optioned.queue_many([{"to": "x"}, {"to": "y"}])).queued == 2
            else:
                await optioned.queue("x")
        assert await manager.broker.delayed_length() == len(options) * (1 + many)
        assert await waiting(manager) == 0
        assert len(tasks.seen) == (len(options) * (1 + many) if hooked else 0)
        await tasks.send.options(at=datetime(2020, 1, 1, tzinfo=UTC), delay=None).queue("past")  # type: ignore[typeddict-item]
        assert await waiting(manager) == 1


async def test_a_delayed_run_comes(broker_url: str) -> None:
    consumer = TaskConsumer(broker_url=broker_url, stopping_grace_period=5)
    tasks = Tasks(consumer)
    async with consumer:
        await tasks.send.options(delay=0.05).queue("delay")
        await tasks.send.options(at=datetime.now(UTC) + timedelta(seconds=0.05)).queue("at")
        await tasks.send.options(delay=0.05).queue_many([{"to": "many"}])
        await until(lambda: len(tasks.seen) == 3)


def options_of(**options: Any) -> Callable[[Tasks], Any]:
    return lambda tasks: tasks.send.options(**options)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (options_of(dealy=3), ConfigError, "send.options has no option 'dealy'; did you mean 'delay'"),
        (options_of(to="x"), ConfigError, "has no option 'to'; it has run_id, priority, delay, at"),
        (options_of(delay=-1), ConfigError, "send.options: delay is -1, it must be at least 0"),
        (options_of(delay=timedelta(seconds=-1)), ConfigError, "delay is -1.0"),
        (options_of(delay="3"), ConfigError, "delay is '3', it must be a number"),
        (options_of(delay=float("nan")), ConfigError, "delay is nan"),
        (
            options_of(at=datetime(2030, 1, 1)),
            ConfigError,
            r"2030-01-01 00:00:00 without a time zone: write .*tzinfo=UTC",
        ),
        (options_of(at="tomorrow"), TaskUsageError, "at is 'tomorrow', it must be a datetime"),
        (options_of(at=datetime.max.replace(tzinfo=UTC)), ConfigError, "within a century"),
        (options_of(delay=1, at=datetime(2030, 1, 1, tzinfo=UTC)), ConfigError, "delay and at exclude each other"),
        (options_of(run_id=7), TaskUsageError, "run_id is 7, it must be text"),
        (lambda tasks: tasks.send.options(priority="urgent").queue("x"), ConfigError, "urgent"),
        (lambda tasks: tasks.send.options(run_id="x").queue_many([]), ConfigError, "run_id names one run"),
        (lambda tasks: tasks.send.queue(too="x"), ParamsError, "'too'.*did you mean 'to'"),
        (lambda tasks: tasks.send.queue(), ParamsError, "missing required field `to`"),
        (lambda tasks: tasks.send.queue("x", 1, "n"), TaskUsageError, r"takes 2 by position, but 3 .* send\(to: str, "),
        (lambda tasks: tasks.send.queue("x", to="x"), TaskUsageError, "to is given by position and by name"),
        (lambda tasks: tasks.send.queue_many([{"to": "x"}, {"t": 1}]), ParamsError, "'t'.*did you mean 'to'"),
        (
            lambda tasks: tasks.mail.queue(Mail("x"), copies=2),
            TaskUsageError,
            r"mail.queue\(params\) or mail.queue\(na",
        ),
        (lambda tasks: tasks.send.queue_many({"to": "x"}), TaskUsageError, "takes an iterable of params, .* one dict"),
        (lambda tasks: TaskManager().queue(tasks.send, to="x"), TaskUsageError, "'send' belongs to another manager"),
        (lambda tasks: TaskManager().queue_many(tasks.send, []), TaskUsageError, "await send.queue"),
        (lambda tasks: tasks.send.manager.queue(tasks.send, {"to": "x"}), TaskUsageError, "give them by name"),
        (
            lambda tasks: tasks.send.manager.enqueue(tasks.send, to="x"),
            ConfigError,
            r"enqueue\(task, {\"name\": value}",
        ),
    ],
)
async def test_refused_with_the_line_to_write(
    use: Callable[[Tasks], Any], error: type[Exception], message: str
) -> None:
    async with managing("memory://refused") as manager:
        with pytest.raises(error, match=message):  # noqa: PT012  # at the call, or when it is awaited
            made = use(Tasks(manager))
            if inspect.isawaitable(made):
                await made
        assert await waiting(manager) == 0 or "queue_many" in inspect.getsource(use)


async def test_another_manager_that_registers_it_takes_it() -> None:
    tasks = Tasks(TaskManager(broker_url="memory://first"))
    async with managing("memory://second") as other:
        other.register_task(tasks.send, tags=["theirs"])
        await other.queue(tasks.send, to="x")
        assert [run.task.tags for run in await take_runs(other)] == [{"theirs"}]
        other.register_from_dict({"plain": tasks.plain})
        assert other.registry["plain"] is tasks.plain.task


def test_a_function_without_a_run_is_told_of_manager_task() -> None:
    with pytest.raises(TaskDecoratorError, match=r"or write @manager\.task"):

        @task
        def work() -> None: ...


# --- hooks, limits, delivery


async def test_hooks_limits_and_delivery_apply() -> None:
    async with managing("memory://limits", max_queue_length=2, on_full="raise", delivery="buffered") as manager:
        tasks = Tasks(manager)
        seen: list[str] = []

        async def hook(run: Any, go: Callable[[], Any]) -> None:
            seen.append(run.params.to)
            await go()

        manager.hooks.around_queueing(hook)
        manager.dispatcher.register_handler("queued", lambda run: seen.append(run.id))
        ids = [(await tasks.send.queue(name)).id for name in ("a", "b")]
        assert seen == ["a", ids[0], "b", ids[1]]
        with pytest.raises(QueueFullError):
            await tasks.send.queue("c")
        await manager.flush()


@pytest.mark.parametrize("delivery", ["confirmed", "buffered"])
async def test_many_at_once(broker_url: str, delivery: Any) -> None:
    async with managing(broker_url, delivery=delivery) as manager:
        tasks = Tasks(manager)
        handles = await asyncio.gather(*(tasks.send.queue(str(n)) for n in range(300)))
        await manager.flush()
        assert [handle.id for handle in handles] == [run.id for run in await take_runs(manager)]


def test_without_a_running_loop(broker_url: str) -> None:
    manager = TaskManager(broker_url=broker_url)
    tasks = Tasks(manager)
    queueing = tasks.send.queue("x")

    async def main() -> RunHandle[Any]:
        handle = await queueing
        await manager.broker.clear()
        await manager.on_shutdown()
        return handle

    assert type(asyncio.run(main())) is RunHandle


# --- without await


def test_sync(broker_url: str) -> None:
    manager = TaskManager(broker_url=broker_url)
    tasks = Tasks(manager)
    with manager.sync as sync:
        handles = [tasks.send.sync.queue("a"), tasks.plain.sync.queue(1), tasks.mail.sync.queue(Mail("m"))]
        assert all(type(handle) is RunHandle for handle in handles)
        assert tasks.send.options(delay=3600, run_id="later").sync.queue("b").id == "later"
        assert tasks.send.sync.queue_many([{"to": "c"}, {"to": "d"}]).queued == 2
        assert sync.enqueue(tasks.mail, Mail("n"), priority="high").id
        assert sync.call(waiting(manager)) == 6
        assert sync.call(manager.broker.delayed_length()) == 1
        with pytest.raises(ParamsError):
            tasks.send.sync.queue(too="x")  # type: ignore[call-arg]
        sync.call(manager.broker.clear())


# --- types


def test_parameters_of_a_task_at_run_time() -> None:
    assert typing.get_args(Task[Mail]) == (Mail,)
    assert typing.get_args(Task[Mail, str]) == (Mail, str)
    assert typing.get_origin(Task[Mail]) is Task
    assert typing.get_args(TaskRun[Mail]) == (Mail,)
    assert typing.get_args(RunHandle[str]) == (str,)


def test_the_keywords_of_managers_are_the_fields_of_their_config() -> None:
    assert get_type_hints(ManagerOptions) == get_type_hints(TaskManagerConfig) | {"sleep": float}


def test_the_page_has_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "tasks.md").read_text()
    for name in (*TaskOptions.__annotations__, *RunOptions.__annotations__):
        assert f"| `{name}` |" in page, name
