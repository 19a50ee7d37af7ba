"""What a consumer has claimed, and what it notes of it: the objects that are made, and the steps that are taken, once
a run. What is said to the broker, a batch at a time, is the settler's.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

import asyncio
from time import monotonic

from ..core.states import LETTERS

__all__ = ["SETTLE_SECONDS", "Claimed", "Lease", "Ledger", "numbered", "paired"]

cdef extern from "Python.h":
    str PyUnicode_FromFormat(const char* form, ...)
    str PyUnicode_DecodeASCII(const char* text, Py_ssize_t size, const char* errors)

SETTLE_SECONDS = 0.003
"""How long a finished run waits for others of its batch before it is settled."""

cdef str _letters = "".join(LETTERS)


@cython.final
@cython.freelist(2048)
@cython.auto_pickle(False)
cdef class Claimed:
    """A payload under a lease. ``field`` names it within its batch; ``strikes``: workers that died holding it.

    ``lease`` and ``run``: a place for what the consumer makes of it.
    """

    def __init__(self, str field not None, bytes payload not None, int strikes=0):
        self.field = field
        self.payload = payload
        self.strikes = strikes

    @property
    def slot(self) -> str:
        """The name of its slot under ``max_concurrency``, which no other run has, also none of the same id."""
        if self.lease is None or self.run is None:
            raise TypeError("what was claimed has no lease and no run yet")
        return f"{self.lease.batch}:{self.field} {self.run.id}"

    def __repr__(self) -> str:
        return f"Claimed(field={self.field!r}, payload={self.payload!r}, strikes={self.strikes})"

    def __eq__(self, other):
        cdef Claimed one
        if not isinstance(other, Claimed):
            return NotImplemented
        one = other
        return self.field == one.field and self.payload == one.payload and self.strikes == one.strikes

    __hash__ = None


def numbered(list taken not None) -> list:
    """Items for (priority number, payload), in their order: the fields are the priority's letter and 1, 2, 3..."""
    cdef Py_ssize_t i
    cdef Claimed item
    cdef list items = []
    for i in range(len(taken)):
        priority, payload = <tuple?>taken[i]
        item = Claimed.__new__(Claimed)
        item.field = PyUnicode_FromFormat("%c%zd", <int>_letters[<Py_ssize_t>priority], i + 1)
        item.payload = payload
        items.append(item)
    return items


def paired(list given not None) -> list:
    """Items for a flat list of field, payload, field, payload..., all bytes.

    Raises:
        ValueError: something is missing in it.
    """
    cdef Py_ssize_t i
    cdef Claimed item
    cdef bytes field
    cdef list items = []
    if len(given) % 2:
        raise ValueError(f"fields and payloads come in pairs, not as {len(given)} values")
    for i in range(0, len(given), 2):
        field = <bytes?>given[i]
        item = Claimed.__new__(Claimed)
        item.field = PyUnicode_DecodeASCII(PyBytes_AS_STRING(field), PyBytes_GET_SIZE(field), NULL)
        item.payload = <bytes?>given[i + 1]
        items.append(item)
    return items


@cython.final
@cython.auto_pickle(False)
cdef class Lease:
    """A claimed batch of ``size`` runs, and the ``settlement`` that is to be said of it."""

    def __init__(self, str batch not None, Py_ssize_t size, settlement=None):
        self.batch = batch
        self.claimed_at = monotonic()
        self.left = size
        self.unstarted = size
        self.settlement = settlement


cdef class Ledger:
    """Notes what became of runs under their leases. The base of the settler, which has the slower ways: ``flush``,
    ``_reply``, ``_free``, ``_start_send``.

    Attributes: ``leases`` by batch; ``limited``: the slots held under ``max_concurrency``, slot -> task.
    """

    def __init__(self):
        self.leases = {}
        self.limited = {}
        self._dirty = set()

    def finished(self, Claimed held not None) -> None:
        """It came to its end; whoever waits for it is told."""
        self.end(held)

    def _settle(self, Claimed held not None) -> None:
        self.settle(held)

    def _settled(self, Lease lease not None) -> None:
        self.settled(lease)

    @cython.nonecheck(True)
    cdef int end(self, Claimed held) except -1:
        cdef TaskRun run = held.run
        settlement = held.lease.settlement
        settlement.info[run.task.name] = run  # the last one counts, it is written out when sent
        if run.extra is not None and "reply" in run.extra:
            self._reply(settlement, run)
        return self.settle(held)

    @cython.nonecheck(True)
    cdef int settle(self, Claimed held) except -1:
        settlement = held.lease.settlement
        (<list?>settlement.done).append(held.field)
        if held.strikes:
            settlement.survived.append(held.field)
        if self.limited and held.run is not None:
            self._free(held)
        return self.settled(held.lease)

    @cython.nonecheck(True)
    cdef int settled(self, Lease lease) except -1:
        lease.left -= 1
        self._dirty.add(lease)
        if lease.left == 0:
            self._start_send(lease)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self.flush)
        return 0
