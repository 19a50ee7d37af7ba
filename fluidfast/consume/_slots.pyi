import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, Protocol, final

from ..brokers._leases import Claimed, Lease
from ..brokers.base import TaskBroker
from ..core._machine import Listeners, Tally
from ..core._run import TaskRun
from ..core.hooks import Hooks
from ..core.states import TaskState
from ..core.task import Task
from ..execute.threads import Job
from ._ledger import Ledger
from .held import Group

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

class Admission(Protocol):
    async def may_start(self, slot: Slot, held: Claimed) -> bool: ...

class Outcomes(Protocol):
    def broke(self, slot: Slot, held: Claimed, exc: BaseException) -> None: ...
    def mishandled(self, slot: Slot, held: Claimed, exc: BaseException) -> None: ...
    def failed(self, held: Claimed, exc: BaseException) -> None: ...

class Groups(Protocol):
    async def run(self, slot: Slot, group: Group) -> None: ...

class Functions(Protocol):
    async def call(self, slot: Slot, task: Task[Any], argument: Any) -> Any: ...

class Timeouts(Protocol):
    def sweep_by(self, when: float) -> None: ...

class Ended(Protocol):
    def __call__(self, slot: Slot, task: asyncio.Task[None]) -> None: ...

@final
class Slots:
    @property
    def ready(self) -> deque[Claimed | Group]: ...
    context: Context
    concurrency: int
    prefetch: int
    collected: int
    collectable: int
    draining: bool
    alone: bool
    quiet_until: float
    sweep_at: float
    def __init__(
        self, concurrency: int, ledger: Ledger, listeners: Listeners, broker: TaskBroker | None, sure_seconds: float
    ) -> None: ...
    def connect(
        self,
        *,
        admission: Admission,
        outcomes: Outcomes,
        groups: Groups,
        functions: Functions,
        timeouts: Timeouts,
        hooks: Hooks,
        ended: Ended,
    ) -> None: ...
    def __iter__(self) -> Iterator[Slot]: ...
    follows: bool
    log_run: Callable[[TaskRun[Any, Any]], None] | None
    @property
    def tally(self) -> Tally: ...
    @property
    def finished(self) -> int: ...
    @property
    def running(self) -> int: ...
    def want(self, coming: int = 0) -> int: ...
    def room(self) -> asyncio.Future[None]: ...
    def make_room(self) -> int: ...
    def take(self, lease: Lease) -> int: ...
    def wake(self) -> int: ...
    def begin(self, slot: Slot) -> None: ...
    def limit(self, slot: Slot, deadline: float) -> None: ...
    def occupy(self, slot: Slot, held: Claimed | Group) -> None: ...
    def vacate(self, slot: Slot) -> int: ...
    def started(self, held: Claimed) -> None: ...
    def end(self, held: Claimed, state: TaskState) -> None: ...
