"""huey: RedisHuey without results, a consumer of threads; and MemoryHuey, for the comparison without a server."""

import sys
import threading
from time import perf_counter, sleep
from typing import Any

from huey import MemoryHuey, RedisHuey

from ..common import BenchError, hitter, params
from ..driver import Driver, main

hit = hitter()


class Huey(Driver):
    package = "huey"
    module = "bench.peers.huey"
    guarantees = ("at most once",)
    styles = ("one",)
    fastest = "one"
    concurrency = 1  # threads

    def __init__(self, url: str, variant: str = "") -> None:
        super().__init__(url, variant)
        self.huey = RedisHuey("bench", url=url, results=False)

        @self.huey.task()
        def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
            hit(user_id)

        self.noop = noop

    async def send(self, i: int) -> None:
        self.noop(**params(i))

    def work(self, concurrency: int) -> None:
        consumer = self.huey.create_consumer(workers=concurrency, worker_type="thread", periodic=False)
        consumer.run()

    @classmethod
    def local(cls, tasks: int) -> dict[str, Any]:
        """Queue and run ``tasks`` in one process."""
        huey = MemoryHuey("bench", results=False)
        counts = bytearray(tasks)
        left = threading.Semaphore(0)

        @huey.task()
        def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
            counts[user_id] += 1
            if user_id == tasks - 1:
                left.release()

        started = perf_counter()
        for i in range(tasks):
            noop(**params(i))
        queued = perf_counter()
        consumer = huey.create_consumer(workers=1, worker_type="thread", periodic=False)
        running = perf_counter()
        consumer.start()
        if not left.acquire(timeout=120):
            raise BenchError("not done within 120 s")
        ended = perf_counter()
        sleep(0.05)
        consumer.stop()
        return {
            "produce_rate": tasks / (queued - started),
            "drain_rate": tasks / (ended - running),
            "rate": tasks / (queued - started + ended - running),
            "lost": counts.count(0),
            "duplicated": sum(counts) - (tasks - counts.count(0)),
        }


if __name__ == "__main__":
    sys.exit(main(Huey))
