"""The manager without a consumer: registers, makes and queues runs, executes in place, opens and closes what it was
given."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from kits.broker_kit import places
from kits.manager_kit import managing, take_runs
from kits.waiting import within
from starlette.background import BackgroundTask

from fluidfast import TaskManager, TaskManagerConfig, TaskManagerPlugin, TaskPriority, TaskRun, TaskState, task
from fluidfast.core._time import now_micros
from fluidfast.errors import (
    ConfigError,
    ParamsError,
    PayloadTooLargeError,
    TaskAbortedError,
    TaskRunError,
    UnknownTaskError,
)


class Sum(msgspec.Struct):
    a: int
    b: int = 2


@task
async def add(ctx: TaskRun[Sum]) -> None:
    """Adds."""
    ctx.deps.results.append(ctx.params.a + ctx.params.b)


@task(priority="low", tags=["slow"])
async def anything(ctx: TaskRun[Any]) -> None:
    """Takes any params."""
    ctx.deps.results.append(dict(ctx.params))


@task
def threaded(ctx: TaskRun[Sum]) -> None:
    """A plain function."""
    ctx.deps.results.append((ctx.params.a, threading.current_thread() is threading.main_thread()))


@task(timeout_seconds=0.05)
async def endless(ctx: TaskRun[Any]) -> None:
    """Never ends."""
    await asyncio.Event().wait()


@task
async def aborting(ctx: TaskRun[Any]) -> None:
    """Aborts itself."""
    ctx.abort("no need")


@task
async def failing(ctx: TaskRun[Any]) -> None:
    """Fails."""
    raise ZeroDivisionError("on purpose")


TASKS = (add, anything, threaded, endless, aborting, failing)


class Deps:
    def __init__(self) -> None:
        self.results: list[Any] = []


@pytest.fixture
async def manager(broker_url: str, no_leaked_keys: Any) -> AsyncIterator[TaskManager]:
    async with managing(broker_url, *TASKS, deps=Deps()) as manager:
        yield manager


@pytest.fixture
def events(manager: TaskManager) -> list[tuple[str, str]]:
    """What the manager's dispatcher tells: state and name of the task."""
    told: list[tuple[str, str]] = []
    for state in TaskState:
        manager.dispatcher.register_handler(f"{state}.test", lambda run: told.append((run.state, run.name)))
    return told


