"""The keeper: a thread that prolongs a consumer's leases, so that a handler which blocks the event loop keeps what
it holds.

It keeps nothing for ever: what has been overdue for longer than a lease, although its timeout should have ended it, is
prolonged no more, and then another consumer gets it.
"""

import logging
import threading
from collections.abc import Callable, Sequence

__all__ = ["Held", "LeaseKeeper", "Renew"]

logger = logging.getLogger(__name__)

Held = tuple[list[str], list[tuple[str, str]]]
"""Batches, and slots under max_concurrency as (task, run id)."""
Renew = Callable[[Sequence[str], Sequence[tuple[str, str]]], list[str]]
"""Prolongs them, blocking; gives the batches that hold no lease any more. May raise: it is asked again."""


class LeaseKeeper:
    """Calls ``renew(*held())`` every ``period_seconds``, and ``lost`` with what it gives, in a thread of its own.

    ``held`` and ``lost`` are called in that thread.
    """

    def __init__(
        self, renew: Renew, held: Callable[[], Held], lost: Callable[[list[str]], None], *, period_seconds: float
    ) -> None:
        self._renew = renew
        self._held = held
        self._lost = lost
        self._period = period_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fluidfast-leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does after the call that it is in."""
        self._stopped.set()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, for so many seconds at most. Blocks."""
        self._thread.join(seconds)

    def _run(self) -> None:
        failing = False
        period = self._period
        while not self._stopped.wait(period):
            period = self._period
            try:
                batches, slots = self._held()
                if lost := self._renew(batches, slots):
                    self._lost(lost)
                failing = False
            except Exception as exc:
                # several more tries fit into what is left of the lease
                period = min(self._period, 0.5)
                if not failing:
                    logger.warning("leases cannot be prolonged, trying again: %s", exc)
                failing = True
