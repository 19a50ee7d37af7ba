"""Waiting in tests: for a condition or for an event, with a deadline. Nothing here sleeps to "give it time"."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

DEADLINE_SECONDS = 20.0
"""Far more than anything takes, so that a busy machine fails no test; what hangs fails all the same."""


async def until(
    condition: Callable[[], Any], what: str = "", *, seconds: float = DEADLINE_SECONDS, every: float = 0.005
) -> Any:
    """Look at a condition (a function, or one that gives an awaitable) until it is true; returns what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or inspect.getsource(condition).strip()}")
        await asyncio.sleep(every)


async def within(awaitable: Awaitable[Any], seconds: float = DEADLINE_SECONDS) -> Any:
    """Await something that has to come."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def pass_time(seconds: float) -> None:
    """Let a time run out that the test is about, such as a lease: the one wait that is for a clock."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:  # noqa: ASYNC110  # a sleep may be a little short
        await asyncio.sleep(left)
