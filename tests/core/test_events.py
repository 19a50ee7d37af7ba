import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from fluidfast import TaskConsumer, TaskRun, task
from fluidfast.core.events import AsyncDispatcher, AsyncTaskDispatcher, Dispatcher, Event, TaskDispatcher
from fluidfast.core.states import STATES, TaskState


@dataclass
class Run:
    """As much of a TaskRun as a dispatcher looks at."""

    state: TaskState
    id: str = "run-1"


class Words(Dispatcher[str]):
    def event_type(self, message: str) -> str:
        return message.split()[0]


class AsyncWords(AsyncDispatcher[str]):
    def event_type(self, message: str) -> str:
        return message.split()[0]


def bits(dispatcher: TaskDispatcher) -> set[str]:
    return {state for number, state in enumerate(STATES) if dispatcher.listeners.mask >> number & 1}


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("success", Event("success")),
        ("success.mytag", Event("success", "mytag")),
        ("success.my.tag", Event("success", "my.tag")),
        (TaskState.failure, Event("failure", "")),
    ],
)
def test_event(text: str, event: Event) -> None:
    assert Event.from_string(text) == event
    assert Event.from_string_or_event(text) == event
    assert Event.from_string_or_event(event) is event


def test_register_returns_the_previous_handler() -> None:
    dispatcher = Words()
    first: list[str] = []
    second: list[str] = []
    assert dispatcher.register_handler("go", first.append) is None
    assert dispatcher.register_handler(Event("go", "b"), second.append) is None
    handlers = dispatcher.get_handlers("go home")
    assert handlers is not None
    assert list(handlers) == ["", "b"]
    assert dispatcher.dispatch("go home") == 2
    assert dispatcher.dispatch("stay here") == 0
    replaced = dispatcher.register_handler("go", second.append)
    assert replaced == first.append
    assert dispatcher.dispatch("go") == 2
    assert (first, second) == (["go home"], ["go home", "go", "go"])


def test_unregister_returns_the_handler() -> None:
    dispatcher = Words()
    seen: list[str] = []
    assert dispatcher.unregister_handler("go") is None
    dispatcher.register_handler("go", seen.append)
    assert dispatcher.unregister_handler("go.other") is None
    assert dispatcher.unregister_handler("go") == seen.append
    assert dispatcher.get_handlers("go") is None
    assert dispatcher.dispatch("go") == 0


def test_handlers_may_come_and_go_during_dispatch() -> None:
    dispatcher = Words()
    seen: list[str] = []

    def late(message: str) -> None:
        seen.append("late")

    def early(message: str) -> None:
        seen.append("early")
        dispatcher.register_handler("go.late", late)
        dispatcher.unregister_handler("go.gone")

    dispatcher.register_handler("go.early", early)
    dispatcher.register_handler("go.gone", lambda message: seen.append("gone"))
    assert dispatcher.dispatch("go") == 2
    assert seen == ["early", "gone"]
    seen.clear()
    assert dispatcher.dispatch("go") == 2
    assert seen == ["early", "late"]


def test_errors_of_the_plain_dispatcher_are_passed_on() -> None:
    dispatcher = Words()

    def fail(message: str) -> None:
        raise KeyError(message)

    dispatcher.register_handler("go", fail)
    with pytest.raises(KeyError):
        dispatcher.dispatch("go")


async def test_async_handlers_run_at_the_same_time() -> None:
    dispatcher = AsyncWords()
    barrier = asyncio.Barrier(3)

    async def meet(message: str) -> None:
        await barrier.wait()

    for tag in "abc":
        dispatcher.register_handler(f"go.{tag}", meet)
    async with asyncio.timeout(5):
        assert await dispatcher.dispatch("go") == 3
    assert await dispatcher.dispatch("stay") == 0


