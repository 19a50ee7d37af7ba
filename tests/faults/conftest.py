"""Fixtures of the campaign. How to use them: ``harness.py``.

pytest tests/faults                                the short form of each row
pytest tests/faults -m soak --faults-report        the long form; writes RESULTS.md (campaign.py: in lanes)
pytest tests/faults --fault-seed 7                 again what a run that printed seed 7 did
"""

from __future__ import annotations

import os
import platform
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Fleet
from kits.servers import RedisServer
from results import Figures, commit_of, write_results

from fluidfast.commands.trials.ledger import Oracle

HERE = Path(__file__).parent
SEED = int(os.environ.get("FLUIDFAST_FAULT_SEED") or random.SystemRandom().randrange(1, 1_000_000))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--fault-seed", type=int, default=None, metavar="N", help="the seed of every scenario")
    group.addoption("--fault-kills", type=int, default=None, metavar="N", help="kills in the long form of row 1")
    group.addoption("--fault-cuts", type=int, default=None, metavar="N", help="cuts in the long form of row 4")
    group.addoption("--faults-report", action="store_true", help="write the figures to tests/faults/RESULTS.md")


def option(config: pytest.Config, name: str) -> Any:
    # A run of all tests loads this file too late for its options to exist.
    return config.getoption(name, default=None)


def seed_of(config: pytest.Config) -> int:
    given = option(config, "--fault-seed")
    return SEED if given is None else int(given)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fault seed: {seed_of(config)}"


@pytest.fixture(scope="session")
def fault_seed(pytestconfig: pytest.Config) -> int:
    """The seed of this run. Draw from ``random.Random(fault_seed)``, and print it when something fails."""
    return seed_of(pytestconfig)


@pytest.fixture(autouse=True)
def _say_seed(fault_seed: int) -> None:
    print(f"--fault-seed {fault_seed}")


ALL_FIGURES = pytest.StashKey[list[dict[str, Any]]]()
COMMIT = pytest.StashKey[str]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if option(session.config, "--faults-report"):  # what is measured is what was there at the start
        session.config.stash[COMMIT] = commit_of(HERE, "results.json", "RESULTS.md")


@pytest.fixture
def figures(request: pytest.FixtureRequest, fault_seed: int) -> Iterator[Figures]:
    """Figures of this test; the form is "long" for a test that is marked ``soak``."""
    found = Figures(fault_seed)
    found.form = "long" if request.node.get_closest_marker("soak") else "short"
    found.began = time.monotonic()
    yield found
    request.config.stash.setdefault(ALL_FIGURES, []).extend(found.lines)


def pytest_sessionfinish(session: pytest.Session) -> None:
    lines = session.config.stash.get(ALL_FIGURES, [])
    if lines and option(session.config, "--faults-report"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        machine = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
        commit = session.config.stash[COMMIT]
        write_results(HERE / "results.json", HERE / "RESULTS.md", lines, machine=machine, commit=commit)


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    """The ledgers of this test."""
    return Oracle(tmp_path / "oracle")


@pytest.fixture
def make_fleet(start_server: Callable[..., RedisServer], oracle: Oracle) -> Iterator[Callable[..., Fleet]]:
    """``make_fleet(lease_seconds=1.0, query="&...", **options of RedisServer)``: a fleet on a server of its own."""
    fleets: list[Fleet] = []

    def make(
        *, lease_seconds: float = 1.0, query: str = "", server: RedisServer | None = None, **options: Any
    ) -> Fleet:
        found = start_server(**options) if server is None else server
        fleet = Fleet(found, oracle, name=f"f-{uuid.uuid4().hex[:12]}", lease_seconds=lease_seconds, query=query)
        fleets.append(fleet)
        return fleet

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    """A fleet with leases of one second on a server of its own, without persistence."""
    return make_fleet()
