import asyncio
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, Literal, TypeVar

from ._lane import Lane
from .producer import Groups, Sending

T = TypeVar("T")

MAX_BATCH: int
"""Payloads a batch."""
MAX_BATCH_BYTES: int

class Confirmation(Generic[T]):
    _asyncio_future_blocking: bool
    def __init__(self, value: T = ..., *, loop: asyncio.AbstractEventLoop | None = None) -> None: ...
    def get_loop(self) -> asyncio.AbstractEventLoop: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def result(self) -> T: ...
    def exception(self) -> BaseException | None: ...
    def set_result(self, value: T) -> None: ...
    def set_exception(self, failure: type[BaseException] | BaseException) -> None: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def add_done_callback(self, fn: Callable[[Confirmation[T]], object], *, context: Context | None = None) -> None: ...
    def remove_done_callback(self, fn: Callable[[Confirmation[T]], object]) -> int: ...
    def __await__(self) -> Generator[Any, Any, T]: ...
    def __iter__(self) -> Generator[Any, Any, T]: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self) -> None: ...

def settle_all(waiters: list[Confirmation[Any]], failure: Exception | None) -> Literal[0]: ...

class Outbox:
    buffer_runs: int
    buffer_bytes: int
    pending: int
    """Payloads that are not confirmed."""
    pending_bytes: int
    crowded: bool
    """``accept`` wants the caller to await ``make_room`` before it goes on."""
    _loop: asyncio.AbstractEventLoop | None
    _in_flight: deque[Sending]
    _lost: tuple[Exception, list[str]] | None
    _groups: Groups
    _waiters: list[Confirmation[Any]]
    _count: int
    _bytes: int
    _buffered: int
    _scheduled: bool
    _lone: int
    _sequence: int
    _room: asyncio.Future[None] | None
    _lane: Lane | None
    _task: int | None
    _awaited: float
    _turned: float
    _hold: float
    id: str
    counts: bool
    """How many runs wait is asked for with each batch."""
    confirmed: int
    """Batches that were confirmed."""
    def __init__(self, buffer_runs: int, buffer_bytes: int) -> None: ...
    def submit(self, loop: asyncio.AbstractEventLoop, priority: int, payload: bytes, value: T) -> Confirmation[T]: ...
    def accept(self, loop: asyncio.AbstractEventLoop, priority: int, payload: bytes) -> None: ...
