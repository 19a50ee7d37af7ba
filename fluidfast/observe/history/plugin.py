"""``History``: the plugin that records runs, and reads them back."""

import asyncio
import logging
import os
import random
import re
import socket
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Literal

from ...checks import check_number
from ...core._run import TaskRun
from ...core.process import is_in_cpu_process
from ...core.states import FINISHED_STATES, PRIORITIES, TaskState
from ...errors import BrokerError, ConfigError, HistoryError
from ...texts import describe, printable
from .._ends import Ends
from .params import masked
from .recorder import FLUSH_SECONDS, Recorder
from .records import Attempt, HistoryPage, HistoryQuery, HistoryStats, RunDetail, read_keep
from .store import Row, Store
from .tables import stored_state

__all__ = ["History"]

PRUNE_SECONDS = 600.0
"""Time between two looks for rows that are too old."""
PAUSE_SECONDS = 0.1
"""Pause between two slices, for others who use the database."""
MAX_TRACEBACK = 16_000
"""Characters of a traceback that are kept: the last ones."""
TRACEBACKS = 100
"""Tracebacks that are written out in a second. Further failures have their error only."""
logger = logging.getLogger("fluidfast.history")

TRACE_ID = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-")


class History:
    """A plugin that records runs in a table of PostgreSQL or SQLite.

        manager.with_plugin(History("postgresql://localhost/app"))

    A thread of its own writes, in batches. It never delays a run, nor the event loop. If the database is away or too
    slow, up to 100,000 rows or 64 MB wait in memory; then successes are dropped first, counted in ``stats()``, and
    reported in the log. Shutdown waits up to 5 s for the database.

    ``database``: a URL of PostgreSQL or SQLite; or a SQLAlchemy engine. Of an async engine, and of aio-fluid's CrudDB,
    only the URL is used.
    ``table``: the table of runs. Attempts are recorded beside it, in ``{table}_attempts``.
    ``record``: ``"ended"``, a row for each run that a consumer ends in this process; or ``"all"``, a row that follows
    each state that a run enters in this process, from queued on.
    ``sample``: ``"auto"``, all failures, slow runs and retried runs, and of other successes 10,000 at once, then about
    1,000 per second and process; or ``"none"``, all runs, as ``record="all"`` does.
    ``keep``: how long rows are kept, such as ``"14d"``, ``"12h"``; None: for ever. One of the processes deletes older
    ones every 10 minutes, 5,000 at a time.
    ``slow``: seconds from which on a run is slow.
    ``tag``: that of the event handlers. ``skip_tag``: runs of tasks with this tag are not recorded.

    Raises:
        ConfigError: an option is not valid, or the database is neither PostgreSQL nor SQLite.
        ImportError: the driver of the database is missing.
    """

    def __init__(
        self,
        database: Any,
        *,
        table: str = "fluid_tasks",
        record: Literal["ended", "all"] = "ended",
        sample: Literal["auto", "none"] = "auto",
        keep: str | float | timedelta | None = "14d",
        slow: float = 10.0,
        tag: str = "history",
        skip_tag: str = "skip_db",
        schema: str | None = None,
    ) -> None:
        if record not in ("ended", "all"):
            raise ConfigError(f"record is {record!r}, it must be 'ended' or 'all'")
        if sample not in ("auto", "none"):
            raise ConfigError(f"sample is {sample!r}, it must be 'auto' or 'none'")
        check_number("slow", slow, ConfigError, infinite=True)
        self.keep_seconds = read_keep(keep)
        self.record = record
        self.tag = tag
        self.skip_tag = skip_tag
        self.store = Store(database, table, schema=schema)
        self.recorder = Recorder(self.store)
        self._slow_us = int(min(slow, 1e9) * 1e6)
        samples = sample == "auto" and record == "ended"
        self._ends = Ends(self._ended, slow_us=self._slow_us, samples=samples, skip_tag=skip_tag)
        self._manager: Any = None
        self._worker, self._pid = "", 0
        self._second, self._tracebacks = 0, 0

    # -- a plugin

    def register(self, task_manager: Any) -> None:
        """Record the runs of a manager, and of the consumer that is made from it."""
        self._manager = task_manager
        if is_in_cpu_process():  # the consumer that waits for this process records its run
            return
        task_manager.hooks.after_end(self._ends)
        if self.record == "all":
            for state in (TaskState.queued, TaskState.running, *FINISHED_STATES):
                task_manager.dispatcher.register_handler(f"{state}.{self.tag}", self._changed)
        task_manager.hooks.after_failure(self._failed)
        task_manager.add_async_context_manager(Life(self))

    def register_routes(self, app: Any, prefix: str = "/tasks", tags: Sequence[str] | None = None) -> None:
        """Add no routes: ``fluidfast.scheduler.db.TaskDbPlugin`` has some."""

    # -- reading

    async def page(self, query: HistoryQuery | None = None) -> HistoryPage:
        """Return a page of the runs that match a query, newest first.

        Raises:
            ConfigError: the cursor, the limit, or a value of a filter is not valid.
            HistoryError: the database is unavailable, or took longer than 10 s.
        """
        query = HistoryQuery() if query is None else query
        names = None
        if query.tags is not None:
            wanted = frozenset(query.tags)
            registry = {} if self._manager is None else self._manager.registry
            names = [name for name, task in registry.items() if wanted & task.tags]
        return await asyncio.to_thread(self.store.page, query, names)

    async def run(self, run_id: str) -> RunDetail | None:
        """Return a recorded run with its attempts; None if it is not recorded.

        Raises:
            HistoryError: the database is unavailable, or took longer than 10 s.
        """
        return await asyncio.to_thread(self.store.run, run_id)

    def stats(self) -> HistoryStats:
        """Return what the recorder of this process has done."""
        recorder = self.recorder
        return HistoryStats(
            recorded=recorder.recorded,
            waiting=recorder.waiting,
            every=self._ends.every,
            sampled_out=self._ends.left_out,
            dropped=recorder.dropped,
            refused=recorder.refused,
            error=recorder.error,
        )

    async def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Write the rows that wait. Return False if the database does not take them within so many seconds."""
        return await asyncio.to_thread(self.recorder.flush, seconds)

    async def prune(self, keep: str | float | timedelta | None = None) -> int:
        """Delete rows that are older than ``keep`` (None: as this history keeps them). Return how many there were.

        Raises:
            ConfigError: ``keep`` is not a time.
            HistoryError: the database is unavailable.
        """
        seconds = self.keep_seconds if keep is None else read_keep(keep)
        if seconds is None:
            return 0
        before, deleted = datetime.now(UTC) - timedelta(seconds=seconds), 0
        while count := await asyncio.to_thread(self.store.prune, before):
            deleted += count
            await asyncio.sleep(PAUSE_SECONDS)
        return deleted

    # -- recording

    def _ended(self, run: TaskRun[Any, Any]) -> None:
        times = run.times_us
        slow = times[2] - times[1] >= self._slow_us
        succeeded = run.state is TaskState.success
        if self.record == "ended":
            self._put(run, times, keep=slow or not succeeded)
        if slow or (succeeded and run.retry_attempt):
            self._put_attempt(run, "", "", "")

    def _changed(self, run: TaskRun[Any, Any]) -> None:
        if self.skip_tag not in run.task.tags:
            self._put(run, run.times_us, keep=run.is_done and run.state is not TaskState.success)

    def _put(self, run: TaskRun[Any, Any], times: tuple[int, int, int], *, keep: bool) -> None:
        params = masked(run.params)
        queued, start, end = times
        state = stored_state(run.state)
        row = Row(run.id, run.task.name, PRIORITIES[run.prio], state, queued or start, start, end, params)
        self.recorder.put(row, len(params), keep=keep)

    def _failed(self, run: TaskRun[Any, Any], exc: BaseException, place: str) -> None:
        if self.skip_tag in run.task.tags:
            return
        second = int(monotonic())
        if second != self._second:
            self._second, self._tracebacks = second, 0
        self._tracebacks += 1
        shown = ""
        if self._tracebacks <= TRACEBACKS and exc.__traceback__ is not None:
            lines = "".join(traceback.format_exception(exc))[-MAX_TRACEBACK:]
            shown = printable(lines, MAX_TRACEBACK, keep="\n\t")
        self._put_attempt(run, describe(exc), place, shown)

    def _put_attempt(self, run: TaskRun[Any, Any], error: str, place: str, shown: str) -> None:
        now = datetime.now(UTC)
        found = TRACE_ID.search((run.extra or {}).get("traceparent", b""))
        attempt = Attempt(
            run_id=run.id,
            attempt=run.retry_attempt + 1,
            task=run.task.name,
            worker=self._worker_name(),
            state=str(run.state),
            start=run.start or run.queued or now,
            end=run.end or now,
            error=error,
            place=place,
            traceback=shown,
            trace_id=found[1].decode() if found else "",
        )
        self.recorder.put(attempt, len(error) + len(shown), keep=True)

    def _worker_name(self) -> str:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._worker = f"{socket.gethostname()}:{self._pid}"
        return self._worker

    async def prune_now_and_then(self) -> None:
        """Delete what is too old, in the life of a manager. One process does, and the others find nothing left."""
        await asyncio.sleep(random.uniform(0, PRUNE_SECONDS))  # a command is over before, and deploys do not start all
        while True:
            try:
                if await self._manager.broker.first(f"history:{self.store.runs.fullname}", PRUNE_SECONDS / 2):
                    await self.prune()
            except (BrokerError, HistoryError) as exc:
                logger.warning("old runs are not deleted from the history: %s", exc)
            await asyncio.sleep(PRUNE_SECONDS)


class Life:
    """Flushes a history at the end of each life of its manager, and deletes old rows meanwhile.

    Unlike a context manager that is made of a generator, it can be entered again.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._pruning: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        if self._history.keep_seconds is not None:
            self._pruning.append(asyncio.create_task(self._history.prune_now_and_then(), name="fluidfast-history"))

    async def __aexit__(self, *exc_info: object) -> None:
        if self._pruning:
            pruning = self._pruning.pop()
            pruning.cancel()
            await asyncio.gather(pruning, return_exceptions=True)
        await asyncio.to_thread(self._history.recorder.close)
