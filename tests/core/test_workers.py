import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kits.waiting import within

from fluidfast import settings
from fluidfast.core.events import AsyncDispatcher, AsyncTaskDispatcher
from fluidfast.core.states import TaskState
from fluidfast.core.workers import (
    AsyncConsumer,
    QueueConsumer,
    QueueConsumerWorker,
    Worker,
    WorkerFunction,
    Workers,
    WorkerState,
)
from fluidfast.errors import WorkerStartError

SOON = 0.02
"""A grace period that is meant to run out, in seconds."""


class Recorder(Worker):
    """Notes what happens to it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: list[Any] = []
        self.begun = asyncio.Event()

    async def on_startup(self) -> None:
        self.notes.append("on_startup")

    async def on_shutdown(self) -> None:
        self.notes.append("on_shutdown")

    def after_shutdown(self, reason: str, code: int) -> None:
        self.notes.append((reason, code))

    async def work(self) -> None:
        await self._wait_stop()

    async def run(self) -> None:
        self.notes.append("run")
        self.begun.set()
        await self.work()


class Deaf(Recorder):
    """Does not hear that it should stop."""

    async def work(self) -> None:
        await asyncio.Event().wait()


class Failing(Recorder):
    def __init__(self, error: BaseException, **options: Any) -> None:
        super().__init__(**options)
        self.error = error
        self.now = asyncio.Event()

    async def work(self) -> None:
        await self.now.wait()
        raise self.error


def errors(caplog: pytest.LogCaptureFixture) -> list[BaseException]:
    """The exceptions whose tracebacks were logged."""
    return [record.exc_info[1] for record in caplog.records if record.exc_info and record.exc_info[1]]


def state_of(worker: Worker) -> WorkerState:
    """A type checker takes an attribute for what it was."""
    return worker.worker_state


# a worker


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("Worker", "worker"),
        ("TaskConsumer", "task_consumer"),
        ("MyHTTPWorker", "my_http_worker"),
        ("K8sJob", "k8s_job"),
        ("S3Sync", "s3sync"),
        ("ABC", "abc"),
        ("myWorker", "my_worker"),
    ],
)
def test_name(class_name: str, name: str) -> None:
    made = type(class_name, (Recorder,), {})
    assert made().worker_name == name
    assert made(name="other").worker_name == "other"


async def test_life(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker = Recorder()
    assert state_of(worker) is WorkerState.INIT
    assert not worker.has_started()
    assert worker.num_workers == 1
    assert list(worker.workers()) == [worker]
    await worker.wait_for_shutdown()
    await worker.shutdown()
    worker.gracefully_stop()
    assert state_of(worker) is WorkerState.INIT

    await worker.startup()
    assert worker.has_started()
    assert worker.is_running()
    assert worker.notes == ["on_startup", "run"]
    assert await worker.status() == {"stopping": False, "running": True}
    with pytest.raises(WorkerStartError, match="recorder already started: RUNNING"):
        await worker.startup()

    worker.gracefully_stop()
    assert worker.is_stopping()
    assert not worker.is_running()
    assert await worker.status() == {"stopping": True, "running": False}
    await worker.wait_for_shutdown()
    assert worker.is_stopped()
    assert state_of(worker) is WorkerState.STOPPED
    assert worker.notes == ["on_startup", "run", "on_shutdown", ("normal shutdown", 0)]
    await worker.shutdown()
    with pytest.raises(WorkerStartError, match="STOPPED"):
        await worker.startup()
    assert [record.getMessage() for record in caplog.records] == [
        "recorder started running",
        "recorder stopped running: normal shutdown",
    ]


async def test_context_manager() -> None:
    async with Recorder() as worker:
        assert worker.is_running()
    assert worker.is_stopped()


async def test_ends_by_itself() -> None:
    class Brief(Recorder):
        async def work(self) -> None:
            pass

    worker = Brief()
    await worker.startup()
    await worker.wait_for_shutdown()
    assert worker.worker_state is WorkerState.STOPPED
    assert worker.notes[-1] == ("normal shutdown", 0)


async def test_force(caplog: pytest.LogCaptureFixture) -> None:
    worker = Deaf(stopping_grace_period=SOON)
    await worker.startup()
    await worker.shutdown()
    assert worker.worker_state is WorkerState.FORCE_STOPPED
    assert worker.is_stopped()
    assert worker.notes == ["on_startup", "run", "on_shutdown", ("forced shutdown", 1)]
    assert errors(caplog) == []


async def test_the_grace_period_is_kept_when_shutdown_is_cancelled() -> None:
    worker = Deaf(stopping_grace_period=SOON)
    await worker.startup()
    task = asyncio.create_task(worker.shutdown())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.is_stopping()
    await worker.wait_for_shutdown()
    assert worker.worker_state is WorkerState.FORCE_STOPPED


async def test_several_shutdowns_at_once() -> None:
    worker = Deaf(stopping_grace_period=SOON)
    await worker.startup()
    await asyncio.gather(worker.shutdown(), worker.shutdown(), worker.wait_for_shutdown())
    assert worker.worker_state is WorkerState.FORCE_STOPPED


async def test_an_error_reaches_everybody_who_waits(caplog: pytest.LogCaptureFixture) -> None:
    worker = Failing(ValueError("so bad"))
    await worker.startup()
    waiting = asyncio.gather(worker.wait_for_shutdown(), worker.wait_for_shutdown(), return_exceptions=True)
    await asyncio.sleep(0)
    worker.now.set()
    assert list(await waiting) == [worker.error, worker.error]
    assert worker.worker_state is WorkerState.STOPPED
    assert worker.notes == ["on_startup", "run", "on_shutdown", ("so bad", 2)]
    assert errors(caplog) == [worker.error]
    # nobody gets it twice
    await worker.wait_for_shutdown()
    await worker.shutdown()


@pytest.mark.parametrize("method", ["wait_for_shutdown", "shutdown"])
async def test_an_error_that_nobody_waited_for_reaches_who_asks_first(method: str) -> None:
    worker = Failing(ValueError("early"))
    worker.now.set()
    await worker.startup()
    assert worker.is_stopped()
    with pytest.raises(ValueError, match="early"):
        await getattr(worker, method)()
    await worker.shutdown()


async def test_an_error_without_a_text_is_called_by_its_type() -> None:
    worker = Failing(KeyError())
    worker.now.set()
    await worker.startup()
    assert worker.notes[-1] == ("KeyError", 2)


async def test_an_error_after_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Late(Recorder):
        def after_shutdown(self, reason: str, code: int) -> None:
            raise ValueError(reason)

    async with Late():
        pass
    assert [str(error) for error in errors(caplog)] == ["normal shutdown"]


async def test_an_error_at_startup(caplog: pytest.LogCaptureFixture) -> None:
    class Stillborn(Recorder):
        async def on_startup(self) -> None:
            raise ValueError("no")

    worker = Stillborn()
    await worker.startup()
    with pytest.raises(ValueError, match="no"):
        await worker.wait_for_shutdown()
    assert worker.notes == [("no", 2)]
    assert len(errors(caplog)) == 1


async def test_an_error_at_shutdown_does_not_hide_that_of_run(caplog: pytest.LogCaptureFixture) -> None:
    class Messy(Failing):
        async def on_shutdown(self) -> None:
            raise KeyError("mess")

    worker = Messy(ValueError("run"))
    worker.now.set()
    await worker.startup()
    with pytest.raises(ValueError, match="run"):
        await worker.wait_for_shutdown()
    assert [str(error) for error in errors(caplog)] == ["'mess'", "run"]


async def test_cleaning_up_after_an_error_takes_no_longer_than_the_grace_period() -> None:
    class Slow(Failing):
        async def on_shutdown(self) -> None:
            await asyncio.Event().wait()

    worker = Slow(ValueError("run"), stopping_grace_period=SOON)
    worker.now.set()
    await worker.startup()
    with pytest.raises(ValueError, match="run"):
        await worker.wait_for_shutdown()


async def test_a_worker_that_cancels_itself(caplog: pytest.LogCaptureFixture) -> None:
    worker = Failing(asyncio.CancelledError())
    worker.now.set()
    await worker.startup()
    with pytest.raises(asyncio.CancelledError):
        await worker.wait_for_shutdown()
    assert worker.worker_state is WorkerState.STOPPED
    assert worker.notes[-1] == ("cancelled", 2)
    assert errors(caplog) == []


async def test_to_stop_waiting_does_not_stop_the_worker() -> None:
    async with Recorder() as worker:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.wait_for_shutdown(), SOON)
        assert worker.is_running()


async def test_a_worker_shuts_itself_down() -> None:
    class Tired(Recorder):
        async def work(self) -> None:
            with pytest.raises(RuntimeError, match="itself"):
                await self.wait_for_shutdown()
            await self.shutdown()
            self.notes.append("back")

    worker = Tired()
    await worker.startup()
    await worker.wait_for_shutdown()
    assert worker.notes == ["on_startup", "run", "back", "on_shutdown", ("normal shutdown", 0)]


async def test_cancelled_while_starting() -> None:
    worker = Recorder()
    task = asyncio.create_task(worker.startup())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await worker.wait_for_shutdown()  # quietly: who cancelled the start knows
    assert worker.is_stopped()


async def test_stop_from_another_thread() -> None:
    worker = Recorder()
    await worker.startup()
    threading.Thread(target=worker.gracefully_stop).start()
    async with asyncio.timeout(5):
        await worker.wait_for_shutdown()


async def test_stop_from_a_signal_handler() -> None:
    worker = Recorder()
    await worker.startup()
    previous = signal.signal(signal.SIGUSR1, lambda *_: worker.gracefully_stop())
    try:
        asyncio.get_running_loop().call_later(SOON, os.kill, os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(5):
            await worker.wait_for_shutdown()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_stop_when_the_loop_is_gone() -> None:
    worker = QueueConsumerWorker[str](nothing)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(worker.startup())
    loop.close()
    worker.gracefully_stop()
    assert worker.is_stopping()
    thread = threading.Thread(target=worker.send, args=("late",))
    thread.start()
    thread.join()
    assert worker.queue_size() == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_ends_the_loop(kind: type[BaseException]) -> None:
    worker = Failing(kind())
    worker.now.set()

    async def main() -> None:
        await worker.startup()
        await worker.wait_for_shutdown()

    with pytest.raises(kind):
        asyncio.run(main())
    assert worker.is_stopped()


def test_the_end_of_the_loop_cleans_up() -> None:
    group = Workers(Recorder(), Deaf())

    async def main() -> None:
        await group.startup()
        for worker in group.workers():
            await worker.begun.wait()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert group.is_stopped()
    for worker in group.workers():
        assert worker.notes == ["on_startup", "run", "on_shutdown", ("cancelled", 2)]  # type: ignore[attr-defined]


def test_the_grace_period_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUID_STOPPING_GRACE_PERIOD", "3")
    settings.get_settings.cache_clear()
    try:
        assert Recorder()._stopping_grace_period == 3
        assert Recorder(stopping_grace_period=0)._stopping_grace_period == 0
    finally:
        settings.get_settings.cache_clear()


# WorkerFunction


@pytest.mark.parametrize("heartbeat", [0, 0.001])
async def test_function_is_called_again_and_again(heartbeat: float) -> None:
    calls = asyncio.Semaphore(0)

    async def call() -> None:
        calls.release()

    async with WorkerFunction(call, heartbeat=heartbeat, name="beat") as worker:
        assert worker.worker_name == "beat"
        for _ in range(5):
            await calls.acquire()
    assert worker.worker_state is WorkerState.STOPPED


async def test_a_request_to_stop_cuts_the_heartbeat_short() -> None:
    called = asyncio.Event()

    async def call() -> None:
        called.set()

    worker = WorkerFunction(call, heartbeat=3600)
    await worker.startup()
    await called.wait()
    async with asyncio.timeout(5):
        await worker.shutdown()
    assert worker.worker_state is WorkerState.STOPPED


async def test_an_error_of_the_function_ends_the_worker() -> None:
    async def call() -> None:
        raise ValueError("no")

    worker = WorkerFunction(call)
    await worker.startup()
    with pytest.raises(ValueError, match="no"):
        await worker.wait_for_shutdown()


# consumers


async def nothing(message: object) -> None:
    pass


class Words(AsyncDispatcher[str]):
    def event_type(self, message: str) -> str:
        return message.split()[0]


class Inbox:
    """Gives the messages that it was called with to those who wait for them."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, message: str) -> None:
        self.messages.put_nowait(message)

    def all(self) -> list[str]:
        return [self.messages.get_nowait() for _ in range(self.messages.qsize())]


