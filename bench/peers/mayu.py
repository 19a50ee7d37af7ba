"""mayu: no results (its default), one worker process that prefetches far ahead."""

import sys

from mayu import App

from ..common import hitter, params
from ..driver import Driver, main
from . import become, given_url

hit = hitter()


def make(url: str) -> App:
    return App(broker=url)


def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
    hit(user_id)


app = make(given_url())
app.task(noop, name="noop")


class Mayu(Driver):
    package = "mayu"
    module = "bench.peers.mayu"
    guarantees = ("at least once",)
    styles = ("one",)
    fastest = "one"
    concurrency = 1  # threads
    uvloop = False

    async def open(self, style: str = "one") -> None:
        self.noop = make(self.url).task(noop, name="noop")

    async def send(self, i: int) -> None:
        self.noop.send(**params(i))

    def work(self, concurrency: int) -> None:
        become(
            self.url, self.variant, "mayu", "worker", f"{self.module}:app", "--mode", "thread", "--processes", "1",
            "--threads", str(concurrency), "--prefetch-multiplier", "1024", "--log-level", "ERROR",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Mayu))
