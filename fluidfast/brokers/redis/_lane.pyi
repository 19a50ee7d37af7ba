from collections import deque
from typing import Any

from .._short_way import ShortWay

__all__ = ["SHORT_BYTES", "Direct", "HeadStart", "Lane"]

SHORT_BYTES: int
"""A command that is shorter is answered at once."""

class Direct:
    closed: bool
    watched: str | None
    turn: int
    begun: bool
    _transport: Any
    _waiting: deque[Any]
    _oldest: float
    _poll_seconds: float
    _poll_from: float
    _poll_misses: int
    _look_seconds: float
    _fd: int
    def abort(self) -> None: ...

class HeadStart:
    @property
    def given(self) -> bool: ...
    def took(self, spent: int) -> bool: ...

class Lane(ShortWay):
    link: Any
    @property
    def head_start(self) -> HeadStart: ...
    came: bytes
    good_until: float
    @property
    def producer(self) -> str | None: ...
    def prepare(self, producer: str, head: bytes, pushes: tuple[bytes, ...], tail: bytes) -> None: ...
