"""The worker process of ``bench`` on a server: ``python -m fluidfast.commands.trials.bench_worker``.

It is told on stdin, and answers on stdout, one JSON object a line:

    in   {"url", "tasks", "marks", "concurrency"}       (on stdin since the url may hold a password)
    out  {"ready": true}
    in   {"expect": runs}                               run until that many different ones have come
    out  {"seen": runs}, ...                            on the way
    out  {"seconds", "seen", "waits_ms": {...}, "peak_memory_mib", "loop"}
    in   the next {"expect"}, or the end of stdin       shut down; its parent may be gone

The marks are in a file that both map, so that they are there too if this process is killed.
"""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from ...errors import TaskError
from ...manage.consumer import TaskConsumer
from .. import loops
from .bench_load import IDLE_RUNS, Load, peak_memory_mib

__all__: list[str] = []


def say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


async def serve() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    request = msgspec.json.decode(await reader.readline())
    tasks = request["tasks"]
    load = Load(tasks, Load.file_of_marks(Path(request["marks"]), tasks + IDLE_RUNS))
    consumer = TaskConsumer(broker_url=request["url"], max_concurrent_tasks=request["concurrency"])
    consumer.register_task(load.task())
    await consumer.broker.connect()
    say({"ready": True})
    orders: asyncio.Queue[int] = asyncio.Queue()
    listening = asyncio.create_task(listen(reader, orders))
    measuring = asyncio.create_task(measure(consumer, load, orders))
    await asyncio.wait((listening, measuring), return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    measuring.cancel()
    if consumer.has_started():
        await consumer.shutdown()
    await consumer.broker.clear()  # its parent does that too, unless it was killed
    await consumer.broker.close()
    if measuring.done() and not measuring.cancelled():
        measuring.result()


async def listen(reader: asyncio.StreamReader, orders: "asyncio.Queue[int]") -> None:
    while line := await reader.readline():
        orders.put_nowait(msgspec.json.decode(line)["expect"])


async def measure(consumer: TaskConsumer, load: Load, orders: "asyncio.Queue[int]") -> None:
    while True:
        load.expect(await orders.get())
        started = perf_counter()
        if not consumer.has_started():
            await consumer.startup()
        await load.drained(consumer.broker, lambda seen: say({"seen": seen}))
        say(
            {
                "seconds": perf_counter() - started,
                "seen": load.seen,
                "waits_ms": load.percentiles(),
                "peak_memory_mib": peak_memory_mib(),
                "loop": loops.loop_name(),
            }
        )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent hears Ctrl-C too, and says what follows
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        loops.run_loop(serve())
    except (TaskError, TimeoutError) as exc:
        sys.exit(f"{type(exc).__name__}: {exc}")
    except BrokenPipeError:  # nobody listens any more
        sys.exit(1)
