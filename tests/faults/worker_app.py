"""The processes of the campaign, both in this file: ``python worker_app.py``, or with ``FAULT`` asking for a producer.

The environment variable ``FAULT`` holds a JSON object (``harness.Fleet`` writes it):

    role          "worker" (default) or "producer"
    url           of the broker
    ledgers, who  directory, and name of this process's ledger
    app           path of a Python file with further tasks: all of its public Task objects are registered; its tasks
                  find the ledger as ``worker_app.LEDGER``
    plant         comma-separated names of bugs to plant (``plants.py``)
    note          true: each claim, settlement, and lost lease is noted in the ledger
    config        keywords of the TaskConsumer or TaskManager (max_concurrent_tasks, stopping_grace_period, ...)
    clock         path of a clock file (``clocks.py``); the harness preloads the shim
    producer only: count, start (the first number), rate (a second; 0: as fast as it goes), window (queue() calls at a
                  time), task, ms and pad (of ``work``; pad: so many characters), delay (seconds), priorities (list,
                  drawn from), seed
    exit_after    producer: seconds it waits for a server that is not there before it gives up

A worker ends on SIGTERM, with exit code 0, and with its parent (it reads its stdin). Tasks: ``work`` (params ``ms``:
how long it sleeps, ``spin_ms``: how long it blocks the event loop), ``fail`` (raises, then succeeds at its third try),
``block`` (blocks the event loop for 1.5 s).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from fluidfast import RetryPolicy, Task, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.errors import BrokerConnectionError, NotDurableError, TaskError

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.modules.setdefault("worker_app", sys.modules[__name__])  # an app that imports it gets this one, not a second

from fluidfast.commands.trials.ledger import Ledger  # noqa: E402

OPTIONS: dict[str, Any] = json.loads(os.environ.get("FAULT", "{}"))
LEDGER: Ledger | None = None


def ledger() -> Ledger:
    """The ledger of this process."""
    global LEDGER
    if LEDGER is None:
        LEDGER = Ledger(OPTIONS["ledgers"], OPTIONS["who"])
    return LEDGER


class Work(msgspec.Struct):
    ms: float = 0
    spin_ms: float = 0
    pad: str = ""


@task(timeout_seconds=600)
async def work(ctx: TaskRun[Work]) -> None:
    ledger().started(ctx.id)
    if ctx.params.ms:
        await asyncio.sleep(ctx.params.ms / 1000)
    if ctx.params.spin_ms:
        time.sleep(ctx.params.spin_ms / 1000)  # noqa: ASYNC251  # blocks the loop: that is what it is for
    ledger().finished(ctx.id)


@task(retry=RetryPolicy(max_attempts=10, wait=0.01))
async def fail(ctx: TaskRun[Work]) -> None:
    if ctx.retry_attempt < 2:
        raise ValueError("as it was told")
    ledger().started(ctx.id)
    ledger().finished(ctx.id)


@task(timeout_seconds=600)
async def block(ctx: TaskRun[Work]) -> None:
    """Keep the event loop from everything else for 1.5 s."""
    ledger().started(ctx.id)
    time.sleep(1.5)  # noqa: ASYNC251
    ledger().finished(ctx.id)


TASKS: list[Task[Any]] = [work, fail, block]


def end_with_parent() -> None:
    """Until the end of stdin, which the parent holds."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(99)

    threading.Thread(target=watch, daemon=True).start()


