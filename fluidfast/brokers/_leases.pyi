import asyncio
from typing import Any, final

from ..core._run import TaskRun
from .base import Settlement

__all__ = ["SETTLE_SECONDS", "Claimed", "Lease", "Ledger", "numbered", "paired"]

SETTLE_SECONDS: float

@final
class Claimed:
    field: str
    payload: bytes
    strikes: int
    lease: Any
    run: Any
    def __init__(self, field: str, payload: bytes, strikes: int = 0) -> None: ...
    @property
    def slot(self) -> str: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: None  # type: ignore[assignment]

def numbered(taken: list[tuple[int, bytes]]) -> list[Claimed]: ...
def paired(given: list[bytes]) -> list[Claimed]: ...

@final
class Lease:
    left: int
    unstarted: int
    lost: bool
    partial: bool
    sending: bool
    settlement: Settlement
    def __init__(self, batch: str, size: int, settlement: Settlement | None = None) -> None: ...
    @property
    def batch(self) -> str: ...
    @property
    def claimed_at(self) -> float: ...

class Ledger:
    leases: dict[str, Lease]
    limited: dict[str, str]
    _dirty: set[Lease]
    _timer: asyncio.TimerHandle | None
    def finished(self, held: Claimed) -> None: ...
    def flush(self) -> None: ...
    def _free(self, held: Claimed) -> None: ...
    def _reply(self, settlement: Settlement, run: TaskRun[Any, Any]) -> None: ...
    def _settle(self, held: Claimed) -> None: ...
    def _settled(self, lease: Lease) -> None: ...
    def _start_send(self, lease: Lease) -> None: ...
