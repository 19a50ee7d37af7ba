"""What a consumer does for each run once it has been claimed and read: start it, await it, note its end.

pytest bench/micro/test_bench_slots.py --benchmark-only -o addopts=

A round is for OPS runs of a coroutine function that does nothing, so divide its time by that. Beside the compiled slot:
the same steps as plain Python, and an asyncio task a run, with no note of anything.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from fluidfast import TaskRun, task
from fluidfast.brokers._leases import Claimed, Lease
from fluidfast.brokers.contract import Settlement
from fluidfast.consume._ledger import Ledger
from fluidfast.consume._slots import Slot, Slots
from fluidfast.core._machine import Listeners

OPS = 1_000


@task
async def work(ctx: TaskRun) -> None: ...


class Notes(Ledger):
    done: asyncio.Future[None]

    def flush(self) -> None: ...

    def _start_send(self, lease: Lease) -> None:
        self.done.set_result(None)


class Nobody:
    """Whom the slots ask when something is the matter, which here is nothing but the first timeout."""

    slots: Slots

    def sweep_by(self, when: float) -> None:
        self.slots.sweep_at = when

    def ended(self, slot: Slot, task: asyncio.Task[None]) -> None: ...


def claimed() -> list[Claimed]:
    lease = Lease("batch", OPS, Settlement("batch"))
    items = [Claimed(f"h{i}", b"") for i in range(OPS)]
    for item in items:
        item.lease = lease
        item.run = TaskRun(id="1", task=work)
    return items


async def compiled(items: list[Claimed]) -> None:
    loop = asyncio.get_running_loop()
    notes = Notes()
    notes.done = loop.create_future()
    nobody: Any = Nobody()
    nobody.slots = slots = Slots(1, notes, Listeners(), None, 1e9)
    slots.connect(
        admission=nobody,
        outcomes=nobody,
        groups=nobody,
        functions=nobody,
        timeouts=nobody,
        hooks=nobody,
        ended=nobody.ended,
    )
    slots.ready.extend(items)
    slots.wake()
    await notes.done
    for slot in slots:
        slot.task.cancel()


class PlainSlots:
    """The steps of ``Slots`` and ``Ledger`` for a run to which nothing happens."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.ready: deque[Claimed] = deque()
        self.running = self.finished = 0
        self.listeners = Listeners()
        self.limited: dict[str, str] = {}
        self.dirty: set[Lease] = set()
        self.sweep_at = float("inf")
        self.room: asyncio.Future[None] | None = None

    async def work(self, slot: Slot) -> None:
        now = yielded = monotonic()
        while self.ready:
            held = self.ready.popleft()
            lease = held.lease
            lease.unstarted -= 1
            if lease.lost:
                continue
            self.running += 1
            slot.held = held
            try:
                if not held.run.task.max_concurrency and now - lease.claimed_at < 1e9:
                    await self.start(slot, held, now)(held.run)
                    if not slot.reason:
                        self.end(held)
            finally:
                slot.held = None
                slot.reason = ""
                slot.cancel_at = float("inf")
                self.running -= 1
                if self.room is not None:
                    self.room.set_result(None)
            now = monotonic()
            if now - yielded > 0.002:
                await asyncio.sleep(0)
                now = yielded = monotonic()

    def start(self, slot: Slot, held: Claimed, now: float) -> Callable[[TaskRun], Coroutine[Any, Any, None]]:
        run = held.run
        slot.deadline = slot.cancel_at = deadline = now + run.task.timeout_seconds
        if deadline < self.sweep_at:
            self.sweep_at = deadline
        run._enter(2)
        if self.listeners.mask & 1 << 2:
            run._emit()
        return run.task.executor

    def end(self, held: Claimed) -> None:
        run = held.run
        if not run.is_done:
            run._enter(3)
            if self.listeners.mask & 1 << 3:
                run._emit()
        self.finished += 1
        lease = held.lease
        settlement = lease.settlement
        settlement.info[run.name] = run
        settlement.done.append(held.field)
        if held.strikes:
            settlement.survived.append(held.field)
        if self.limited:
            self.limited.pop(run.id)
        lease.left -= 1
        self.dirty.add(lease)
        if lease.left == 0:
            self.done.set_result(None)


async def plain(items: list[Claimed]) -> None:
    slots = PlainSlots(asyncio.get_running_loop().create_future())
    slots.ready.extend(items)
    running = asyncio.create_task(slots.work(Slot()))
    await slots.done
    await running


async def a_task_each(items: list[Claimed]) -> None:
    await asyncio.gather(*[asyncio.create_task(work.executor(item.run)) for item in items])


@pytest.mark.parametrize("way", [compiled, plain, a_task_each], ids=["fluidfast", "plain Python", "a task each"])
def test_run(benchmark, way):
    benchmark.group = f"{OPS:,} runs started and ended"
    with asyncio.Runner() as runner:
        benchmark.pedantic(lambda items: runner.run(way(items)), setup=lambda: ((claimed(),), {}), rounds=60)


@pytest.mark.parametrize("way", ["fluidfast", "f-strings and plain objects"])
def test_claimed(benchmark, way):
    from fluidfast.brokers._leases import numbered

    class Plain:
        __slots__ = ("field", "lease", "payload", "run", "strikes")

        def __init__(self, field: str, payload: bytes) -> None:
            self.field, self.payload, self.strikes = field, payload, 0
            self.lease = self.run = None

    taken = [(i % 3, b"payload") for i in range(OPS)]
    ways: dict[str, Callable[[], object]] = {
        "fluidfast": lambda: numbered(taken),
        "f-strings and plain objects": lambda: [Plain(f"{'hml'[p]}{i}", b) for i, (p, b) in enumerate(taken, 1)],
    }
    benchmark.group = f"{OPS:,} payloads claimed"
    benchmark(ways[way])
