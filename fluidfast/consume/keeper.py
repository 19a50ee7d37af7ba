"""The keeper: a thread that prolongs a consumer's leases, so that a handler which blocks the event loop keeps what
it holds.

It also notices that the event loop is blocked, and then lets others have what was set aside for this consumer.

It keeps nothing for ever: what has been overdue for longer than a lease, although its timeout should have ended it, is
prolonged no more, and then another consumer gets it.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic

__all__ = ["Held", "LeaseKeeper", "Renew"]

logger = logging.getLogger(__name__)

Held = tuple[list[str], list[tuple[str, str]]]
"""Batches, and slots under max_concurrency as (task, slot)."""
Renew = Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]
"""Prolongs them, blocking; gives the batches that hold no lease any more. May raise: it is asked again."""

STALLED_SECONDS = 1.0
"""An event loop that did not get its turn for so long is blocked."""


class LeaseKeeper:
    """Calls ``renew(*held())`` every ``period_seconds``, and ``lost`` with what it gives, in a thread of its own.

    ``held``, ``lost`` and ``stalled`` are called in that thread. When ``held`` returns None, nothing is renewed.
    ``stalled`` is called again and again while the event loop is blocked. ``soon`` gets a function that the loop is to
    call.
    """

    def __init__(
        self,
        renew: Renew,
        held: Callable[[], Held | None],
        lost: Callable[[list[str]], None],
        *,
        period_seconds: float,
        soon: Callable[[Callable[[], None]], object],
        stalled: Callable[[], object] | None = None,
    ) -> None:
        self._renew = renew
        self._held = held
        self._lost = lost
        self._period = period_seconds
        self._soon = soon
        self._stalled = stalled
        self._had_its_turn = True
        self._look_at = 0.0
        self._ended = asyncio.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, name="fluidfast-leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does after the call that it is in."""
        self._stopped.set()

    async def join(self, seconds: float) -> None:
        """Wait until the thread has ended, for so many seconds at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            pass

    def _live(self) -> None:
        try:
            self._run()
        finally:
            try:
                self._soon(self._ended.set)
            except RuntimeError:  # the loop is closed: nobody waits
                pass

    def _run(self) -> None:
        failing = False
        due = monotonic() + self._period
        while not self._stopped.wait(max(0.0, min(due - monotonic(), STALLED_SECONDS))):
            if monotonic() < due:
                self._look_at_the_loop()
                continue
            period = self._period
            try:
                held = self._held()
                if held is not None and (lost := self._renew(*held)):
                    self._lost(lost)
                failing = False
            except Exception as exc:
                # several more tries fit into what is left of the lease
                period = min(self._period, 0.5)
                if not failing:
                    logger.warning("cannot renew leases, trying again: %s", exc)
                failing = True
            due = monotonic() + period
            self._look_at_the_loop()

    def _look_at_the_loop(self) -> None:
        if self._stalled is None or monotonic() < self._look_at:
            return
        self._look_at = monotonic() + STALLED_SECONDS
        try:
            if not self._had_its_turn:
                self._stalled()
            else:
                self._had_its_turn = False
                self._soon(self._has_its_turn)
        except Exception as exc:  # the loop is closed, or the server is not there: it is asked again
            logger.debug("what is set aside cannot be given back: %s", exc)

    def _has_its_turn(self) -> None:
        self._had_its_turn = True
