from collections import deque
from typing import Any

from .broker import Batch, Confirm

__all__ = ["SHORT_BYTES", "Direct", "Lane"]

SHORT_BYTES: int
"""A command that is shorter is answered at once."""

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
    _look_seconds: float
    _fd: int
    def abort(self) -> None: ...

class Lane:
    link: Any
    came: bytes
    good_until: float
    @property
    def producer(self) -> str | None: ...
    def prepare(self, producer: str, head: bytes, pushes: tuple[bytes, ...], tail: bytes) -> None: ...
    def __call__(self, batch: Batch, confirm: Confirm) -> None: ...
    def take_over(self, batch: Batch, confirm: Confirm) -> None: ...
