from ..brokers._leases cimport Claimed, Lease

cdef class Ledger:
    cdef public dict leases             # by batch
    cdef public dict limited            # slots held under max_concurrency: slot -> task
    cdef public set _dirty
    cdef public object _timer

    cdef int end(self, Claimed held) except -1
    cdef int settle(self, Claimed held) except -1
    cdef int settled(self, Lease lease) except -1
