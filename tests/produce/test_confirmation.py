"""The future that ``queue()`` gives: against asyncio's own, with all that asyncio does to futures and coroutines, and
``queue`` itself as a method."""

from __future__ import annotations

import ast
import asyncio
import copy
import functools
import gc
import inspect
import pickle
import traceback
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.manager_kit import managing, take_runs

from fluidfast import TaskManager, TaskRun, task
from fluidfast.errors import ParamsError, UnknownTaskError
from fluidfast.manage import _front as front
from fluidfast.produce._outbox import Confirmation, call_all, settle_all

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
WHERE: ContextVar[object] = ContextVar("WHERE", default="nowhere")

Main = Callable[[], Coroutine[Any, Any, Any]]
Run = Callable[[Main], Any]


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """What was there before need not be looked at by each of many collections."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine function in a loop of either kind. What the loop is told of has to be in ``expected``."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        told = tell(runner.get_loop())

        def go(main: Main) -> Any:
            told.clear()
            result = runner.run(main())
            gc.collect()
            return result

        go.told = told  # type: ignore[attr-defined]
        go.expected = []  # type: ignore[attr-defined]
        yield go
        gc.collect()
        assert told == go.expected  # type: ignore[attr-defined]


def tell(loop: asyncio.AbstractEventLoop) -> list[str]:
    """What the loop's exception handler hears from now on."""
    told: list[str] = []

    def hear(_: object, about: dict[str, Any]) -> None:
        unheard = about["message"].endswith(" exception was never retrieved")
        told.append(f"{'unheard' if unheard else about['message'][:21]}: {about['exception']!r}")

    loop.set_exception_handler(hear)
    return told


@task
async def nothing(ctx: TaskRun) -> None: ...


@task
async def mail(ctx: TaskRun) -> None: ...


# --- against asyncio.Future -----------------------------------------------------------------------


class Wrong(Exception):
    pass


class Breaks(Exception):
    def __init__(self) -> None:
        raise ZeroDivisionError


FAILURES = (Wrong, Wrong("a"), asyncio.CancelledError("b"), KeyError, Breaks, StopIteration(5), StopIteration,
            GeneratorExit, int, 7, None)  # fmt: skip

callbacks = st.integers(0, 6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add_done_callback"), callbacks, st.none() | st.integers(0, 1)),
        st.tuples(st.just("remove_done_callback"), callbacks),
        st.tuples(st.just("cancel"), st.none() | st.just("enough")),
        st.tuples(st.just("set_result"), st.none() | st.integers(0, 2)),
        st.tuples(st.just("set_exception"), st.integers(0, len(FAILURES) - 1)),
        st.tuples(st.sampled_from(["done", "cancelled", "result", "exception", "get_loop", "__next__"])),
        st.tuples(st.just("go"), st.integers(0, 3)),
        st.tuples(st.just("turn")),
    ),
    max_size=25,
)


