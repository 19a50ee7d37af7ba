"""The libraries that fluidfast is measured beside, each through a driver of its own that runs in its own environment.

``python -m bench.peers.NAME produce|drain|latency --url redis://...`` with the environment's Python, or ``python -m
bench.compare`` for all of them. This list is read in every environment: the standard library only.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A library: what to install for it, and how many tasks take about a second of it.

    ``packages``: requirements as pip takes them. ``python``: lowest version that it runs on. ``variants``: its ways of
    delivery that are measured, the first one wholly, the others' draining only. ``tasks``: how many by measurement.
    ``redis``: lowest version of Redis whose commands it uses, if that is a new one.
    """

    name: str
    packages: tuple[str, ...]
    tasks: dict[str, int]
    python: tuple[int, int] = (3, 11)
    variants: tuple[str, ...] = ("",)
    redis: tuple[int, ...] = ()

    @property
    def module(self) -> str:
        return f"bench.peers.{self.name.replace('-', '_')}"


PEERS = (
    Peer(
        "aio-fluid",
        ("aio-fluid>=2.12,<2.13", "redis[hiredis]", "uvloop"),
        {"one": 12_000, "gather": 12_000, "drain": 1200},
        python=(3, 12),
    ),
    Peer("huey", ("huey~=3.5", "redis[hiredis]"), {"one": 10_000, "drain": 5000, "local": 20_000}),
    Peer(
        "saq",
        ("saq[redis,hiredis]~=0.26", "typing-extensions", "uvloop"),
        {"one": 3000, "gather": 5000, "drain": 2000},
    ),
    Peer("arq", ("arq~=0.28", "hiredis", "uvloop"), {"one": 1500, "gather": 3000, "drain": 2000}),
    Peer(
        "taskiq",
        ("taskiq~=0.13", "taskiq-redis~=1.2", "hiredis", "uvloop"),
        {"one": 2000, "gather": 3000, "drain": 3000},
        variants=("list", "stream"),
    ),
    Peer("dramatiq", ("dramatiq[redis]~=2.2", "hiredis"), {"one": 4000, "drain": 3000}),
    Peer("streaq", ("streaq~=7.2", "uvloop"), {"one": 1500, "gather": 3000, "bulk": 6000, "drain": 1500}),
    Peer("mayu", ("mayu~=0.2",), {"one": 6000, "drain": 30_000}, python=(3, 13)),
    Peer(
        "blitzq",
        ("blitzq~=1.1", "hiredis", "uvloop"),
        {"one": 3000, "gather": 6000, "bulk": 40_000, "drain": 40_000},
        python=(3, 12),
        variants=("reliable", "fast"),
    ),
    Peer(
        "chasquimq",
        ("chasquimq~=1.3", "uvloop"),
        {"one": 3000, "gather": 10_000, "bulk": 50_000, "drain": 20_000},
        redis=(8, 6),  # XADD with IDMP
    ),
    Peer("tarsk", ("tarsk-redis~=0.2",), {"one": 6000, "drain": 15_000}),
    Peer(
        "ardiq",
        ("ardiq~=1.2", "uvloop"),
        {"one": 3000, "gather": 10_000, "bulk": 40_000, "drain": 10_000},
        python=(3, 12),
    ),
)

URL_VARIABLE = "FLUIDFAST_BENCH_URL"
VARIANT_VARIABLE = "FLUIDFAST_BENCH_VARIANT"


def become(url: str, variant: str, *command: str) -> None:
    """Turn this process into a library's own worker command, which finds the URL by ``given_url``."""
    os.environ[URL_VARIABLE], os.environ[VARIANT_VARIABLE] = url, variant
    program = os.path.join(os.path.dirname(sys.executable), command[0])
    os.execv(program, [program, *command[1:]])


def given_url() -> str:
    """The server of a worker that was started by ``become``; in any other process a placeholder."""
    return os.environ.get(URL_VARIABLE, "redis://127.0.0.1:6379/0")
