"""The promise of source: what a program for aio-fluid imports, calls and reads is here, in both of its styles."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import pytest
from kits.waiting import within

import fluidfast
import fluidfast.scheduler as scheduler_module
from fluidfast.scheduler import (
    RetryPolicy,
    Task,
    TaskBroker,
    TaskConsumer,
    TaskManager,
    TaskManagerConfig,
    TaskPriority,
    TaskRun,
    TaskScheduler,
    TaskState,
    crontab,
    every,
    task,
)
from fluidfast.scheduler.errors import TaskAbortedError, TaskDecoratorError, TaskRunError, UnknownTaskError
from fluidfast.scheduler.models import EmptyParams, TaskRunWaiter
from fluidfast.settings import get_settings
from fluidfast.utils.worker import Worker, Workers

ROOT = Path(fluidfast.__file__).parents[1]

NAMES = {
    "fluidfast.scheduler": """TaskManager TaskConsumer TaskScheduler TaskManagerConfig TaskBroker task Task TaskRun
        TaskInfo TaskPriority TaskState RetryPolicy Scheduler every crontab task_manager_fastapi TaskManagerPlugin
        is_in_cpu_process QueuedTask K8sConfig K8sResourceRequirements""",
    "fluidfast.scheduler.errors": """TaskError UnknownTaskError DisabledTaskError TaskParamsError TaskRunError
        TaskAbortedError TaskDecoratorError CpuBoundEntryPointError""",
    "fluidfast.scheduler.broker": "TaskBroker RedisTaskBroker TaskRegistry TaskManagersStatus",
    "fluidfast.scheduler.models": """Task TaskRun TaskInfo TaskPriority TaskState RetryPolicy QueuedTask K8sConfig
        K8sResourceRequirements TaskManagerConfig EmptyParams FINISHED_STATES TaskRunWaiter TaskInfoUpdate task""",
    "fluidfast.scheduler.consumer": """TaskDispatcher AsyncTaskDispatcher TaskManager TaskConsumer TaskManagerConfig
        AsyncHandler""",
    "fluidfast.scheduler.scheduler": "TaskScheduler",
    "fluidfast.scheduler.cli": "TaskManagerCLI DEFAULT_COMMANDS",
    "fluidfast.scheduler.endpoints": """task_manager_fastapi get_task_manager get_task_manager_from_request
        TaskManagerDep get_router TaskUpdate TaskCreate""",
    "fluidfast.scheduler.plugin": "TaskManagerPlugin",
    "fluidfast.scheduler.common": "is_in_cpu_process cpu_env",
    "fluidfast.scheduler.scheduler_crontab": "crontab CronRun Scheduler",
    "fluidfast.scheduler.crontab": "crontab CronRun Scheduler",
    "fluidfast.scheduler.scheduler_every": "every",
    "fluidfast.scheduler.every": "every",
    "fluidfast.scheduler.cpubound": "run_in_subprocess strip_serve exec_args cpu_bound_command",
    "fluidfast.utils.worker": """Worker Workers WorkerFunction WorkerState QueueConsumer QueueConsumerWorker
        AsyncConsumer""",
    "fluidfast.utils.dispatcher": "Event BaseDispatcher Dispatcher AsyncDispatcher",
    "fluidfast.settings": "",
}
NAMES["fluidfast"] = NAMES["fluidfast.scheduler"]


@pytest.mark.parametrize("module_name", NAMES)
def test_names(module_name: str) -> None:
    module = importlib.import_module(module_name)
    for name in NAMES[module_name].split():
        assert getattr(module, name) is not None
        if not module_name.endswith("settings"):
            assert name in module.__all__


@pytest.mark.parametrize("module", [fluidfast, scheduler_module], ids=lambda module: module.__name__)
def test_star(module: ModuleType) -> None:
    found: dict[str, Any] = {}
    exec(f"from {module.__name__} import *", found)
    assert set(module.__all__) <= set(found)
    with pytest.raises(AttributeError, match="no attribute 'TaskManger'"):
        _ = module.TaskManger


def test_the_same_thing_under_every_name() -> None:
    for module_name, names in NAMES.items():
        for name in names.split():
            if hasattr(fluidfast, name):
                assert getattr(importlib.import_module(module_name), name) is getattr(fluidfast, name)


def run_python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_extras_are_optional() -> None:
    """Without FastAPI, click, rich and pydantic the core works, and who asks for a face is told what to install."""
    code = """
