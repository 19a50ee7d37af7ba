"""fluidfast's driver: how it queues and runs the no-op of every measurement."""

import asyncio
import platform
import signal
from collections.abc import Callable
from time import monotonic
from typing import Any

import fluidfast
from fluidfast import Task, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.commands.loops import ease_collector

from .common import BenchError, Marks, hitter, params
from .driver import WARM_UP, WINDOW, Driver, run

STYLES = ("one", "gather", "buffered", "many")
KINDS = ("struct", "mapping", "pydantic")


def make_task(kind: str, hit: Callable[[int], None]) -> Task[Any]:
    """The no-op of every measurement: it counts its run and returns."""
    if kind == "mapping":

        @task(name="noop")
        async def noop(ctx: TaskRun) -> None:  # type: ignore[type-arg]
            hit(ctx.params["user_id"])

        return noop
    if kind == "struct":
        import msgspec

        model: Any = msgspec.defstruct(
            "Params", [("user_id", int), ("email", str), ("amount", float), ("tags", list[str])]
        )
    else:
        import pydantic

        model = pydantic.create_model(
            "Params", user_id=(int, ...), email=(str, ...), amount=(float, ...), tags=(list[str], ...)
        )

    @task(name="noop", params_model=model)
    async def noop_of_model(ctx: TaskRun[Any]) -> None:
        hit(ctx.params.user_id)

    return noop_of_model


class Fluidfast(Driver):
    """Ours. The variants are the kinds of params model."""

    package = "fluidfast"
    module = "bench.load"
    variants = KINDS
    guarantees = ("at least once",) * 3
    styles = STYLES
    fastest = "many"

    @classmethod
    def about(cls, variant: str) -> dict[str, str]:
        return {
            "package": cls.package,
            "variant": variant,
            "version": fluidfast.__version__,
            "python": platform.python_version(),
            "guarantee": cls.guarantees[cls.variants.index(variant)],
        }

    async def open(self, style: str = "one") -> None:
        self.use(TaskManager(broker_url=self.url, delivery="buffered" if style == "buffered" else "confirmed"))

    def use(self, manager: TaskManager, hit: Callable[[int], None] | None = None) -> TaskManager:
        """Send with this manager."""
        self.manager = manager
        self.noop = make_task(self.variant, hit or hitter())
        manager.register_task(self.noop)
        return manager

    async def close(self) -> None:
        await self.manager.on_shutdown()

    async def send(self, i: int) -> None:
        await self.manager.queue(self.noop, **params(i))

    async def one(self, first: int, tasks: int) -> None:
        queue, noop = self.manager.queue, self.noop
        for i in range(first, first + tasks):
            await queue(noop, user_id=i, email="someone@example.com", amount=12.5, tags=["new", "eu"])

    async def gather(self, first: int, tasks: int) -> None:
        queue, noop = self.manager.queue, self.noop
        for start in range(first, first + tasks, WINDOW):
            await asyncio.gather(
                *[
                    queue(noop, user_id=i, email="someone@example.com", amount=12.5, tags=["new", "eu"])
                    for i in range(start, min(start + WINDOW, first + tasks))
                ]
            )

    async def buffered(self, first: int, tasks: int) -> None:
        """The loop of ``one`` with a manager of ``delivery="buffered"``, flushed."""
        await self.one(first, tasks)
        await self.manager.flush()

    async def many(self, first: int, tasks: int) -> None:
        items = (
            {"user_id": i, "email": "someone@example.com", "amount": 12.5, "tags": ["new", "eu"]}
            for i in range(first, first + tasks)
        )
        summary = await self.manager.queue_many(self.noop, items)
        if summary.queued != tasks:
            raise BenchError(f"queue_many confirmed {summary.queued} of {tasks}")

    def work(self, concurrency: int) -> None:
        ease_collector()  # as ``python -m fluidfast worker`` does
        run(self._work(concurrency))

    async def _work(self, concurrency: int) -> None:
        consumer = TaskConsumer(broker_url=self.url, max_concurrent_tasks=concurrency)
        self.use(consumer)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await consumer.startup()
        watching = asyncio.create_task(consumer.wait_for_shutdown())
        watching.add_done_callback(lambda _: ended.set())
        await ended.wait()
        await consumer.shutdown()  # raises what ended it, if it was not us

    async def flood(self, rate: float, seconds: float) -> dict[str, Any]:
        """Queue ``rate`` tasks a second, in a gather each 10 ms, until all probes have started or time is up."""
        marks = Marks.of_environment()
        await self.open()
        started, sent = monotonic(), 0
        while (now := monotonic()) - started < seconds and not (marks and marks.reached(marks.tasks)):
            due = min(WINDOW, int((now - started) * rate) - sent)
            await asyncio.gather(*[self.send(WARM_UP) for _ in range(due)])
            sent += due
            await asyncio.sleep(max(0.0, 0.01 - (monotonic() - now)))
        elapsed = monotonic() - started
        await self.close()
        return {"wanted_rate": rate, "rate": sent / elapsed, "tasks": sent, "seconds": elapsed}
