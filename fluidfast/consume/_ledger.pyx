"""The notes of a consumer on its claimed runs: the steps that are taken once a run. The settler sends them to the
broker, a batch at a time.
"""

cimport cython
from ..brokers._leases cimport Claimed, Lease
from ..core._run cimport TaskRun

import asyncio

__all__ = ["SETTLE_SECONDS", "Ledger"]

SETTLE_SECONDS = 0.003
"""How long a finished run waits for others of its batch before it is settled."""


cdef class Ledger:
    """Notes what became of runs under their leases. The base of the settler, which has the slower ways.

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

    # the settler's

    def flush(self) -> None:
        """Send what is noted of every lease."""
        raise NotImplementedError

    def drop(self, Claimed held) -> None:
        """Note nothing of a run whose lease is gone."""
        raise NotImplementedError

    def _start_send(self, Lease lease) -> None:
        """Send what is noted of a lease."""
        raise NotImplementedError

    def _free(self, Claimed held) -> None:
        """Note that a run's slot under ``max_concurrency`` is free, if it has one."""
        raise NotImplementedError

    def _reply(self, settlement, TaskRun run) -> None:
        """Note the reply to whoever waits for a run."""
        raise NotImplementedError