class Subject:
    """A future, and all that was seen of it. ``told``: what its event loop was told of."""

    def __init__(self, future: Any, told: list[str]) -> None:
        self.future = future
        self.told = told
        self.seen: list[object] = []
        self.contexts = [copy_context(), copy_context()]
        for i, context in enumerate(self.contexts):
            context.run(WHERE.set, i)
        self.callbacks = [functools.partial(self.called, i) for i in range(7)]

    def called(self, i: int, future: Any) -> None:
        self.seen.append((i, WHERE.get(), future is self.future, future.done(), future.cancelled()))
        if i == 3:
            raise Wrong("in a callback")
        if i == 4:
            future.add_done_callback(self.callbacks[0])
        elif i == 5:
            self.seen.append(future.remove_done_callback(self.callbacks[1]))
        elif i == 6:
            self.seen.append(future.cancel())

    def do(self, verb: str, *args: Any) -> None:
        if verb == "go":
            WHERE.set(args[0])
            return
        keywords = {}
        if verb in ("add_done_callback", "remove_done_callback"):
            if len(args) == 2 and args[1] is not None:
                keywords["context"] = self.contexts[args[1]]
            args = (self.callbacks[args[0]],)
        elif verb == "set_exception":
            args = (FAILURES[args[0]],)
            if isinstance(self.future, asyncio.Future) and not self.future.done():
                stop = args[0]() if args[0] is StopIteration else args[0]
                if isinstance(stop, StopIteration):  # refused before Python 3.12: who waits would wait for ever
                    args = (RuntimeError("StopIteration cannot be raised into a future"),)
                    args[0].__cause__ = stop
        target: Any = self.future
        if verb == "__next__":
            if not target.done():
                return  # what is yielded then belongs to a task
            target = iter(target)
        try:
            outcome = getattr(target, verb)(*args, **keywords)
        except BaseException as exc:
            value = exc.value if isinstance(exc, StopIteration) else None
            same = [i for i, failure in enumerate(FAILURES) if exc is failure]
            words = exc.args if isinstance(exc, (Wrong, asyncio.CancelledError)) else ()
            exc.__traceback__ = None  # it would keep the future
            cause = type(exc.__cause__) if type(exc) is RuntimeError else None
            outcome = ("raised", type(exc), words, value, same, cause)
        if verb == "get_loop":
            outcome = outcome is asyncio.get_running_loop()
        elif isinstance(outcome, BaseException):
            outcome = ("gave", type(outcome), [i for i, failure in enumerate(FAILURES) if outcome is failure])
        self.seen.append((verb, outcome))

    def leave(self) -> list[object]:
        """Everything that was seen; with it goes the future."""
        seen = [*self.seen]
        del self.future, self.callbacks, self.contexts
        gc.collect()  # what was raised in a callback is in a cycle
        return [*seen, self.told]


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
@settings(max_examples=100, deadline=None)
@given(steps=steps)
def test_against_asyncios_own(loop_factory: Callable[[], asyncio.AbstractEventLoop], steps: list[Any]) -> None:
    def lived(make: Callable[[asyncio.AbstractEventLoop], Any]) -> list[object]:
        async def live() -> list[object]:
            loop = asyncio.get_running_loop()
            told = tell(loop)
            subject = Subject(make(loop), told)
            for verb, *args in (*steps, ("turn",), ("turn",), ("turn",)):
                if verb == "turn":
                    await asyncio.sleep(0)
                    subject.seen.append("turn")
                else:
                    subject.do(verb, *args)
            return subject.leave()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(live())

    assert lived(lambda loop: Confirmation(None, loop=loop)) == lived(lambda loop: loop.create_future())


# --- with all of asyncio --------------------------------------------------------------------------


def made(value: object = None) -> Confirmation[Any]:
    return Confirmation(value, loop=asyncio.get_running_loop())


def soon(*futures: Confirmation[Any], failure: Exception | None = None) -> None:
    """Confirmed, or refused, all of them together in the next turn of the loop."""
    asyncio.get_running_loop().call_soon(settle_all, list(futures), failure)


async def awaited(future: Awaitable[Any]) -> Any:
    return await future


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


WAYS: dict[str, Callable[[Confirmation[Any]], Awaitable[Any]]] = {
    "await": awaited,
    "a task of it": lambda future: asyncio.create_task(future),  # type: ignore[arg-type]
    "a task that awaits it": lambda future: asyncio.create_task(awaited(future)),
    "ensure_future": lambda future: asyncio.ensure_future(future),
    "wrap_future": lambda future: asyncio.wrap_future(future),  # type: ignore[arg-type]
    "shield": lambda future: asyncio.shield(future),
    "wait_for": lambda future: asyncio.wait_for(future, 60),
    "wait_for for ever": lambda future: asyncio.wait_for(future, None),
    "as_completed": lambda future: next(iter(asyncio.as_completed([future]))),
}


