from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    N_PRIORITIES = 3                # 0 first
    ALL_PRIORITIES = 7              # one bit each

# The waiting entries of one priority; see the drawing in the .pyx.
cdef struct Ring:
    PyObject **slots                # NULL while capacity is 0
    size_t capacity                 # 0, or a power of two
    size_t head                     # index of the oldest entry, < capacity (0 while capacity is 0)
    size_t count                    # every counted slot owns one reference

# One entry of the heap of what is due later, ordered by (due_us, seq).
cdef struct Delayed:
    int64_t due_us                  # microseconds, on the caller's clock
    uint64_t seq                    # order of push_later; never equal, so payloads are never compared
    int priority
    PyObject *item                  # owns one reference

ctypedef int (*visitproc)(PyObject *, void *) noexcept

cdef class PriorityQueue:
    cdef Ring rings[N_PRIORITIES]
    cdef Delayed *heap              # NULL while heap_capacity is 0
    cdef size_t heap_capacity
    cdef size_t heap_count
    cdef uint64_t next_seq
    cdef bint has_containers        # an entry may be of a type that the garbage collector follows
    cdef object gc_anchor           # always None: makes Cython give the type the collector's protocol
    cdef object __weakref__

    # As the Python methods of the same names without underscore, which only convert the priority first.
    # All check it and raise ValueError.
    cdef int _push(self, int priority, object item) except -1
    cdef int _push_front(self, int priority, object item) except -1
    cdef object _push_many(self, int priority, object items)             # the count, an int
    cdef int _push_later(self, int64_t due_us, int priority, object item) except -1
    cdef Py_ssize_t _length(self, int priority) except -1

    cpdef object pop(self)
    cpdef list pop_many(self, Py_ssize_t n, Py_ssize_t max_bytes=*, int mask=*)
    cpdef object promote(self, int64_t now_us)
    cpdef object next_due(self)
    cpdef tuple lengths(self)
    cpdef Py_ssize_t delayed_length(self) noexcept
    cpdef tuple clear(self, int mask=*)
    cpdef object clear_delayed(self)

    # For the collector: visits every entry / lets go of every entry, ready or delayed.
    cdef int visit_entries(self, visitproc visit, void *arg) noexcept
    cdef void release_entries(self) noexcept
