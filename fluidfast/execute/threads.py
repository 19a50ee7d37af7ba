"""The threads of a consumer, which run plain (``def``) functions of tasks.

A consumer starts threads when it needs them: one for each slot, and some more, because Python cannot stop a thread. A
run may end before its function returns, by its timeout or with its lease. From then on the thread *hangs*, until the
function returns.

The event loop passes jobs through one queue and gets them back through another, with one wake-up for all finished ones.
The threads are daemons, so that a hung one does not block the end of its process.
"""

import asyncio
import contextvars
import threading
from collections import Counter, deque
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any, Protocol

from ..core.task import Task
from ..errors import NoThreadError
from ..texts import printable
from .executor import call_in_thread

__all__ = ["NAME", "Job", "Threads", "Work"]

NAME = "task-thread"


class Job:
    """A call of a task's function that a thread makes, in a copy of the context in which the job was made.

    Attributes: ``task``; ``waiter``: done when the call has returned; ``began``: when a thread took the job (monotonic
    seconds), 0.0 before; ``slot``: the slot under ``max_concurrency`` that its thread keeps while it hangs, or "".
    """

    __slots__ = (
        "_argument", "_context", "_error", "_result", "_withdrawn", "began", "ended", "slot", "task", "waiter"
    )  # fmt: skip

    def __init__(self, task: Task[Any], argument: Any) -> None:
        self.task = task
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began = 0.0
        self.ended = False
        self.slot = ""
        self._argument = argument
        self._context = contextvars.copy_context()
        self._withdrawn = False
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call, unless the job was withdrawn. In a thread."""
        self.began = monotonic()  # before the look: either this sees the withdrawal, or withdraw() sees that it began
        if self._withdrawn:
            return
        try:
            self._result = self._context.run(call_in_thread, self.task.executor, self._argument)
        except BaseException as exc:
            self._error = exc

    def withdraw(self) -> bool:
        """Stop waiting for the job. Returns whether its thread goes on with the call."""
        self._withdrawn = True
        return self.began > 0 and not self.ended

    def outcome(self) -> Any:
        """Return or raise what the call did."""
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # its traceback holds this frame

    @property
    def due(self) -> float:
        """When its time is up (monotonic seconds). The time of a job that no thread has taken does not run."""
        return (self.began or monotonic()) + self.task.timeout_seconds


class Work(Protocol):
    """Work for a thread: a ``Job``, or what else has its attributes."""

    ended: bool
    slot: str

    @property
    def task(self) -> Task[Any]:
        """The task of what runs."""

    @property
    def waiter(self) -> "asyncio.Future[None]":
        """Done when the thread is done with it."""

    @property
    def began(self) -> float:
        """When the thread called the function that runs (monotonic seconds), 0.0 before."""

    def run(self) -> None:
        """Do it. In a thread."""

    def withdraw(self) -> bool:
        """Stop waiting for it. Returns whether its thread goes on in a function."""


class Threads:
    """The threads of one consumer. Everything here but ``serve`` and ``_give`` happens in its event loop.

    ``freed``: called with each job that hung when its function has returned.
    """

    def __init__(self, freed: Callable[[Work], None]) -> None:
        self.hung: set[Work] = set()
        self._freed = freed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: SimpleQueue[Work | None] = SimpleQueue()
        self._done: deque[Work] = deque()
        self._woken = False
        self._open = 0  # jobs that have not ended
        self._none_open: asyncio.Future[None] | None = None
        self._count = 0
        self._closed = False

    def submit(self, job: Work) -> None:
        """Have a thread do this.

        Raises:
            NoThreadError: every thread hangs, and the system does not give another.
        """
        self._loop = asyncio.get_running_loop()
        if self._open >= self._count:
            self._start_thread()
        self._open += 1
        self._jobs.put(job)

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=serve, args=(self._jobs, self._give), name=f"{NAME}-{self._count + 1}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as exc:
            if self._count <= len(self.hung):
                raise NoThreadError(
                    f"the system refused a thread beside {threading.active_count()} others ({exc}): raise its limit "
                    "(ulimit -u, pids of the container), or lower the concurrency"
                ) from exc
            return  # the job waits until one of the others is free
        self._count += 1

    def leave(self, job: Work) -> bool:
        """Stop waiting for a job. Returns whether its thread hangs from here on."""
        if not job.withdraw():
            return False
        self.hung.add(job)
        return True

    def hung_by_task(self) -> str:
        """Return the hung threads by task, the most first: ``report 3, mail 1``."""
        counts = Counter(job.task.name for job in self.hung)
        return ", ".join(f"{printable(name)} {count}" for name, count in counts.most_common())

    def _give(self, job: Work) -> None:
        """Give a job back. In its thread."""
        self._done.append(job)
        if not self._woken:  # one wake-up for all that end before the loop has its turn
            self._woken = True
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # the loop is closed: nobody waits
                pass

    def _take(self) -> None:
        self._woken = False  # first: a job that comes from here on wakes the loop again
        while self._done:
            job = self._done.popleft()
            job.ended = True
            self._open -= 1
            if not job.waiter.done():
                job.waiter.set_result(None)
            if job in self.hung:
                self.hung.discard(job)
                self._freed(job)
        if not self._open and self._none_open is not None and not self._none_open.done():
            self._none_open.set_result(None)

    def close(self) -> None:
        """End the threads: the idle ones at once, the others when their functions return."""
        if not self._closed:
            self._closed = True
            for _ in range(self._count):
                self._jobs.put(None)

    async def join(self, seconds: float) -> int:
        """Wait for so many seconds until no function runs any more. Returns how many still do."""
        if self._open:
            self._none_open = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._none_open], timeout=seconds)
        return self._open


def serve(jobs: "SimpleQueue[Work | None]", give: Callable[[Work], None]) -> None:
    """Run jobs until there is a None: the life of a thread."""
    while (job := jobs.get()) is not None:
        job.run()
        give(job)
        del job  # an idle thread holds nothing
