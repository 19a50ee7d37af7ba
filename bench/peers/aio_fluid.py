"""aio-fluid: TaskManager, TaskConsumer and a pydantic model, as its documentation shows them."""

import asyncio
import os
import signal
import sys

# Read once, at its import. With the default of 5 a gather of 1000 waits for connections, and more than 5 workers do.
os.environ.setdefault("MAX_REDIS_CONNECTIONS", "32")

from fluid.scheduler import TaskConsumer, TaskManager, TaskRun, task
from pydantic import BaseModel

from ..common import hitter, params
from ..driver import Driver, main, run

hit = hitter()


class Params(BaseModel):
    user_id: int
    email: str
    amount: float
    tags: list[str]


@task
async def noop(ctx: TaskRun[Params]) -> None:
    hit(ctx.params.user_id)


class AioFluid(Driver):
    package = "aio-fluid"
    module = "bench.peers.aio_fluid"
    guarantees = ("at most once",)
    styles = ("one", "gather")
    fastest = "gather"
    concurrency = 10  # 1 to 20 are the same within the noise: each run holds a lock on its task's name

    async def open(self, style: str = "one") -> None:
        self.manager = TaskManager(broker_url=self.url)
        self.manager.register_task(noop)

    async def close(self) -> None:
        await self.manager.on_shutdown()

    async def send(self, i: int) -> None:
        await self.manager.queue(noop, **params(i))

    def work(self, concurrency: int) -> None:
        run(self._work(concurrency))

    async def _work(self, concurrency: int) -> None:
        # sleep_millis: what a worker sleeps after each second without a task; by default a second
        consumer = TaskConsumer(broker_url=self.url, max_concurrent_tasks=concurrency, sleep_millis=0)
        consumer.register_task(noop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
        await consumer.startup()
        await consumer.wait_for_shutdown()


if __name__ == "__main__":
    sys.exit(main(AioFluid))
