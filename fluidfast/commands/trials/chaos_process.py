"""A worker or the producer of ``chaos``: ``python -m fluidfast.commands.trials.chaos_process``.

The first line of stdin is a JSON object (on stdin since the url may hold a password):

    {"role": "worker" or "producer", "url", "ledgers", "who", "concurrency", "rate", "seed"}

The first line in its ledger says that it is connected. From then on each further line of stdin asks it to cut its
connections. At the end of stdin it dies: its parent is gone. SIGTERM stops it.
"""

import asyncio
import itertools
import logging
import os
import random
import signal
import socket
import stat
import sys
import threading
from contextlib import suppress
from io import FileIO
from time import monotonic
from typing import Any

import msgspec

from ...core.config import TaskManagerConfig
from ...core.task import Task, task
from ...errors import BrokerConnectionError, NotDurableError, TaskError
from ...execute.cpubound import die_with_parent
from ...manage.consumer import TaskConsumer
from ...manage.manager import TaskManager
from ...run import TaskRun
from ..loops import run_loop
from .ledger import Ledger

__all__: list[str] = []

WINDOW = 100
"""Calls of ``queue`` at a time."""
BACKLOG = 5_000
"""Runs that may wait before the producer does: what is queued has to be run at the end."""
MAX_MS = 100.0


class Work(msgspec.Struct):
    ms: float


def work_task(ledger: Ledger) -> Task[Work]:
    """The task that all processes know."""

    @task(name="work", timeout_seconds=600)
    async def work(ctx: TaskRun[Work]) -> None:
        ledger.started(ctx.id)
        await asyncio.sleep(ctx.params.ms / 1000)
        ledger.finished(ctx.id)

    return work


def cut_connections() -> int:
    """End this process's connections under the feet of whoever uses them. Gives how many there were.

    By the process itself: so it is the same for TLS, sockets of Unix, Sentinel and Cluster, and the server has to allow
    nothing.
    """
    count = 0
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # not open any more, or a socket that is not connected
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as sock:
                if sock.getpeername():  # the ends of a pair within this process have no name
                    sock.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count


def obey(stdin: FileIO, ledger: Ledger) -> None:
    """Cut at each line of stdin; at its end, die."""
    while stdin.readline():
        ledger.note(f"cut {cut_connections()}")
    os._exit(1)


async def consume(request: dict[str, Any], ledger: Ledger) -> int:
    consumer = TaskConsumer(broker_url=request["url"], max_concurrent_tasks=request["concurrency"])
    consumer.register_task(work_task(ledger))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.gracefully_stop)
    await consumer.broker.connect()
    ledger.note("ready")
    await consumer.startup()
    await consumer.wait_for_shutdown()
    return 0


async def produce(request: dict[str, Any], ledger: Ledger) -> int:
    config = TaskManagerConfig(broker_url=request["url"], max_queue_length=BACKLOG)
    manager = TaskManager(config=config)
    manager.register_task(work_task(ledger))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    who, rate = request["who"], request["rate"]
    draw = random.Random(f"{request['seed']} {who}")
    numbers = itertools.count()

    async def one(id: str) -> None:
        ledger.attempted(id)
        try:
            await manager.queue("work", draw.choice(("high", "medium", "low")), run_id=id, ms=draw.uniform(0, MAX_MS))
        except (BrokerConnectionError, NotDurableError):  # queued or not: nobody knows
            await asyncio.sleep(0.2)
        except TaskError as exc:
            ledger.refused(id)
            ledger.note(f"refused {type(exc).__name__}")
            await asyncio.sleep(0.2)
        else:
            ledger.acknowledged(id)

    async def lane() -> None:
        while not stop.is_set():
            number = next(numbers)
            if rate and (ahead := number / rate - (monotonic() - began)) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(ahead):
                        await stop.wait()
                        return
            await one(f"{who}-{number}")

    async with manager:
        await manager.broker.connect()
        ledger.note("ready")
        began = monotonic()
        await asyncio.gather(*(lane() for _ in range(WINDOW)))
    return 0


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent hears Ctrl-C too, and says what follows
    die_with_parent()  # also while it stands still
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    stdin = FileIO(0, closefd=False)  # without a buffer, whose lock the thread would hold at the end of the process
    request = msgspec.json.decode(stdin.readline(), type=dict[str, Any])
    ledger = Ledger(request["ledgers"], request["who"])
    threading.Thread(target=obey, args=(stdin, ledger), name="chaos-orders", daemon=True).start()
    try:
        return run_loop((produce if request["role"] == "producer" else consume)(request, ledger))
    except TaskError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
