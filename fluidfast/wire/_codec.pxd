from ..core._run cimport TaskRun

cdef class TaskPlan:
    cdef readonly object task
    cdef readonly str name
    cdef readonly object adapter
    cdef object encode_params           # params object -> JSON bytes
    cdef object encode_into             # params object, bytearray -> JSON in it, or None
    cdef bint is_mapping                # no model: params are a Params
    cdef object decode_params           # JSON bytes -> params object, or a dict for a mapping
    cdef object validate
    cdef object convert_to              # the model, where msgspec.convert does the same for a dict, or None
    cdef object encode_packed_into      # params object, bytearray -> MessagePack in it, or None
    cdef object decode_packed           # MessagePack bytes -> params object, or None
    cdef bytes packed_name              # the name as a MessagePack string
    cdef tuple heads                    # by priority: the bytes between a run's id and its queued time

    cdef object params_json(self, object params, const char** text, Py_ssize_t* length)
    cdef object params_of(self, bytes raw)

cdef class Codec:
    cdef readonly object registry       # name -> Task, shared with the broker
    cdef readonly bint msgpack
    cdef readonly Py_ssize_t max_bytes
    cdef dict plans                     # name -> TaskPlan
    cdef TaskPlan last                  # of the last run that was written or read: those of one task come together
    cdef bint has_further               # so had the last object of any form: those with further keys come together

    cdef TaskPlan plan_named(self, object name)
    cdef bint is_registered(self, TaskPlan plan)
    cdef TaskPlan plan_of(self, object task)
    cpdef TaskRun create(
        self, object task, object priority, str run_id, dict given, object manager, object listeners, TaskRun parent=*
    )
    cpdef bytes submit(self, TaskRun run)
    cpdef bytes encode(self, TaskRun run)
    cdef TaskPlan plan_for(self, TaskRun run)
    cdef tuple read_object(self, bytes payload)
    cdef bytes encode_with(self, TaskPlan plan, TaskRun run)
    cdef TaskRun read(self, bytes payload, object manager, object listeners)
    cdef TaskRun decode_canonical(self, bytes payload, object manager, object listeners)
    cdef TaskRun decode_canonical_packed(self, bytes payload, object manager, object listeners)
    cdef bint is_named(self, TaskPlan plan, const unsigned char* at, Py_ssize_t length) noexcept
    cdef TaskRun assemble(
        self, object wire, bytes raw, object extra, bint packed, object manager, object listeners, object numbers=*
    )
    cdef TaskPlan find_named(self, const unsigned char* at, Py_ssize_t length)
