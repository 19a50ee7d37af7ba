"""The futures that ``queue()`` gives, beside those of the running event loop.

pytest bench/micro/test_bench_outbox.py --benchmark-only -o addopts=

A round is for OPS futures of one batch, so divide its time by that. asyncio's are confirmed one by one, as there is no
other way; each then has a handle of its own in the event loop.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from fluidfast.produce._outbox import Confirmation, settle_all

OPS = 1_000
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Make = Callable[[asyncio.AbstractEventLoop], Any]
Settle = Callable[[list[Any], None], object]


def confirmations(loop: asyncio.AbstractEventLoop) -> Confirmation[None]:
    return Confirmation(None, loop=loop)


def futures(loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    return loop.create_future()


def settle_each(waiters: list[asyncio.Future[None]], failure: None) -> None:
    for waiter in waiters:
        waiter.set_result(None)


KINDS: dict[str, tuple[Make, Settle]] = {
    "fluidfast Confirmation": (confirmations, settle_all),
    "loop.create_future()": (futures, settle_each),
}


def called(future: object) -> None:
    pass


def measure(
    benchmark: Any, loop_name: str, what: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]
) -> None:
    loop = LOOPS[loop_name]()
    try:
        benchmark.pedantic(lambda: loop.run_until_complete(what(loop)), rounds=60, warmup_rounds=5)
    finally:
        loop.close()


@pytest.mark.parametrize("loop_name", LOOPS)
@pytest.mark.parametrize("name", KINDS)
def test_made(benchmark, name, loop_name):
    make, _ = KINDS[name]

    async def what(loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(OPS):
            make(loop)

    benchmark.group = f"{OPS:,} futures made, {loop_name}"
    measure(benchmark, loop_name, what)


@pytest.mark.parametrize("loop_name", LOOPS)
@pytest.mark.parametrize("name", KINDS)
def test_called_back(benchmark, name, loop_name):
    make, settle = KINDS[name]

    async def what(loop: asyncio.AbstractEventLoop) -> None:
        made = [make(loop) for _ in range(OPS)]
        for future in made:
            future.add_done_callback(called)
        settle(made, None)
        await asyncio.sleep(0)

    benchmark.group = f"{OPS:,} futures confirmed together, a callback each, {loop_name}"
    measure(benchmark, loop_name, what)


@pytest.mark.parametrize("loop_name", LOOPS)
@pytest.mark.parametrize("name", KINDS)
def test_gathered(benchmark, name, loop_name):
    make, settle = KINDS[name]

    async def what(loop: asyncio.AbstractEventLoop) -> None:
        made = [make(loop) for _ in range(OPS)]
        loop.call_soon(settle, made, None)
        await asyncio.gather(*made)

    benchmark.group = f"{OPS:,} futures gathered and confirmed together, {loop_name}"
    measure(benchmark, loop_name, what)


@pytest.mark.parametrize("loop_name", LOOPS)
@pytest.mark.parametrize("name", KINDS)
def test_awaited_in_tasks(benchmark, name, loop_name):
    make, settle = KINDS[name]

    async def wait(future: Any) -> None:
        await future

    async def what(loop: asyncio.AbstractEventLoop) -> None:
        made = [make(loop) for _ in range(OPS)]
        tasks = [loop.create_task(wait(future)) for future in made]
        await asyncio.sleep(0)
        settle(made, None)
        for each in tasks:
            await each

    benchmark.group = f"{OPS:,} futures, a task awaits each, {loop_name}"
    measure(benchmark, loop_name, what)
