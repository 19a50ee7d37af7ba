"""SAQ: a queue on Redis, results not stored (ttl -1)."""

import asyncio
import sys
from typing import Any

from saq import Queue, Worker

from ..common import hitter, params
from ..driver import Driver, main, run

hit = hitter()


async def noop(ctx: Any, *, user_id: int, email: str, amount: float, tags: list[str]) -> None:
    hit(user_id)


class Saq(Driver):
    package = "saq"
    module = "bench.peers.saq"
    guarantees = ("at least once, by sweeps",)
    styles = ("one", "gather")
    fastest = "gather"
    concurrency = 100

    async def open(self, style: str = "one") -> None:
        self.queue = Queue.from_url(self.url)
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def send(self, i: int) -> None:
        await self.queue.enqueue("noop", ttl=-1, **params(i))

    def work(self, concurrency: int) -> None:
        async def start() -> None:
            await asyncio.create_task(Worker(Queue.from_url(self.url), [noop], concurrency=concurrency).start())

        run(start())


if __name__ == "__main__":
    sys.exit(main(Saq))
