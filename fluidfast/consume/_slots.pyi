import asyncio
from collections import deque
from contextvars import Context
from typing import Any, final

from ..brokers._leases import Claimed
from ..core._machine import Listeners
from ..execute.threads import Job
from .engine import Group
from .settler import Settler

__all__ = ["YIELD_SECONDS", "Slot", "Slots"]

YIELD_SECONDS: float

@final
class Slot:
    name: str
    spent: bool
    task: asyncio.Task[None] | None
    held: Claimed | Group | None
    deadline: float
    cancel_at: float
    job: Job | None
    reason: str
    def __init__(self, name: str = "") -> None: ...

class Slots:
    concurrency: int
    finished: int
    """Runs that this consumer has brought to an end."""
    _ready: deque[Claimed | Group]
    _idle: deque[asyncio.Future[None]]
    _room: asyncio.Future[None] | None
    _slots: list[Slot]
    _executors: dict[int, tuple[Any, Any]]
    _context: Context
    _listeners: Listeners
    _settler: Settler
    _running: int
    _prefetch: int
    _collected: int
    _collectable: int
    _draining: bool
    _alone: bool
    _quiet_until: float
    _sweep_at: float
    _sure_seconds: float
    def __init__(self, concurrency: int, settler: Settler, listeners: Listeners, sure_seconds: float) -> None: ...
    def _want(self, coming: int = 0) -> int: ...
    def _wake_slots(self) -> None: ...
    def _begin(self, slot: Slot) -> None: ...
    def _vacate(self, slot: Slot) -> None: ...
    async def _work(self, slot: Slot) -> None: ...
    def _end(self, held: Claimed, state: int) -> None: ...
