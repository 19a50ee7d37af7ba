from collections import deque
from typing import Any

from .broker import Batch, Confirm

__all__ = ["POLL_MISSES", "SHORT_BYTES", "Direct", "Lane"]

SHORT_BYTES: int
"""A command that is shorter is answered at once."""
POLL_MISSES: int
"""Answers in a row that did not come in time, so that none is looked for during a pause."""

class Direct:
    closed: bool
    watched: str | None
    turn: int
    _transport: Any
    _waiting: deque[Any]
    _oldest: float
    _poll_seconds: float
    _poll_from: float
    _poll_misses: int
    _poll_pause: float
    _fd: int
    def _missed(self, now: float) -> None: ...

class Lane:
    link: Any
    came: bytes
    @property
    def producer(self) -> str | None: ...
    def prepare(self, producer: str, head: bytes, pushes: tuple[bytes, ...], tail: bytes) -> None: ...
    def __call__(self, batch: Batch, confirm: Confirm) -> None: ...
    def take_over(self, batch: Batch, confirm: Confirm) -> None: ...
