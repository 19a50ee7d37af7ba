"""``TaskRun``: the record of one run, and the handle that a running task gets.

The record (what is persisted) is the state machine's times plus the fields of shared wire table: id, task, priority,
params, attempts and ancestry. The handle (``queue``, ``lock``, ``deps``, ``abort``) is a line each, on the manager.

It is a compiled class because one is made for each run on both sides: times are integers until somebody asks for a
``datetime``, state and priority are numbers until somebody asks for the enum.
"""

from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH
from libc.math cimport rint
from libc.stdint cimport uint8_t

import inspect
import types
from datetime import date, datetime, timedelta, timezone

from ._time cimport make_id, now_us
from ._machine cimport INIT, N_STATES, QUEUED, RUNNING, SUCCESS, Listeners, RunState, state_number

from ..checks import shown
from ..errors import ConfigError, TaskAbortedError, TaskRunError, TaskUsageError
from .model import ModelFields, adapter, twin
from .record import TWIN, dump, dump_json, schema
from .states import PRIORITIES, STATES
from ..texts import printable

__all__ = ["TaskRun"]

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)

cdef extern from *:
    """
    /* Runs that are gone, for the next ones. Cython keeps such a list for classes without a base only. What comes from
       it is no allocation to the collector of cycles, which looks after so many allocations: of a thousand runs queued
       at once it was a quarter of all. A Python subclass has an allocator of its own. */
    #define SPARE_RUNS 1024
    static PyObject *spare_runs[SPARE_RUNS];
    static int spare_count = 0;
    static PyTypeObject *spare_type = NULL;

    static PyObject *run_alloc(PyTypeObject *type, Py_ssize_t items)
    {
        PyObject *run;
        if (type != spare_type || spare_count == 0)
            return PyType_GenericAlloc(type, items);
        run = spare_runs[--spare_count];
        memset(run, 0, (size_t)type->tp_basicsize);
        (void)PyObject_Init(run, type);
        PyObject_GC_Track(run);
        return run;
    }

    static void run_free(void *run)
    {
        if (Py_TYPE((PyObject *)run) == spare_type && spare_count < SPARE_RUNS)
            spare_runs[spare_count++] = (PyObject *)run;
        else
            PyObject_GC_Del(run);
    }

    static void keep_spare_runs(PyObject *type)
    {
        spare_type = (PyTypeObject *)type;
        spare_type->tp_alloc = run_alloc;
        spare_type->tp_free = run_free;
    }
    """
    void keep_spare_runs(object type)

cdef tuple _priorities = PRIORITIES
cdef tuple _states = STATES
cdef dict _priority_numbers = {priority: number for number, priority in enumerate(PRIORITIES)}
cdef object EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
cdef object MICROSECOND = timedelta(microseconds=1)
cdef object EARLIEST = (datetime.min.replace(tzinfo=timezone.utc) - EPOCH) // MICROSECOND
cdef object LATEST = (datetime.max.replace(tzinfo=timezone.utc) - EPOCH) // MICROSECOND


cdef int priority_number(object priority) except -1:
    """Number of a priority given as ``TaskPriority`` or as its name."""
    cdef int number
    for number in range(3):
        if <object>_priorities[number] is priority:
            return number
    if not isinstance(priority, str):
        raise TaskUsageError(        # not its repr: these are params, which may hold secrets
            f"unknown priority of type {type(priority).__name__}, expected one of {', '.join(_priorities)}; if these "
            "are the run's params, give them by name: params=..., or each as a keyword"
        )
    found = _priority_numbers.get(priority)
    if found is None:
        raise ConfigError(f"unknown priority {shown(priority)}, expected one of {', '.join(_priorities)}")
    return found


