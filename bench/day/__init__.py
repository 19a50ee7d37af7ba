"""Rows of a real day: something that users do, ours beside a baseline, in turns on one server.

    python -m bench.day                                     # which rows there are
    python -m bench.day plain                               # one of them
    python -m bench.day plain --before ../checkout          # and its ways with the fluidfast of another checkout, built
    python -m bench.day plain --rounds 10 --tasks 50000 --broker redis://127.0.0.1:6379 --json

A row is a module of this package, which nothing else has to name. Its docstring tells what is measured, and it has

    TASKS = 30_000                          # how many of whatever it measures, unless --tasks is given
    TABLES = {"title": {"baseline": way, "ours": other}}

A *way* is a function, or a coroutine function, of the broker's URL and a number of tasks. It is called in a process of
its own, once a round, and returns what it measured by name: ``{"runs/s": 8200.0, "CPU us a run": 122.0}``; any names
and units, but the same ones in each way of a table (None: not measured). ``drained`` is most of a way that has a worker
run tasks. The table has the median of each figure, and beside it the median ratio to the first way in the same round.
Ways of other libraries (``peer``) are left out with their reason if they cannot be installed.

CPU time is that of the process that is measured, which moves less on a loaded machine than a rate does. Compare ratios,
and those with ``--before`` over ten rounds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic, process_time
from typing import Any

from fluidfast import Task, TaskConsumer, TaskManager
from fluidfast.commands.loops import ease_collector

from .. import peers, venvs
from ..common import BenchError, Child

__all__ = ["Found", "Way", "drained", "peer"]

Found = dict[str, float | None]
Way = Callable[[str, int], Found | Awaitable[Found]]

DRAIN_SECONDS = 120.0


async def drained(url: str, tasks: int, task: Task[Any], *, skip: float = 0.1, **options: Any) -> Found:
    """Queue ``tasks`` runs of a task, and measure a consumer with these options that runs them in this process.

    ``skip``: the part of the runs, 0 to 1, that end before it counts.
    """
    async with TaskManager(broker_url=url) as manager:
        manager.register_task(task)
        await manager.queue_many(task, ({} for _ in range(tasks)))
    ease_collector()  # as ``python -m fluidfast worker`` does
    consumer = TaskConsumer(broker_url=url, **options)
    consumer.register_task(task)
    await consumer.startup()
    engine, end = consumer.engine, monotonic() + DRAIN_SECONDS
    began = cpu = 0.0
    before = 0
    while (finished := engine.finished) < tasks:
        if not began and finished >= tasks * skip:
            began, before, cpu = monotonic(), finished, process_time()
        if monotonic() > end:
            raise BenchError(f"{finished} of {tasks} tasks ran within {DRAIN_SECONDS:.0f} s")
        await asyncio.sleep(0.002)
    seconds, cpu, ran = monotonic() - began, process_time() - cpu, tasks - before
    await consumer.shutdown()
    await consumer.broker.clear()
    await consumer.broker.close()
    return {"runs/s": ran / seconds, "CPU us a run": cpu / ran * 1e6}


def peer(name: str, *, concurrency: int = 0) -> Way:
    """Return a way that has a worker of another library (see ``bench.peers``) run its no-op."""

    def way(url: str, tasks: int) -> Found:
        found = next(one for one in peers.PEERS if one.name == name)
        python = venvs.ensure(found)
        command = [python, "-m", found.module, "drain", "--url", url.partition("?")[0], "--tasks", str(tasks)]
        if concurrency:
            command += ["--concurrency", str(concurrency)]
        with Child(command) as child:
            return {"runs/s": child.result(DRAIN_SECONDS)["rate"], "CPU us a run": None}

    return way
