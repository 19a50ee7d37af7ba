"""A claimed run and the lease of its batch: the objects that a claim makes, one of the former for each run."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from time import monotonic

from ..core.states import LETTERS

__all__ = ["Claimed", "Lease", "numbered", "paired"]

cdef extern from "Python.h":
    str PyUnicode_FromFormat(const char* form, ...)
    str PyUnicode_DecodeASCII(const char* text, Py_ssize_t size, const char* errors)

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