@pytest.mark.parametrize("way", WAYS)
class TestEveryWayOfWaiting:
    @pytest.mark.parametrize("value", [None, 7, (1, 2), ValueError("no failure"), StopIteration(3)], ids=repr)
    def test_gives_the_value(self, run: Run, way: str, value: object) -> None:
        async def main() -> None:
            early, late = made(value), made(value)
            settle_all([early], None)
            soon(late)
            assert await WAYS[way](early) is value
            assert await WAYS[way](late) is value
            assert await late is value  # again

        run(main)

    def test_raises_what_it_was_refused_with(self, run: Run, way: str) -> None:
        async def main() -> None:
            early, late, failure = made(), made(), Wrong("refused")
            settle_all([early], failure)
            soon(late, failure=failure)
            for future in (early, late, late):
                with pytest.raises(Wrong) as caught:
                    await WAYS[way](future)
                assert caught.value is failure

        run(main)

    def test_is_cancelled_where_it_is_awaited(self, run: Run, way: str) -> None:
        async def main() -> None:
            future = made()
            waiting = asyncio.create_task(awaited(WAYS[way](future)))
            await turns()
            assert not waiting.done()
            assert future.cancel("enough")
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await future

        run(main)

    def test_cancelled_from_outside_nothing_is_left_waiting(self, run: Run, way: str) -> None:
        async def main() -> None:
            future = made()
            waiting = asyncio.create_task(awaited(WAYS[way](future)))
            await turns()
            waiting.cancel("from outside")
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await turns()
            assert future.cancelled() is (way not in ("shield", "as_completed"))
            soon(future)  # what is cancelled stays so, and does not mind
            await turns()

        run(main)


class TestManyTogether:
    def test_gather(self, run: Run) -> None:
        async def main() -> None:
            futures = [made(i) for i in range(1000)]
            soon(*futures)
            assert await asyncio.gather(*futures) == list(range(1000))
            assert await asyncio.gather(*futures[:2], awaited(futures[2]), futures[0]) == [0, 1, 2, 0]

        run(main)

    def test_gather_raises_the_first_failure(self, run: Run) -> None:
        async def main() -> None:
            futures = [made(i) for i in range(5)]
            soon(*futures[:2])
            soon(*futures[2:], failure=Wrong("refused"))
            with pytest.raises(Wrong, match="refused"):
                await asyncio.gather(*futures)
            await turns()

        run(main)

    def test_gather_returns_exceptions(self, run: Run) -> None:
        async def main() -> None:
            futures, failure = [made(i) for i in range(4)], Wrong("refused")
            soon(*futures[:2])
            soon(futures[2], failure=failure)
            futures[3].cancel()
            found = await asyncio.gather(*futures, return_exceptions=True)
            assert found[:3] == [0, 1, failure]
            assert isinstance(found[3], asyncio.CancelledError)

        run(main)

    def test_gather_that_is_cancelled_cancels_each(self, run: Run) -> None:
        async def main() -> None:
            futures = [made(i) for i in range(3)]
            gathered = asyncio.gather(*futures)
            await turns()
            gathered.cancel("enough")
            with pytest.raises(asyncio.CancelledError):
                await gathered
            assert all(future.cancelled() for future in futures)

        run(main)

    def test_wait_takes_it_no_more_than_a_coroutine(self, run: Run) -> None:
        """What ``create_task`` takes, ``wait`` refuses: it asks for the tasks."""

        async def main() -> None:
            future = made(1)
            with pytest.raises(TypeError, match="coroutines is forbidden"):
                await asyncio.wait([future])  # type: ignore[type-var]
            waiting = asyncio.create_task(awaited(future))
            _, pending = await asyncio.wait([waiting], timeout=0)
            assert pending == {waiting}
            soon(future)
            done, _ = await asyncio.wait([waiting])
            assert done == {waiting}

        run(main)

    def test_as_completed(self, run: Run) -> None:
        async def main() -> None:
            futures = [made(i) for i in range(3)]
            for future in (futures[1], futures[2], futures[0]):
                soon(future)
            assert [await each for each in asyncio.as_completed(futures)] == [1, 2, 0]

        run(main)

    def test_task_group(self, run: Run) -> None:
        async def main() -> None:
            first, second, third = made(1), made(2), made(3)
            soon(first, second)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(future) for future in (first, second)]  # type: ignore[arg-type]
            assert [each.result() for each in tasks] == [1, 2]
            failing = made()
            soon(failing, failure=Wrong("refused"))

            async def both() -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(third)  # type: ignore[arg-type]
                    group.create_task(failing)  # type: ignore[arg-type]

            with pytest.raises(ExceptionGroup) as caught:
                await both()
            assert [str(exc) for exc in caught.value.exceptions] == ["refused"]
            assert third.cancelled()

        run(main)

    def test_several_awaiters_of_one_come_in_their_order(self, run: Run) -> None:
        async def main() -> None:
            future, order = made(), []

            async def wait(i: int) -> None:
                await future
                order.append(i)

            waiting = [asyncio.create_task(wait(i)) for i in range(5)]
            await turns()
            soon(future)
            await asyncio.gather(*waiting)
            assert order == [0, 1, 2, 3, 4]

        run(main)

    def test_one_awaiter_that_goes_takes_it_from_nobody(self, run: Run) -> None:
        async def main() -> None:
            future = made(7)
            waiting = asyncio.create_task(awaited(asyncio.shield(future)))
            await turns()
            left = awaited(future)
            left.send(None)
            future._asyncio_future_blocking = False  # as a task does with what it got
            left.close()
            soon(future)
            assert await waiting == 7

        run(main)


