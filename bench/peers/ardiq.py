"""ardiq: the Rust core's own loop, prefetching."""

import os
import signal
import sys

from ardiq import Ardiq as App

from ..common import hitter, params
from ..driver import WINDOW, Driver, main, run

hit = hitter()


class Ardiq(Driver):
    package = "ardiq"
    module = "bench.peers.ardiq"
    guarantees = ("at least once",)
    concurrency = 100

    def make(self, **options: int) -> None:
        self.app = App(redis_url=self.url, queue_name="bench", **options)

        @self.app.task(name="noop")
        async def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
            hit(user_id)

        self.noop = noop

    async def open(self, style: str = "one") -> None:
        self.make()

    async def send(self, i: int) -> None:
        await self.noop.enqueue(**params(i))

    async def bulk(self, first: int, tasks: int) -> None:
        for start in range(first, first + tasks, WINDOW):
            window = range(start, min(start + WINDOW, first + tasks))
            await self.app.enqueue_many([self.noop.prepare(**params(i)) for i in window])

    def work(self, concurrency: int) -> None:
        self.make(concurrency=concurrency, prefetch=10 * concurrency)
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        run(self.app.run())


if __name__ == "__main__":
    sys.exit(main(Ardiq))
