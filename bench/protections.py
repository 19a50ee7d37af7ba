"""What the protections cost: queueing and running with each of them taken out, beside all of them.

    python -m bench.protections [--broker redis://127.0.0.1:6379] [--tasks 200000] [--repeats 5] [--json]

None of them can be switched off: here their code is taken out of this process, to be measured. The variants take turns,
so that what else the machine does meets each of them. One process queues with ``queue_many`` and then runs no-ops.
"""

import argparse
import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

from fluidfast import TaskConsumer
from fluidfast.brokers.redis import scripts
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.commands.loops import ease_collector

from .common import ROOT, BenchError
from .driver import run
from .ours import make_task

BARE_ENQUEUE = """
local at = 7
for p = 1, 3 do
  local n = tonumber(ARGV[3 + p])
  if n > 0 then
    redis.call('LPUSH', KEYS[2 + p], unpack(ARGV, at, at + n - 1))
    at = at + n
  end
end
return {1, 0}
"""


@contextlib.contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def script_instead(name: str, text: str) -> Iterator[None]:
    before = scripts.read
    try:
        with instead(scripts, "read", lambda wanted: text.encode() if wanted == name else before(wanted)):
            scripts.load.cache_clear()
            yield
    finally:
        scripts.load.cache_clear()


@contextlib.contextmanager
def no_sequence() -> Iterator[None]:
    """A batch whose reply is lost is queued twice."""
    with script_instead("enqueue", BARE_ENQUEUE):
        yield


@contextlib.contextmanager
def no_upkeep() -> Iterator[None]:
    """Leases are not prolonged, and what a dead worker held is not taken back."""

    async def nothing(self: RedisTaskBroker) -> int:
        return 0

    with (
        instead(RedisTaskBroker, "renewer", lambda self, consumer: lambda batches, slots: []),
        instead(RedisTaskBroker, "reap", nothing),
    ):
        yield


@contextlib.contextmanager
def no_lease() -> Iterator[None]:
    """Popped and gone: at most once, nothing is settled."""

    async def settled(self: RedisTaskBroker, settlement: Any) -> bool:
        return True

    text = scripts.load("claim").text.decode()
    kept = "  if #given > 0 then\n    now = "
    if text.count(kept) != 1:
        raise BenchError("claim.lua is another one than this was written for")
    with (
        no_upkeep(),
        script_instead("claim", text.replace(kept, "  if false then\n    now = ")),
        instead(RedisTaskBroker, "settle", settled),
    ):
        yield


VARIANTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "all protections": contextlib.nullcontext,
    "without the producer's sequence numbers": no_sequence,
    "without renewing and reaping": no_upkeep,
    "without leases: at most once": no_lease,
}


async def once(url: str, tasks: int) -> tuple[float, float]:
    """Rates of queueing and of running."""
    ran = 0

    def hit(i: int) -> None:
        nonlocal ran
        ran += 1

    consumer = TaskConsumer(broker_url=f"{url}?name=bench-{secrets.token_hex(4)}", max_concurrent_tasks=100)
    noop = make_task("struct", hit)
    consumer.register_task(noop)
    await consumer.broker.connect()
    items = (
        {"user_id": i, "email": "someone@example.com", "amount": 12.5, "tags": ["new", "eu"]} for i in range(tasks)
    )
    begin = perf_counter()
    await consumer.queue_many(noop, items)
    queued = tasks / (perf_counter() - begin)
    begin = perf_counter()
    await consumer.startup()
    while ran < tasks:
        await asyncio.sleep(0.002)
        if perf_counter() - begin > 120:
            raise BenchError(f"{ran} of {tasks} ran within 120 s")
    drained = tasks / (perf_counter() - begin)
    await consumer.shutdown()
    await consumer.broker.clear()
    await consumer.broker.close()
    if ran != tasks:
        raise BenchError(f"{ran} runs of {tasks} tasks")
    return queued, drained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", default="", help="redis:// URL; without it a server is started")
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    with contextlib.ExitStack() as stack:
        url = options.broker
        if not url:
            sys.path.insert(0, str(ROOT / "tests"))
            from kits.servers import RedisServer

            url = stack.enter_context(RedisServer()).url
        ease_collector()
        run(once(url, 20_000))
        for repeat in range(options.repeats):
            for name, taken_out in VARIANTS.items():
                print(f"[{repeat + 1}/{options.repeats}] {name}", file=sys.stderr)
                with taken_out():
                    found[name].append(run(once(url, options.tasks)))
    base = [median(rates) for rates in zip(*found["all protections"], strict=True)]
    rows = []
    for name, pairs in found.items():
        queued, ran = (median(rates) for rates in zip(*pairs, strict=True))
        rows.append({"variant": name, "queued": queued, "run": ran, "queued_gain": queued / base[0] - 1,
                     "run_gain": ran / base[1] - 1})  # fmt: skip
    if options.json:
        print(json.dumps({"tasks": options.tasks, "repeats": options.repeats, "variants": rows}))
        return 0
    print(f"| {options.tasks:,} tasks, medians of {options.repeats} | queue_many /s | | one worker runs /s | |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['variant']} | {row['queued']:,.0f} | {row['queued_gain']:+.1%} "
            f"| {row['run']:,.0f} | {row['run_gain']:+.1%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
