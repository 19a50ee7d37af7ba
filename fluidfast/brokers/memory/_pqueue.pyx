"""The priority queue of the ``memory://`` broker: FIFO within each of three priorities, a heap of what is due later.

Ready entries: one ring buffer per priority. A slot is one pointer, and that is all that an entry costs beyond its
payload (8 bytes, 16 right after a growth). Here capacity = 8, head = 6, count = 4, the entries are a, b, c, d:

    slots      | c | d | . | . | . | . | a | b |        index = (head + n) & (capacity - 1)
                                         ^ head         pop takes slots[head], push_front writes slots[head - 1]
                         ^ (head + count)               push writes here

    growth     | . | . | . | . | . | . | a | b | c | d | . | . | . | . | . | . |
                 realloc to the double keeps a and b where they are; what had wrapped follows them

A ring is cut to half when no more than a quarter of it is used: both growth and cut leave it half full, so that
neither can follow the other before count has doubled or halved, and push and pop stay O(1), amortized.

Delayed entries: a binary heap in one array, 32 bytes an entry, the children of i at 2i + 1 and 2i + 2:

    heap[i]    | due_us int64 | seq uint64 | priority int, 4 unused | item * |

ordered by (due_us, seq). seq counts the calls of push_later, so that equal times keep their order.

Reference counts, and what may run when
    Each counted slot and each heap entry owns one reference. To drop one can run any Python code (``__del__``, a
    weakref's callback), and so can, before Python 3.12, to make a tuple (the garbage collector runs inside the
    allocation). That code may call this same queue. Therefore entries are taken out of the structure first and let go
    after, and results are built with the collector switched off. Between these points no foreign code runs and the
    GIL is held, so each call is atomic for other threads, except push_many, which is as many pushes.

The garbage collector
    Cython cannot generate tp_traverse for PyObject*, so the two slots are written by hand (end of this file). A full
    collection that visits ten million payloads stops the process for 0.1 s if they lie side by side in memory, for
    1.7 s if they are scattered (measured), to learn that bytes refer to nothing. So a push notes whether the type of
    its item takes part in garbage collection at all; as long as none did, as in the broker, traversal is over before
    it starts. The note stays until a clear leaves nothing: a queue that once held a container pays for being
    traversed. A cycle through the queue is collected.
"""

from types import GenericAlias

cimport cython
from cpython.bytes cimport PyBytes_Check, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

__all__ = ["PriorityQueue"]

