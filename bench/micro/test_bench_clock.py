"""Run ids and clocks beside what the standard library has for them.

pytest bench/micro/test_bench_clock.py --benchmark-only -o addopts=

A round makes OPS of each, so divide its time by that.
"""

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import repeat
from uuid import uuid4

import pytest

from fluidfast.core._time import monotonic_seconds, new_id, now_micros

OPS = 10_000


def times(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, OPS):
            call()

    return run


def now_utc() -> datetime:
    return datetime.now(UTC)


IDS = {
    "fluidfast new_id": new_id,
    "uuid4().hex": lambda: uuid4().hex,
    "secrets.token_hex(16)": lambda: secrets.token_hex(16),
}
CLOCKS = {
    "fluidfast now_micros": now_micros,
    "datetime.now(UTC)": now_utc,
    "time.time": time.time,
    "time.time_ns() // 1000": lambda: time.time_ns() // 1000,
}
MONOTONIC = {"fluidfast monotonic_seconds": monotonic_seconds, "time.monotonic": time.monotonic}


@pytest.mark.parametrize("name", IDS)
def test_id(benchmark, name):
    benchmark.group = f"an id, {OPS:,}"
    benchmark.pedantic(times(IDS[name]), rounds=30, warmup_rounds=2)


@pytest.mark.parametrize("name", CLOCKS)
def test_wall_clock(benchmark, name):
    benchmark.group = f"a time, {OPS:,}"
    benchmark.pedantic(times(CLOCKS[name]), rounds=30, warmup_rounds=2)


@pytest.mark.parametrize("name", MONOTONIC)
def test_monotonic_clock(benchmark, name):
    benchmark.group = f"a monotonic time, {OPS:,}"
    benchmark.pedantic(times(MONOTONIC[name]), rounds=30, warmup_rounds=2)
