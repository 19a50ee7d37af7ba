"""Upkeep that each consumer does for the fleet: take back expired leases, and queue delayed runs that are due."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..brokers.base import TaskBroker
from ..core._time import now_micros
from ._ledger import SETTLE_SECONDS

__all__ = ["Upkeep"]

logger = logging.getLogger("fluidfast.engine")

PROMOTE_SECONDS = 1.0


class Upkeep:
    """Looks after the broker, and knows its time. ``who`` in the log."""

    def __init__(self, broker: TaskBroker, who: str) -> None:
        self._broker = broker
        self._who = who
        self._behind = 0  # microseconds from this machine's wall clock to the broker's
        self._soon = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Look for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    # -- the broker's time

    def now(self) -> int:
        """The broker's time in microseconds: what is delayed is due by its clock, whatever this machine's says."""
        return now_micros() + self._behind

    def set_now(self, at: int) -> None:
        """The broker has just told its time."""
        self._behind = at - now_micros()

    # -- leases that ran out

    async def reap_loop(self) -> None:
        """Take them back, again and again."""
        while True:
            await asyncio.sleep(self._broker.reap_seconds())
            try:
                await self._broker.reap()
            except Exception as exc:
                logger.warning("%s: reaping failed, trying again: %s", self._who, exc)

    # -- what is delayed

    async def promote_loop(self, besides: Callable[[], Awaitable[None]]) -> None:
        """Queue what is due, again and again, and await ``besides`` each time."""
        while True:
            pause = PROMOTE_SECONDS
            try:
                due = await self._broker.promote()
                if due is not None:
                    pause = min(pause, due + 0.001)
            except Exception as exc:
                logger.warning("%s: promoting delayed runs failed, trying again: %s", self._who, exc)
            await besides()
            try:
                async with asyncio.timeout(pause):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()

    def promote_in(self, seconds: float) -> None:
        """Look for what is due in so many seconds. One timer, for the earliest: each look says when the next is due,
        and there is one within PROMOTE_SECONDS."""
        if seconds >= PROMOTE_SECONDS:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds + SETTLE_SECONDS
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._promote_now)

    def _promote_now(self) -> None:
        self._timer = None
        self._soon.set()