class TestInTime:
    def test_wait_for_gives_up(self, run: Run) -> None:
        async def main() -> None:
            future = made()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(future, 0.001)
            assert future.cancelled()
            kept = made()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(kept), 0.001)
            assert not kept.done()

        run(main)

    def test_timeout(self, run: Run) -> None:
        async def main() -> None:
            future = made()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await future
            assert future.cancelled()
            in_time = made(1)
            soon(in_time)
            async with asyncio.timeout(60):
                assert await in_time == 1

        run(main)

    def test_a_task_cancelled_when_it_is_done_but_not_woken(self, run: Run) -> None:
        async def main() -> None:
            future = made(1)
            waiting = asyncio.create_task(awaited(future))
            await turns()
            settle_all([future], None)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert future.result() == 1

        run(main)


class TestLoops:
    def test_run_takes_it_when_it_is_done(self) -> None:
        with asyncio.Runner() as runner:
            future: Confirmation[int] = Confirmation(7, loop=runner.get_loop())
            future.set_result(7)
            assert asyncio.run(future) == 7  # type: ignore[arg-type]

    def test_run_until_complete(self) -> None:
        for make in LOOPS.values():
            loop = make()
            future: Confirmation[int] = Confirmation(7, loop=loop)
            loop.call_soon(settle_all, [future], None)
            assert loop.run_until_complete(future) == 7
            failing: Confirmation[int] = Confirmation(loop=loop)
            loop.call_soon(settle_all, [failing], Wrong("refused"))
            with pytest.raises(Wrong, match="refused"):
                loop.run_until_complete(failing)
            loop.close()

    def test_another_loop_refuses_it(self, run: Run) -> None:
        other = asyncio.new_event_loop()
        future: Confirmation[int] = Confirmation(loop=other)

        async def main() -> None:
            for way in ("await", "a task of it", "a task that awaits it"):
                future._asyncio_future_blocking = False
                with pytest.raises(RuntimeError, match="attached to a different loop"):
                    await asyncio.create_task(awaited(WAYS[way](future)))
            with pytest.raises(ValueError, match="different loop"):
                await asyncio.gather(future, loop_future := asyncio.get_running_loop().create_future())
            loop_future.cancel()
            with pytest.raises(ValueError, match="different loop"):
                await asyncio.ensure_future(future, loop=asyncio.get_running_loop())

        run(main)
        other.close()

    def test_without_a_loop_there_is_none(self, run: Run) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            Confirmation(1)

        async def main() -> None:
            assert Confirmation(1).get_loop() is asyncio.get_running_loop()
            called: list[int] = []
            futures = [Confirmation(i) for i in range(2)]
            for future in futures * 2:
                future.add_done_callback(lambda f: called.append(f.result()))
            settle_all(futures, None)
            await turns(1)
            assert called == [0, 0, 1, 1]

        run(main)

    def test_threadsafe(self, run: Run) -> None:
        async def main() -> None:
            loop, future = asyncio.get_running_loop(), made(7)
            found: list[Any] = []

            def elsewhere() -> None:
                waiting = asyncio.run_coroutine_threadsafe(future, loop)  # type: ignore[arg-type]
                loop.call_soon_threadsafe(settle_all, [future], None)
                found.append(waiting.result(60))

            await loop.run_in_executor(None, elsewhere)
            assert found == [7]

        run(main)

    def test_eager_tasks(self) -> None:
        async def main() -> None:
            factory = getattr(asyncio, "eager_task_factory", None)  # Python 3.12; without it tasks are as ever
            asyncio.get_running_loop().set_task_factory(factory)
            early, late = made(1), made(2)
            settle_all([early], None)
            direct: list[Any] = [asyncio.create_task(future) for future in (early, late)]  # type: ignore[arg-type]
            through = [asyncio.create_task(awaited(future)) for future in (early, late)]
            assert [each.done() for each in direct + through] == [factory is not None, False] * 2
            soon(late)
            assert await asyncio.gather(*direct, *through) == [1, 2, 1, 2]

        asyncio.run(main())  # uvloop has no eager tasks

    def test_debug_mode(self, run: Run) -> None:
        async def main() -> None:
            asyncio.get_running_loop().set_debug(True)
            asyncio.get_running_loop().slow_callback_duration = 60
            futures = [made(i) for i in range(3)]
            soon(*futures)
            assert await asyncio.gather(*map(awaited, futures)) == [0, 1, 2]

        run(main)


