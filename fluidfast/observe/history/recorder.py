"""The recorder: a bounded inbox, and a thread that writes it to the database in batches."""

import atexit
import logging
import threading
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from time import monotonic

from ...core._time import keep_for_good
from ...core.places import has_place
from .records import Attempt
from .store import Row, Store, is_at_fault

__all__ = ["Recorder"]

WRITE_SECONDS = 0.25
"""How long an entry may wait for others of its batch."""
BATCH_ROWS = 5_000
BATCH_BYTES = 8 << 20
"""Entries, and bytes of them, in one transaction."""
MAX_ROWS = 100_000
MAX_BYTES = 64 << 20
"""Entries, and bytes of them, that may wait for the database."""
FOR_SUCCESSES = 0.8
"""The part of the inbox that successes may take: the rest is for failures."""
OVERHEAD = 300
"""Bytes of an entry beside its params or its texts, about."""
FLUSH_SECONDS = 5.0
"""How long a shutdown waits for the database."""
BACKOFF_SECONDS = (0.25, 10.0)
"""The first and the longest pause after a failed try."""
TELL_SECONDS = 10.0
"""Time between two log lines about lost rows."""

logger = logging.getLogger("fluidfast.history")


class Recorder:
    """Writes rows and attempts from any thread to a store. ``put`` never blocks and never raises.

    Attributes: ``recorded``, ``dropped``, ``refused``: how many rows;
    ``error``: why the last batch could not be written, ``""`` if it could.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.recorded = self.dropped = self.refused = 0
        self.error = ""
        self._refusal = ""  # why the database refused a row, the first since the last log line of that
        self._thread: threading.Thread | None = None
        self._reset()
        has_place(self)

    def _reset(self) -> None:
        self._inbox: deque[tuple[Row | Attempt, int]] = deque()
        self._bytes = 0  # about: threads may count at the same time
        self._batch: list[tuple[Row | Attempt, int]] = []  # what is being written
        self._bell: SimpleQueue[bool] = SimpleQueue()  # True: do not wait for more
        self._rung = False
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._turns = threading.Condition()  # notified after each try to write
        self._tries = 0

    def _forked(self) -> None:
        """Begin afresh in the child of a fork: what waits is the parent's, and so are its thread and connections."""
        keep_for_good(self._inbox, self._batch, self._bell, self._thread, self._starting, self._turns)
        self._thread = None
        self._reset()
        self.store.forked()

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return len(self._inbox) + len(self._batch)

    def put(self, entry: Row | Attempt, size: int, *, keep: bool) -> None:
        """Have an entry of ``size`` bytes written. ``keep``: it is of a failure, and dropped after all others."""
        room = 1.0 if keep else FOR_SUCCESSES
        if len(self._inbox) >= MAX_ROWS * room or self._bytes + size > MAX_BYTES * room:
            self.dropped += 1
        else:
            self._bytes += size + OVERHEAD
            self._inbox.append((entry, size + OVERHEAD))
        if self._thread is None:
            self._start()
        if not self._rung:
            self._rung = True
            self._bell.put(False)
        elif len(self._inbox) == BATCH_ROWS:
            self._bell.put(True)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._stop = threading.Event()
                thread = threading.Thread(target=self._serve, args=(self._stop,), name="fluidfast-history", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter shuts down
                    return
                self._thread = thread
                atexit.register(self._at_exit)

    # -- the end

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Write what waits. Return False if the database did not take it within so many seconds, or failed once."""
        end = monotonic() + seconds
        with self._turns:
            if self._thread is None:
                return not self.waiting
            first = self._tries
            self._bell.put(True)
            while self.waiting and (left := end - monotonic()) > 0:
                self._turns.wait(left)
                if self.error and self._tries > first + 1:  # the try that began before this one may have failed
                    break
                self._bell.put(True)
            return not self.waiting

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Write what waits, if the database takes it, and end the thread. A later ``put`` starts another."""
        with self._starting:
            thread = self._thread
        if thread is threading.current_thread():
            return
        if thread is None:
            self.store.close()  # reading has connections, too
            return
        written = self.flush(seconds)
        if not written:
            logger.error(
                "%s run(s) are not recorded in %s: %s",
                f"{self.waiting:,}",
                self.store.shown,
                self.error or "the database is too slow",
            )
        atexit.unregister(self._at_exit)
        self._stop.set()
        self._bell.put(True)
        thread.join(1.0 if written else 0.1)
        self._thread = None
        if not written:
            return
        self.store.close()
        if self._inbox:  # somebody has put it there meanwhile
            self._start()
            self._bell.put(True)

    def _at_exit(self) -> None:
        self.close()

    # -- the thread

    def _serve(self, stop: threading.Event) -> None:
        bell = self._bell
        told = [0.0, 0.0, 0.0]
        while True:
            if not bell.get():
                try:
                    bell.get(timeout=WRITE_SECONDS)
                except Empty:
                    pass
            self._rung = False  # first: an entry that comes from here on rings again
            while (self._inbox or self._batch) and not stop.is_set():
                self._take()
                try:
                    self._write_batch(stop)
                except Exception:
                    logger.exception("%s run(s) are not recorded", f"{len(self._batch):,}")
                    self.dropped += len(self._batch)
                    self._batch = []
            if stop.is_set():
                told[2] = 0.0
            self._tell(told)
            if stop.is_set():
                return

    def _take(self) -> None:
        inbox, batch, size = self._inbox, self._batch, 0
        while inbox and len(batch) < BATCH_ROWS and size < BATCH_BYTES:
            batch.append(inbox[0])  # first: flush() looks whether there is something in either
            size += inbox.popleft()[1]
        self._bytes = self._bytes - size if inbox else 0

    def _write_batch(self, stop: threading.Event) -> None:
        """Write the batch; wait and try again while the database is away."""
        rows, attempts = merged([entry for entry, _ in self._batch])
        pause, longest = BACKOFF_SECONDS
        while not stop.is_set():
            try:
                self.recorded += self._write(rows, attempts)
            except Exception as exc:
                self._failed(exc)
                self._turn()
                try:
                    while not self._bell.get(timeout=pause):  # True: somebody waits for it
                        pass
                except Empty:
                    pass
                pause = min(2 * pause, longest)
            else:
                if self.error:
                    logger.info("the history in %s is recorded again", self.store.shown)
                self.error = ""
                self._batch = []
                self._turn()
                return

    def _turn(self) -> None:
        with self._turns:
            self._tries += 1
            self._turns.notify_all()

    def _failed(self, exc: Exception) -> None:
        error = self.store.reason(exc)
        if error != self.error:
            logger.error("the history in %s cannot be written, trying again: %s", self.store.shown, error)
        self.error = error

    def _write(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> int:
        """Write a batch without the entries that the database refuses, and return how many rows there were."""
        try:
            self.store.write(rows, attempts)
        except Exception as exc:
            if not is_at_fault(exc):
                raise
            if len(rows) + len(attempts) == 1:
                self.refused += 1
                self._refusal = self._refusal or self.store.reason(exc)
                return 0
            if attempts:
                return self._write(rows, ()) * bool(rows) + sum(self._write((), (attempt,)) for attempt in attempts)
            half = len(rows) // 2
            return self._write(rows[:half], ()) + self._write(rows[half:], ())
        return len(rows)

    def _tell(self, told: list[float]) -> None:
        """Log how many runs were lost since the last time. ``told``: dropped and refused so far, and when to log."""
        dropped, refused = self.dropped - int(told[0]), self.refused - int(told[1])
        if not (dropped or refused) or monotonic() < told[2]:
            return
        if dropped:
            logger.warning("%s run(s) are not recorded: %s was slow or away", f"{dropped:,}", self.store.shown)
        if refused:
            logger.warning("%s refused %s run(s): %s", self.store.shown, f"{refused:,}", self._refusal)
        self._refusal = ""
        told[:] = self.dropped, self.refused, monotonic() + TELL_SECONDS


def merged(entries: Sequence[Row | Attempt]) -> tuple[list[Row], list[Attempt]]:
    """Return the last row of each id, and the last attempt, sorted by id."""
    rows: dict[str, Row] = {}
    attempts: dict[tuple[str, int], Attempt] = {}
    for entry in entries:
        if isinstance(entry, Attempt):
            attempts[entry.run_id, entry.attempt] = entry
        elif (before := rows.get(entry.id)) is None or is_later(entry, before):
            rows[entry.id] = entry
    return sorted(rows.values()), [attempts[key] for key in sorted(attempts)]


def is_later(row: Row, before: Row) -> bool:
    """As ``store.IS_LATER``."""
    if not before.start:
        return row.queued >= before.queued
    if not row.start:
        return row.queued > (before.end or before.start)
    if row.start == before.start:
        return bool(row.end or not before.end)
    return row.start > before.start