import sys
for name in ("fastapi", "pydantic", "click", "rich", "uvicorn"):
    sys.modules[name] = None
import fluidfast, fluidfast.scheduler
print(sorted(name for name in ("redis", "asyncio") if name in sys.modules))
for ask in ("fluidfast.task_manager_fastapi", "fluidfast.scheduler.task_manager_fastapi"):
    try:
        eval(ask)
    except ImportError as exc:
        print(exc)
try:
    import fluidfast.scheduler.endpoints
except ImportError as exc:
    print(exc)
"""
    lines = run_python(code).splitlines()
    http = "the HTTP routes need FastAPI: pip install 'fluidfast[http]'"
    assert lines == ["['asyncio']", http, http, http]


MEMBERS = {
    TaskManager: """execute execute_sync queue create_task_run register_task register_from_module register_from_dict
        register_async_handler unregister_async_handler with_plugin enter_async_context add_async_context_manager
        on_startup on_shutdown __aenter__ __aexit__ registry type""",
    TaskConsumer: """sync_queue queue_and_wait startup shutdown wait_for_shutdown gracefully_stop is_running is_stopping
        is_stopped has_started status add_workers workers""",
    TaskRun: """id task name name_id priority params state queued start end execute_after rate_limit_attempt
        retry_attempt from_run_id root_run_id in_queue duration duration_ms total is_done is_failure logger deps queue
        abort lock set_state queue_dump_json model_copy model_dump model_dump_json execute""",
    Task: """name executor params_model logger module short_description description schedule randomize max_concurrency
        timeout_seconds priority k8s_config tags retry rate_limit_retry env cpu_bound cpu_executor run_executor info
        _replace""",
    TaskBroker: """from_url register_broker task_queue_names clear lock queue_length clear_queue get_tasks_info
        update_task enable_task filter_tasks set_manager_status get_all_manager_statuses current_task_runs""",
    scheduler_module.TaskInfo: """enabled last_run_end last_run_duration last_run_state name short_description
        description module priority cpu_bound max_concurrency schedule tags timeout_seconds k8s_config retry
        rate_limit_retry env""",
}


@pytest.mark.parametrize("cls", MEMBERS, ids=lambda cls: cls.__name__)
def test_members(cls: type) -> None:
    missing = [name for name in MEMBERS[cls].split() if not hasattr(cls, name)]
    assert missing == []


def test_attributes_of_a_manager(manager: TaskManager) -> None:
    for name in ("deps", "state", "config", "dispatcher", "broker", "registry", "manager_id", "type"):
        assert hasattr(manager, name)
    assert manager.type == "task_manager"


def test_a_consumer_is_a_manager_and_a_worker() -> None:
    assert issubclass(TaskScheduler, TaskConsumer)
    consumer = TaskConsumer(broker_url="memory://")
    assert isinstance(consumer, TaskManager)
    assert isinstance(consumer, Worker)
    assert isinstance(consumer, Workers)


def test_attributes_of_a_redis_broker() -> None:
    broker = TaskBroker.from_url("redis://localhost:6379?name=x")
    assert broker.prefix == "{x}"  # type: ignore[attr-defined]
    assert broker.task_queue_name(TaskPriority.high) == "{x}-queue-high"  # type: ignore[attr-defined]
    assert set(broker.task_queue_names) == {"{x}-queue-high", "{x}-queue-medium", "{x}-queue-low"}
    assert hasattr(broker.redis_cli, "pipeline")  # type: ignore[attr-defined]


# -- tasks of the two styles


class Params(pydantic.BaseModel):
    a: int = 1


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def manager(url: str) -> TaskManager:
    return TaskManager(broker_url=url)


@pytest.fixture
async def consumer(url: str) -> AsyncIterator[TaskConsumer]:
    consumer = TaskConsumer(broker_url=url)
    await consumer.startup()
    yield consumer
    await consumer.shutdown()


@task
async def untyped(ctx: TaskRun) -> None:
    """Names no model."""


@task
async def typed(ctx: TaskRun[Params]) -> None:
    """Names one."""


class TestDecorator:
    def test_bare(self) -> None:
        assert (untyped.name, untyped.params_model, untyped.description) == ("untyped", EmptyParams, "Names no model.")
        assert isinstance(untyped, tuple)
        assert untyped._replace(name="x").name == "x"

    def test_keywords(self) -> None:
        policy = RetryPolicy(max_attempts=3)
        options: dict[str, Any] = {
            "name": "n",
            "schedule": every(timedelta(seconds=1)),
            "short_description": "s",
            "description": "d",
            "randomize": lambda: 1,
            "max_concurrency": 2,
            "priority": TaskPriority.high,
            "k8s_config": fluidfast.K8sConfig(),
            "timeout_seconds": 3,
            "retry": policy,
            "rate_limit_retry": policy,
            "env": {"A": "b"},
        }
        made = task(**options, tags=["x", "y"])(untyped.executor)
        assert {name: getattr(made, name) for name in options} == options
        assert made.tags == {"x", "y"}
        assert not made.cpu_bound

    def test_cpu_bound(self) -> None:
        made = task(cpu_bound=True)(untyped.executor)
        assert made.cpu_bound
        assert made.cpu_executor is untyped.executor

    def test_params_model(self) -> None:
        """1.2 has it as a keyword; 2.x reads it off the annotation."""
        assert task(params_model=Params)(untyped.executor).params_model is Params
        assert typed.params_model is Params

    def test_wrong_use(self) -> None:
        with pytest.raises(TaskDecoratorError):
            task()  # type: ignore[call-overload]


class TestRun:
    def test_subscription(self) -> None:
        class Deps: ...

        for annotation in (TaskRun[Params], TaskRun[Params, Deps]):

            def executor(ctx: Any) -> None: ...

            executor.__annotations__["ctx"] = annotation
            assert task(executor).params_model is Params

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement")
    def test_type_alias(self) -> None:
        found: dict[str, Any] = {"TaskRun": TaskRun, "Params": Params}
        exec("type AppRun[P] = TaskRun[P, int]\ntype Fixed = TaskRun[Params]", found)
        for annotation in (found["AppRun"][Params], found["Fixed"]):

            def executor(ctx: Any) -> None: ...

            executor.__annotations__["ctx"] = annotation
            assert task(executor).params_model is Params

    def test_by_keywords(self, manager: TaskManager) -> None:
        run = TaskRun(id="x", task=typed, priority=TaskPriority.low, params=Params(a=3), task_manager=manager)
        assert (run.id, run.name, run.name_id, run.params.a) == ("x", "typed", "typed.x", 3)
        assert (run.state, run.priority, run.is_done, run.is_failure) == ("init", "low", False, False)
        assert run.in_queue is run.duration is run.duration_ms is run.total is None

    async def test_times(self, manager: TaskManager) -> None:
        run = await manager.execute(typed)
        assert run.is_done
        assert isinstance(run.start, datetime)
        assert run.duration is not None
        assert run.duration_ms == pytest.approx(run.duration.total_seconds() * 1000, abs=0.01)

    def test_dumps(self, manager: TaskManager) -> None:
        run = manager.create_task_run(typed, a=2)
        assert run.model_dump(exclude={"params"})["task"] == "typed"
        assert '"a":2' in run.model_dump_json()
        assert b'"a":2' in run.queue_dump_json()
        assert run.model_copy(update={"id": "other"}).id == "other"

    def test_state(self, manager: TaskManager) -> None:
        run = manager.create_task_run(typed)
        run.set_state(TaskState.queued)
        run.set_state("running")
        run.set_state(TaskState.failure)
        assert run.is_failure
        with pytest.raises(TaskRunError):
            run.set_state(TaskState.running)

    async def test_logger_and_deps(self, url: str) -> None:
        manager = TaskManager(broker_url=url, deps="the deps")
        run = manager.create_task_run(typed)
        assert isinstance(run.logger, logging.Logger)
        assert run.deps == "the deps"
        async with run.lock(timeout=1), run.lock(timeout=1, name="part"):
            pass

    async def test_queue_from_a_run(self, manager: TaskManager) -> None:
        first = manager.create_task_run(typed)
        second = await first.queue(untyped, x=1)
        third = await second.queue(untyped, priority="high")
        assert (second.from_run_id, second.root_run_id) == (first.id, first.id)
        assert (third.from_run_id, third.root_run_id, third.priority) == (second.id, first.id, "high")


# -- the table "Both styles", a row each


class TestBothStyles:
    async def test_params_read_both_ways_and_keep_every_key(self, manager: TaskManager) -> None:
        run = await manager.queue(untyped, a=1, anything=[2])
        assert run.params["a"] == run.params.a == 1
        assert run.params["anything"] == run.params.anything == [2]
        taken = await manager.broker.get_task_run(manager)
        assert taken is not None
        assert taken.params == {"a": 1, "anything": [2]}
        assert taken.params.anything == [2]

    async def test_params_of_a_model(self, manager: TaskManager) -> None:
        assert (await manager.queue("typed" if "typed" in manager.registry else typed, a=7)).params.a == 7

    def test_state_is_a_dict_with_attributes(self, manager: TaskManager) -> None:
        manager.state["db"] = 1
        manager.state.cache = 2
        assert (manager.state.db, manager.state["cache"]) == (1, 2)
        manager.deps.http = 3
        assert manager.deps.http == 3

    async def test_run_id_and_priority_positional_and_by_name(self, manager: TaskManager) -> None:
        old = manager.create_task_run(untyped, "abc", TaskPriority.high)
        new = manager.create_task_run(untyped, run_id="abc", priority=TaskPriority.high)
        assert (old.id, old.priority) == (new.id, new.priority) == ("abc", "high")
        assert (await manager.queue(untyped, TaskPriority.low)).priority == "low"
        assert (await manager.queue(untyped, priority=TaskPriority.low, run_id="x")).id == "x"

    async def test_contexts_of_both_kinds_close_in_reverse(self, manager: TaskManager) -> None:
        told: list[str] = []

        @asynccontextmanager
        async def context(name: str) -> AsyncIterator[str]:
            told.append(f"+{name}")
            yield name
            told.append(f"-{name}")

        manager.add_async_context_manager(context("2.x"))
        assert told == []
        await manager.on_startup()
        assert await manager.enter_async_context(context("1.2")) == "1.2"
        assert told == ["+2.x", "+1.2"]
        await manager.on_shutdown()
        assert told == ["+2.x", "+1.2", "-1.2", "-2.x"]

    async def test_a_context_entered_before_the_start(self, manager: TaskManager) -> None:
        told: list[str] = []

        @asynccontextmanager
        async def context() -> AsyncIterator[None]:
            yield
            told.append("closed")

        await manager.enter_async_context(context())
        async with manager:
            assert told == []
        assert told == ["closed"]

    async def test_on_shutdown_closes_contexts_then_the_broker_and_twice_is_harmless(
        self, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []

        @asynccontextmanager
        async def context() -> AsyncIterator[None]:
            yield
            told.append("context")

        async def close() -> None:
            told.append("broker")

        monkeypatch.setattr(manager.broker, "close", close)
        manager.add_async_context_manager(context())
        await manager.on_startup()
        await manager.on_shutdown()
        assert told == ["context", "broker"]
        await manager.on_shutdown()
        assert told.count("context") == 1

    async def test_events_are_snapshots(self, consumer: TaskConsumer) -> None:
        kept: list[TaskRun[Any]] = []
        for state in TaskState:
            consumer.dispatcher.register_handler(state, kept.append)
        run = await within(consumer.queue_and_wait(untyped))
        assert [each.state for each in kept] == ["init", "queued", "running", "success"]
        assert {each.id for each in kept} == {run.id}
        assert len({id(each) for each in kept}) == 4

    async def test_queue_fires_init_which_is_also_called_queue_and_then_queued(self, manager: TaskManager) -> None:
        told: list[str] = []
        for event in ("queue.old", "init.new", "queued.any"):
            manager.dispatcher.register_handler(event, lambda run, event=event: told.append(event))  # type: ignore[misc]
        await manager.queue(untyped)
        assert told == ["queue.old", "init.new", "queued.any"]

    async def test_abort_in_execute_gives_the_run(self, manager: TaskManager) -> None:
        @task
        async def gives_up(ctx: TaskRun) -> None:
            ctx.abort("enough")

        run = await manager.execute(gives_up)
        assert run.state is TaskState.aborted
        assert await manager.broker.get_task_aborted(run.id) == "enough"
        with pytest.raises(TaskAbortedError):
            await manager.create_task_run(gives_up).execute()

    async def test_execute_of_one_run(self, manager: TaskManager) -> None:
        run = manager.create_task_run(untyped)
        await run.execute()
        assert run.state is TaskState.success

    def test_execute_sync(self, manager: TaskManager) -> None:
        assert manager.execute_sync(typed, a=3).state is TaskState.success

    async def test_queue_and_wait_takes_the_tasks_timeout(self, manager: TaskManager) -> None:
        never = untyped._replace(name="never", timeout_seconds=0.01)
        with pytest.raises(TimeoutError):
            await within(manager.queue_and_wait(never))
        with pytest.raises(TimeoutError):
            await within(manager.queue_and_wait(untyped, timeout=0.01))

    async def test_queue_and_wait_works_from_another_manager(self, consumer: TaskConsumer, url: str) -> None:
        consumer.register_task(untyped)
        async with TaskManager(broker_url=url) as other:
            assert (await within(other.queue_and_wait(untyped))).state is TaskState.success

    async def test_max_concurrency_is_of_the_whole_broker(self, consumer: TaskConsumer, url: str) -> None:
        inside, let_go = asyncio.Event(), asyncio.Event()

        @task(max_concurrency=1)
        async def alone(ctx: TaskRun) -> None:
            inside.set()
            await let_go.wait()

        other = TaskConsumer(broker_url=url)
        other.register_task(alone)
        consumer.register_task(alone)
        first = asyncio.create_task(consumer.queue_and_wait(alone))
        await within(inside.wait())
        await other.startup()
        second = await within(other.queue_and_wait(alone))
        assert second.state is TaskState.rate_limited
        assert await consumer.broker.current_task_runs("alone") == 1
        let_go.set()
        assert (await within(first)).state is TaskState.success
        await other.shutdown()

    def test_sleep_and_sleep_millis(self) -> None:
        old = TaskManager(broker_url="memory://", sleep=0.5)
        new = TaskManager(broker_url="memory://", sleep_millis=500)
        assert (old.config.sleep_millis, old.config.sleep) == (new.config.sleep_millis, new.config.sleep) == (500, 0.5)
        config = TaskManagerConfig(
            broker_url="memory://", max_concurrent_tasks=3, schedule_tasks=False, consume_tasks=False
        )
        assert TaskConsumer(config=config).config is config

    def test_keyword_names_of_crontab(self) -> None:
        assert str(crontab(hours="*/3", minutes=5)) == str(crontab(hour="*/3", minute=5))

    def test_every(self) -> None:
        assert str(every(timedelta(seconds=5), delay=timedelta(seconds=1), jitter=timedelta(seconds=1)))


# -- the rest of the text


class TestHandlers:
    async def test_async_handlers(self, consumer: TaskConsumer) -> None:
        told: asyncio.Queue[str] = asyncio.Queue()

        async def handler(run: TaskRun[Any]) -> None:
            told.put_nowait(run.state)

        consumer.register_async_handler("success.mine", handler)
        consumer.register_async_handler("queue", handler)
        await consumer.queue(untyped)
        assert {await within(told.get()), await within(told.get())} == {"init", "success"}
        assert consumer.unregister_async_handler("success.mine") is handler
        assert consumer.unregister_async_handler("success.mine") is None

    def test_a_plain_manager_has_none(self, manager: TaskManager) -> None:
        async def handler(run: TaskRun[Any]) -> None: ...

        manager.register_async_handler("success", handler)
        assert manager.unregister_async_handler("success") is None


class TestConsumer:
    async def test_sync_queue(self, consumer: TaskConsumer) -> None:
        done = asyncio.Event()
        consumer.dispatcher.register_handler("success", lambda run: done.set())
        consumer.sync_queue(untyped)
        await within(done.wait())
        done.clear()
        consumer.sync_queue("untyped", delay=0.01)
        await within(done.wait())

    async def test_life(self, url: str) -> None:
        consumer = TaskConsumer(broker_url=url, name="mine", stopping_grace_period=1, max_concurrent_tasks=2)
        assert not consumer.has_started()
        await consumer.startup()
        assert consumer.is_running()
        assert isinstance(await consumer.status(), dict)
        consumer.gracefully_stop()
        assert consumer.is_stopping()
        await within(consumer.wait_for_shutdown())
        assert consumer.is_stopped()
        assert consumer.worker_name == "mine"

    def test_workers(self, url: str) -> None:
        class Mine(Worker):
            async def run(self) -> None: ...

        consumer = TaskConsumer(broker_url=url)
        mine = Mine()
        consumer.add_workers(mine)
        assert mine in set(consumer.workers())

    async def test_unknown_task(self, manager: TaskManager) -> None:
        with pytest.raises(UnknownTaskError):
            await manager.queue("nothing")

    def test_register(self, manager: TaskManager) -> None:
        module = ModuleType("mine")
        module.untyped = untyped  # type: ignore[attr-defined]
        module._hidden = untyped._replace(name="hidden")  # type: ignore[attr-defined]
        manager.register_from_module(module, tags=["t"])
        manager.register_from_dict({"typed": typed, "else": 3})
        assert set(manager.registry) == {"untyped", "typed"}
        assert manager.registry["untyped"].tags == {"t"}


class TestWaiter:
    async def test_it_waits_for_runs_of_this_process(self, consumer: TaskConsumer) -> None:
        with TaskRunWaiter(consumer) as waiter:
            run = await consumer.queue(untyped)
            ended = await within(waiter.wait(run))
            assert (ended.id, ended.state) == (run.id, TaskState.success)
            assert await waiter.wait(run, timeout=1) is ended
            both = await consumer.queue(untyped)
            first, second = await within(asyncio.gather(waiter.wait(both), waiter.wait(both)))
            assert first is second

    async def test_timeout(self, manager: TaskManager) -> None:
        with TaskRunWaiter(manager) as waiter:
            run = await manager.queue(untyped)
            with pytest.raises(TimeoutError):
                await waiter.wait(run, timeout=0.01)
            assert waiter._futures == {}

    def test_it_leaves_no_handlers(self, manager: TaskManager) -> None:
        with TaskRunWaiter(manager, uid="u") as waiter:
            assert waiter.event(TaskState.success) == "success.u"
            assert manager.dispatcher.listeners.mask
        assert manager.dispatcher.listeners.mask == 0

    async def test_of_an_execution(self, manager: TaskManager) -> None:
        with TaskRunWaiter(manager) as waiter:
            run = await manager.execute(untyped)
            assert (await waiter.wait(run)).state is TaskState.success


class TestSettings:
    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in ("FLUID_BROKER_URL", "REDIS_DEFAULT_URL"):
            monkeypatch.delenv(name, raising=False)
        get_settings.cache_clear()
        yield
        get_settings.cache_clear()

    def test_without_any_url_it_is_memory(self) -> None:
        assert TaskManager().broker.url.scheme == "memory"

    def test_unknown_scheme(self) -> None:
        with pytest.raises(RuntimeError, match="Invalid broker"):
            TaskManager(broker_url="nowhere://")

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REDIS_DEFAULT_URL", "memory://old")
        assert str(TaskManager().broker.url) == "memory://old"
        get_settings.cache_clear()
        monkeypatch.setenv("FLUID_BROKER_URL", "memory://new")
        monkeypatch.setenv("FLUID_MAX_CONCURRENT_TASKS", "7")
        manager = TaskManager()
        assert (str(manager.broker.url), manager.config.max_concurrent_tasks) == ("memory://new", 7)

    def test_a_child_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TASK_MANAGER_SPAWN", "true")
        assert fluidfast.is_in_cpu_process()
        assert TaskManagerConfig().schedule_tasks is False

    async def test_a_child_process_consumes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fluidfast.scheduler.errors import CpuBoundEntryPointError

        monkeypatch.setenv("TASK_MANAGER_SPAWN", "true")
        with pytest.raises(CpuBoundEntryPointError):
            await TaskScheduler(broker_url="memory://").startup()


def test_a_broker_of_ones_own() -> None:
    made = TaskBroker.from_url("memory://own")
    TaskBroker.register_broker("mine", lambda url: made)
    assert TaskBroker.from_url("mine://x") is made


def test_keywords_of_aio_fluid() -> None:
    """The names of arguments, as 2.x has them."""
    expected = {
        TaskManager.execute: {"task", "run_id", "priority", "in_process"},
        TaskManager.execute_sync: {"task", "run_id", "priority"},
        TaskManager.queue: {"task", "run_id", "priority", "from_task_run"},
        TaskManager.create_task_run: {"task", "run_id", "priority", "from_task_run"},
        TaskManager.register_task: {"task", "tags"},
        TaskManager.register_from_module: {"module", "tags"},
        TaskManager.register_from_dict: {"data", "tags"},
        TaskConsumer.sync_queue: {"task", "delay"},
        TaskConsumer.queue_and_wait: {"task", "timeout"},
        TaskConsumer.__init__: {"deps", "config", "name", "stopping_grace_period"},
        TaskScheduler.__init__: {"deps", "config", "name", "stopping_grace_period"},
        fluidfast.task_manager_fastapi: {"task_manager", "app", "include_router", "prefix", "tags"},
    }
    for function, names in expected.items():
        assert names <= set(inspect.signature(function).parameters), function
