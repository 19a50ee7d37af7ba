"""The run-state machine: which state may follow which, and when each was entered. No I/O, no clock, no events.

    init -> queued -> running -> success | failure | aborted | rate_limited | interrupted

A state that is skipped is passed through at the same time (``init -> success`` enters queued, running and
success); the same state again changes nothing; whatever else raises ``TaskRunError`` and changes nothing.
``interrupted`` is only reached from ``running``: it means that a worker let go of what it was running.

The table holds, for each pair (from, to), the states entered, one bit each. A path always enters states in the
order of their numbers, so the bits need no order of their own.
"""

from datetime import datetime, timedelta, timezone

from ..errors import TaskRunError
from .states import STATES

__all__ = ["Listeners", "RunState", "Tally"]

cdef int TABLE[N_STATES][N_STATES]      # -1: not allowed
cdef tuple _states = STATES
cdef dict _numbers = {state: number for number, state in enumerate(STATES)}
cdef object EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


cdef void _fill_table() noexcept:
    cdef int source, target
    for source in range(N_STATES):
        for target in range(N_STATES):
            TABLE[source][target] = 0 if source == target else -1
    TABLE[<int>INIT][<int>QUEUED] = 1 << QUEUED
    TABLE[<int>INIT][<int>RUNNING] = 1 << QUEUED | 1 << RUNNING
    TABLE[<int>QUEUED][<int>RUNNING] = 1 << RUNNING
    for target in range(SUCCESS, N_STATES):
        TABLE[<int>RUNNING][target] = 1 << target
        if target != INTERRUPTED:
            TABLE[<int>QUEUED][target] = 1 << RUNNING | 1 << target
            TABLE[<int>INIT][target] = 1 << QUEUED | 1 << RUNNING | 1 << target


_fill_table()


cdef int state_number(object state) except -1:
    """The number of a state given as ``TaskState`` or as its name."""
    cdef int number
    # Members are singletons, so identity finds them without hashing a string.
    for number in range(N_STATES):
        if <object>_states[number] is state:
            return number
    found = _numbers.get(state) if isinstance(state, str) else None
    if found is None:
        raise TaskRunError(f"unknown task state {state!r}, expected one of {', '.join(_states)}")
    return found


cdef class Listeners:
    """Which states somebody listens to: bit n of ``mask`` for the state of number n."""

    def __cinit__(self, int mask=0):
        self.mask = mask


cdef class Tally:
    """Counts of one consumer: how many runs ended in each state, how many attempts were retried.

    ``retried``: failed attempts that are queued once more; ``limited``: those that found no slot under
    ``max_concurrency``.
    """

    def count(self, state) -> int:
        """Return how many runs ended in this ``TaskState``."""
        return self.ended[state_number(state)]


cdef class RunState:
    """State and times of a run. ``TaskRun`` is this plus what is run."""

    cdef int advance(self, int to, int64_t now) except -1:
        cdef int entered = TABLE[self._state][to]
        if entered <= 0:
            if entered == 0:
                return 0
            raise TaskRunError(f"invalid state transition {_states[self._state]} -> {_states[to]}")
        if entered & 1 << QUEUED:
            self.queued_us = now
        if entered & 1 << RUNNING:
            self.start_us = now
        if to >= SUCCESS:
            self.end_us = now
        self._state = to
        return entered

    def move(self, state, int64_t now_us) -> tuple:
        """Go to ``state`` at ``now_us`` (microseconds since the epoch).

        Returns the states that were entered, in order; empty if it was there already.

        Raises:
            TaskRunError: that state does not follow this one; nothing was changed.
        """
        cdef int entered = self.advance(state_number(state), now_us)
        cdef int number
        return tuple([_states[number] for number in range(N_STATES) if entered >> number & 1])

    @property
    def times_us(self) -> tuple:
        """When the run was queued, started and ended, in microseconds since the epoch; 0: not yet."""
        return self.queued_us, self.start_us, self.end_us

    @property
    def state(self):
        """The present ``TaskState``."""
        return _states[self._state]

    @property
    def is_done(self) -> bool:
        """True when nothing follows the present state."""
        return self._state >= SUCCESS

    @property
    def is_failure(self) -> bool:
        """True in state ``failure``."""
        return self._state == FAILURE

    @property
    def queued(self):
        """When the run was queued, UTC, or None."""
        return EPOCH + timedelta(microseconds=self.queued_us) if self.queued_us else None

    @property
    def start(self):
        """When the run started, UTC, or None."""
        return EPOCH + timedelta(microseconds=self.start_us) if self.start_us else None

    @property
    def end(self):
        """When the run ended, UTC, or None."""
        return EPOCH + timedelta(microseconds=self.end_us) if self.end_us else None

    @property
    def in_queue(self):
        """How long the run waited (``timedelta``), or None if it has not started."""
        if self.queued_us and self.start_us:
            return timedelta(microseconds=self.start_us - self.queued_us)
        return None

    @property
    def duration(self):
        """How long the run took (``timedelta``), or None if it has not ended."""
        if self.start_us and self.end_us:
            return timedelta(microseconds=self.end_us - self.start_us)
        return None

    @property
    def duration_ms(self):
        """How long the run took, in milliseconds with two decimals, or None."""
        if self.start_us and self.end_us:
            return round((self.end_us - self.start_us) / 1000.0, 2)
        return None

    @property
    def total(self):
        """From queued to end (``timedelta``), or None if it has not ended."""
        if self.queued_us and self.end_us:
            return timedelta(microseconds=self.end_us - self.queued_us)
        return None
