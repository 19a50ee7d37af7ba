"""tarsk-redis: its supervisor with one child."""

import sys

from tarsk import App

from ..common import hitter, params
from ..driver import Driver, main
from . import become, given_url

hit = hitter()
app = App(broker=given_url())


@app.task(name="noop")
async def noop(user_id: int, email: str, amount: float, tags: list[str]) -> None:
    hit(user_id)


class Tarsk(Driver):
    package = "tarsk-redis"
    module = "bench.peers.tarsk"
    guarantees = ("at least once",)
    styles = ("one",)
    fastest = "one"
    concurrency = 100  # slots
    uvloop = False

    async def open(self, style: str = "one") -> None:
        app.broker = self.url

    async def send(self, i: int) -> None:
        noop.send(**params(i))

    def work(self, concurrency: int) -> None:
        become(
            self.url, self.variant, "tarsk", "worker", "--app", f"{self.module}:app", "--broker", self.url,
            "--queues", "default", "--children", "1", "--slots", str(concurrency),
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Tarsk))