class TestCallbacks:
    def test_one_that_raises_costs_nobody_else(self, run: Run) -> None:
        run.expected.append("Exception in callback: Wrong('in a callback')")  # type: ignore[attr-defined]

        async def main() -> None:
            futures = [made(i) for i in range(4)]
            called: list[int] = []

            def raising(future: Any) -> None:
                raise Wrong("in a callback")

            futures[0].add_done_callback(lambda f: called.append(f.result()))
            futures[1].add_done_callback(raising)
            for future in futures[1:]:
                future.add_done_callback(lambda f: called.append(f.result()))
            settle_all(futures, None)
            await turns(1)
            assert called == [0, 1, 2, 3]

        run(main)

    @pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
    def test_one_that_ends_the_process_loses_none(
        self, make: Callable[[], asyncio.AbstractEventLoop], end: type[BaseException]
    ) -> None:
        loop = make()
        told = tell(loop)
        futures: list[Confirmation[int]] = [Confirmation(i, loop=loop) for i in range(4)]
        called: list[int] = []

        def ending(future: Any) -> None:
            raise end

        futures[0].add_done_callback(lambda f: called.append(f.result()))
        futures[1].add_done_callback(ending)
        futures[1].add_done_callback(lambda f: called.append(f.result()))
        futures[2].add_done_callback(ending)
        for future in futures[2:]:
            future.add_done_callback(lambda f: called.append(f.result()))
        settle_all(futures, None)
        forever = loop.create_future()
        with pytest.raises(end):
            loop.run_until_complete(forever)
        while len(called) < 4:
            try:
                loop.run_until_complete(asyncio.sleep(0))
            except end:  # the second one, which uvloop raises together with the first
                continue
        assert called == [0, 1, 2, 3]
        loop.close()
        assert told == []

    def test_a_context_that_cannot_be_entered_costs_nobody_else(self, run: Run) -> None:
        run.expected.append("Exception in callback: TypeError('an instance of Context was expected')")  # type: ignore[attr-defined]

        async def main() -> None:
            futures = [made(i) for i in range(3)]
            called: list[int] = []
            futures[0].add_done_callback(print, context=7)  # type: ignore[arg-type]
            for future in futures:
                future.add_done_callback(lambda f: called.append(f.result()))
            settle_all(futures, None)
            await turns(2)
            assert called == [0, 1, 2]

        run(main)

    def test_a_task_goes_on_in_its_own_context(self, run: Run) -> None:
        async def main() -> None:
            futures = [made() for _ in range(3)]

            async def wait(i: int) -> object:
                WHERE.set(i)
                await futures[i]
                found = WHERE.get()
                WHERE.set("left behind")
                return found

            waiting = [asyncio.create_task(wait(i)) for i in range(3)]
            await turns()
            WHERE.set("who confirms")
            soon(*futures)
            assert await asyncio.gather(*waiting) == [0, 1, 2]
            assert WHERE.get() == "who confirms"

        run(main)

    def test_one_that_cancels_and_adds_within_a_batch(self, run: Run) -> None:
        async def main() -> None:
            first, second, called = made(1), made(2), []

            def meddle(future: Confirmation[int]) -> None:
                called.append("meddled")
                assert not second.cancel()
                second.add_done_callback(lambda f: called.append(f.result()))
                first.add_done_callback(lambda f: called.append(f.result()))

            first.add_done_callback(meddle)
            second.add_done_callback(lambda f: called.append("second"))
            settle_all([first, second], None)
            await turns(2)
            assert called == ["meddled", "second", 2, 1]

        run(main)


