"""BlitzQ: results not stored; streams (reliable) and lists (fast)."""

import asyncio
import signal
import sys

from blitzq import Queue, Worker

from ..common import hitter, params
from ..driver import WINDOW, Driver, main, run

hit = hitter()


class Blitzq(Driver):
    package = "blitzq"
    module = "bench.peers.blitzq"
    variants = ("reliable", "fast")
    guarantees = ("at least once", "at most once")
    concurrency = 1000

    def __init__(self, url: str, variant: str = "reliable") -> None:
        super().__init__(url, variant)
        self.queue = Queue("bench", url, mode=variant, store_results=False)

        @self.queue.task(name="noop")
        async def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
            hit(user_id)

        self.noop = noop

    async def open(self, style: str = "one") -> None:
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.close()

    async def send(self, i: int) -> None:
        await self.noop.enqueue(**params(i))

    async def bulk(self, first: int, tasks: int) -> None:
        for start in range(first, first + tasks, WINDOW):
            window = range(start, min(start + WINDOW, first + tasks))
            await self.noop.enqueue_many([tuple(params(i).values()) for i in window])

    def work(self, concurrency: int) -> None:
        async def start() -> None:
            worker = Worker(self.queue, concurrency=concurrency, batch_size=concurrency, shutdown_timeout=1.0)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
            await worker.run()

        run(start())


if __name__ == "__main__":
    sys.exit(main(Blitzq))
