from libc.stdint cimport int64_t
from ._machine cimport Listeners, RunState

cdef class TaskRun(RunState):
    cdef readonly str id
    cdef readonly object task
    cdef public object params
    cdef readonly object task_manager
    cdef Listeners listeners
    cdef readonly int prio              # 0 high, 1 medium, 2 low
    cdef int64_t after_us               # not before this time, microseconds since the epoch; 0: at once
    cdef public int rate_limit_attempt
    cdef public int retry_attempt
    cdef readonly str from_run_id
    cdef readonly str root_run_id
    cdef public object extra            # None, or further keys of the payload: name -> JSON bytes

    cdef int emit(self, int entered) except -1
    cdef TaskRun copy(self)

cdef TaskRun make_run(str id, object task, int prio, object params, object manager, Listeners listeners)
cdef int64_t micros(object moment) except? -1
cdef int priority_number(object priority) except -1
