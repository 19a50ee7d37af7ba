"""``running_loop`` is ``asyncio.get_running_loop``, which is a system call before Python 3.12."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from fluidfast.brokers.base import TaskBroker
from fluidfast.produce.producer import Producer


@pytest.fixture
def outbox() -> Producer:
    return Producer(TaskBroker.from_url("memory://"))


def test_one_after_the_other(outbox: Producer) -> None:
    async def look(times: int) -> None:
        for i in range(times):
            if i:
                outbox._enter_loop()
            assert outbox.running_loop() is asyncio.get_running_loop()
            await asyncio.sleep(0)

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    for loop in (first, first, second, first, second, second):
        loop.run_until_complete(look(3))
        with pytest.raises(RuntimeError, match="no running event loop"):
            outbox.running_loop()
    first.close()
    second.close()
    for _ in range(50):  # what is gone may stand where a new one does
        asyncio.run(look(2))


def test_in_two_threads_at_a_time(outbox: Producer) -> None:
    turn = threading.Barrier(3)

    async def look(enters: bool) -> None:
        for _ in range(20):
            turn.wait(10)
            if enters:
                outbox._enter_loop()
            assert outbox.running_loop() is asyncio.get_running_loop()

    def none() -> None:
        for _ in range(20):
            turn.wait(10)
            with pytest.raises(RuntimeError, match="no running event loop"):
                outbox.running_loop()

    failed: list[BaseException] = []

    def noting(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as exc:
            failed.append(exc)
            turn.abort()

    calls: list[Callable[[], object]] = [lambda: asyncio.run(look(True)), lambda: asyncio.run(look(False)), none]
    threads = [threading.Thread(target=noting, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed


async def test_in_the_child_of_a_fork(outbox: Producer) -> None:
    """It has a copy of everything, but nothing of it runs there."""
    assert outbox._enter_loop() is outbox.running_loop() is outbox.running_loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        child = os.fork()
    if child == 0:
        try:
            outbox.running_loop()
        except RuntimeError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
    assert outbox.running_loop() is asyncio.get_running_loop()


def test_the_loop_of_what_is_gone_is_gone() -> None:
    """asyncio's own note of what runs holds the loop, and the collector does not see that: who held the note would be
    kept by a loop that leads back to it."""

    class App:
        def __init__(self) -> None:
            self.producer = Producer(TaskBroker.from_url("memory://"))

        def on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None: ...

        async def main(self) -> None:
            loop = self.producer._enter_loop()
            loop.set_exception_handler(self.on_error)
            for _ in range(3):
                assert self.producer.running_loop() is loop

    app = App()
    gone = weakref.ref(app)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(app.main())
    del app, runner
    gc.collect()
    assert gone() is None


async def test_asyncio_is_asked_no_more_than_it_has_to_be(outbox: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = outbox._enter_loop()
    outbox.running_loop()
    asked = []

    def ask() -> asyncio.AbstractEventLoop:
        asked.append(1)
        return loop

    monkeypatch.setattr("fluidfast.produce._outbox.get_running_loop", ask)
    for _ in range(5):
        assert outbox.running_loop() is loop
    assert len(asked) == (0 if sys.version_info < (3, 12) else 5)  # from then on it is as quick