def callback_consumer(handler: Callable[[str], Awaitable[None]], **options: Any) -> QueueConsumer[str]:
    return QueueConsumerWorker(handler, **options)


def dispatcher_consumer(handler: Callable[[str], Awaitable[None]], **options: Any) -> QueueConsumer[str]:
    dispatcher = Words()
    dispatcher.register_handler("go", handler)
    consumer = AsyncConsumer(dispatcher, **options)
    assert consumer.dispatcher is dispatcher
    return consumer


both = pytest.mark.parametrize("make", [callback_consumer, dispatcher_consumer])
Make = Callable[..., QueueConsumer[str]]


@both
async def test_messages_are_delivered_in_order(make: Make) -> None:
    inbox = Inbox()
    consumer = make(inbox)
    assert consumer.queue_size() == 0
    consumer.send("go 1")
    consumer.send(None)
    assert consumer.queue_size() == 1
    assert await consumer.status() == {"stopping": False, "running": False, "queue_size": 1}
    async with consumer:
        assert await inbox.messages.get() == "go 1"
        for number in range(2, 5):
            consumer.send(f"go {number}")
        for number in range(2, 5):
            assert await inbox.messages.get() == f"go {number}"
        assert consumer.queue_size() == 0


@both
@pytest.mark.parametrize("method", ["shutdown", "gracefully_stop"])
async def test_what_is_queued_is_delivered_before_the_end(make: Make, method: str) -> None:
    inbox = Inbox()
    consumer = make(inbox)
    await consumer.startup()
    for number in range(100):
        consumer.send(f"go {number}")
    if method == "shutdown":
        await consumer.shutdown()
    else:
        consumer.gracefully_stop()
        consumer.send("go 100")
        await consumer.wait_for_shutdown()
    assert inbox.all() == [f"go {number}" for number in range(100 + (method != "shutdown"))]
    assert consumer.worker_state is WorkerState.STOPPED