class TestQueue:
    async def test_a_run(self, manager: TaskManager) -> None:
        before = now_micros()
        run = await manager.queue("add", a=1)
        assert (run.name, run.state, run.priority) == ("add", TaskState.queued, TaskPriority.medium)
        assert run.params == Sum(a=1)
        assert run.queued is not None
        assert before - 1 <= run.queued.timestamp() * 1e6 <= now_micros() + 1
        assert (run.start, run.end, run.from_run_id, run.root_run_id) == (None, None, "", "")
        (found,) = await take_runs(manager)
        assert (found.id, found.params, found.queued) == (run.id, run.params, run.queued)

    async def test_priority(self, manager: TaskManager) -> None:
        await manager.queue("add", a=1)
        await manager.queue("add", "low", a=2)
        await manager.queue("add", priority=TaskPriority.high, a=3)
        await manager.queue("anything", n=4)
        await manager.queue(anything, "high", n=5)
        assert await manager.broker.queue_length() == {"high": 2, "medium": 1, "low": 2}
        runs = await take_runs(manager)
        assert [run.params.n if run.name == "anything" else run.params.a for run in runs] == [3, 5, 1, 2, 4]

    async def test_order(self, manager: TaskManager) -> None:
        for n in range(30):
            await manager.queue("add", a=n)
        await asyncio.gather(*(manager.queue("add", a=n) for n in range(30, 200)))
        assert [run.params.a for run in await take_runs(manager)] == list(range(200))

    async def test_a_task_that_is_not_registered_yet(self, manager: TaskManager) -> None:
        other = add._replace(name="other")
        await manager.queue(other, a=1)
        assert manager.registry["other"] is other
        assert [run.name for run in await take_runs(manager)] == ["other"]

    @pytest.mark.parametrize("how", ["queue", "queue_and_wait", "create_task_run", "execute"])
    @pytest.mark.parametrize(
        ("name", "options", "error", "says"),
        [
            ("ad", {"a": 1}, UnknownTaskError, "did you mean 'add'"),
            ("nonesuch", {}, UnknownTaskError, "nonesuch"),
            ("add", {"a": 1, "priority": "urgent"}, ValueError, "urgent"),
            ("add", {}, ParamsError, "'a'|`a`"),
            ("add", {"a": "one"}, ParamsError, "add"),
            ("add", {"a": 1, "params": 3}, (ParamsError, TypeError), "params"),
            ("anything", {"x": object()}, ParamsError, "anything"),
        ],
    )
    async def test_errors_come_before_anything_is_sent(
        self,
        manager: TaskManager,
        events: list[tuple[str, str]],
        how: str,
        name: str,
        options: dict[str, Any],
        error: Any,
        says: str,
    ) -> None:
        if how in ("create_task_run", "execute") and name == "anything":
            pytest.skip("nothing is encoded")

        async def attempt() -> None:
            result = getattr(manager, how)(name, **options)
            if how != "create_task_run":
                await within(result)

        with pytest.raises(error, match=says):
            await attempt()
        assert await places(manager.broker) == {}
        assert [state for state, _ in events if state != "init"] == []

    async def test_too_large(self, broker_url: str) -> None:
        async with managing(broker_url, anything, max_payload_bytes=1000) as manager:
            with pytest.raises(PayloadTooLargeError, match="1000"):
                await manager.queue("anything", text="x" * 1000)
            await manager.queue("anything", text="x" * 500)
            assert await manager.broker.queue_length() == {"high": 0, "medium": 0, "low": 1}

    async def test_params_that_are_named_like_ours(self, manager: TaskManager) -> None:
        params = {"priority": "urgent", "run_id": 7, "task": "x", "timeout": 1, "from_task_run": None, "self": 1}
        run = await manager.queue("anything", "high", params=params)
        assert run.priority is TaskPriority.high
        assert dict(run.params) == params
        await manager.queue("anything", params={"a": 1}, b=2)
        await manager.queue("add", params=Sum(a=5))
        with pytest.raises(TypeError):
            await manager.queue("add", params=Sum(a=5), b=3)
        found = {run.name: run.params for run in await take_runs(manager)}
        assert found["add"] == Sum(a=5)

    async def test_run_id(self, manager: TaskManager) -> None:
        await manager.queue("add", run_id="mine", a=1)
        assert manager.create_task_run("add", "mine too", "high", a=1).id == "mine too"
        assert len(manager.create_task_run("add", a=1).id) == 32
        assert [run.id for run in await take_runs(manager)] == ["mine"]

    async def test_chain(self, manager: TaskManager) -> None:
        first = await manager.queue("add", a=1)
        second = await first.queue("add", a=2)
        third = await second.queue("add", "high", a=3)
        assert (first.from_run_id, first.root_run_id) == ("", "")
        assert (second.from_run_id, second.root_run_id) == (first.id, first.id)
        assert (third.from_run_id, third.root_run_id) == (second.id, first.id)
        found = {run.id: (run.from_run_id, run.root_run_id) for run in await take_runs(manager)}
        assert found == {
            first.id: ("", ""),
            second.id: (first.id, first.id),
            third.id: (second.id, first.id),
        }

    async def test_execute_after(self, manager: TaskManager) -> None:
        run = manager.create_task_run("add", a=1)
        run.execute_after = now_micros() / 1e6 + 100  # type: ignore[assignment]
        await manager.intake.send(run)
        assert await places(manager.broker) == {"delayed": 1}

    async def test_all_that_takes_a_coroutine_takes_it(self, manager: TaskManager) -> None:
        """It is a future, for ``gather``'s sake, and yet as good as a coroutine."""
        made = [await asyncio.create_task(manager.queue("add", a=1))]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(manager.queue("add", a=n)) for n in (2, 3)]
        made += [task.result() for task in tasks]
        made.append(await asyncio.wait_for(manager.queue("add", a=4), 5))
        made.append(await asyncio.shield(manager.queue("add", a=5)))
        made += await asyncio.gather(manager.queue("add", a=6), manager.queue("add", a=7))
        assert [run.params.a for run in made] == [1, 2, 3, 4, 5, 6, 7]
        assert {run.state for run in made} == {TaskState.queued}
        assert [run.params.a for run in await take_runs(manager)] == list(range(1, 8))

    async def test_who_asks_is_told_that_it_is_to_be_awaited(self, manager: TaskManager) -> None:
        """Else a web framework would call it in a thread, and await nothing."""
        await BackgroundTask(manager.queue, "add", a=1)()
        assert len(await take_runs(manager)) == 1

    async def test_an_error_is_of_who_awaits_it(self, manager: TaskManager) -> None:
        """As a coroutine's would be, and not of who calls it."""
        wrong = manager.queue("add", a="x")
        unknown = asyncio.create_task(manager.queue("nothing"))
        with pytest.raises(ParamsError):
            await wrong
        with pytest.raises(UnknownTaskError):
            await unknown
        good, bad = await asyncio.gather(manager.queue("add", a=1), manager.queue("add"), return_exceptions=True)
        assert isinstance(good, TaskRun)
        assert isinstance(bad, ParamsError)
        assert len(await take_runs(manager)) == 1

    async def test_who_is_cancelled_hears_no_more(self, manager: TaskManager) -> None:
        task = asyncio.create_task(manager.queue("add", a=1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        manager.queue("add", a=2).close()
        await manager.flush()
        runs = [run.params.a for run in await take_runs(manager)]
        assert runs == [2] or runs == [1, 2]

    async def test_nobody_finishes_it(self, manager: TaskManager) -> None:
        with pytest.raises(TimeoutError):
            await manager.queue_and_wait("add", a=1, timeout=0.1)
        with pytest.raises(TimeoutError):
            await manager.queue_and_wait("endless")  # for the task's own timeout
        assert await places(manager.broker) == {"medium": 2}

    async def test_shutdown_waits_for_what_is_on_its_way(self, broker_url: str) -> None:
        manager = TaskManager(broker_url=broker_url)
        manager.register_task(anything)
        tasks = [asyncio.create_task(manager.queue("anything", n=n)) for n in range(300)]
        await asyncio.sleep(0)
        await within(manager.on_shutdown())
        await within(asyncio.gather(*tasks))
        assert len(await take_runs(manager)) == 300
        await manager.on_shutdown()

    def test_it_is_made_before_the_event_loop_runs(self, broker_url: str) -> None:
        manager = TaskManager(broker_url=broker_url)
        manager.register_task(add)
        with asyncio.Runner() as runner:
            assert runner.run(manager.queue("add", a=1)).params.a == 1
            assert [run.params.a for run in runner.run(take_runs(manager))] == [1]
            runner.run(manager.broker.clear())
            runner.run(manager.on_shutdown())

    async def test_used_after_shutdown(self, manager: TaskManager) -> None:
        for n in range(3):
            await manager.queue("add", a=n)
            await manager.on_shutdown()
        assert len(await take_runs(manager)) == 3


class TestEvents:
    async def test_of_a_queued_run(self, manager: TaskManager, events: list[tuple[str, str]]) -> None:
        await manager.queue("add", a=1)
        assert events == [("init", "add"), ("queued", "add")]

    async def test_of_an_executed_run(self, manager: TaskManager, events: list[tuple[str, str]]) -> None:
        await manager.execute("add", a=1)
        assert [state for state, _ in events][-2:] == ["running", "success"]
        events.clear()
        with pytest.raises(ZeroDivisionError):
            await manager.execute("failing")
        assert [state for state, _ in events][-2:] == ["running", "failure"]
        await manager.execute("aborting")
        assert [state for state, _ in events][-2:] == ["running", "aborted"]

    async def test_queue_is_another_name_of_init(self, manager: TaskManager) -> None:
        told: list[str] = []
        manager.dispatcher.register_handler("queue", lambda run: told.append(f"queue {run.state}"))
        manager.dispatcher.register_handler("queue.mine", lambda run: told.append("mine"))
        await manager.queue("add", a=1)
        assert told == ["queue init", "mine"]
        assert manager.dispatcher.unregister_handler("queue") is not None
        await manager.queue("add", a=1)
        assert told == ["queue init", "mine", "mine"]

    async def test_a_handler_gets_a_snapshot(self, manager: TaskManager) -> None:
        kept: list[TaskRun[Any, Any]] = []
        for state in ("init", "queued"):
            manager.dispatcher.register_handler(state, kept.append)
        run = await manager.queue("add", a=1)
        assert [(r.state, r.queued is None) for r in kept] == [("init", True), ("queued", False)]
        assert all(r is not run and r.id == run.id for r in kept)

    async def test_a_broken_handler_breaks_nothing(
        self, manager: TaskManager, events: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(run: TaskRun[Any, Any]) -> None:
            raise ZeroDivisionError("broken handler")

        for state in ("init", "queued", "running", "success"):
            manager.dispatcher.register_handler(f"{state}.a-broken", broken)
        await manager.queue("add", a=1)
        await manager.execute("add", a=1)
        assert [state for state, _ in events][:2] == ["init", "queued"]
        assert "broken handler" in caplog.text

    async def test_a_plain_manager_has_no_async_handlers(self, manager: TaskManager) -> None:
        async def handler(run: TaskRun[Any, Any]) -> None:
            raise AssertionError

        manager.register_async_handler("queued", handler)
        await manager.queue("add", a=1)
        assert manager.unregister_async_handler("queued") is None


class TestExecute:
    async def test_success(self, manager: TaskManager) -> None:
        run = await manager.execute("add", a=1, b=3)
        assert manager.deps.results == [4]
        assert run.state is TaskState.success
        assert run.is_done
        assert not run.is_failure
        assert run.queued is not None
        assert run.start is not None
        assert run.end is not None
        assert run.queued <= run.start <= run.end
        assert run.duration is not None
        assert run.total is not None
        assert timedelta(0) <= run.duration <= run.total
        assert await places(manager.broker) == {}

    async def test_a_plain_function_runs_in_a_thread(self, manager: TaskManager) -> None:
        await manager.execute("threaded", a=1)
        assert manager.deps.results == [(1, False)]

    async def test_failure(self, manager: TaskManager) -> None:
        run = manager.create_task_run("failing")
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            await run.execute()
        assert run.state is TaskState.failure
        assert run.is_failure
        with pytest.raises(TaskRunError):
            await run.execute()

    async def test_timeout(self, manager: TaskManager) -> None:
        run = manager.create_task_run("endless")
        with pytest.raises(TimeoutError):
            await within(run.execute())
        assert run.state is TaskState.failure

    async def test_abort(self, manager: TaskManager) -> None:
        run = await manager.execute("aborting")
        assert run.state is TaskState.aborted
        assert await manager.broker.get_task_aborted(run.id) == "no need"
        again = manager.create_task_run("aborting")
        with pytest.raises(TaskAbortedError, match="no need"):
            await again.execute()
        assert again.state is TaskState.aborted

    async def test_cancelled(self, manager: TaskManager) -> None:
        run = manager.create_task_run(endless._replace(timeout_seconds=60))
        executing = asyncio.create_task(run.execute())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert run.state is TaskState.running
        executing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await executing
        assert run.state is TaskState.interrupted

    async def test_lock(self, manager: TaskManager) -> None:
        inside = 0

        @task
        async def exclusive(ctx: TaskRun[Any]) -> None:
            nonlocal inside
            async with ctx.lock(timeout=60):
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                inside -= 1

        exclusive = exclusive._replace(name=f"exclusive-{manager.manager_id}")
        await within(asyncio.gather(*(manager.execute(exclusive) for _ in range(4))))

    def test_sync(self, broker_url: str) -> None:
        manager = TaskManager(broker_url=broker_url, deps=Deps())
        opened: list[str] = []

        @asynccontextmanager
        async def resource() -> AsyncIterator[None]:
            opened.append("open")
            yield
            opened.append("closed")

        manager.add_async_context_manager(resource())
        run = manager.execute_sync(add, a=1)
        assert run.state is TaskState.success
        assert manager.deps.results == [3]
        assert opened == ["open", "closed"]
        other = TaskManager(broker_url=broker_url, deps=Deps())
        for a in range(3):
            assert other.execute_sync(threaded, a=a).state is TaskState.success
        with pytest.raises(ZeroDivisionError):
            other.execute_sync(failing)
        assert other.execute_sync(aborting).state is TaskState.aborted
        with pytest.raises(UnknownTaskError):
            other.execute_sync("nonesuch")


class TestRegister:
    def test_names_and_tags(self) -> None:
        manager = TaskManager(broker_url="memory://register")
        manager.register_task(add)
        manager.register_task(anything, tags=["more"])
        assert manager.registry["add"] is add
        assert manager.registry["anything"].tags == {"slow", "more"}
        assert anything.tags == {"slow"}
        assert list(manager.registry) == ["add", "anything"]

    def test_from_a_mapping(self) -> None:
        manager = TaskManager(broker_url="memory://register")
        manager.register_from_dict({"a": add, "_b": anything, "c": 3, "d": "add", "e": TaskRun}, tags=["all"])
        assert list(manager.registry) == ["add"]
        assert manager.registry["add"].tags == {"all"}

    def test_from_a_module(self) -> None:
        module = types.ModuleType("tasks")
        vars(module).update({"add": add, "_hidden": anything, "helper": len})
        manager = TaskManager(broker_url="memory://register")
        manager.register_from_module(module)
        assert list(manager.registry) == ["add"]

    def test_a_later_one_replaces(self) -> None:
        manager = TaskManager(broker_url="memory://register")
        later = add._replace(priority=TaskPriority.high)
        manager.register_task(add)
        manager.register_task(later)
        assert manager.registry["add"] is later
        assert manager.create_task_run("add", a=1).priority is TaskPriority.high


class TestLife:
    async def test_contexts(self) -> None:
        notes: list[str] = []

        @asynccontextmanager
        async def resource(name: str) -> AsyncIterator[str]:
            notes.append(f"open {name}")
            try:
                yield name
            finally:
                notes.append(f"close {name}")

        manager = TaskManager(broker_url="memory://life")
        manager.add_async_context_manager(resource("a"))
        assert await manager.enter_async_context(resource("b")) == "b"
        assert notes == ["open b"]
        async with manager:
            assert notes == ["open b", "open a"]
            await manager.enter_async_context(resource("c"))
        assert notes[3:] == ["close c", "close a", "close b"]
        await manager.on_shutdown()
        assert len(notes) == 6

    async def test_startup_and_shutdown_by_hand(self) -> None:
        notes: list[str] = []

        @asynccontextmanager
        async def resource() -> AsyncIterator[None]:
            notes.append("open")
            yield
            notes.append("close")

        manager = TaskManager(broker_url="memory://life")
        manager.add_async_context_manager(resource())
        await manager.on_startup()
        await manager.on_shutdown()
        await manager.on_shutdown()
        assert notes == ["open", "close"]

    async def test_a_context_that_fails_to_close(self) -> None:
        notes: list[str] = []

        @asynccontextmanager
        async def resource(name: str, fails: bool) -> AsyncIterator[None]:
            try:
                yield
            finally:
                notes.append(name)
                if fails:
                    raise ZeroDivisionError(name)

        manager = TaskManager(broker_url="memory://life")
        for name in "abc":
            await manager.enter_async_context(resource(name, name == "b"))
        with pytest.raises(ZeroDivisionError, match="b"):
            await manager.on_shutdown()
        assert notes == ["c", "b", "a"]

    async def test_deps_and_state(self) -> None:
        manager = TaskManager(broker_url="memory://life")
        manager.deps.anything = 1
        manager.state.other = 2
        assert (manager.deps.anything, manager.state.other) == (1, 2)
        with pytest.raises(AttributeError):
            manager.deps.nothing  # noqa: B018
        deps = object()
        given = TaskManager(broker_url="memory://life", deps=deps)
        given.register_task(add)
        assert given.create_task_run("add", a=1).deps is deps

    def test_plugin(self) -> None:
        class Plugin(TaskManagerPlugin):
            def register(self, task_manager: TaskManager) -> None:
                task_manager.register_task(add)
                task_manager.state.plugged = True

        manager = TaskManager(broker_url="memory://life")
        assert manager.with_plugin(Plugin()) is manager
        assert manager.state.plugged
        assert "add" in manager.registry

    def test_identity(self) -> None:
        class MyManager(TaskManager):
            pass

        manager, other = MyManager(broker_url="memory://life"), TaskManager(broker_url="memory://life")
        assert manager.type == "my_manager"
        assert other.type == "task_manager"
        assert manager.manager_id != other.manager_id

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"max_concurent_tasks": 3}, "did you mean 'max_concurrent_tasks'"),
            ({"nonesuch": 3}, "nonesuch"),
            ({"max_concurrent_tasks": -1}, "max_concurrent_tasks"),
            ({"lease_seconds": 0}, "lease_seconds"),
            ({"max_payload_bytes": 0}, "max_payload_bytes"),
            ({"sleep": -1}, "sleep is -1"),
        ],
    )
    def test_config_errors(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            TaskManager(broker_url="memory://life", **options)

    def test_config(self) -> None:
        config = TaskManagerConfig(broker_url="memory://life", max_concurrent_tasks=7)
        assert TaskManager(config=config).config is config
        assert TaskManager(broker_url="memory://life", sleep=0.5).config.sleep_millis == 500


@pytest.mark.parametrize("part", ["_producer", "_listeners", "codec"])
async def test_without_a_part(part: str) -> None:
    """As a test double may be: an error, and no crash of the interpreter."""
    manager = TaskManager(broker_url="redis://127.0.0.1:1")
    setattr(manager.broker if part == "codec" else manager, part, None)
    with pytest.raises(AttributeError, match="NoneType"):
        await manager.queue(add, a=1)


@dataclass
class Point:
    x: int
    y: int = 0


@task
async def pointed(ctx: TaskRun[Point]) -> None: ...


async def test_dataclass_params(manager: TaskManager) -> None:
    run = await manager.queue(pointed, x=1)
    assert run.params == Point(1)
    with pytest.raises(ParamsError):
        await manager.queue(pointed, x="left")
    (found,) = await take_runs(manager)
    assert found.params == Point(1)
