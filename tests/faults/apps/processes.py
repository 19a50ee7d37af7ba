"""Helpers of rows 9 to 16: processes other than the common worker and producer, and runs that a test queues itself."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import Fleet, Process

import fluidfast
from fluidfast import Task, TaskManager
from fluidfast.commands.trials.ledger import Oracle

APPS = Path(__file__).parent
Item = tuple[str, str, str | None, dict[str, Any]]
"""Task name, run id, priority, params."""


def app(name: str) -> str:
    """The path of an app of this directory, for ``fleet.workers(1, app=app("poison"))``."""
    return str(APPS / f"{name}.py")


class Command(Process):
    """A process with a command line of its own; its options are in ``FAULT``, its words in the oracle, as a worker's.

    It ends with the fleet, and counts as ``role`` "worker" unless ``options`` say something else.
    """

    def __init__(
        self, fleet: Fleet, who: str, command: list[str], *, env: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.fleet = fleet
        self.who = who
        ledgers = str(fleet.oracle.directory)
        self.options = {"role": "worker", "url": fleet.url, "ledgers": ledgers, "who": who, **options}
        self.log_path = fleet.oracle.directory / f"{who}.log"
        paths = [str(Path(fluidfast.__file__).parents[1]), str(APPS.parent)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "FAULT": json.dumps(self.options), **(env or {})}
        with self.log_path.open("ab") as log:
            self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ, cwd=APPS)
        fleet.processes.append(self)


def script(fleet: Fleet, who: str, name: str, **options: Any) -> Command:
    """Start an app of this directory as a program."""
    return Command(fleet, who, [sys.executable, app(name)], **options)


def queue_all(
    fleet: Fleet,
    oracle: Oracle,
    tasks: Iterable[Task[Any]],
    items: Iterable[Item],
    *,
    who: str = "feeder",
    at_once: int = 1,
) -> None:
    """Queue runs from here, written down in the oracle: ``at_once`` in flight, in their order if that is 1."""

    async def feed() -> None:
        manager = TaskManager(broker_url=fleet.url)
        for task in tasks:
            manager.register_task(task)
        left = iter(items)

        async def lane() -> None:
            for task, id, priority, params in left:
                ledger.attempted(id)
                await manager.queue(task, priority, run_id=id, params=params)
                ledger.acknowledged(id)

        async with manager:
            await asyncio.gather(*(lane() for _ in range(at_once)))

    ledger = oracle.ledger(who)
    try:
        asyncio.run(feed())
    finally:
        ledger.close()


def mourn(fleet: Fleet) -> list[Process]:
    """The processes that have died by themselves since the last call. What they had may run again."""
    died = [p for p in fleet.processes if not p.alive and p.who not in fleet.killed and p.popen.returncode != 0]
    for process in died:
        fleet.killed.add(process.who)
        process.end()
    return died


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
