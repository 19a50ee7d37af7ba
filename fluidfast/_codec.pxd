from ._run cimport TaskRun

cdef class TaskPlan:
    cdef readonly object task
    cdef readonly str name
    cdef readonly object adapter
    cdef object encode_params           # params object -> JSON bytes
    cdef object decode_params           # JSON bytes -> params object
    cdef object validate
    cdef tuple heads                    # by priority: the bytes between a run's id and its queued time

    cdef bytes params_json(self, object params)

cdef class Codec:
    cdef readonly object registry       # name -> Task, shared with the broker
    cdef readonly bint msgpack
    cdef readonly Py_ssize_t max_bytes
    cdef dict plans                     # name -> TaskPlan
    cdef TaskPlan last                  # of the last payload that was read: runs of one task come together

    cdef TaskPlan plan_named(self, object name)
    cdef TaskPlan plan_of(self, object task)
    cpdef bytes encode(self, TaskRun run)
    cdef bytes encode_with(self, TaskPlan plan, TaskRun run)
    cdef TaskRun decode_canonical(self, bytes payload, object manager, object listeners)