class TestFailures:
    @pytest.mark.parametrize("ask", ["", "result", "exception", "cancel", "await"])
    def test_one_that_nobody_asked_for_is_told_once(self, run: Run, ask: str) -> None:
        if not ask:
            run.expected.append("unheard: Wrong('refused')")  # type: ignore[attr-defined]

        async def main() -> None:
            future = made()
            soon(future, failure=Wrong("refused"))
            await turns()
            if ask == "await":
                with pytest.raises(Wrong):
                    await future
            elif ask == "result":
                with pytest.raises(Wrong):
                    future.result()
            elif ask:
                getattr(future, ask)()

        run(main)

    def test_raised_in_a_thousand_its_traceback_stays_short(self, run: Run) -> None:
        failure = Wrong("refused")

        async def main() -> None:
            lengths = set()

            async def wait(future: Confirmation[Any]) -> None:
                try:
                    await future
                except Wrong as exc:
                    lengths.add(len(traceback.extract_tb(exc.__traceback__)))

            futures = [made() for _ in range(1000)]
            soon(*futures, failure=failure)
            await asyncio.gather(*map(wait, futures))
            assert len(lengths) == 1
            assert lengths.pop() < 6
            for _ in range(100):
                with pytest.raises(Wrong):
                    futures[0].result()
            assert len(traceback.extract_tb(failure.__traceback__)) < 6

        run(main)

    def test_stop_iteration_is_not_a_value(self, run: Run) -> None:
        async def main() -> None:
            future, batch = made(1), made(2)
            future.set_exception(StopIteration(3))
            settle_all([batch], StopIteration(3))
            for each in (future, batch):
                with pytest.raises(RuntimeError, match="StopIteration cannot be raised") as caught:
                    await each
                assert isinstance(caught.value.__cause__, StopIteration)

        run(main)

    @pytest.mark.parametrize("wrong", [int, 7, None, "refused"])
    def test_what_is_no_exception_changes_nothing(self, run: Run, wrong: Any) -> None:
        async def main() -> None:
            future = made(1)
            with pytest.raises(TypeError, match="is no exception"):
                future.set_exception(wrong)
            assert not future.done()
            if wrong is not None:
                with pytest.raises(AttributeError):
                    settle_all([future], wrong)
                assert not future.done()

        run(main)

    @pytest.mark.parametrize("wrong", [None, 7])
    def test_what_is_no_confirmation_is_refused(self, wrong: Any) -> None:
        for function in (settle_all, call_all):
            with pytest.raises((TypeError, AttributeError)):
                function([wrong], *[None] * (function is settle_all))