@both
@pytest.mark.parametrize("method", ["shutdown", "gracefully_stop"])
async def test_the_rest_is_given_up_after_the_grace_period(
    make: Make, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    async def hang(message: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    consumer = make(hang, stopping_grace_period=SOON)
    await consumer.startup()
    for _ in range(3):
        consumer.send("go")
    await begun.wait()
    async with asyncio.timeout(5):
        if method == "shutdown":
            await consumer.shutdown()
        else:
            consumer.gracefully_stop()
            await consumer.wait_for_shutdown()
    assert consumer.is_stopped()
    assert consumer.queue_size() == 2
    assert any("leaves 2 messages undelivered" in record.getMessage() for record in caplog.records)


@both
@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("no")])
async def test_an_error_of_the_handler_ends_the_consumer(make: Make, error: Exception) -> None:
    async def fail(message: str) -> None:
        raise error

    consumer = make(fail)
    await consumer.startup()
    consumer.send("go")
    with pytest.raises(type(error), match="no"):
        await consumer.wait_for_shutdown()


async def test_an_error_of_a_task_handler_does_not() -> None:
    class Run:
        state = TaskState.success
        id = "1"

    dispatcher: Any = AsyncTaskDispatcher()
    seen = asyncio.Semaphore(0)

    async def fail(run: Run) -> None:
        seen.release()
        raise ValueError("no")

    dispatcher.register_handler("success", fail)
    consumer: AsyncConsumer[Run] = AsyncConsumer(dispatcher)
    async with consumer:
        for _ in range(3):
            consumer.send(Run())
            await within(seen.acquire())
        assert consumer.is_running()


