"""``queue_many``: any number of runs of one task, in batches bounded by count and by bytes, a few in flight."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ..core.states import PRIORITIES, TaskPriority, TaskState
from ..core.task import Task
from ..errors import TaskError
from ..wire._codec import Codec
from ._outbox import Confirmation
from .producer import MAX_BATCH, MAX_BATCH_BYTES, Producer

__all__ = ["QueueSummary", "queue_many"]

IN_FLIGHT = 4


@dataclass(slots=True)
class QueueSummary:
    """What became of the items of a ``queue_many``.

    ``queued``: runs that the broker has confirmed. ``bytes``: their payloads. ``seconds``: since the start.
    ``errors``: index
    and exception of each item that was left out (``on_error="collect"``). ``run_ids``: ids of the confirmed runs, in
    the order of the items, if they were asked for.
    """

    queued: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: list[tuple[int, Exception]] = field(default_factory=list)
    run_ids: list[str] | None = None

    @property
    def rate(self) -> float:
        """Runs a second."""
        return self.queued / self.seconds if self.seconds else 0.0


async def queue_many(
    codec: Codec,
    producer: Producer,
    task: Task[Any],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    priority: TaskPriority | str | None = None,
    on_error: str = "raise",
    return_ids: bool = False,
    progress: Callable[[QueueSummary], object] | None = None,
    batch_runs: int = MAX_BATCH,
    batch_bytes: int = MAX_BATCH_BYTES,
    admit: Callable[[int, int], Awaitable[None]] | None = None,
    announce: Callable[[list[bytes], TaskState], None] | None = None,
) -> QueueSummary:
    """See ``TaskManager.queue_many``. ``batch_runs``, ``batch_bytes``: of one batch at most.

    ``admit`` is awaited with the runs and the bytes of each batch before it is sent; ``announce`` is called with each
    batch and the state ``init`` before it is sent, ``queued`` after it was confirmed.
    """
    number = PRIORITIES.index(TaskPriority(task.priority if priority is None else priority))
    summary = QueueSummary(run_ids=[] if return_ids else None)
    errors = None if on_error == "raise" else summary.errors
    started = monotonic()
    in_flight: list[Confirmation[None]] = []
    sent: list[tuple[list[bytes], int, list[str] | None]] = []

    async def confirm_oldest() -> None:
        payloads, size, ids = sent[0]
        try:
            await in_flight[0]
        finally:
            if in_flight[0].done():
                del in_flight[0], sent[0]
        summary.queued += len(payloads)
        summary.bytes += size
        if summary.run_ids is not None and ids is not None:
            summary.run_ids += ids
        summary.seconds = monotonic() - started
        if announce is not None:
            announce(payloads, TaskState.queued)
        if progress is not None and failure is None:
            progress(summary)

    async def send(payloads: list[bytes], size: int, ids: list[str] | None) -> None:
        if not payloads:
            await asyncio.sleep(0)
            return
        if admit is not None:
            await admit(len(payloads), size)
        if announce is not None:
            announce(payloads, TaskState.init)
        in_flight.append(producer.submit_batch(number, payloads))
        sent.append((payloads, size, ids))
        while len(in_flight) >= IN_FLIGHT:
            await confirm_oldest()
        await asyncio.sleep(0)  # a broker that confirms at once must not keep the loop from everybody else

    failure: BaseException | None = None
    try:
        consumed = 0
        trouble: list[Exception] = []
        async for chunk in chunks(items, trouble):
            ended = False
            while not ended:
                ids: list[str] | None = [] if return_ids else None
                try:
                    payloads, size, count, ended = codec.take(
                        task, priority, chunk, batch_runs, batch_bytes, errors, ids, consumed
                    )
                except TaskError as exc:
                    # The items before the bad one are good, and whoever gave them was told so by the index.
                    taken: list[bytes] = getattr(exc, "taken", [])
                    await send(taken, sum(map(len, taken)), ids)
                    raise
                consumed += count
                await send(payloads, size, ids)
        if trouble:
            raise trouble[0]
        while in_flight:
            await confirm_oldest()
    except BaseException as exc:
        failure = exc
        raise
    finally:
        if failure is not None:
            # What is in flight is confirmed or refused before we say what was confirmed, unless we were cancelled.
            try:
                if not isinstance(failure, asyncio.CancelledError):
                    while in_flight:
                        try:
                            await confirm_oldest()
                        except Exception:  # the first one counts
                            continue
            finally:
                for future in in_flight:
                    future.add_done_callback(lambda f: f.cancelled() or f.exception())
                summary.seconds = monotonic() - started
                failure.summary = summary  # type: ignore[attr-defined]
    summary.seconds = monotonic() - started
    return summary


async def chunks(items: Iterable[Any] | AsyncIterable[Any], trouble: list[Exception]) -> Any:
    """Iterators over the items: one for an iterable, one for every MAX_BATCH of an async iterable.

    They end where the items raise, which is noted in ``trouble``: what was given before is good.
    """
    if isinstance(items, list | tuple):
        yield iter(items)
        return
    if not hasattr(items, "__aiter__"):
        yield until_trouble(iter(items), trouble)
        return
    held: list[Any] = []
    try:
        async for item in items:  # type: ignore[union-attr]
            held.append(item)
            if len(held) >= MAX_BATCH:
                yield iter(held)
                held = []
    except Exception as exc:
        trouble.append(exc)
    if held:
        yield iter(held)


def until_trouble(items: Iterator[Any], trouble: list[Exception]) -> Iterator[Any]:
    # no "yield from": it would close the caller's generator with this one
    try:
        for item in items:  # noqa: UP028
            yield item
    except Exception as exc:
        trouble.append(exc)
