"""``queue()``: the calls that are made a million times, up to the outbox. What else a manager does is Python."""

cimport cython

from ..wire._codec cimport Codec
from ..core._machine cimport INIT, N_STATES, QUEUED
from ..core._run cimport TaskRun

from ..errors import BufferedRunsLost
from ..produce.handle import RunHandle
from ..produce.producer import done, refused

__all__ = ["QueueFront"]

cdef enum:
    AROUND_QUEUEING = 1 << N_STATES  # see core/hooks.py


cdef class QueueFront:
    """The base of the manager, which has the slower ways."""

    @cython.nonecheck(True)
    cpdef bint hands_over(self) except -1:
        """Whether queueing a run is no more than handing over its payload: nobody listens, no hook
        is called around it, nothing may hold it up."""
        return not (self._backpressure.active or self._listeners.mask & (1 << INIT | 1 << QUEUED | AROUND_QUEUEING))

    @cython.nonecheck(True)
    def queue(self, task, priority=None, *, run_id="", from_task_run=None, params=None, **kwargs):
        """Queue a run; it is safe on the broker when what this returns has been awaited.

        Params as in ``create_task_run``. Fires the events ``init`` (also known as ``queue``), before it is sent, and
        ``queued``, after. If the caller is cancelled the run may have been queued.

        Raises, when it is awaited:
            UnknownTaskError, ParamsError, ValueError: as ``create_task_run``, before anything is sent.
            PayloadTooLargeError: the run is larger than the broker's limit; nothing was sent.
            BrokerFullError: the server has no memory left; nothing was queued.
            QueueFullError: ``max_queue_length`` runs wait, or ``max_queue_bytes`` bytes; nothing was queued.
            BufferedRunsLost: runs that were queued before with ``delivery="buffered"`` are not confirmed; this one was
                not queued.
            DurabilityUnsupportedError: the server cannot do what ``durability`` demands; nothing was sent.
            NotDurableError: the run is queued, but not as safe as ``durability`` demands.
            BrokerConnectionError: the server is not there; after a connection that was lost on the way and did not
                come back, whether the run was queued is unknown.
        """
        cdef Codec codec
        cdef TaskRun run
        cdef bytes payload
        if not self.hands_over():
            return self._queue(task, priority, run_id, from_task_run, params, kwargs)
        codec = self.broker.codec
        try:
            if params is None:
                run = codec.create(task, priority, run_id, kwargs, self, self._listeners, from_task_run)
            else:
                run = self.create_task_run(task, run_id, priority, from_task_run=from_task_run, params=params, **kwargs)
            payload = codec.submit(run)
        except Exception as exc:
            return refused(exc)
        if not self._push_never_takes and self.broker.push(run.prio, payload):
            return done(run)
        try:
            loop = self._producer._running_loop()
        except RuntimeError:  # it is for asyncio.run, which will make one
            return self._send(run, payload)
        if not self._buffers:
            # No coroutine: who awaits many at once waits for futures, and needs no Task for each.
            return self._producer.submit(loop, run.prio, payload, run)
        try:
            self._producer.accept(loop, run.prio, payload)
        except BufferedRunsLost as exc:
            return refused(exc)
        return self._when_there_is_room(run) if self._producer.crowded else done(run)

    @cython.nonecheck(True)
    def queue_given(self, task, given):
        """Queue a run as ``queue``, with the params as one dict or an object of the task's model, which no keyword can
        collide with. The returned awaitable gives a ``RunHandle``."""
        cdef Codec codec
        cdef TaskRun run
        cdef bytes payload
        if not self.hands_over():
            return self._queue_given(task, given)
        codec = self.broker.codec
        try:
            if type(given) is dict:
                run = codec.create(task, None, "", given, self, self._listeners)
            else:
                run = codec.create_with(task, None, "", given, self, self._listeners)
            payload = codec.submit(run)
        except Exception as exc:
            return refused(exc)
        handle = RunHandle(run.id)
        if not self._push_never_takes and self.broker.push(run.prio, payload):
            return done(handle)
        try:
            loop = self._producer._running_loop()
        except RuntimeError:
            return self._answer(handle, self._send(run, payload))
        if not self._buffers:
            return self._producer.submit(loop, run.prio, payload, handle)
        try:
            self._producer.accept(loop, run.prio, payload)
        except BufferedRunsLost as exc:
            return refused(exc)
        return self._answer(handle, self._when_there_is_room(run)) if self._producer.crowded else done(handle)

    # -- the manager's

    def create_task_run(self, task, run_id="", priority=None, *, from_task_run=None, params=None, **kwargs):
        """Return a run in state ``init``."""
        raise NotImplementedError

    def _queue(self, task, priority, run_id, from_task_run, params, kwargs):
        """Return a coroutine that queues a run by the intake."""
        raise NotImplementedError

    def _queue_given(self, task, given):
        """Return a coroutine that queues a run by the intake, and gives its handle."""
        raise NotImplementedError

    def _answer(self, handle, sending):
        """Return a coroutine that awaits a sending and gives the handle."""
        raise NotImplementedError

    def _send(self, run, payload):
        """Return a coroutine that sends a payload from the event loop that will run it."""
        raise NotImplementedError

    def _when_there_is_room(self, run):
        """Return a coroutine that waits until the buffer is within its bounds."""
        raise NotImplementedError
