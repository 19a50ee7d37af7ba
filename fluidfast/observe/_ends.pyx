"""``Ends``: chooses the runs that the history records. Compiled, since it is called for each run that ends."""

cimport cython
from libc.stdint cimport int64_t
from ..core._machine cimport SUCCESS, RunState
from ..core._run cimport TaskRun

__all__ = ["Ends"]

cdef enum:
    WINDOW_US = 250000                  # microseconds in which successes are counted
    MOST = 250                          # successes that are recorded in a window, about: 1,000 in a second
    BURST = 10000                       # successes that are recorded beyond that, after quiet windows


@cython.final
@cython.auto_pickle(False)
cdef class Ends:
    """Called with each run that has ended: passes it to ``record``, or leaves it out.

    It leaves out the runs of tasks with ``skip_tag``, and with ``samples`` all but 1 in ``every`` successes that took
    less than ``slow_us`` microseconds and needed no retry: 1,000 of these in a second, and 10,000 at once after a quiet
    time. ``every`` follows from how many ended in the last window of 250 ms, and doubles within one that has more.

    Attributes: ``every``; ``left_out``: how many successes sampling has left out.
    """

    cdef object record
    cdef int64_t slow_us
    cdef bint samples
    cdef str skip_tag
    cdef readonly Py_ssize_t every
    cdef readonly Py_ssize_t left_out
    cdef int64_t window_end             # microseconds since the epoch
    cdef Py_ssize_t count               # successes in this window
    cdef Py_ssize_t recorded            # how many of them are recorded
    cdef Py_ssize_t credit              # how many more than MOST may be
    cdef object task                    # of the last run
    cdef bint skips                     # whether that has skip_tag

    def __init__(self, record, *, int64_t slow_us, bint samples, str skip_tag):
        self.record = record
        self.slow_us = slow_us
        self.samples = samples
        self.skip_tag = skip_tag
        self.every = 1
        self.credit = BURST

    def __call__(self, TaskRun run not None) -> None:
        cdef RunState times = run
        if run.task is not self.task:
            self.task = run.task
            self.skips = self.skip_tag in run.task.tags
        if self.skips:
            return
        if (
            self.samples and times._state == SUCCESS and times.end_us - times.start_us < self.slow_us
            and run.retry_attempt == 0 and self.leaves_out(times.end_us)
        ):
            self.left_out += 1
            return
        self.record(run)

    cdef bint leaves_out(self, int64_t now):
        if not self.window_end - WINDOW_US <= now < self.window_end:
            self.begin_window(now)
        self.count += 1
        if self.count > self.credit + MOST * self.every:
            self.every *= 2
        if self.count % self.every:
            return True
        self.recorded += 1
        return False

    cdef void begin_window(self, int64_t now):
        cdef int64_t windows = max(1, min(BURST // MOST, (now - self.window_end) // WINDOW_US + 1))
        self.credit = max(0, min(BURST, self.credit + MOST * <Py_ssize_t>windows - self.recorded))
        if windows > 1 or self.count <= self.credit:  # the last window had none, or as many may come
            self.every = 1
        else:
            self.every = max(1, (self.count + MOST - 1) // MOST)
        self.window_end = now + WINDOW_US
        self.count = self.recorded = 0
