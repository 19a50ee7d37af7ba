"""Commands as bytes, beside hiredis, whose own is written in C.

pytest bench/micro/test_bench_resp.py --benchmark-only -o addopts=

A round makes OPS of each, so divide its time by that.
"""

from collections.abc import Callable
from itertools import repeat

import hiredis
import pytest

from fluidfast.brokers.redis._resp import pack

OPS = 100
COMMANDS = {
    "a batch of 1000": ("EVALSHA", "5" * 40, 1, "fluidfast", *[b"%d" % i * 54 for i in range(1000, 2000)]),
    "a claim": ("EVALSHA", "5" * 40, 1, "fluidfast", "worker-1", 100, 60_000, "noop", "other"),
}
WAYS = {"fluidfast pack": pack, "hiredis.pack_command": hiredis.pack_command}


def times(call: Callable[[tuple[object, ...]], bytes], command: tuple[object, ...]) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, OPS):
            call(command)

    return run


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", WAYS)
def test_pack(benchmark, name, command):
    benchmark.group = f"the bytes of {command}, {OPS:,}"
    benchmark.pedantic(times(WAYS[name], COMMANDS[command]), rounds=30, warmup_rounds=2)
