"""``RetryPolicy``: how often and when to retry a run."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..checks import CENTURY, MAX_COUNT, check_number, shown
from ..errors import ConfigError
from .model import Model

__all__ = ["RetryPolicy", "RetryPolicyInfo"]


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which waits, a failed run is retried.

    ``max_attempts``: retries after the first attempt, 0 or more; None: no limit.
    ``wait``: seconds before the first retry.
    ``backoff``: the factor by which the wait grows from each retry to the next.
    ``max_wait``: the longest wait, in seconds. ``wait``, ``backoff`` and ``max_wait`` may be ``math.inf``; no wait is
    longer than a century.
    ``exceptions``: the types to retry; empty: all.
    ``jitter``: 0 to 1, the random share of the wait. A wait of w becomes one between ``w * (1 - jitter)`` and w, so
    that runs that failed together do not come back together.

        RetryPolicy(max_attempts=5, wait=1, backoff=2, jitter=0.2)  # after about 1, 2, 4, 8 and 16 s

    Raises:
        ConfigError: a value is out of range (ConfigError is a ValueError).
    """

    max_attempts: int | None = None
    wait: float = 1.0
    backoff: float = 1.0
    max_wait: float = 60.0
    exceptions: tuple[type[BaseException], ...] = ()
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            check_number("max_attempts", self.max_attempts, ConfigError, whole=True, most=MAX_COUNT)
        check_number("jitter", self.jitter, ConfigError, most=1)
        check_number("backoff", self.backoff, ConfigError, most=math.inf)
        for name in ("wait", "max_wait"):
            check_number(name, getattr(self, name), ConfigError, infinite=True)
        kinds: Any = self.exceptions
        if not isinstance(kinds, Iterable):
            kinds = (kinds,)
        object.__setattr__(self, "exceptions", tuple(kinds))
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.exceptions):
            raise ConfigError(f"exceptions is {shown(kinds)}, it must be a tuple of exception types")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry number ``attempt``, counted from 1."""
        if not self.wait:
            return 0.0
        try:
            wait = min(self.wait * self.backoff ** (attempt - 1), self.max_wait, CENTURY)
        except OverflowError:
            wait = min(self.max_wait, CENTURY)
        return wait * (1 - self.jitter * random.random()) if self.jitter else wait

    def matches(self, exc: BaseException) -> bool:
        """Return whether to retry after this exception."""
        return not self.exceptions or isinstance(exc, self.exceptions)

    def allows(self, attempts: int) -> bool:
        """Return whether another retry may follow ``attempts`` retries."""
        return self.max_attempts is None or attempts < self.max_attempts

    def info(self) -> "RetryPolicyInfo":
        """Return the policy as data."""
        return RetryPolicyInfo(
            max_attempts=self.max_attempts,
            wait=float(self.wait),
            backoff=float(self.backoff),
            max_wait=float(self.max_wait),
            exceptions=[exc.__name__ for exc in self.exceptions],
            jitter=self.jitter,
        )


class RetryPolicyInfo(Model, msgspec.Struct, kw_only=True):
    """A retry policy as data: see ``RetryPolicy``."""

    max_attempts: int | None = None
    wait: float
    backoff: float
    max_wait: float
    exceptions: list[str] = []
    jitter: float = 0.0
