"""The pytest plugin of fluidfast: fixtures for tests of your own tasks.

It imports fluidfast when a test first asks for a fixture, so that other test runs pay nothing for it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fluidfast import TaskManager
    from fluidfast.testing import Harness

OPTION = "fluidfast_manager"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(OPTION, "The task manager under test, as module:manager (or a function that returns it)", default="")


@pytest.fixture
def fluidfast_target(pytestconfig: pytest.Config) -> TaskManager | None:
    """Return the manager under test: that of the ini option ``fluidfast_manager``, or None. Override it to choose
    another one."""
    name = str(pytestconfig.getini(OPTION))
    return load(name) if name else None


@pytest.fixture
def fluidfast_consumer(fluidfast_target: TaskManager | None) -> Iterator[Harness]:
    """The test's own ``memory://`` broker for the manager under test: ``drain``, ``assert_queued``, ``travel``."""
    from fluidfast.testing import isolated

    with isolated(fluidfast_target) as harness:
        yield harness


@pytest.fixture
def fluidfast_manager(fluidfast_consumer: Harness) -> TaskManager:
    """The manager under test, on the test's own ``memory://`` broker."""
    return fluidfast_consumer.manager


def load(name: str) -> TaskManager:
    """Return the manager of ``module:manager``.

    Raises:
        pytest.UsageError: there is none.
    """
    from fluidfast import TaskManager

    where = f"{OPTION} = {name} (pytest's configuration)"
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as exc:
        hint = "; is its folder on Python's path? Set pythonpath = . beside it" if isinstance(exc, ImportError) else ""
        raise pytest.UsageError(f"{where}: {exc}{hint}") from exc
    if not isinstance(found, TaskManager) and callable(found):
        try:
            found = found()
        except Exception as exc:
            raise pytest.UsageError(
                f"{where}: {name.rpartition(':')[2]}() failed: {type(exc).__name__}: {exc}"
            ) from exc
    if not isinstance(found, TaskManager):
        raise pytest.UsageError(
            f"{where}: that is of type {type(found).__name__}, it must be a TaskManager: write module:manager"
        )
    return found