class TestAsAnObject:
    def test_what_asyncio_takes_it_for(self, run: Run) -> None:
        async def main() -> None:
            future = made(1)
            assert asyncio.isfuture(future)
            assert asyncio.iscoroutine(future)
            assert inspect.isawaitable(future)
            assert isinstance(future, Awaitable)
            assert isinstance(future, Coroutine)
            assert hash(future) == hash(future)
            assert future == future
            assert future != made(1)

        run(main)

    def test_shown(self, run: Run) -> None:
        async def main() -> None:
            future = made(1)
            waiting = asyncio.create_task(awaited(future))
            direct: asyncio.Task[Any] = asyncio.create_task(future)  # type: ignore[arg-type]
            await turns()
            assert repr(future) == "<Confirmation pending>"
            assert "wait_for=<Confirmation pending>" in repr(waiting)
            assert "Confirmation" in repr(direct)
            assert direct.get_stack() == []
            soon(future)
            await asyncio.gather(waiting, direct)
            assert repr(future) == "<Confirmation finished result=1>"
            cancelled, failing = made(), made()
            cancelled.cancel()
            settle_all([failing], Wrong("refused"))
            assert repr(cancelled) == "<Confirmation cancelled>"
            assert repr(failing) == "<Confirmation finished exception=Wrong('refused')>"
            failing.exception()

        run(main)

    def test_goes_when_nobody_holds_it(self, run: Run) -> None:
        async def main() -> None:
            gc.disable()
            try:
                future = made()
                gone = weakref.ref(future)
                del future
                assert gone() is None
            finally:
                gc.enable()
            cycle = made()
            cycle.add_done_callback(functools.partial(print, cycle))
            cycle.add_done_callback(functools.partial(print, cycle))
            gone = weakref.ref(cycle)
            holder: list[Any] = []
            holder.append(made(holder))
            failing = made()
            failure = Wrong(failing)
            settle_all([failing], failure)
            failing.exception()
            all_gone = [gone, weakref.ref(holder[0]), weakref.ref(failing)]
            del cycle, holder, failing, failure
            gc.collect()
            assert [each() for each in all_gone] == [None] * 3

        run(main)

    def test_is_neither_copied_nor_pickled(self, run: Run) -> None:
        async def main() -> None:
            for copied in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="pickle"):
                    copied(made())  # type: ignore[operator]

        run(main)

    def test_driven_by_hand(self, run: Run) -> None:
        async def main() -> None:
            future = made(7)
            assert future.send(None) is future
            with pytest.raises(RuntimeError, match="await wasn't used with future"):
                future.send(None)
            for thrown in ((Wrong,), (Wrong, "a"), (Wrong, Wrong("a")), (Wrong("a"), None, None)):
                with pytest.raises(Wrong):
                    future.throw(*thrown)
            for no_exception in (7, int):
                with pytest.raises(TypeError):
                    future.throw(no_exception)
            future.close()
            assert not future.done()
            settle_all([future], None)
            with pytest.raises(StopIteration) as caught:
                future.send(None)
            assert caught.value.value == 7

        run(main)


# --- queue() --------------------------------------------------------------------------------------


