"""What is queued and not sent yet, and the futures of those who wait for it.

A ``Confirmation`` is made for each call of ``queue()``, so it is compiled, and those of one batch are confirmed
together: the event loop gets one handle a batch, where each ``asyncio.Future`` would ask for one of its own.
"""

import asyncio
import types
from asyncio import CancelledError, InvalidStateError, current_task, get_running_loop

cimport cython
from cpython.object cimport PyObject
from cpython.bytes cimport PyBytes_GET_SIZE

from ..core._time cimport forks, monotonic_us
from ..brokers._short_way cimport CONFIRMED, NOT_SENT, Outcome, ShortWay

__all__ = ["Confirmation", "Outbox", "settle_all"]

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    void PyErr_SetObject(PyObject* kind, object value) noexcept
    PyObject* STOP "PyExc_StopIteration"

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000 && !defined(PYPY_VERSION)
    /* Python 3.11 keeps an object for the loop that a thread runs, made anew when one starts or ends: its head, the
       loop, the process. (From 3.12 on asyncio hears of forks.) */
    static int remembers(PyObject* loop)
    {
        static PyObject* key = NULL;
        PyObject* state = PyThreadState_GetDict();
        PyObject* runs;
        if (key == NULL && (key = PyUnicode_InternFromString("__asyncio_running_event_loop__")) == NULL) {
            PyErr_Clear();
            return 0;
        }
        runs = state == NULL ? NULL : PyDict_GetItem(state, key);
        return runs != NULL && Py_TYPE(runs)->tp_basicsize >= (Py_ssize_t)(sizeof(PyObject) + sizeof(PyObject*))
            && strcmp(Py_TYPE(runs)->tp_name, "_RunningLoopHolder") == 0
            && *(PyObject**)((char*)runs + sizeof(PyObject)) == loop;
    }
    #else
    #define remembers(loop) 0
    #endif
    """
    bint remembers(object loop)

cdef enum:
    PENDING, FINISHED, CANCELLED

cdef Py_ssize_t BATCH_RUNS = 1000
cdef Py_ssize_t BATCH_BYTES = 1 << 20
cdef Py_ssize_t BUFFERED_TURN = 500
cdef Py_ssize_t LONELY = 3              # payloads in a row that a task awaited alone: the next one probably is, too
cdef double AT_ONCE = 1e-3              # seconds between two of them in which nothing else can have been waited for
cdef double HOLD = 2e-3                 # seconds in which they may keep the event loop from its next turn
cdef int TURNS = 3                      # that it makes then: what has come is read, handled, and woken
cdef double QUIET = 15e-6               # seconds that a turn takes in which nobody else has something to do

MAX_BATCH = BATCH_RUNS
MAX_BATCH_BYTES = BATCH_BYTES


class Unheard:
    """Says, when it goes, that nobody asked for an exception: as asyncio's futures do."""

    __slots__ = ("failure", "loop")

    def __init__(self, loop, failure):
        self.loop = loop
        self.failure = failure

    def __del__(self):
        if self.failure is not None:
            self.loop.call_exception_handler(
                {"message": "Confirmation exception was never retrieved", "exception": self.failure}
            )


