"""dramatiq: the Redis broker with its default middleware, and its own worker of threads in this process."""

import signal
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from ..common import hitter, params
from ..driver import Driver, main

hit = hitter()


class Dramatiq(Driver):
    package = "dramatiq"
    module = "bench.peers.dramatiq"
    guarantees = ("at least once",)
    styles = ("one",)
    fastest = "one"
    concurrency = 8  # threads, its default
    uvloop = False

    def __init__(self, url: str, variant: str = "") -> None:
        super().__init__(url, variant)
        self.broker = RedisBroker(url=url)
        dramatiq.set_broker(self.broker)

        @dramatiq.actor(actor_name="noop", broker=self.broker)
        def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
            hit(user_id)

        self.noop = noop

    async def send(self, i: int) -> None:
        self.noop.send(**params(i))

    def work(self, concurrency: int) -> None:
        worker = dramatiq.Worker(self.broker, worker_threads=concurrency)
        worker.start()
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(Dramatiq))