async def test_send_from_other_threads() -> None:
    inbox = Inbox()
    async with QueueConsumerWorker(inbox) as consumer:
        threads = [threading.Thread(target=consumer.send, args=(str(number),)) for number in range(20)]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(5):
            assert {await inbox.messages.get() for _ in threads} == {str(number) for number in range(20)}


async def test_get_message() -> None:
    class Own(QueueConsumer[str]):
        def __init__(self) -> None:
            super().__init__()
            self.got: list[str | None] = []
            self.waited = asyncio.Event()
            self.beyond = asyncio.Event()

        async def run(self) -> None:
            self.got.append(await self.get_message(timeout=SOON))
            self.waited.set()
            self.got.append(await self.get_message(timeout=None))
            self.got.append(await self.get_message())
            self.beyond.set()
            self.got.append(await self.get_message(timeout=3600))
            for _ in range(3):
                self.got.append(await self.get_message(timeout=3600))

    consumer = Own()
    await consumer.startup()
    await consumer.waited.wait()
    consumer.send("a")
    consumer.send("b")
    await consumer.beyond.wait()
    async with asyncio.timeout(5):
        await consumer.shutdown()
    assert consumer.got == [None, "a", "b", None, None, None, None]
    assert consumer.worker_state is WorkerState.STOPPED


async def test_a_consumer_that_does_not_look_at_its_state_can_be_stopped() -> None:
    class Blind(QueueConsumer[str]):
        async def run(self) -> None:
            while True:
                await self.get_message()

    consumer = Blind(stopping_grace_period=SOON)
    await consumer.startup()
    async with asyncio.timeout(5):
        await consumer.shutdown()
    assert consumer.worker_state is WorkerState.FORCE_STOPPED


# a group


async def test_group() -> None:
    first, second = Recorder(name="a"), Recorder(name="b")
    group = Workers(first, second, first, name="group", heartbeat=0.1)
    assert group.num_workers == 2
    assert list(group.workers()) == [first, second]
    async with group:
        await first.begun.wait()
        await second.begun.wait()
        running = {"stopping": False, "running": True}
        assert await group.status() == {"a": running, "b": running}
    assert group.worker_state is WorkerState.STOPPED
    assert first.worker_state is second.worker_state is WorkerState.STOPPED


