"""streaQ: results not kept, no line of log a task, uvloop."""

import sys

from streaq import Worker

from ..common import hitter, params
from ..driver import WINDOW, Driver, main

hit = hitter()


class Streaq(Driver):
    package = "streaq"
    module = "bench.peers.streaq"
    guarantees = ("at least once",)
    concurrency = 32

    def make(self, concurrency: int = 16) -> None:
        self.worker = Worker(redis_url=self.url, concurrency=concurrency, anyio_kwargs={"use_uvloop": True})

        @self.worker.task(ttl=0, silent=True)
        async def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
            hit(user_id)

        self.noop = noop

    async def open(self, style: str = "one") -> None:
        self.make()
        await self.worker.__aenter__()

    async def close(self) -> None:
        await self.worker.__aexit__(None, None, None)

    async def send(self, i: int) -> None:
        await self.noop.enqueue(**params(i))

    async def bulk(self, first: int, tasks: int) -> None:
        for start in range(first, first + tasks, WINDOW):
            window = range(start, min(start + WINDOW, first + tasks))
            await self.worker.enqueue_many([self.noop.enqueue(**params(i)) for i in window])

    def work(self, concurrency: int) -> None:
        self.make(concurrency)
        self.worker.run_sync()


if __name__ == "__main__":
    sys.exit(main(Streaq))