async def test_async_errors_are_passed_on_when_all_are_done(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = AsyncWords()
    done: list[str] = []

    async def slow(message: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        done.append(message)

    def fail(error: Exception) -> Callable[[str], Any]:
        async def handler(message: str) -> None:
            raise error

        return handler

    dispatcher.register_handler("go.a", fail(KeyError("a")))
    with pytest.raises(KeyError, match="a"):
        await dispatcher.dispatch("go")
    dispatcher.register_handler("go.b", fail(ValueError("b")))
    dispatcher.register_handler("go.c", slow)
    with pytest.raises(KeyError, match="a"):
        await dispatcher.dispatch("go")
    assert done == ["go"]
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


async def test_cancelling_dispatch_cancels_the_handlers() -> None:
    dispatcher = AsyncWords()
    barrier = asyncio.Barrier(3)
    cancelled: list[str] = []

    async def hang(message: str) -> None:
        try:
            await barrier.wait()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(message)
            raise

    dispatcher.register_handler("go.a", hang)
    dispatcher.register_handler("go.b", hang)
    task = asyncio.create_task(dispatcher.dispatch("go"))
    await barrier.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == ["go", "go"]


# of task runs


def test_listeners_follow_the_registrations() -> None:
    dispatcher = TaskDispatcher()
    assert dispatcher.listeners.mask == 0
    for number, state in enumerate(STATES):
        dispatcher.register_handler(f"{state}.a", print)
        assert dispatcher.listeners.mask == 1 << number
        dispatcher.register_handler(Event(state, "b"), print)
        dispatcher.unregister_handler(f"{state}.a")
        assert bits(dispatcher) == {state}
        dispatcher.unregister_handler(f"{state}.a")
        assert bits(dispatcher) == {state}
        dispatcher.unregister_handler(Event(state, "b"))
        assert dispatcher.listeners.mask == 0
    dispatcher.register_handler("no-state", print)
    assert dispatcher.listeners.mask == 0
    dispatcher.register_handler("success", print)
    dispatcher.register_handler("queued", print)
    assert bits(dispatcher) == {"success", "queued"}
    assert dispatcher.unregister_handler("no-state") is print


@pytest.mark.parametrize("make", [TaskDispatcher, AsyncTaskDispatcher])
def test_queue_is_another_name_of_init(make: Callable[[], Any]) -> None:
    dispatcher = make()
    assert dispatcher.register_handler("queue.a", print) is None
    assert list(dispatcher.get_handlers(Run(TaskState.init)).values()) == [print]
    assert dispatcher.get_handlers(Run(TaskState.queued)) is None
    assert dispatcher.register_handler("init.a", len) is None  # a place of its own
    assert list(dispatcher.get_handlers(Run(TaskState.init)).values()) == [print, len]
    assert dispatcher.register_handler("queue.a", max) is print
    assert dispatcher.unregister_handler(Event("queue", "a")) is max
    assert dispatcher.get_handlers(Run(TaskState.init)) == {"a": len}
    assert dispatcher.unregister_handler("queue.a") is None
    assert dispatcher.unregister_handler("init.a") is len
    assert dispatcher.get_handlers(Run(TaskState.init)) is None


@pytest.mark.parametrize("broker_url", ["memory://both-names"])
async def test_handlers_of_init_and_of_queue_are_all_called(broker_url: str) -> None:
    @task
    async def work(ctx: TaskRun) -> None: ...

    told: list[str] = []

    def noting(word: str) -> Callable[[TaskRun], Awaitable[None]]:
        async def note(run: TaskRun) -> None:
            told.append(word)

        return note

    consumer = TaskConsumer(broker_url=broker_url, consume_tasks=False)
    for name in ("init", "queue", "init.more", "queue.more"):
        consumer.dispatcher.register_handler(name, lambda run, name=name: told.append(name))
        consumer.register_async_handler(name, noting(f"async {name}"))
    await consumer.startup()
    await consumer.queue(work)
    await consumer.shutdown()
    assert sorted(told) == sorted(
        f"{kind}{name}" for kind in ("", "async ") for name in ("init", "queue", "init.more", "queue.more")
    )
    assert consumer.unregister_async_handler("queue") is not None
    assert consumer.unregister_async_handler("queue") is None
    assert consumer.unregister_async_handler("init") is not None


def test_queue_counts_as_init() -> None:
    dispatcher = TaskDispatcher()
    dispatcher.register_handler("queue", print)
    assert bits(dispatcher) == {"init"}


def test_task_dispatch_passes_the_run_as_it_is() -> None:
    dispatcher: Any = TaskDispatcher()
    seen: list[Run] = []
    run = Run(TaskState.success)
    dispatcher.register_handler("success", seen.append)
    assert dispatcher.dispatch(run) == 1
    assert seen[0] is run
    assert dispatcher.dispatch(Run(TaskState.failure)) == 0


def test_a_failing_handler_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher: Any = TaskDispatcher()
    seen: list[Run] = []

    def fail(run: Run) -> None:
        raise ValueError("no")

    dispatcher.register_handler("success.bad", fail)
    dispatcher.register_handler("success.good", seen.append)
    assert dispatcher.dispatch(Run(TaskState.success)) == 2
    assert len(seen) == 1
    check_log(caplog)


def check_log(caplog: pytest.LogCaptureFixture) -> None:
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    for text in ("success", "bad", "run-1"):
        assert text in record.getMessage()


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_failing_async_handler_is_logged(
    caplog: pytest.LogCaptureFixture, others: int, error: type[BaseException]
) -> None:
    dispatcher: Any = AsyncTaskDispatcher()
    seen: list[Run] = []

    async def fail(run: Run) -> None:
        raise error("no")

    async def note(run: Run) -> None:
        seen.append(run)

    dispatcher.register_handler("success.bad", fail)
    for number in range(others):
        dispatcher.register_handler(f"success.{number}", note)
    assert await dispatcher.dispatch(Run(TaskState.success)) == 1 + others
    assert len(seen) == others
    check_log(caplog)


@pytest.mark.parametrize("tags", ["a", "ab"])
async def test_cancelling_task_dispatch_is_no_failure(caplog: pytest.LogCaptureFixture, tags: str) -> None:
    dispatcher: Any = AsyncTaskDispatcher()
    barrier = asyncio.Barrier(1 + len(tags))

    async def hang(run: Run) -> None:
        await barrier.wait()
        await asyncio.Event().wait()

    for tag in tags:
        dispatcher.register_handler(f"success.{tag}", hang)
    task = asyncio.create_task(dispatcher.dispatch(Run(TaskState.success)))
    await barrier.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.records == []


async def test_a_plain_function_among_the_async_handlers_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher: Any = AsyncTaskDispatcher()
    dispatcher.register_handler("success.bad", lambda run: None)
    assert await dispatcher.dispatch(Run(TaskState.success)) == 1
    check_log(caplog)


def test_facade() -> None:
    from fluidfast.utils import dispatcher

    assert dispatcher.Dispatcher is Dispatcher
    assert sorted(dispatcher.__all__) == ["AsyncDispatcher", "BaseDispatcher", "Dispatcher", "Event"]
