from typing import Any, final

from .contract import Settlement

__all__ = ["Claimed", "Lease", "numbered", "paired"]

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
