"""taskiq with taskiq-redis: the list broker, and the stream broker, which acknowledges."""

import os
import sys

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from ..common import hitter, params
from ..driver import Driver, main
from . import VARIANT_VARIABLE, become, given_url

hit = hitter()


def make(url: str, variant: str) -> "ListQueueBroker | RedisStreamBroker":
    if variant == "stream":
        return RedisStreamBroker(url, consumer_id="0")  # from what waits already, not only what comes
    return ListQueueBroker(url)


broker = make(given_url(), os.environ.get(VARIANT_VARIABLE, "list"))


@broker.task(task_name="noop")
async def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
    hit(user_id)


class Taskiq(Driver):
    package = "taskiq"
    module = "bench.peers.taskiq"
    variants = ("list", "stream")
    guarantees = ("at most once", "at least once")
    styles = ("one", "gather")
    fastest = "gather"
    concurrency = 100

    async def open(self, style: str = "one") -> None:
        self.broker = make(self.url, self.variant)
        self.noop = self.broker.register_task(noop.original_func, task_name="noop")
        await self.broker.startup()

    async def close(self) -> None:
        await self.broker.shutdown()

    async def send(self, i: int) -> None:
        await self.noop.kiq(**params(i))

    def work(self, concurrency: int) -> None:
        become(
            self.url, self.variant, "taskiq", "worker", f"{self.module}:broker", "--workers", "1", "--no-parse",
            "--max-async-tasks", str(concurrency), "--max-prefetch", str(concurrency), "--log-level", "ERROR",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Taskiq))