def register(manager: TaskManager) -> None:
    for each in TASKS:
        manager.register_task(each)
    if path := OPTIONS.get("app"):
        spec = importlib.util.spec_from_file_location("fault_app", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fault_app"] = module
        spec.loader.exec_module(module)
        manager.register_from_module(module)


def take_notes(consumer: TaskConsumer) -> None:
    """Write down what the broker said to each settlement, and which leases renewing found lost."""
    broker = consumer.broker
    claim, settle, renew, renewer = broker.claim, broker.settle, broker.renew, broker.renewer

    async def claim_noted(*args: Any, **kwargs: Any) -> Any:
        claimed = await claim(*args, **kwargs)
        if claimed.items:
            ledger().note(f"claim {claimed.batch} {len(claimed.items)}")
        return claimed

    async def settle_noted(settlement: Any) -> bool:
        runs = len(settlement.done)
        accepted = await settle(settlement)
        ledger().note(f"settle {settlement.batch} {'yes' if accepted else 'no'} {runs}")
        return accepted

    def lost_noted(lost: list[str]) -> list[str]:
        for batch in lost:
            ledger().note(f"lost {batch}")
        return lost

    async def renew_noted(*args: Any, **kwargs: Any) -> list[str]:
        return lost_noted(await renew(*args, **kwargs))

    def renewer_noted(consumer_id: str) -> Any:
        renew_in_thread = renewer(consumer_id)
        return lambda *args: lost_noted(renew_in_thread(*args))

    broker.claim, broker.settle = claim_noted, settle_noted  # type: ignore
    broker.renew, broker.renewer = renew_noted, renewer_noted  # type: ignore


async def consume() -> int:
    consumer = TaskConsumer(broker_url=OPTIONS["url"], name=OPTIONS["who"], **OPTIONS.get("config", {}))
    register(consumer)
    if OPTIONS.get("note"):
        take_notes(consumer)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    signals = 0

    def asked() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            consumer.engine.hurry()

    loop.add_signal_handler(signal.SIGTERM, asked)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the harness blocked it until now
    await consumer.startup()
    ended = asyncio.create_task(consumer.wait_for_shutdown())
    stopping = asyncio.create_task(stop.wait())
    while getattr(consumer.broker, "_link", True) is None and not ended.done():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    ledger().note(f"ready {consumer.engine.id}")
    await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        await ended
        ledger().note("the consumer ended by itself")
        return 3
    stopping.cancel()
    await consumer.shutdown()
    await ended
    ledger().note("stopped")
    return 0


async def produce() -> int:
    count, start = OPTIONS["count"], OPTIONS.get("start", 0)
    rate, window = OPTIONS.get("rate", 0), OPTIONS.get("window", 100)
    draw = random.Random(OPTIONS.get("seed", 0))
    priorities = OPTIONS.get("priorities") or [None]
    who = OPTIONS["who"]
    name = OPTIONS.get("task", "work")
    ms, delay, pad = OPTIONS.get("ms", 0), OPTIONS.get("delay", 0), "x" * OPTIONS.get("pad", 0)
    manager = TaskManager(broker_url=OPTIONS["url"], **OPTIONS.get("config", {}))
    register(manager)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the harness blocked it until now
    book = ledger()
    patience = OPTIONS.get("exit_after", 60)
    numbers = iter(range(start, start + count))
    began = time.monotonic()

    async def one(number: int) -> None:
        id = f"{who}-{number}"
        book.attempted(id)
        end = time.monotonic() + patience
        while True:
            try:
                if delay:
                    run = manager.create_task_run(name, id, draw.choice(priorities), ms=ms)
                    await manager.intake.send(run, delay)
                else:
                    await manager.queue(name, draw.choice(priorities), run_id=id, ms=ms, pad=pad)
            except (BrokerConnectionError, NotDurableError) as exc:
                book.note(f"unknown {id} {type(exc).__name__}")
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)
                return  # it may be queued or not: not to be sent under the same id again
            except TaskError as exc:
                book.refused(id)
                book.note(f"refused {id} {type(exc).__name__}")
                await asyncio.sleep(0.05)
                return
            book.acknowledged(id)
            return

    async def lane() -> None:
        for number in numbers:
            if stop.is_set():
                return
            if rate and (ahead := (number - start) / rate - (time.monotonic() - began)) > 0:
                await asyncio.sleep(ahead)
            await one(number)

    async with manager:
        await asyncio.gather(*(lane() for _ in range(window)))
    book.note("stopped")
    return 0


async def as_told() -> int:
    try:
        return await (produce() if OPTIONS.get("role") == "producer" else consume())
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it has ended, and nobody listens from here on


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    end_with_parent()
    if OPTIONS.get("plant"):
        import plants

        plants.plant(*OPTIONS["plant"].split(","))
    return asyncio.run(as_told())


if __name__ == "__main__":
    sys.exit(main())