cdef int64_t micros(object moment) except? -1:
    """Microseconds since the epoch of a datetime (naive: UTC), of a number of seconds or of an ISO 8601 text; None: 0.

    A date is its first moment. Raises ValueError for what is no time, or none between the years 1 and 9999.
    """
    cdef double seconds, nearest
    if moment is None:
        return 0
    if type(moment) is float:
        seconds = moment
        if -6e10 < seconds < 2.5e11:    # as below, and as round() does
            nearest = rint(seconds)
            return <int64_t>nearest * 1000000 + <int64_t>rint((seconds - nearest) * 1e6)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, date):
        if not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        value = (moment - EPOCH) // MICROSECOND
    elif isinstance(moment, bool):
        raise ValueError(f"not a time: {moment}")
    else:
        try:
            whole = round(moment)       # apart, since a double has no room for microseconds of much more than a second
            value = whole * 1000000 + round((moment - whole) * 1000000)
        except (TypeError, ValueError, OverflowError) as exc:
            raise ValueError(f"not a time: {shown(moment)}") from exc
        if value == LATEST + 1 and isinstance(moment, float):   # the last moment of all, as a double
            value = LATEST
    if not EARLIEST <= value <= LATEST:
        raise ValueError(f"not a time between the years 1 and 9999: {moment!r}")
    return value


cdef int64_t time_of(str field, object moment) except? -1:
    """``micros`` of what somebody gave for a field, which an error names."""
    try:
        return micros(moment)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{field} is {shown(moment)}, it must be a time between the years 1 and 9999: {exc}") from exc


cdef object shown_text(str text):
    """Foreign text, safe to show. An id of 32 hex digits, as nearly all are, costs nothing but a look at it."""
    cdef const uint8_t* at
    cdef Py_ssize_t i
    cdef uint8_t odd = 0
    if not PyUnicode_IS_COMPACT_ASCII(text) or PyUnicode_GET_LENGTH(text) != 32:
        return printable(text)
    at = <const uint8_t*>PyUnicode_1BYTE_DATA(text)
    for i in range(32):             # no branches: it is done for many bytes at a time
        odd |= (at[i] < 32) | (at[i] > 126)
    return printable(text) if odd else text


cdef TaskRun make_run(str id, object task, int prio, object params, object manager, Listeners listeners):
    cdef TaskRun run = TaskRun.__new__(TaskRun)
    run.id = id
    run.task = task
    run.prio = prio
    run.params = params
    run.task_manager = manager
    run.listeners = listeners
    run.from_run_id = ""
    run.root_run_id = ""
    return run


def parameters(
    *, id, task, priority=None, params=None, task_manager=None, state=None, queued=None, start=None, end=None,
    execute_after=None, rate_limit_attempt=0, retry_attempt=0, from_run_id="", root_run_id=""
):
    """The parameters of ``TaskRun``."""


