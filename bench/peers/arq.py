"""arq: results not kept, the queue polled every 10 ms (default: 500)."""

import sys
from typing import Any

from arq import Worker, create_pool, func
from arq.connections import RedisSettings

from ..common import hitter, params
from ..driver import Driver, main, run

hit = hitter()


async def noop(ctx: Any, *, user_id: int, email: str, amount: float, tags: list[str]) -> None:
    hit(user_id)


class Arq(Driver):
    package = "arq"
    module = "bench.peers.arq"
    guarantees = ("at least once",)
    styles = ("one", "gather")
    fastest = "gather"
    concurrency = 100

    async def open(self, style: str = "one") -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url))

    async def close(self) -> None:
        await self.pool.aclose()

    async def send(self, i: int) -> None:
        await self.pool.enqueue_job("noop", **params(i))

    def work(self, concurrency: int) -> None:
        async def start() -> None:
            worker = Worker(
                [func(noop, name="noop", keep_result=0)],
                redis_settings=RedisSettings.from_dsn(self.url),
                max_jobs=concurrency,
                poll_delay=0.01,
                log_results=False,
            )
            await worker.async_run()

        run(start())


if __name__ == "__main__":
    sys.exit(main(Arq))
