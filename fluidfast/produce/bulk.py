"""``queue_many``: any number of runs of one task, in batches bounded by count and by bytes, a few in flight."""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from ..core.states import PRIORITIES, TaskPriority, TaskState
from ..core.task import Task
from ..errors import TaskError, TaskUsageError
from ._outbox import Confirmation
from .handle import Wanted
from .intake import Intake
from .producer import MAX_BATCH

__all__ = ["QueueSummary", "queue_many"]

IN_FLIGHT = 4


@dataclass(slots=True)
class QueueSummary:
    """The outcome of a ``queue_many``.

    ``queued``: the number of confirmed runs. ``bytes``: the size of their payloads. ``seconds``: since the start.
    ``errors``: index and exception of each item that was left out (``on_error="collect"``).
    ``run_ids``: ids of the confirmed runs, in the order of the items (``return_ids=True``), else None.
    """

    queued: int = 0
    bytes: int = 0
    seconds: float = 0.0
    errors: list[tuple[int, Exception]] = field(default_factory=list)
    run_ids: list[str] | None = None

    @property
    def rate(self) -> float:
        """Confirmed runs per second."""
        return self.queued / self.seconds if self.seconds else 0.0


async def queue_many(
    intake: Intake,
    task: Task[Any],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    wanted: Wanted,
    on_error: str = "raise",
    return_ids: bool = False,
    progress: Callable[[QueueSummary], object] | None = None,
) -> QueueSummary:
    """Queue a run for each item; see ``TaskManager.queue_many``. ``wanted``: the options of each."""
    if isinstance(items, Mapping | str | bytes):
        raise TaskUsageError(
            f"queue_many takes an iterable of params, and was given one {type(items).__name__}: write "
            'queue_many(task, [{"name": value}]), or queue(...) for one run'
        )
    codec, producer, gate = intake.broker.codec, intake.producer, intake.backpressure
    announce = intake.announce if intake.announces else None
    priority = wanted.priority
    due = (lambda: wanted.seconds(intake.broker.now())) if wanted.delay or wanted.at else None
    number = PRIORITIES.index(TaskPriority(task.priority if priority is None else priority))
    summary = QueueSummary(run_ids=[] if return_ids else None)
    errors = None if on_error == "raise" else summary.errors
    started = monotonic()
    in_flight: list[Confirmation[None] | asyncio.Future[None]] = []
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
        if due is None:
            await intake.admit(len(payloads), size)
        if announce is not None:
            announce(payloads, TaskState.init)
        if intake.hooks.queueing:
            await send_each(payloads)
            return
        if due is None:
            in_flight.append(producer.submit_batch(number, payloads))
        else:
            seconds = due()
            delay = partial(intake.broker.delay, [(seconds, number, each) for each in payloads])
            in_flight.append(asyncio.ensure_future(producer.in_time(delay)))
        sent.append((payloads, size, ids))
        while len(in_flight) >= IN_FLIGHT:
            await confirm_oldest()
        await asyncio.sleep(0)  # a broker that confirms at once must not keep the loop from everybody else

    async def send_each(payloads: list[bytes]) -> None:
        """Send runs one by one, since hooks see each of them."""
        runs = [codec.decode(payload, intake.manager, intake.manager.dispatcher.listeners) for payload in payloads]
        options = wanted.given()
        posted = (intake.post(*each, due, options) for each in zip(runs, payloads, strict=True))
        answers = await asyncio.gather(*posted, return_exceptions=True)
        queued = [n for n, answer in enumerate(answers) if not isinstance(answer, BaseException)]
        summary.queued += len(queued)
        summary.bytes += sum(len(payloads[n]) for n in queued)
        if summary.run_ids is not None:
            summary.run_ids += [runs[n].id for n in queued]
        summary.seconds = monotonic() - started
        if announce is not None:
            announce([payloads[n] for n in queued], TaskState.queued)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if progress is not None:
            progress(summary)

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
                        task, priority, chunk, gate.batch_runs, gate.batch_bytes, errors, ids, consumed
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
            # Batches in flight are confirmed or refused before the summary is given, unless we were cancelled.
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
    """Yield iterators over the items: one for an iterable, one per MAX_BATCH items of an async iterable.

    They end where the items raise, and put the exception into ``trouble``. The items before it are good.
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
