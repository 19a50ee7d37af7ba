"""ChasquiMQ: without the stream of events, which its tuning guide calls optional."""

import os
import signal
import sys

from chasquimq import Job, Queue, Worker

from ..common import hitter, params
from ..driver import WINDOW, Driver, main, run

hit = hitter()


async def handle(job: Job) -> None:
    hit(job.data["user_id"])


class Chasquimq(Driver):
    package = "chasquimq"
    module = "bench.peers.chasquimq"
    guarantees = ("at least once",)
    concurrency = 100

    async def open(self, style: str = "one") -> None:
        self.queue = Queue("bench", redis_url=self.url)

    async def send(self, i: int) -> None:
        await self.queue.add("noop", params(i))

    async def bulk(self, first: int, tasks: int) -> None:
        for start in range(first, first + tasks, WINDOW):
            window = range(start, min(start + WINDOW, first + tasks))
            await self.queue.add_bulk([{"name": "noop", "data": params(i)} for i in window])

    def work(self, concurrency: int) -> None:
        async def start() -> None:
            await Worker(
                "bench", handle, redis_url=self.url, concurrency=concurrency, events_enabled=False, run_scheduler=False
            ).run()

        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        run(start())


if __name__ == "__main__":
    sys.exit(main(Chasquimq))
