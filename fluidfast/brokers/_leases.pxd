from ..core._run cimport TaskRun

cdef class Claimed:
    cdef public str field
    cdef public bytes payload
    cdef public int strikes
    cdef public Lease lease
    cdef public TaskRun run

cdef class Lease:
    cdef readonly str batch
    cdef readonly double claimed_at     # monotonic seconds
    cdef public Py_ssize_t left         # runs whose outcome is not known
    cdef public Py_ssize_t unstarted
    cdef public bint lost
    cdef public bint partial            # something of it left, or may have to leave, by another way than a settlement
    cdef public bint sending
    cdef public object settlement