cdef class TaskRun(RunState):
    """One run of a task.

    Made by the manager (``create_task_run``, ``queue``, ``execute``) and given to the task's function. Write
    ``TaskRun[Params]`` or ``TaskRun[Params, Deps]`` in annotations.

    Raises:
        ConfigError: a priority or a time that is none (a ValueError, too).
        TaskUsageError: the priority is not even text.
        TaskRunError: a state that is none.
    """

    __signature__ = inspect.signature(parameters)  # an extension type has none of its own
    model_fields = ModelFields()

    def __init__(
        self, *, id, task, priority=None, params=None, task_manager=None, state=None, queued=None, start=None, end=None,
        execute_after=None, rate_limit_attempt=0, retry_attempt=0, from_run_id="", root_run_id=""
    ):
        self.id = id or make_id()
        self.task = task
        self.prio = priority_number(task.priority if priority is None else priority)
        self.params = params
        self.task_manager = task_manager
        dispatcher = getattr(task_manager, "dispatcher", None)
        self.listeners = getattr(dispatcher, "listeners", None)
        self._state = INIT if state is None else state_number(state)
        self.queued_us = time_of("queued", queued)
        self.start_us = time_of("start", start)
        self.end_us = time_of("end", end)
        self.after_us = time_of("execute_after", execute_after)
        self.rate_limit_attempt = rate_limit_attempt
        self.retry_attempt = retry_attempt
        self.from_run_id = from_run_id
        self.root_run_id = root_run_id

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)

    def __repr__(self) -> str:
        # No params: they may hold secrets, and a repr ends up in logs.
        return f"<TaskRun {self.shown_name} {_states[self._state]} {_priorities[self.prio]}>"

    def __eq__(self, other):
        """By value: what is persisted of a run. ``hash`` is that of the id, so a run may stand in a set."""
        cdef TaskRun run
        if self is other:
            return True
        if not isinstance(other, TaskRun):
            return NotImplemented
        run = other
        return bool(
            self.id == run.id and self._state == run._state and self.prio == run.prio
            and self.queued_us == run.queued_us and self.start_us == run.start_us and self.end_us == run.end_us
            and self.after_us == run.after_us
            and self.rate_limit_attempt == run.rate_limit_attempt and self.retry_attempt == run.retry_attempt
            and self.from_run_id == run.from_run_id and self.root_run_id == run.root_run_id
            and self.task.name == run.task.name and self.params == run.params
        )

    def __hash__(self):
        return hash(self.id)

    # -- the record

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def name_id(self) -> str:
        """``name.id``."""
        return f"{self.task.name}.{self.id}"

    @property
    def shown_id(self) -> str:
        """``id``, safe to show in a log: control characters escaped, a long one cut."""
        return shown_text(self.id)

    @property
    def shown_name(self) -> str:
        """``name_id``, safe to show in a log."""
        return f"{printable(self.task.name)}.{shown_text(self.id)}"

    @property
    def priority(self):
        """The run's ``TaskPriority``."""
        return _priorities[self.prio]

    @property
    def execute_after(self):
        """The run starts no earlier than this (UTC), or None: at once."""
        return EPOCH + timedelta(microseconds=self.after_us) if self.after_us else None

    @execute_after.setter
    def execute_after(self, moment):
        self.after_us = time_of("execute_after", moment)

    def set_state(self, state, state_time=None) -> None:
        """Go to ``state`` (a ``TaskState`` or its name), at ``state_time`` (datetime; None: now), and tell listeners.

        States that are skipped are passed through at the same time; the present state again is a no-op.

        Raises:
            TaskRunError: that state does not follow the present one; nothing was changed.
        """
        cdef int entered = self.advance(state_number(state), now_us() if state_time is None else micros(state_time))
        if entered and self.listeners is not None and self.listeners.mask & entered:
            self.emit(entered)

    def _enter(self, int state) -> None:
        """Go to the state of this number, now, and tell nobody: for callers that tell when it is true elsewhere."""
        if not 0 <= state < N_STATES:
            raise TaskRunError(f"no task state has the number {state}")
        self.advance(state, now_us())

    def _emit(self) -> None:
        """Tell the listeners of the present state."""
        if self.listeners is not None and self.listeners.mask & 1 << self._state:
            self.emit(1 << self._state)

    cdef int emit(self, int entered) except -1:
        cdef int number
        cdef TaskRun snapshot
        for number in range(N_STATES):
            if not (entered & self.listeners.mask & 1 << number):
                continue
            snapshot = self.copy()
            if number != self._state:  # passed through on the way: show it as it was then
                snapshot._state = number
                if number < SUCCESS:
                    snapshot.end_us = 0
                if number < RUNNING:
                    snapshot.start_us = 0
            self.task_manager.dispatcher.dispatch(snapshot)
        return 0

    cdef TaskRun copy(self):
        cdef TaskRun run = make_run(self.id, self.task, self.prio, self.params, self.task_manager, self.listeners)
        run._state = self._state
        run.queued_us = self.queued_us
        run.start_us = self.start_us
        run.end_us = self.end_us
        run.after_us = self.after_us
        run.rate_limit_attempt = self.rate_limit_attempt
        run.retry_attempt = self.retry_attempt
        run.from_run_id = self.from_run_id
        run.root_run_id = self.root_run_id
        run.extra = self.extra
        return run

    def model_copy(self, *, update=None, deep=False):
        """A copy, with the fields of ``update`` (name -> value) changed. ``deep`` copies the params too.

        Raises:
            TypeError: ``update`` names no field of a run.
        """
        cdef TaskRun run = self.copy()
        if deep:
            from copy import deepcopy

            run.params = deepcopy(run.params)
        for field, value in (update or {}).items():
            if field == "state":
                run._state = state_number(value)
            elif field == "priority":
                run.prio = priority_number(value)
            elif field == "queued":
                run.queued_us = time_of(field, value)
            elif field == "start":
                run.start_us = time_of(field, value)
            elif field == "end":
                run.end_us = time_of(field, value)
            elif field == "execute_after":
                run.after_us = time_of(field, value)
            elif field == "id":
                run.id = value or make_id()
            elif field == "params":
                run.params = value
            elif field == "task":
                run.task = value
            elif field == "task_manager":
                run.task_manager = value
            elif field == "rate_limit_attempt":
                run.rate_limit_attempt = value
            elif field == "retry_attempt":
                run.retry_attempt = value
            elif field == "from_run_id":
                run.from_run_id = value or ""
            elif field == "root_run_id":
                run.root_run_id = value or ""
            else:
                raise TypeError(f"a run has no field {field!r}")
        return run

    def _again(self, int64_t after_us, bint rate_limited):
        """The run as it is queued once more: not started, not before ``after_us``, one attempt on."""
        cdef TaskRun run = self.copy()
        run._state = QUEUED
        run.start_us = 0
        run.end_us = 0
        run.after_us = after_us
        if rate_limited:
            run.rate_limit_attempt += 1
        else:
            run.retry_attempt += 1
        return run

    def model_dump(self, **options) -> dict:
        """The record as a dict: the task by its name, secrets of the params masked by their own type.

        ``mode="json"``: times as ISO 8601 text, params as plain builtins. ``include``, ``exclude``: names of fields.
        Other options are those of pydantic, and need it.
        """
        return dump(self, **options)

    def model_dump_json(self, **options) -> str:
        """``model_dump(mode="json")`` as JSON text."""
        return dump_json(self, **options)

    def __iter__(self):
        """The record as it is in JSON: FastAPI calls ``dict(run)`` for a route without a return type."""
        return iter(dump(self, mode="json").items())

    @classmethod
    def model_validate(cls, value, **options):
        """A run of its fields, whose ``task`` is a ``Task``; a run is returned as it is."""
        return adapter(cls).validate_python(value, **options)

    @classmethod
    def model_json_schema(cls, **options) -> dict:
        """The JSON schema of the record; needs pydantic."""
        return twin(cls).model_json_schema(**options)

    @classmethod
    def __pydantic_twin__(cls) -> dict:
        return TWIN

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        return schema(cls, handler)

    def params_dump_json(self) -> str:
        """The params as the JSON that goes on a queue, secrets revealed (a name of aio-fluid 1.x)."""
        return self.task.params_dump_json(self.params)

    def queue_dump_json(self) -> bytes:
        """The payload that goes on a queue, in JSON, secrets revealed."""
        from ..wire._codec import encode_json

        return encode_json(self)

    # -- the handle

    @property
    def logger(self):
        """The task's logger."""
        return self.task.logger

    @property
    def deps(self):
        """What the application gave its manager as ``deps``."""
        return self.task_manager.deps

    def abort(self, reason="") -> None:
        """End this run as ``aborted``: no failure, no retry.

        Raises:
            TaskAbortedError: always.
        """
        raise TaskAbortedError(reason)

    def lock(self, timeout=None, name=None):
        """An async lock over the whole fleet, for this task (``name``: for a part of it).

        ``timeout``: seconds after which the lock opens by itself; None: never.
        """
        lock_name = f"tasks:{self.task.name}"
        return self.task_manager.broker.lock(f"{lock_name}:{name}" if name else lock_name, timeout=timeout)

    def queue(self, task, priority=None, **params):
        """Queue another task from within this run, as the manager's ``queue`` does; awaitable.

        The new run's ``from_run_id`` is this run, its ``root_run_id`` the first of the chain.
        """
        return self.task_manager.queue(task, priority=priority, from_task_run=self, **params)

    async def execute(self) -> None:
        """Run the task here and now, in this process, and set the state that it ends in.

        Raises:
            TaskAbortedError: the task aborted itself; the state is ``aborted``.
            Exception: whatever the task raised, ``TimeoutError`` after its ``timeout_seconds``; the state is
                ``failure``.
        """
        from ..execute.executor import execute

        await execute(self)


keep_spare_runs(TaskRun)
