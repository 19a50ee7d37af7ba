"""``RunLines``: a line for each run that has ended, made without ``logging``, which would take 15 us for it.

It is compiled since it is called for each run: as Python it was more than half of what a run takes.
"""

cimport cython
from libc.stdint cimport int64_t
from ..core._machine cimport RunState
from ..core._run cimport TaskRun

import time

import msgspec

from ..texts import printable
from .filters import numbered, worker_number

__all__ = ["RunLines"]

cdef object encode = msgspec.json.Encoder().encode

cdef extern from "Python.h":
    str PyUnicode_FromFormat(const char* form, ...)


@cython.final
@cython.auto_pickle(False)
cdef class RunLines:
    """Called with each run that has ended: gives a line of text, or of JSON, to ``put``.

    A line has the state that the run ended in, its task, id and attempt, how many seconds it took, and how many it had
    waited.
    """

    cdef object put
    cdef bint as_json
    cdef int worker
    cdef str name                       # of the logger, as it is shown
    cdef int64_t second                 # of the last line
    cdef str stamp                      # its time
    cdef object task                    # of the last line
    cdef str shown                      # its name

    def __init__(self, put, *, bint as_json=False):
        self.put = put
        self.as_json = as_json
        self.worker = worker_number()
        self.name = "fluidfast.runs" if as_json else numbered("fluidfast.runs")
        self.second = -1

    def __call__(self, TaskRun run not None) -> None:
        cdef RunState times = run
        cdef int64_t took = max(0, times.end_us - times.start_us)
        cdef int64_t waited = max(0, times.start_us - times.queued_us)
        cdef int64_t second = times.end_us // 1000000
        cdef int millis = <int>(times.end_us // 1000 % 1000)
        cdef str state = str(run.state)
        cdef str run_id = run.shown_id
        if second != self.second:
            self.second = second
            if self.as_json:
                self.stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            else:
                self.stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        if run.task is not self.task:
            self.task = run.task
            self.shown = printable(run.task.name)
            if self.as_json:
                self.shown = quoted(self.shown)
        if self.as_json:
            run_id = quoted(run_id)
            line = PyUnicode_FromFormat(
                b'{"time":"%U.%03dZ","level":"INFO","name":"%U","message":"run ended: %U","task":%U,"run_id":%U,'
                b'"attempt":%d,"worker":%d,"state":"%U","seconds":%lld.%06lld,"waited":%lld.%06lld}',
                <void*>self.stamp, millis, <void*>self.name, <void*>state, <void*>self.shown, <void*>run_id,
                run.retry_attempt + 1, self.worker, <void*>state,
                <long long>(took // 1000000), <long long>(took % 1000000),
                <long long>(waited // 1000000), <long long>(waited % 1000000),
            )
        else:
            line = PyUnicode_FromFormat(
                b"%U,%03d INFO    %U: %U task=%U run=%U attempt=%d seconds=%lld.%06lld waited=%lld.%06lld",
                <void*>self.stamp, millis, <void*>self.name, <void*>state, <void*>self.shown, <void*>run_id,
                run.retry_attempt + 1,
                <long long>(took // 1000000), <long long>(took % 1000000),
                <long long>(waited // 1000000), <long long>(waited % 1000000),
            )
        self.put(line)


cdef str quoted(str text):
    return encode(text).decode()