class TestQueue:
    def test_it_has_the_signature_that_its_stub_says(self) -> None:
        stub = ast.parse((Path(inspect.getfile(TaskManager)).parent / "_front.pyi").read_text())
        [function] = [
            node for node in ast.walk(stub) if isinstance(node, ast.FunctionDef) and node.name == "queue"
        ]  # fmt: skip
        function.returns, function.decorator_list = None, []
        for argument in [*function.args.args, *function.args.kwonlyargs, function.args.kwarg]:
            assert argument is not None
            argument.annotation = None
        names: dict[str, Any] = {}
        exec(ast.unparse(function), names)
        assert inspect.signature(TaskManager.queue) == inspect.signature(names["queue"])
        assert inspect.signature(TaskManager.queue) == inspect.signature(front.QueueFront.queue)
        assert "BrokerFullError" in (inspect.getdoc(TaskManager.queue) or "")

    async def test_it_is_taken_for_a_coroutine_function(self) -> None:
        async with managing("memory://", nothing) as manager:
            for function in (TaskManager.queue, manager.queue):
                assert asyncio.coroutines.iscoroutinefunction(function)
            if hasattr(inspect, "markcoroutinefunction"):
                for function in (TaskManager.queue, manager.queue, functools.partial(manager.queue, "nothing")):
                    assert inspect.iscoroutinefunction(function)

    async def test_it_can_be_wrapped_and_overridden(self, redis_url: str) -> None:
        class Counting(TaskManager):
            calls = 0

            async def queue(self, *args: Any, **kwargs: Any) -> TaskRun[Any, Any]:  # type: ignore[override]
                self.calls += 1
                return await super().queue(*args, **kwargs)

        @functools.wraps(TaskManager.queue)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return TaskManager.queue(*args, **kwargs)

        assert inspect.signature(wrapped) == inspect.signature(TaskManager.queue)
        for url in ("memory://", redis_url):
            manager = Counting(broker_url=url)
            manager.register_task(nothing)
            async with manager:
                assert (await manager.queue("nothing")).name == "nothing"
                assert (await wrapped(manager, "nothing")).name == "nothing"
                assert manager.calls == 1
                assert len(await take_runs(manager)) == 2
                await manager.broker.clear()

    async def test_mocks_know_what_it_is(self) -> None:
        async with managing("memory://", nothing) as manager:
            for mocked in (
                mock.create_autospec(TaskManager, instance=True).queue,
                mock.create_autospec(manager).queue,
                mock.MagicMock(spec=TaskManager).queue,
            ):
                mocked.return_value = 7
                assert await mocked("nothing", run_id="x", a=1) == 7
                mocked.assert_awaited_once_with("nothing", run_id="x", a=1)
            with mock.patch.object(TaskManager, "queue", autospec=True) as patched:
                patched.return_value = 8
                assert await manager.queue("nothing") == 8
            assert (await manager.queue("nothing")).name == "nothing"

    async def test_params_called_like_our_own(self, redis_url: str) -> None:
        given = {"task": 1, "priority": 2, "run_id": 3, "params": 4, "from_task_run": 5, "self": 6, "kwargs": 7}
        for url in ("memory://", redis_url):
            async with managing(url, nothing) as manager:
                await manager.queue("nothing", "low", run_id="x", params=given)
                await manager.queue("nothing", kwargs=7, value=8, loop=9)
                runs = {run.id: run for run in await take_runs(manager)}
                first = runs.pop("x")
                [second] = runs.values()
                assert (dict(first.params), first.priority) == (given, "low")
                assert dict(second.params) == {"kwargs": 7, "value": 8, "loop": 9}

    async def test_what_is_wrong_is_raised_when_it_is_awaited(self, redis_url: str) -> None:
        @task
        async def strict(ctx: TaskRun) -> None: ...

        for url in ("memory://", redis_url):
            async with managing(url, nothing) as manager:
                for error, args, kwargs in (
                    (UnknownTaskError, ("no such",), {}),
                    (ValueError, ("nothing", "no priority"), {}),
                    (ParamsError, ("nothing",), {"params": [1]}),
                    (TypeError, ("nothing",), {"params": 7, "a": 1}),
                ):
                    waiting = manager.queue(*args, **kwargs)
                    with pytest.raises(error):
                        await waiting
                with pytest.raises(TypeError):
                    manager.queue()  # type: ignore[call-arg]
                assert await take_runs(manager) == []

    def test_asyncio_run(self, redis_url: str) -> None:
        for url in ("memory://", redis_url):
            manager = TaskManager(broker_url=url)
            manager.register_task(nothing)
            with asyncio.Runner() as runner:  # as asyncio.run does, and then there is something to be shut down
                assert runner.run(manager.queue("nothing", run_id="x")).id == "x"
                assert [run.id for run in runner.run(take_runs(manager))] == ["x"]
                runner.run(manager.broker.clear())
                runner.run(manager.on_shutdown())

    async def test_every_way_of_waiting(self, redis_url: str) -> None:
        async with managing(redis_url, nothing) as manager:
            for way, wait in WAYS.items():
                assert (await wait(manager.queue("nothing", run_id=way))).id == way  # type: ignore[arg-type]
            async with asyncio.TaskGroup() as group:
                group.create_task(manager.queue("nothing", run_id="task group"))
            assert sorted(run.id for run in await take_runs(manager)) == sorted([*WAYS, "task group"])