@cython.freelist(1024)
@cython.auto_pickle(False)
cdef class Confirmation:
    """A future that gives ``value`` once the broker has confirmed, and is as good as a coroutine.

    Since it is a future (``asyncio.isfuture``), ``asyncio.gather`` waits for it without making a Task, which would cost
    more than all the rest of queueing a run; since it can be driven like a coroutine, ``asyncio.create_task`` and
    ``asyncio.run`` take it. Methods are those of ``asyncio.Future``. ``asyncio.wait`` takes no coroutines, so not it.
    """

    def __init__(self, value=None, *, loop=None):
        self.loop = asyncio.get_running_loop() if loop is None else loop
        self.value = value

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)

    def __repr__(self) -> str:
        if self.state == PENDING:
            return "<Confirmation pending>"
        if self.state == CANCELLED:
            return "<Confirmation cancelled>"
        if self.failure is not None:
            return f"<Confirmation finished exception={self.failure!r}>"
        return f"<Confirmation finished result={self.value!r}>"

    # -- as a future

    @property
    def _loop(self):
        return self.loop

    def get_loop(self):
        """The event loop that it belongs to."""
        return self.loop

    def done(self) -> bool:
        """Whether it is confirmed, refused or cancelled."""
        return self.state != PENDING

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.state == CANCELLED

    def result(self):
        """The value.

        Raises:
            Exception: what the broker refused it with.
            CancelledError: it was cancelled.
            InvalidStateError: it is not done.
        """
        if self.state == FINISHED:
            if self.failure is None:
                return self.value
            self.heard()
            raise self.failure.with_traceback(self.traceback)  # the same one is raised in all who wait for a batch
        if self.state == CANCELLED:
            raise self._make_cancelled_error()
        raise InvalidStateError("the broker has not answered yet")

    def exception(self):
        """What it was refused with, or None. Raises CancelledError and InvalidStateError as ``result``."""
        if self.state == FINISHED:
            if self.failure is not None:
                self.heard()
            return self.failure
        if self.state == CANCELLED:
            raise self._make_cancelled_error()
        raise InvalidStateError("the broker has not answered yet")

    def set_result(self, value) -> None:
        """Give ``value`` to who waits. Raises InvalidStateError if it is done."""
        if self.state != PENDING:
            raise InvalidStateError(f"{self!r} is done")
        self.value = value
        self.settled(None)
        self.schedule()

    def set_exception(self, failure) -> None:
        """Raise ``failure`` in who waits. Raises InvalidStateError if it is done, TypeError if it is no exception."""
        if self.state != PENDING:
            raise InvalidStateError(f"{self!r} is done")
        if isinstance(failure, type):
            failure = failure()
        if not isinstance(failure, BaseException):
            raise TypeError(f"{failure!r} is no exception")
        self.settled(failure)
        self.schedule()

    def cancel(self, msg=None) -> bool:
        """Wait no longer: what was handed over may be queued all the same. False if it was done."""
        if self.state != PENDING:
            self.heard()  # who does not want it any more need not be told
            return False
        self.state = CANCELLED
        self._cancel_message = msg
        self.schedule()
        return True

    def add_done_callback(self, fn, *, context=None) -> None:
        """Have ``fn(self)`` called by the event loop when it is done."""
        if context is None:
            context = PyContext_CopyCurrent()
        if self.state != PENDING:
            self.loop.call_soon(fn, self, context=context)
        elif self.callback is None:
            self.callback = fn
            self.context = context
        else:
            if self.further is None:
                self.further = []
            self.further.append((fn, context))

    def remove_done_callback(self, fn) -> int:
        """Call ``fn`` no more; how many times it was to be called. What is done calls it all the same."""
        if self.callback is None or self.state != PENDING:
            return 0
        pairs = [(self.callback, self.context), *(self.further or ())]
        kept = [pair for pair in pairs if pair[0] != fn]
        self.callback, self.context = kept[0] if kept else (None, None)
        self.further = kept[1:] or None
        return len(pairs) - len(kept)

    def _make_cancelled_error(self):
        return CancelledError() if self._cancel_message is None else CancelledError(self._cancel_message)

    cdef int heard(self) except -1:
        if self.unheard is not None:
            self.unheard.failure = None
            self.unheard = None
        return 0

    cdef bint settled(self, object failure):
        """Done; whether somebody is to be called."""
        if failure is not None:
            if isinstance(failure, StopIteration):  # which would be a value for who awaits it
                stop, failure = failure, RuntimeError("StopIteration cannot be raised into a future")
                failure.__cause__ = stop
            self.traceback = failure.__traceback__
            self.failure = failure
            self.unheard = Unheard(self.loop, failure)
        self.state = FINISHED
        return self.callback is not None

    cdef int schedule(self) except -1:
        if self.callback is not None:
            self.loop.call_soon(call_all, [self])
        return 0

    cdef int call_back(self) except -1:
        """Call back in the order of asking. Behind one that ends the process, or tries to, the others stay here."""
        while self.callback is not None:
            callback, context = self.callback, self.context
            if self.further:
                self.callback, self.context = self.further.pop(0)
            else:
                self.callback = self.context = None
            self.call(callback, context)
        return 0

    cdef int call(self, object callback, object context) except -1:
        PyContext_Enter(context)
        try:
            callback(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler(
                {"message": f"Exception in callback {callback!r}", "exception": exc, "future": self}
            )
        finally:
            PyContext_Exit(context)
        return 0

    # -- as a coroutine: it is its own iterator, since what its next step is depends on nothing but itself

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef Outbox outbox
        if self.outbox is not None:
            outbox = self.outbox
            if self.turns:
                self.turns -= 1
                outbox.turned(self.turns)
                if self.turns:
                    return None
            elif self.state == PENDING and outbox.hasten(self):
                self.turns = TURNS
                return None
            self.outbox = None
        if self.state == PENDING:
            if self._asyncio_future_blocking:
                raise RuntimeError("await wasn't used with future")
            self._asyncio_future_blocking = True
            return self
        if self.state != FINISHED or self.failure is not None or isinstance(self.value, (tuple, BaseException)):
            raise StopIteration(self.result())      # of a tuple it would take the parts for its own
        PyErr_SetObject(STOP, self.value)
        raise StopIteration                         # which compiles to "as set", and makes no traceback of it

    def send(self, value):
        """One step, as of a coroutine."""
        return self.__next__()

    def throw(self, kind, value=None, traceback=None):
        """Raise in whoever waits, as of a coroutine."""
        if isinstance(kind, type):
            kind = kind() if value is None else value if isinstance(value, BaseException) else kind(value)
        raise kind if traceback is None else kind.with_traceback(traceback)

    def close(self) -> None:
        """Nothing: a coroutine that awaits it passes this on when it is closed, and others may wait for it too."""


@cython.nonecheck(True)
cpdef int settle_all(list waiters, object failure) except -1:
    """Confirm the futures that are not done, or have them raise ``failure``. They are of one event loop."""
    cdef Confirmation waiter
    cdef list called = []
    for waiter in waiters:
        if waiter.state == PENDING and waiter.settled(failure):
            called.append(waiter)
    if called:
        (<Confirmation>called[0]).loop.call_soon(call_all, called)
    return 0


@cython.nonecheck(True)
def call_all(list waiters):
    """Call back who waits for futures that are done; the event loop's one handle for all of them."""
    cdef Confirmation waiter
    cdef Py_ssize_t i
    for i in range(len(waiters)):
        waiter = waiters[i]
        try:
            waiter.call_back()
        except BaseException:  # one that ends the process, or tries to
            waiter.loop.call_soon(call_all, waiters[i:])
            raise


cdef class Outbox:
    """Payloads that wait to be sent, by priority, who waits for them, and how many are not confirmed.

    The base of the producer, which has ``_enter_loop``, ``_flush``, ``_flush_soon``, ``_take_over``, ``_send_again``,
    ``_raise_lost``.
    """

    def __init__(self, buffer_runs, buffer_bytes):
        self.buffer_runs = buffer_runs
        self.buffer_bytes = buffer_bytes

    def running_loop(self):
        """``asyncio.get_running_loop()``.

        Raises:
            RuntimeError: there is none.
        """
        return self._running_loop()

    cdef object _running_loop(self):
        """Before Python 3.12 asyncio asks the system at each call whether this is the child of a fork. When it was
        asked for the loop that we are in, and there was no fork since, what it remembers of this thread will do."""
        if self._loop is not None and self._forks == forks() and remembers(self._loop):
            return self._loop
        loop = get_running_loop()
        if loop is self._loop:
            self._forks = forks()
        return loop

    cdef int add(self, object loop, int priority, bytes payload) except -1:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
        (<list>self._groups[priority]).append(payload)
        self._count += 1
        self._bytes += size
        self.pending += 1
        self.pending_bytes += size
        if self._count >= BATCH_RUNS or self._bytes >= BATCH_BYTES:
            self._flush()
        elif not self._scheduled and not self._in_flight:
            self._flush_in_turn(loop)
        elif self._count == 1:
            self._since = monotonic_us() / 1e6
        return 0

    cdef int _flush_in_turn(self, object loop) except -1:
        self._scheduled = True
        self._turned = monotonic_us() / 1e6
        loop.call_soon(self._flush_soon)
        return 0

    @cython.nonecheck(True)
    cdef bint hasten(self, Confirmation future) except -1:
        """``future`` is awaited. If it is alone, and so were the last ones of this task, send it out of here.

        A task that awaits one after the other gets its answers without a turn of the event loop in between, for a time;
        then everything else has its turn. True: it is that time; ``turned`` is to be called after each of TURNS.
        """
        cdef bytes payload
        cdef int priority
        cdef double now, before
        cdef Outcome outcome
        cdef ShortWay lane = self._lane
        if self._count != 1 or self._in_flight or self._buffered or self._waiters[0] is not future:
            self._lone = 0
            return False
        now = monotonic_us() / 1e6
        before, self._awaited = self._awaited, now
        task = id(current_task(self._loop))
        if task != self._task:
            self._task = task
            self._lone = 0
        self._lone += 1
        if self._lone <= LONELY or lane is None or self.counts or self._room is not None or not lane.idle():
            return False
        if self._count != 1 or self._in_flight or self._waiters[0] is not future:
            return False                # idle() asked asyncio's transport, in Python: a handler may have queued
        for priority in range(3):
            group = <list>self._groups[priority]
            if group:
                break
        payload = <bytes?>group[0]
        outcome = lane.alone(self.id, self._sequence + 1, priority, payload, now, now - before < AT_ONCE)
        if outcome == NOT_SENT:
            return False
        group.pop()
        self._waiters.pop()
        self._count = self._bytes = 0
        self._sequence += 1
        sequence = self._sequence
        if outcome == CONFIRMED:
            self.confirmed += 1
            self.pending -= 1
            self.pending_bytes -= PyBytes_GET_SIZE(payload)
            if future.settled(None):
                future.schedule()
            now = monotonic_us() / 1e6
            if now - self._turned < self._hold:
                return False
            self._yielded = now
            self._others = False
            return True
        try:
            self._take_over(sequence, priority, payload, future)
        except BaseException:           # of a signal's handler, say: nobody waits for the answer that is on its way
            self._send_again(sequence, priority, payload, future)
            raise
        return False

    cdef int turned(self, int left) except -1:
        """The event loop had a turn, so many are left. Who has something to do in them has some after each answer."""
        cdef double now = monotonic_us() / 1e6
        if left < TURNS - 1 and now - self._yielded > QUIET:  # the first is slow by itself
            self._others = True
        self._yielded = now
        if left == 0:
            self._hold = 0 if self._others else min(HOLD, max(HOLD / 16, 2 * self._hold))
        return 0

    cpdef Confirmation submit(self, object loop, int priority, bytes payload, object value):
        """Hand over a payload that the broker did not take by ``push``, in the running event loop.

        It is queued when the future is done, which then gives ``value``, or raises BrokerConnectionError (whether it
        was queued is unknown), or another BrokerError (it was not).
        """
        cdef Confirmation future
        if loop is not self._loop:
            self._enter_loop()
        future = Confirmation.__new__(Confirmation)
        future.loop = loop
        future.value = value
        self._waiters.append(future)
        self.add(loop, priority, payload)
        if self._count == 1:
            future.outbox = self
        return future

    cpdef object accept(self, object loop, int priority, bytes payload):
        """Hand over, in the running event loop, a payload that the broker did not take by ``push`` and that nobody
        waits for. If ``crowded`` is set after it, await ``make_room``.

        Raises:
            BufferedRunsLost: payloads accepted before could not be confirmed. This one was not accepted.
        """
        if loop is not self._loop:
            self._enter_loop()
        if self._lost is not None:
            self._raise_lost()
        self._buffered += 1
        self.add(loop, priority, payload)
        if (
            self._buffered % BUFFERED_TURN == 0
            or self.pending >= self.buffer_runs
            or self.pending_bytes >= self.buffer_bytes
        ):
            self.crowded = True