async def test_a_group_of_none() -> None:
    group = Workers()
    await group.startup()
    late = Recorder()
    group.add_workers(late)
    await late.begun.wait()
    assert group.is_running()
    await group.shutdown()
    assert late.is_stopped()


async def test_workers_that_were_started_before() -> None:
    worker = Recorder()
    await worker.startup()
    group = Workers(worker)
    await group.startup()
    assert worker.notes == ["on_startup", "run"]
    worker.gracefully_stop()
    await group.wait_for_shutdown()
    assert group.is_stopped()


@pytest.mark.parametrize("late", [False, True])
async def test_the_group_stops_when_one_stops(late: bool) -> None:
    first, second = Recorder(), Recorder()
    group = Workers(first)
    if not late:
        group.add_workers(second)
    await group.startup()
    await first.begun.wait()
    group.add_workers(second)
    await second.begun.wait()
    second.gracefully_stop()
    async with asyncio.timeout(5):
        await group.wait_for_shutdown()
    assert group.worker_state is WorkerState.STOPPED
    assert first.worker_state is WorkerState.STOPPED


async def test_the_group_raises_the_error_of_the_one_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    class Group(Recorder, Workers):
        run = Workers.run

    first, second = Recorder(), Failing(ValueError("no"))
    group: Any = Group()
    group.add_workers(first, second)
    await group.startup()
    await second.begun.wait()
    second.now.set()
    with pytest.raises(ValueError, match="no"):
        await group.wait_for_shutdown()
    assert first.worker_state is WorkerState.STOPPED
    assert group.notes == ["on_startup", "on_shutdown", ("no", 2)]
    assert errors(caplog) == [second.error]


async def test_the_group_stops_its_workers_when_one_cannot_be_started() -> None:
    class Never(Recorder):
        async def startup(self) -> None:
            raise ValueError("never")

    first = Recorder()
    group = Workers(first, Never())
    await group.startup()
    with pytest.raises(ValueError, match="never"):
        await group.wait_for_shutdown()
    assert first.worker_state is WorkerState.STOPPED


@pytest.mark.parametrize(("grace", "state"), [(10, WorkerState.STOPPED), (SOON, WorkerState.FORCE_STOPPED)])
async def test_a_worker_that_is_deaf_is_cancelled(grace: float, state: WorkerState) -> None:
    nice, deaf = Recorder(), Deaf(stopping_grace_period=SOON)
    group = Workers(nice, deaf, stopping_grace_period=grace)
    await group.startup()
    await deaf.begun.wait()
    await group.shutdown()
    assert nice.worker_state is WorkerState.STOPPED
    assert deaf.worker_state is WorkerState.FORCE_STOPPED
    assert deaf.notes[-1] == ("forced shutdown", 1)
    assert group.worker_state is state


async def test_the_period_of_the_group_ends_that_of_its_workers() -> None:
    deaf = Deaf(stopping_grace_period=3600)
    group = Workers(Workers(deaf, stopping_grace_period=3600), stopping_grace_period=SOON)
    await group.startup()
    await deaf.begun.wait()
    async with asyncio.timeout(5):
        await group.shutdown()
    assert deaf.worker_state is WorkerState.FORCE_STOPPED
    assert group.worker_state is WorkerState.FORCE_STOPPED


async def test_all_are_shut_down_at_the_same_time() -> None:
    barrier = asyncio.Barrier(3)

    class Meeting(Recorder):
        async def on_shutdown(self) -> None:
            await barrier.wait()

    group = Workers(*(Meeting() for _ in range(3)))
    await group.startup()
    for worker in group.workers():
        await worker.begun.wait()  # type: ignore[attr-defined]
    await group.shutdown()
    assert group.worker_state is WorkerState.STOPPED


async def test_no_task_and_no_error_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # what earlier tests left behind
    caplog.clear()
    group = Workers(Recorder(), Failing(ValueError("no")), QueueConsumerWorker(nothing))
    list(group.workers())[1].now.set()  # type: ignore[attr-defined]
    await group.startup()
    with pytest.raises(ValueError, match="no"):
        await group.wait_for_shutdown()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    del group
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_facade() -> None:
    from fluidfast.utils import worker

    assert worker.Workers is Workers
    assert set(worker.__all__) == {
        "AsyncConsumer",
        "QueueConsumer",
        "QueueConsumerWorker",
        "Worker",
        "WorkerFunction",
        "WorkerState",
        "Workers",
    }