cdef extern from "Python.h":
    """
    /* Declared to return `object`: Cython then takes over the reference instead of adding one and dropping one. */
    #define fluidfast_owned(item) (item)
    /* The type alone decides, so that no payload is asked. */
    #define fluidfast_is_container(item) PyType_IS_GC(Py_TYPE(item))
    """
    object fluidfast_owned(PyObject *item)
    bint fluidfast_is_container(object item) noexcept

    ctypedef int (*inquiry)(PyObject *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear

    long PyLong_AsLongAndOverflow(object value, int *overflow) except? -1
    int PyGC_Enable() noexcept
    int PyGC_Disable() noexcept

cdef enum:
    MIN_SLOTS = 64                  # 512 bytes; below this a cut is not worth a copy
    MIN_DELAYED = 16

cdef size_t MAX_SLOTS = (<size_t>1) << (8 * sizeof(size_t) - 5)     # bytes still fit a Py_ssize_t
cdef size_t MAX_DELAYED = (<size_t>1) << (8 * sizeof(size_t) - 7)


# --- priorities -------------------------------------------------------------------------------------------------------

cdef inline int check_priority(int priority) except -1:
    if priority < 0 or priority >= N_PRIORITIES:
        raise ValueError(f"priority must be 0, 1 or 2, not {priority}")
    return priority


cdef inline int as_priority(object value) except -1:
    # Not left to Cython's conversion: an int too large for C has to be the same ValueError as a 3.
    cdef int overflow = 0
    cdef long number = PyLong_AsLongAndOverflow(value, &overflow)
    if overflow or number < 0 or number >= N_PRIORITIES:
        raise ValueError(f"priority must be 0, 1 or 2, not {value!r}")
    return <int>number


cdef inline int check_mask(int mask) except -1:
    if mask < 0 or mask > ALL_PRIORITIES:
        raise ValueError(f"mask must be from 0 to {ALL_PRIORITIES}, one bit per priority, not {mask}")
    return mask


# --- rings ------------------------------------------------------------------------------------------------------------

cdef int ring_grow(Ring *ring, size_t extra) except -1:
    """Make room for ``extra`` more than there are. MemoryError leaves the ring as it was."""
    cdef size_t capacity = ring.capacity if ring.capacity else MIN_SLOTS
    cdef PyObject **slots
    if extra > MAX_SLOTS - ring.count:
        raise MemoryError()
    while capacity < ring.count + extra:
        capacity <<= 1
    slots = <PyObject **>PyMem_Realloc(ring.slots, capacity * sizeof(PyObject *))
    if slots is NULL:
        raise MemoryError()
    if ring.head + ring.count > ring.capacity:
        # The new half is at least as long as the old ring was, so what had wrapped fits behind it in one piece.
        memcpy(slots + ring.capacity, slots, (ring.head + ring.count - ring.capacity) * sizeof(PyObject *))
    ring.slots = slots
    ring.capacity = capacity
    return 0


cdef inline int ring_reserve(Ring *ring, size_t extra) except -1:
    if extra > ring.capacity - ring.count:
        return ring_grow(ring, extra)
    return 0


cdef void ring_cut(Ring *ring) noexcept:
    """Give memory back. That there is none for the smaller copy is no error: a ring that is too large works."""
    cdef size_t capacity = ring.capacity
    cdef size_t until_end = ring.capacity - ring.head
    cdef PyObject **slots
    while capacity > MIN_SLOTS and ring.count <= capacity >> 2:
        capacity >>= 1
    slots = <PyObject **>PyMem_Malloc(capacity * sizeof(PyObject *))
    if slots is NULL:
        return
    if ring.count <= until_end:
        memcpy(slots, ring.slots + ring.head, ring.count * sizeof(PyObject *))
    else:
        memcpy(slots, ring.slots + ring.head, until_end * sizeof(PyObject *))
        memcpy(slots + until_end, ring.slots, (ring.count - until_end) * sizeof(PyObject *))
    PyMem_Free(ring.slots)
    ring.slots = slots
    ring.capacity = capacity
    ring.head = 0


cdef inline PyObject **ring_slot(Ring *ring, size_t n) noexcept:
    """The slot of the nth entry from the consuming end."""
    return &ring.slots[(ring.head + n) & (ring.capacity - 1)]


cdef inline void ring_append(Ring *ring, PyObject *item) noexcept:
    """Put a reference that the caller owns at the end. There must be room."""
    ring_slot(ring, ring.count)[0] = item
    ring.count += 1


cdef inline void ring_advance(Ring *ring, size_t n) noexcept:
    """Forget the first ``n``, whose references are now the caller's."""
    ring.head = (ring.head + n) & (ring.capacity - 1)
    ring.count -= n
    if ring.count <= ring.capacity >> 2 and ring.capacity > MIN_SLOTS:
        ring_cut(ring)


cdef void ring_release(Ring *ring) noexcept:
    """Drop a ring that no queue holds any more: this runs foreign code."""
    cdef size_t n
    for n in range(ring.count):
        Py_XDECREF(ring_slot(ring, n)[0])
    PyMem_Free(ring.slots)


# --- the heap ---------------------------------------------------------------------------------------------------------

cdef inline bint sooner(const Delayed *a, const Delayed *b) noexcept:
    return a.due_us < b.due_us or (a.due_us == b.due_us and a.seq < b.seq)


cdef void sift_up(Delayed *heap, size_t hole, const Delayed *entry) noexcept:
    """Write ``entry`` at ``hole`` or at the ancestor where it belongs."""
    cdef size_t parent
    while hole:
        parent = (hole - 1) >> 1
        if not sooner(entry, &heap[parent]):
            break
        heap[hole] = heap[parent]
        hole = parent
    heap[hole] = entry[0]


cdef void remove_root(Delayed *heap, size_t count) noexcept:
    """Close the gap at the root of a heap of ``count`` that loses its root."""
    cdef Delayed last = heap[count - 1]
    cdef size_t hole = 0
    cdef size_t child = 1
    count -= 1
    # The hole goes all the way down without a look at `last`, which then rises to its place. It came from the bottom
    # and nearly always belongs there, so asking on every level whether it may stop costs a second comparison per level
    # and almost never stops early; to rise from the leaf costs about one. (CPython's heapq argues the same, after
    # Knuth, The Art of Computer Programming, volume 3, 5.2.3.)
    while child < count:
        if child + 1 < count and sooner(&heap[child + 1], &heap[child]):
            child += 1
        heap[hole] = heap[child]
        hole = child
        child = 2 * hole + 1
    if count:
        sift_up(heap, hole, &last)


cdef void count_due(const Delayed *heap, size_t count, int64_t now_us, size_t *due) noexcept:
    """Add to ``due[priority]`` the entries with due_us <= now_us.

    They form a tree at the root, walked here in preorder. A child is always due after its parent, so a node that is
    not due ends its branch. The way back is arithmetic: a left child is odd and its sibling is the next number.
    """
    cdef size_t i = 0
    while True:
        if i < count and heap[i].due_us <= now_us:
            due[heap[i].priority] += 1
            i = 2 * i + 1
            continue
        while i and not i & 1:
            i = (i - 1) >> 1
        if i == 0:
            return
        i += 1


@cython.final
@cython.trashcan(True)              # a queue in a queue in a queue ... is let go without a deep C stack
cdef class PriorityQueue:
    """Three FIFO queues of any objects, priority 0 before 1 before 2, and a heap of entries that are due later.

    Each call is atomic under the GIL. Where the methods say nothing else:

    Raises:
        ValueError: a priority other than 0, 1, 2; the message names it.
        MemoryError: no memory; the queue is as it was before the call.
    """

    __class_getitem__ = classmethod(GenericAlias)

    # Cython hands out zeroed memory: empty rings and an empty heap need no constructor.

    def __dealloc__(self):
        self.release_entries()

    def __len__(self):
        """How many entries are ready, of any priority. Delayed ones are not counted."""
        return self.rings[0].count + self.rings[1].count + self.rings[2].count

    def __sizeof__(self):
        """Bytes of the queue and its buffers, without the payloads."""
        cdef size_t slots = self.rings[0].capacity + self.rings[1].capacity + self.rings[2].capacity
        return object.__sizeof__(self) + slots * sizeof(PyObject *) + self.heap_capacity * sizeof(Delayed)

    # --- in

    cdef int _push(self, int priority, object item) except -1:
        cdef Ring *ring = &self.rings[check_priority(priority)]
        ring_reserve(ring, 1)
        self.has_containers |= fluidfast_is_container(item)
        Py_INCREF(item)
        ring_append(ring, <PyObject *>item)
        return 0

    cdef int _push_front(self, int priority, object item) except -1:
        cdef Ring *ring = &self.rings[check_priority(priority)]
        ring_reserve(ring, 1)
        self.has_containers |= fluidfast_is_container(item)
        Py_INCREF(item)
        ring.head = (ring.head - 1) & (ring.capacity - 1)
        ring.count += 1
        ring.slots[ring.head] = <PyObject *>item
        return 0

    cdef object _push_many(self, int priority, object items):
        cdef Py_ssize_t pushed = 0
        cdef object result
        check_priority(priority)
        if type(items) is list or type(items) is tuple:
            # With the room and the answer made first, nothing can fail half-way: to iterate these two runs no code.
            result = len(items)
            ring_reserve(&self.rings[priority], result)
            for item in items:
                self._push(priority, item)
            return result
        for item in items:
            self._push(priority, item)
            pushed += 1
        return pushed

    cdef int _push_later(self, int64_t due_us, int priority, object item) except -1:
        cdef Delayed entry
        cdef Delayed *heap
        cdef size_t capacity
        entry.priority = check_priority(priority)
        if self.heap_count == self.heap_capacity:
            if self.heap_capacity >= MAX_DELAYED:
                raise MemoryError()
            capacity = 2 * self.heap_capacity if self.heap_capacity else MIN_DELAYED
            heap = <Delayed *>PyMem_Realloc(self.heap, capacity * sizeof(Delayed))
            if heap is NULL:
                raise MemoryError()
            self.heap = heap
            self.heap_capacity = capacity
        entry.due_us = due_us
        entry.seq = self.next_seq
        entry.item = <PyObject *>item
        self.next_seq += 1
        self.has_containers |= fluidfast_is_container(item)
        Py_INCREF(item)
        sift_up(self.heap, self.heap_count, &entry)
        self.heap_count += 1
        return 0

    def push(self, priority, item) -> None:
        """Put ``item`` at the end of its priority."""
        self._push(as_priority(priority), item)

    def push_front(self, priority, item) -> None:
        """Put ``item`` back at the consuming end of its priority: it is popped before all others of it."""
        self._push_front(as_priority(priority), item)

    def push_many(self, priority, items) -> int:
        """Put all ``items`` (an iterable) at the end of one priority, in order. Returns how many.

        If the iterable raises, or memory ends, half-way, then what it gave so far stays in the queue. A list or a
        tuple is pushed whole or not at all.
        """
        return self._push_many(as_priority(priority), items)

    def push_later(self, int64_t due_us, priority, item) -> None:
        """Keep ``item`` aside until ``promote`` is called with a time of at least ``due_us`` (microseconds, int64).

        Raises:
            OverflowError: ``due_us`` does not fit 64 bits.
        """
        self._push_later(due_us, as_priority(priority), item)

    # --- out

    cpdef object pop(self):
        """Take out the first entry of the highest priority that has one. None if nothing is ready."""
        cdef Ring *ring
        cdef PyObject *item
        cdef int priority
        for priority in range(N_PRIORITIES):
            ring = &self.rings[priority]
            if ring.count:
                item = ring.slots[ring.head]
                ring_advance(ring, 1)
                return fluidfast_owned(item)
        return None

    cpdef list pop_many(self, Py_ssize_t n, Py_ssize_t max_bytes=0, int mask=ALL_PRIORITIES):
        """Take out at most ``n`` entries, as ``(priority, item)`` in the order in which ``pop`` would give them.

        ``max_bytes``: if above 0, stop before the sizes of the items that are bytes (others count 0) add up to more;
        but one entry is always given, however large. ``mask``: one bit per allowed priority (1: only 0, 6: 1 and 2).

        Raises:
            ValueError: ``n`` or ``max_bytes`` below 0, or ``mask`` out of 0..7.
        """
        cdef size_t take[N_PRIORITIES]
        cdef size_t left, i
        cdef size_t total = 0
        cdef Py_ssize_t place = 0
        cdef Py_ssize_t room = max_bytes
        cdef Py_ssize_t size
        cdef int priority
        cdef bint full = False
        cdef bint collects
        cdef Ring *ring
        cdef PyObject *item
        cdef list result
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        check_mask(mask)

        for priority in range(N_PRIORITIES):
            ring = &self.rings[priority]
            take[priority] = 0
            if full or not mask >> priority & 1:
                continue
            left = min(<size_t>n - total, ring.count)
            if max_bytes:
                for i in range(left):
                    item = ring_slot(ring, i)[0]
                    size = PyBytes_GET_SIZE(<object>item) if PyBytes_Check(<object>item) else 0
                    if size > room and total + i:
                        full = True
                        left = i
                        break
                    room -= size    # below 0 after a first entry larger than max_bytes: then no other fits
            take[priority] = left
            total += left

        # The entries are copied before they are taken out, because a copy can fail; and no foreign code may come
        # between, because it could pop the same entries. (Letting the tuples take over the references of the slots, to
        # save the second loop, is slower on cold payloads: the first loop fetches them with many misses in flight,
        # the caller would meet them one by one.)
        collects = PyGC_Disable()
        try:
            result = PyList_New(total)
            for priority in range(N_PRIORITIES):
                ring = &self.rings[priority]
                for i in range(take[priority]):
                    entry = (priority, <object>ring_slot(ring, i)[0])
                    Py_INCREF(entry)
                    PyList_SET_ITEM(result, place, entry)
                    place += 1
            for priority in range(N_PRIORITIES):
                ring = &self.rings[priority]
                if take[priority]:
                    for i in range(take[priority]):
                        Py_XDECREF(ring_slot(ring, i)[0])   # never the last reference: the copy has one
                    ring_advance(ring, take[priority])
        finally:
            if collects:
                PyGC_Enable()
        return result

    # --- later

    cpdef object promote(self, int64_t now_us):
        """Move what is due (``due_us <= now_us``) to the ends of its priorities, earliest first. Returns how many."""
        cdef size_t due[N_PRIORITIES]
        cdef Delayed entry
        cdef int priority
        cdef object result
        if not self.heap_count or self.heap[0].due_us > now_us:
            return 0
        # Counted first, so that the room and the answer are there before the first entry moves.
        memset(due, 0, sizeof(due))
        count_due(self.heap, self.heap_count, now_us, due)
        result = due[0] + due[1] + due[2]
        for priority in range(N_PRIORITIES):
            ring_reserve(&self.rings[priority], due[priority])
        while self.heap_count and self.heap[0].due_us <= now_us:
            entry = self.heap[0]
            remove_root(self.heap, self.heap_count)
            self.heap_count -= 1
            ring_append(&self.rings[entry.priority], entry.item)
        heap_cut(self)
        return result

    cpdef object next_due(self):
        """When the first delayed entry is due, in microseconds. None if there is none."""
        return self.heap[0].due_us if self.heap_count else None

    def first(self, priority) -> object:
        """The entry of one priority that is popped next. None if there is none."""
        cdef Ring *ring = &self.rings[as_priority(priority)]
        return <object>ring_slot(ring, 0)[0] if ring.count else None

    # --- counts

    cdef Py_ssize_t _length(self, int priority) except -1:
        return self.rings[check_priority(priority)].count

    def length(self, priority) -> int:
        """How many entries of one priority are ready."""
        return self._length(as_priority(priority))

    cpdef tuple lengths(self):
        """How many entries are ready, by priority."""
        return (self.rings[0].count, self.rings[1].count, self.rings[2].count)

    cpdef Py_ssize_t delayed_length(self) noexcept:
        """How many entries are kept for later, due or not."""
        return self.heap_count

    # --- a look, which changes nothing

    def waiting(self) -> list:
        """Return the ready entries, as ``(priority, item)`` in the order in which ``pop`` would give them."""
        cdef Ring *ring
        cdef size_t i
        cdef int priority
        cdef list result = []
        # While this list grows, foreign code must not run: see pop_many.
        cdef bint collects = PyGC_Disable()
        try:
            for priority in range(N_PRIORITIES):
                ring = &self.rings[priority]
                for i in range(ring.count):
                    result.append((priority, <object>ring_slot(ring, i)[0]))
        finally:
            if collects:
                PyGC_Enable()
        return result

    def delayed(self) -> list:
        """Return the delayed entries, as ``(due_us, priority, item)`` in the order in which they are due."""
        cdef Delayed *entry
        cdef size_t i
        cdef list result = []
        cdef bint collects = PyGC_Disable()
        try:
            for i in range(self.heap_count):
                entry = &self.heap[i]
                result.append((entry.due_us, entry.seq, entry.priority, <object>entry.item))
        finally:
            if collects:
                PyGC_Enable()
        result.sort()               # seq is never equal, so no item is compared
        return [(due_us, priority, item) for due_us, _, priority, item in result]

    # --- away

    cpdef tuple clear(self, int mask=ALL_PRIORITIES):
        """Drop the ready entries of the priorities in ``mask`` (one bit each). Returns how many, by priority.

        Delayed entries stay. An item that is destroyed by this may use the queue: it finds it cleared.

        Raises:
            ValueError: ``mask`` out of 0..7.
        """
        cdef Ring removed[N_PRIORITIES]
        cdef int priority
        cdef bint collects
        cdef tuple counts
        check_mask(mask)
        # The result is made first, because that can fail; see pop_many for why without the collector.
        collects = PyGC_Disable()
        try:
            counts = (
                self.rings[0].count if mask & 1 else 0,
                self.rings[1].count if mask & 2 else 0,
                self.rings[2].count if mask & 4 else 0,
            )
        finally:
            if collects:
                PyGC_Enable()
        for priority in range(N_PRIORITIES):
            if mask >> priority & 1:
                removed[priority] = self.rings[priority]
                memset(&self.rings[priority], 0, sizeof(Ring))
            else:
                memset(&removed[priority], 0, sizeof(Ring))
        forget_containers(self)
        for priority in range(N_PRIORITIES):
            ring_release(&removed[priority])
        return counts

    cpdef object clear_delayed(self):
        """Drop all delayed entries. Returns how many. An item that is destroyed by this may use the queue."""
        cdef object result = self.heap_count
        release_heap(self)
        return result

    # --- for the collector; traced code would be Python code inside a collection

    @cython.linetrace(False)
    @cython.profile(False)
    cdef int visit_entries(self, visitproc visit, void *arg) noexcept:
        cdef int priority, stop
        cdef size_t i
        if not self.has_containers:
            return 0
        for priority in range(N_PRIORITIES):
            for i in range(self.rings[priority].count):
                stop = visit(ring_slot(&self.rings[priority], i)[0], arg)
                if stop:
                    return stop
        for i in range(self.heap_count):
            stop = visit(self.heap[i].item, arg)
            if stop:
                return stop
        return 0

    @cython.linetrace(False)
    @cython.profile(False)
    cdef void release_entries(self) noexcept:
        cdef Ring removed[N_PRIORITIES]
        cdef int priority
        memcpy(removed, self.rings, sizeof(removed))
        memset(self.rings, 0, sizeof(removed))
        for priority in range(N_PRIORITIES):
            ring_release(&removed[priority])
        release_heap(self)

    # --- for tests

    def check_invariant(self) -> None:
        """Check the structure, entry by entry.

        Raises:
            AssertionError: with what is wrong.
        """
        cdef Ring *ring
        cdef Delayed *entry
        cdef int priority
        cdef size_t i
        for priority in range(N_PRIORITIES):
            ring = &self.rings[priority]
            if (
                (ring.slots is NULL) != (ring.capacity == 0)
                or ring.capacity & (ring.capacity - 1)
                or ring.count > ring.capacity
                or (ring.head >= ring.capacity and ring.head)
            ):
                raise AssertionError(f"ring {priority}: {ring.count} from {ring.head} in {ring.capacity}")
            for i in range(ring.count):
                check_item(self, ring_slot(ring, i)[0])
        if (self.heap is NULL) != (self.heap_capacity == 0) or self.heap_count > self.heap_capacity:
            raise AssertionError(f"heap: {self.heap_count} in {self.heap_capacity}")
        for i in range(self.heap_count):
            entry = &self.heap[i]
            if not 0 <= entry.priority < N_PRIORITIES or entry.seq >= self.next_seq:
                raise AssertionError(f"heap entry {i}: priority {entry.priority}, seq {entry.seq} of {self.next_seq}")
            if i and not sooner(&self.heap[(i - 1) >> 1], entry):
                raise AssertionError(f"heap entry {i}: not after its parent")
            check_item(self, entry.item)


cdef void heap_cut(PriorityQueue queue) noexcept:
    """Give memory back once no more than a quarter is used."""
    cdef size_t capacity = queue.heap_capacity
    cdef Delayed *heap
    while capacity > MIN_DELAYED and queue.heap_count <= capacity >> 2:
        capacity >>= 1
    if capacity < queue.heap_capacity:
        heap = <Delayed *>PyMem_Realloc(queue.heap, capacity * sizeof(Delayed))
        if heap is not NULL:
            queue.heap = heap
            queue.heap_capacity = capacity


@cython.linetrace(False)
@cython.profile(False)
cdef void release_heap(PriorityQueue queue) noexcept:
    """Drop what is delayed: this runs foreign code, which finds the queue already without it."""
    cdef Delayed *heap = queue.heap
    cdef size_t count = queue.heap_count
    cdef size_t i
    queue.heap = NULL
    queue.heap_count = queue.heap_capacity = 0
    forget_containers(queue)
    for i in range(count):
        Py_XDECREF(heap[i].item)
    PyMem_Free(heap)


cdef void forget_containers(PriorityQueue queue) noexcept:
    if not (queue.rings[0].count or queue.rings[1].count or queue.rings[2].count or queue.heap_count):
        queue.has_containers = False


cdef int check_item(PriorityQueue queue, PyObject *item) except -1:
    if item is NULL or item.ob_refcnt <= 0:
        raise AssertionError("an entry without a live object")
    if fluidfast_is_container(<object>item) and not queue.has_containers:
        raise AssertionError("an entry that the garbage collector has to follow was not noted")
    return 0


# --- the collector's slots --------------------------------------------------------------------------------------------
# The slots that Cython generated for the object attributes (and, where the type is a heap type, for the type itself)
# still have to run, so ours call them. The class is final: no subclass has copied the slots before they are replaced
# here.

cdef traverseproc generated_traverse
cdef inquiry generated_clear


@cython.linetrace(False)
@cython.profile(False)
cdef int queue_traverse(PyObject *self, visitproc visit, void *arg) noexcept:
    cdef int stop = generated_traverse(self, visit, arg)
    if stop:
        return stop
    return (<PriorityQueue>self).visit_entries(visit, arg)


@cython.linetrace(False)
@cython.profile(False)
cdef int queue_clear(PyObject *self) noexcept:
    generated_clear(self)
    (<PriorityQueue>self).release_entries()
    return 0


cdef int install_collector_slots() except -1:
    global generated_traverse, generated_clear
    cdef PyTypeObject *cls = <PyTypeObject *>PriorityQueue
    generated_traverse = cls.tp_traverse
    generated_clear = cls.tp_clear
    if generated_traverse is NULL or generated_clear is NULL:
        raise SystemError("PriorityQueue was compiled without the garbage collector's protocol")
    cls.tp_traverse = queue_traverse
    cls.tp_clear = queue_clear
    return 0


install_collector_slots()
