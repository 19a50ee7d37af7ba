"""Row 10: a task that does next to nothing, for counting. A ledger of ten million lines would be what is measured."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import msgspec
from worker_app import OPTIONS, ledger

from fluidfast import TaskRun, task

EVERY = 500
HELD: list[TaskRun] = []
PLANT = os.environ.get("PLANT", "")


def marks(path: str | os.PathLike[str], count: int | None = None) -> mmap.mmap:
    """A byte a run, which counts how often it ran; made with ``count`` zeros."""
    if count is not None:
        Path(path).write_bytes(b"")
        os.truncate(path, count)
    fd = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


class Number(msgspec.Struct):
    n: int
    pad: str = ""


class Tally:
    def __init__(self) -> None:
        self.marks = marks(Path(OPTIONS["ledgers"]) / os.environ["MARKS"])
        self.count = 0


TALLY: Tally | None = None


@task
async def tick(ctx: TaskRun[Number]) -> None:
    global TALLY
    if TALLY is None:
        TALLY = Tally()
    TALLY.marks[ctx.params.n] += 1
    TALLY.count += 1
    if TALLY.count % EVERY == 0:
        ledger().note(f"done {TALLY.count}")
    if PLANT == "keep":  # a worker that lets nothing go
        HELD.append(ctx)
    elif PLANT == "slower":  # and one that pays for what waits
        until = time.perf_counter() + float(os.environ["WAITING"]) / 1e9
        while time.perf_counter() < until:  # a sleep of 20 us would take 100
            pass
