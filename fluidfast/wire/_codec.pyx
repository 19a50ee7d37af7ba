# cython: binding=False
# Methods that are called once a run: a bound Python object around each would cost a tenth of reading one.
"""TaskRun <-> the bytes on a queue.

JSON, one object a run. What we write has its keys in this order, what has its default is left out:

    {"id":"32 hex","task":"NAME","priority":"medium","state":"queued","queued":1764000000.123456,
     "start":..,"end":..,"execute_after":..,"rate_limit_attempt":..,"retry_attempt":..,
     "from_run_id":..,"root_run_id":..,<further keys>,"params":{...}}

For a run that is queued, everything between the id's closing quote and the time is the same for each run of one task
and priority. It is laid once (``TaskPlan.heads``), so writing is: 7 bytes, the id, a head, 17 digits, what few runs
have more than that, ten bytes, the params as msgspec (or pydantic) writes them, one brace; in one allocation. Reading
one that has no more compares with the head that the last payload had, and hands the params' slice to the typed decoder.
Whatever does not match to the byte (runs that are tried again, aio-fluid's own payloads, hand-made ones) takes the
general way through msgspec.

MessagePack, an array a run, fields in the order of the wire table, trailing defaults cut:

    [id, task, priority 0..2, params, state 0..7, queued, start, end, execute_after, rate_limit_attempt,
     retry_attempt, from_run_id, root_run_id, further keys]

An id of 32 lower-case hex digits stands as its 16 bytes, any other as text; times are seconds since the epoch.
The first byte tells the two forms apart: an array is 0x90-0x9f, 0xdc or 0xdd, and JSON has none of those there.
"""

from cpython.bytearray cimport (
    PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE, PyByteArray_Resize
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_1BYTE_DATA, PyUnicode_GET_LENGTH, PyUnicode_New
from libc.math cimport llrint
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

import json
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec

from ..core._time cimport make_id, now_us, put_hex
from ..core._machine cimport QUEUED, state_number
from ..core._run cimport TaskRun, make_run, micros, priority_number

from ..errors import ParamsError, PayloadError, PayloadTooLargeError, TaskParamsError, TaskRunError, UnknownTaskError
from ..core.params import (
    Params, adapter_for, cause_of, is_non_finite, known_params, non_finite_field, params_error, without_constants
)
from ..core.states import PRIORITIES, STATES
from ..core.task import checked, task_within
from ..texts import printable, quoted

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void Py_SET_TYPE(object value, PyTypeObject* kind)

__all__ = ["Codec", "TaskPlan", "encode_json"]

cdef int MAX_DEPTH = 64
cdef int64_t MIN_TIME = 1000000000000000     # 10 digits of seconds: from 2001 ...
cdef int64_t MAX_TIME = 8589934592000000     # ... to 2242, where a double begins to lose microseconds
# Days of each month, the first at 1. The 29th of February goes the general way.
cdef const uint8_t* DAYS = b"\0\x1f\x1c\x1f\x1e\x1f\x1e\x1f\x1f\x1e\x1f\x1e\x1f"
cdef int64_t WATERSHED = 20000000000         # a number of seconds up to here, in the year 2603; else of milliseconds
cdef object NUMBER = re.compile("[+-]?[0-9]+([.][0-9]+)?").fullmatch
cdef object EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
cdef tuple _priorities = PRIORITIES
cdef tuple _states = STATES

cdef object JSON = msgspec.json.encode
cdef object CONVERT = msgspec.convert
cdef object FROM_JSON = msgspec.json.decode
cdef object MSGPACK = msgspec.msgpack.encode
cdef object AS_RAW = msgspec.json.Decoder(msgspec.Raw).decode
cdef object AS_MAPPING = msgspec.json.Decoder(dict[str, Any]).decode
cdef object PARAMS = Params
cdef bint SAME_LAYOUT = all([
    getattr(Params, name) == getattr(dict, name) for name in ("__basicsize__", "__dictoffset__", "__weakrefoffset__")
])
cdef object RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
cdef frozenset FIELDS = frozenset((
    "id", "task", "priority", "params", "state", "queued", "start", "end", "execute_after", "rate_limit_attempt",
    "retry_attempt", "from_run_id", "root_run_id",
))


# One extension, in five files: text that is included, so that everything is inlined as if it stood here.
include "scan.pxi"
include "plan.pxi"
include "json.pxi"
include "msgpack.pxi"


def encode_json(TaskRun run not None) -> bytes:
    """The JSON payload of a run.

    Raises:
        ParamsError: the params cannot be written.
        TaskRunError: an id cannot be.
    """
    try:
        return write_json(TaskPlan(run.task), run)
    except UnicodeEncodeError as exc:
        raise bad_id(run) from exc


cdef str checked_id(object task, str run_id):
    """An id that a caller gave, or a new one."""
    if not run_id:
        return make_id()
    if not PyUnicode_IS_COMPACT_ASCII(run_id):
        try:
            run_id.encode()
        except UnicodeEncodeError as exc:
            raise TaskRunError(
                f"a run of task {task.name!r} cannot have the id {quoted(run_id)}: it cannot be written as UTF-8"
            ) from exc
    return run_id


cdef inline TaskRun new_run(
    TaskPlan plan, object priority, str run_id, object params, object manager, object listeners, TaskRun parent
):
    """A run in state ``init``, of params that were validated."""
    cdef TaskRun run = make_run(
        checked_id(plan.task, run_id), plan.task,
        priority_number(plan.task.priority if priority is None else priority), params, manager, listeners,
    )
    if parent is not None:
        run.from_run_id = parent.id
        run.root_run_id = parent.root_run_id or parent.id
    return run


cdef object misfit(TaskPlan plan, object priority, object exc):
    """The error of params that do not fit. Raises instead if the priority is none: params that stand in its place are
    the better reason."""
    if priority is not None:
        priority_number(priority)
    return params_error(plan.name, exc, known=plan.adapter.fields)


cdef object bad_id(TaskRun run):
    return TaskRunError(f"a run of task {run.task.name!r} has an id that cannot be written as UTF-8: {quoted(run.id)}")


cdef class Codec:
    """Reads and writes the runs of one broker.

    ``registry``: name -> Task, may change at any time. ``msgpack``: what to write (both are read).
    ``max_bytes``: the largest payload that is written or read.
    """

    def __init__(self, registry, *, bint msgpack=False, Py_ssize_t max_bytes=1 << 20):
        self.registry = registry
        self.msgpack = msgpack
        self.max_bytes = max_bytes
        self.plans = {}

    cdef TaskPlan plan_named(self, object name):
        """The plan of a registered task, or None."""
        cdef PyObject* task = PyDict_GetItemWithError(self.registry, name)
        cdef PyObject* plan
        if task == NULL:
            return None
        plan = PyDict_GetItemWithError(self.plans, name)
        if plan != NULL and (<TaskPlan>plan).task is <object>task:
            return <TaskPlan>plan
        made = TaskPlan(<object>task)
        self.plans[name] = made
        return made

    cdef bint is_registered(self, TaskPlan plan):
        cdef PyObject* task = PyDict_GetItemWithError(self.registry, plan.name)
        return task != NULL and <object>task is plan.task

    cdef TaskPlan plan_of(self, object task):
        """The plan of a task or of a name; a task that is new here is registered."""
        cdef TaskPlan plan = self.last
        if plan is not None and plan.task is task and self.is_registered(plan):
            return plan
        if isinstance(task, str):
            plan = self.plan_named(task)
            if plan is None:
                raise UnknownTaskError(unknown_task(task, self.registry))
            return plan
        if self.registry.get(checked(task).name) is not task:
            task = task_within(task, self.registry)
            if self.registry.get(task.name) is not task:
                self.registry[task.name] = task
        return self.plan_named(task.name)

    cpdef TaskRun create(
        self, object task, object priority, str run_id, dict given, object manager, object listeners,
        TaskRun parent=None
    ):
        """A run in state ``init``: the params in ``given`` are validated against the task's model.

        Raises:
            UnknownTaskError: a name that is not registered.
            TaskRunError: ``run_id`` cannot be written as UTF-8.
            ParamsError: the params do not fit; names the task and the field.
            ConfigError, TaskUsageError: a priority that is none (a ValueError, too).
        """
        cdef TaskPlan plan = self.plan_of(task)
        try:
            params = plan.validate(given) if plan.convert_to is None else CONVERT(given, plan.convert_to)
        except Exception as exc:
            raise misfit(plan, priority, exc) from cause_of(exc)
        return new_run(plan, priority, run_id, params, manager, listeners, parent)

    def create_with(self, task, priority, str run_id, value, manager, listeners, TaskRun parent=None) -> TaskRun:
        """As ``create``, with the params as one mapping or as an object of the model."""
        cdef TaskPlan plan
        if type(value) is dict:
            return self.create(task, priority, run_id, value, manager, listeners, parent)
        plan = self.plan_of(task)
        try:
            value = plan.validate(value)
        except Exception as exc:
            raise misfit(plan, priority, exc) from cause_of(exc)
        return new_run(plan, priority, run_id, value, manager, listeners, parent)

    def take(
        self, task, priority, items, Py_ssize_t max_count, Py_ssize_t max_bytes, errors, ids, Py_ssize_t base
    ) -> tuple:
        """Payloads of as many queued runs as fit, one for each item (params as a mapping or an object) of an iterator.

        No run object is made: who wants events makes them one by one. ``errors``: a list that gets (index, exception)
        for items that do not fit, or None: the exception is raised, and what was taken before it stands in its
        ``taken``. ``ids``: a list that gets the runs' ids, or None. ``base``: index of the first item. Returns
        (payloads, their bytes, items consumed, whether the iterator has ended).
        """
        cdef TaskPlan plan = self.plan_of(task)
        cdef int prio = priority_number(plan.task.priority if priority is None else priority)
        cdef TaskRun run = make_run("", plan.task, prio, None, None, None)
        cdef list payloads = []
        cdef Py_ssize_t size = 0, count = 0
        cdef bytes payload
        cdef bint ended = True
        run._state = QUEUED
        run.queued_us = now_us()
        for item in items:
            count += 1
            try:
                try:
                    if plan.convert_to is not None and type(item) is dict:
                        run.params = CONVERT(item, plan.convert_to)
                    else:
                        run.params = plan.validate(item)
                except Exception as exc:
                    raise params_error(plan.name, exc, known=plan.adapter.fields) from cause_of(exc)
                run.id = make_id()
                payload = self.encode_with(plan, run)
            except (ParamsError, PayloadTooLargeError) as exc:
                if errors is None:
                    exc.index = base + count - 1
                    exc.taken = payloads
                    raise
                errors.append((base + count - 1, exc))
            else:
                payloads.append(payload)
                size += PyBytes_GET_SIZE(payload)
                if ids is not None:
                    ids.append(run.id)
            if count >= max_count or size >= max_bytes:
                ended = False
                break
        return payloads, size, count, ended

    def has_field(self, task, str field) -> bool:
        """Whether the task's params model names a field like this."""
        return field in self.plan_of(task).adapter.fields

    cpdef bytes encode(self, TaskRun run):
        """The payload of a run.

        Raises:
            ParamsError: the params cannot be written.
            PayloadTooLargeError: it would be larger than ``max_bytes``.
            TaskRunError: an id cannot be written.
        """
        if run is None:
            raise TypeError("a run is needed, not None")
        return self.encode_with(self.plan_for(run), run)

    def encode_finished(self, TaskRun run not None) -> bytes:
        """The JSON payload of a run in any state, of any size, whatever this codec writes to queues. Raises as
        ``encode_json``."""
        try:
            return write_json(self.plan_for(run), run)
        except UnicodeEncodeError as exc:
            raise bad_id(run) from exc

    cdef TaskPlan plan_for(self, TaskRun run):
        cdef TaskPlan plan = self.last
        if plan is None or plan.task is not run.task:
            plan = self.plan_named(run.task.name)
            if plan is None or plan.task is not run.task:
                plan = TaskPlan(run.task)
            self.last = plan
        return plan

    cdef bytes encode_with(self, TaskPlan plan, TaskRun run):
        cdef bytes payload
        try:
            payload = write_msgpack(plan, run) if self.msgpack else write_json(plan, run)
        except UnicodeEncodeError as exc:
            raise bad_id(run) from exc
        except ParamsError:
            # A NaN that came from aio-fluid is tried again as it came.
            if not (run.retry_attempt or run.rate_limit_attempt) or non_finite_field(run.params) is None:
                raise
            payload = general_json(plan, run, optional_json(run), plan.adapter.to_json(run.params))
        if PyBytes_GET_SIZE(payload) > self.max_bytes:
            raise PayloadTooLargeError(
                f"a run of task {plan.name!r} takes {len(payload)} bytes, the broker's limit is {self.max_bytes}; "
                "keep the data elsewhere and queue its address, or raise max_payload_bytes"
            )
        return payload

    cpdef bytes submit(self, TaskRun run):
        """A run that is being queued: puts it in state ``queued``, tells nobody yet, gives its payload.

        Raises as ``encode``.
        """
        if run is None:
            raise TypeError("a run is needed, not None")
        run.advance(QUEUED, now_us())
        return self.encode(run)

    def decode(self, bytes payload, manager, listeners=None) -> TaskRun:
        """The run in a payload of either form, in state ``queued``.

        Raises:
            PayloadError: these bytes are no run.
            UnknownTaskError: the registry does not hold its task.
            TaskParamsError: the params do not fit the task's model; carries the run, params as they were read.
        """
        return self.read(payload, manager, listeners)

    cdef TaskRun read(self, bytes payload, object manager, object listeners):
        cdef TaskRun run
        cdef unsigned char first
        if payload is None:
            raise TypeError("a payload is needed, not None")
        if PyBytes_GET_SIZE(payload) > self.max_bytes:
            raise PayloadError(f"payload of {len(payload)} bytes, the limit is {self.max_bytes}")
        run = self.decode_canonical(payload, manager, listeners)
        if run is not None:
            return run
        if PyBytes_GET_SIZE(payload):
            first = <unsigned char>PyBytes_AS_STRING(payload)[0]
            if first >> 4 == 9 or first == 0xdc or first == 0xdd:
                run = self.decode_canonical_packed(payload, manager, listeners)
                if run is not None:
                    return run
                return self.decode_packed(payload, manager, listeners)
        return self.decode_object(payload, manager, listeners)

    def decode_finished(self, bytes payload not None, manager, listeners=None) -> TaskRun:
        """The run in a JSON payload, in the state that it says; params that do not fit are kept as they were read.

        Raises:
            PayloadError, UnknownTaskError: as ``decode``.
        """
        cdef TaskRun run
        wire, raw, extra, numbers = self.read_object(payload)
        try:
            run = self.assemble(wire, raw, extra, False, manager, listeners, numbers)
        except TaskParamsError as exc:
            run = exc.task_run
        try:
            run._state = state_number(wire.state or "queued")
            run.start_us = json_micros(wire.start)
            run.end_us = json_micros(wire.end)
        except (TaskRunError, ValueError) as exc:
            raise PayloadError(f"not a run: {brief(exc)}") from exc
        return run

    def decode_many(self, payloads, manager, listeners=None) -> list:
        """As ``decode`` for each payload; where it would raise, the exception stands in the list."""
        runs = []
        for payload in payloads:
            try:
                runs.append(self.read(payload, manager, listeners))
            except (PayloadError, UnknownTaskError, TaskParamsError) as exc:
                runs.append(exc)
        return runs

    cdef TaskRun decode_canonical(self, bytes payload, object manager, object listeners):
        """A payload just as ``write_json`` lays it for a queued run, or None."""
        cdef const char* start = PyBytes_AS_STRING(payload)
        cdef Py_ssize_t length = PyBytes_GET_SIZE(payload)
        cdef const char* at
        cdef const char* end = start + length - 1        # the last brace
        cdef const char* quote
        cdef TaskPlan plan = self.last
        cdef bytes head, raw
        cdef str identity
        cdef Py_ssize_t id_length, head_length, i
        cdef int prio = -1
        cdef uint8_t odd = 0
        cdef int64_t seconds, fraction
        cdef TaskRun run
        if length < 60 or memcmp(start, b'{"id":"', 7) != 0 or end[0] != 125:
            return None
        at = start + 7
        quote = <const char*>memchr(at, 34, end - at)
        if quote == NULL:
            return None
        id_length = quote - at
        for i in range(id_length):      # no branches: it is done for many bytes at a time
            odd |= (at[i] < 32) | (at[i] > 126) | (at[i] == 92)    # whether a char has a sign or not
        if odd or id_length == 0:
            return None
        identity = PyUnicode_New(id_length, 127)
        memcpy(PyUnicode_1BYTE_DATA(identity), at, id_length)
        at = quote
        if plan is not None and self.is_registered(plan):
            prio = match_head(plan, at, end)
        if prio < 0:
            if end - at < 20 or memcmp(at, b'","task":"', 10) != 0:
                return None
            quote = <const char*>memchr(at + 10, 34, end - at - 10)
            if quote == NULL:
                return None
            try:
                plan = self.plan_named((at + 10)[:quote - at - 10].decode("utf-8"))
            except UnicodeDecodeError:
                return None
            if plan is None:
                return None
            prio = match_head(plan, at, end)
            if prio < 0:
                return None
            self.last = plan
        head = <bytes>plan.heads[prio]
        head_length = PyBytes_GET_SIZE(head)
        at += head_length
        if end - at < 29 or at[10] != 46 or memcmp(at + 17, b',"params":', 10) != 0:
            return None
        seconds = _last_second if memcmp(at, _last_digits, 10) == 0 else take_digits(at, 10)
        fraction = take_digits(at + 11, 6)
        if seconds < MIN_TIME // 1000000 or seconds >= MAX_TIME // 1000000 or fraction < 0:
            return None                 # 10 digits that are none, or that begin with 0, too
        at += 27
        if too_deep(at, end - at):
            return None
        raw = PyBytes_FromStringAndSize(at, end - at)
        try:
            params = plan.params_of(raw)
        except BaseException:
            return None                 # the general way says what is wrong
        run = make_run(identity, plan.task, prio, params, manager, listeners)
        run._state = QUEUED
        run.queued_us = seconds * 1000000 + fraction
        return run

    cdef TaskRun decode_canonical_packed(self, bytes payload, object manager, object listeners):
        """A payload just as ``pack_queued`` lays it, or None."""
        cdef const unsigned char* at = <const unsigned char*>PyBytes_AS_STRING(payload)
        cdef Py_ssize_t length = PyBytes_GET_SIZE(payload)
        cdef TaskPlan plan = self.last
        cdef Py_ssize_t name_length
        cdef uint64_t bits = 0
        cdef double seconds
        cdef bytes raw
        cdef str identity
        cdef int i, prio
        cdef TaskRun run
        if length < 32 or at[0] != 0x96 or at[1] != 0xc4 or at[2] != 0x10:
            return None
        if plan is None or not self.is_named(plan, at, length):
            plan = self.find_named(at, length)
            if plan is None:
                return None
            self.last = plan
        elif not self.is_registered(plan):
            return None
        if plan.decode_packed is None:
            return None
        name_length = PyBytes_GET_SIZE(plan.packed_name)
        prio = at[19 + name_length]
        if prio > 2 or at[length - 10] != QUEUED or at[length - 9] != 0xcb:
            return None
        for i in range(8):
            bits = bits << 8 | at[length - 8 + i]
        memcpy(&seconds, &bits, 8)
        if not (1.0 <= seconds < 250000000000.0):
            return None
        if is_suspect(at + 20 + name_length, length - 30 - name_length):
            return None
        raw = PyBytes_FromStringAndSize(<const char*>at + 20 + name_length, length - 30 - name_length)
        try:
            params = plan.decode_packed(raw)
        except BaseException:
            return None                 # the general way says what is wrong
        identity = PyUnicode_New(32, 127)
        put_hex(<uint8_t*>PyUnicode_1BYTE_DATA(identity), at + 3)
        run = make_run(identity, plan.task, prio, params, manager, listeners)
        run._state = QUEUED
        # as micros() rounds: the fraction by itself, to even
        run.queued_us = <int64_t>seconds * 1000000 + llrint((seconds - <int64_t>seconds) * 1e6)
        return run

    cdef bint is_named(self, TaskPlan plan, const unsigned char* at, Py_ssize_t length) noexcept:
        """Whether the name in the short packed form is that of this plan, with room for what follows it."""
        cdef Py_ssize_t name_length = PyBytes_GET_SIZE(plan.packed_name)
        return length >= 31 + name_length and memcmp(at + 19, PyBytes_AS_STRING(plan.packed_name), name_length) == 0

    cdef TaskPlan find_named(self, const unsigned char* at, Py_ssize_t length):
        """The plan of the name in the short packed form, if it is a short string and registered; or None."""
        cdef TaskPlan plan
        cdef int size = at[19] & 31
        if at[19] >> 5 != 5 or length < 31 + size:
            return None
        try:
            plan = self.plan_named((<const char*>at + 20)[:size].decode("utf-8"))
        except UnicodeDecodeError:
            return None
        return plan if plan is not None and self.is_named(plan, at, length) else None

    def decode_object(self, bytes payload not None, manager, listeners) -> TaskRun:
        """Any JSON object that holds a run."""
        wire, raw, extra, numbers = self.read_object(payload)
        return self.assemble(wire, raw, extra, False, manager, listeners, numbers)

    cdef tuple read_object(self, bytes payload):
        """A JSON object as a JsonRun, its params, its further keys, and the params if they hold a NaN."""
        cdef dict extra
        if too_deep(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), MAX_DEPTH + 1):
            raise PayloadError(f"nested deeper than {MAX_DEPTH} levels")
        if not self.has_further:
            try:
                wire = AS_JSON_RUN(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass                    # it has further keys, or it is none
            else:
                extra = simple_extra(wire)
                if extra is not None:
                    return wire, bytes(wire.params), extra or None, None
        numbers = None
        try:
            fields = RAW_FIELDS(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            plain = without_constants(payload)
            if plain is None:
                raise PayloadError(f"not a JSON object: {brief(exc)}") from exc
            fields, numbers = with_constants(payload, plain)
        try:
            values = {
                name: FROM_JSON(value) for name, value in fields.items() if name in FIELDS and name != "params"
            }
            extra = {name: further_key(value) for name, value in fields.items() if name not in FIELDS}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise PayloadError(f"not a run: {brief(exc)}") from exc
        self.has_further = any([name not in ("reply", "reply_token") for name in extra])
        raw = bytes(fields["params"]) if "params" in fields else b"{}"
        return JsonRun(**values), raw, extra or None, numbers

    def decode_packed(self, bytes payload not None, manager, listeners) -> TaskRun:
        """The MessagePack form."""
        extra = None
        try:
            packed = UNPACK(payload)
            if packed.extra:
                extra = {name: further_key(value) for name, value in packed.extra.items() if name not in FIELDS}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise PayloadError(f"not a run in MessagePack: {brief(exc)}") from exc
        if not (0 <= packed.priority < len(PRIORITIES) and 0 <= packed.state < len(STATES)):
            raise PayloadError("not a run in MessagePack: priority or state out of range")
        if isinstance(packed.id, bytes):
            packed.id = packed.id.hex()
        packed.priority = PRIORITIES[packed.priority]
        packed.state = STATES[packed.state]
        return self.assemble(packed, bytes(packed.params), extra or None, True, manager, listeners)

    cdef TaskRun assemble(
        self, object wire, bytes raw, object extra, bint packed, object manager, object listeners, object numbers=None
    ):
        """The run in a JsonRun or a PackedRun, and its params; ``numbers``: they, if a NaN or an infinity is there."""
        cdef TaskRun run
        cdef TaskPlan plan
        name = wire.task
        if not isinstance(name, str) or not name:
            raise PayloadError("not a run: it names no task")
        plan = self.plan_named(name)
        if plan is None:
            raise UnknownTaskError(unknown_task(name, self.registry))
        try:
            priority = wire.priority
            run = make_run(
                wire.id or make_id(), plan.task,
                priority_number(plan.task.priority if priority is None else priority), None, manager, listeners,
            )
            run._state = state_number(wire.state or "queued")
            run.queued_us = micros(wire.queued) if packed else json_micros(wire.queued)
            run.after_us = micros(wire.execute_after) if packed else json_micros(wire.execute_after)
            run.rate_limit_attempt = attempts(wire.rate_limit_attempt)
            run.retry_attempt = attempts(wire.retry_attempt)
            run.from_run_id = wire.from_run_id or ""
            run.root_run_id = wire.root_run_id or ""
            run.extra = extra
        except Exception as exc:
            raise PayloadError(f"not a run: {brief(exc)}") from exc
        # A run on a queue is waiting: one that says otherwise was put there by hand or by an older version.
        run._state = QUEUED
        if run.queued_us == 0:
            run.queued_us = now_us()
        try:
            if packed:
                value = FROM_MSGPACK(raw)
                if is_suspect(<const unsigned char*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
                    if nests_deeper(value, MAX_DEPTH):
                        raise PayloadError(f"nested deeper than {MAX_DEPTH} levels")
                    if is_non_finite(value):
                        raise PayloadError("not a run: params hold a NaN or an infinity")
                try:
                    JSON(value)     # extensions, and keys that are no text or number, could not be queued again
                except TypeError as exc:
                    raise PayloadError(f"not a run: params that cannot be written: {brief(exc)}") from exc
                run.params = plan.adapter.from_builtins({} if value is None else value)
            elif numbers is not None:
                run.params = plan.adapter.from_json(numbers)
            else:
                run.params = plan.params_of(b"{}" if raw == b"null" else raw)
        except PayloadError:
            raise
        except BaseException as exc:    # a validator may raise CancelledError or SystemExit: that is said of the params
            try:
                value = numbers if numbers is not None else FROM_MSGPACK(raw) if packed else FROM_JSON(raw)
            except Exception as broken:
                raise PayloadError(f"not a run: params: {brief(broken)}") from broken
            known = known_params(plan.adapter, value)
            if known is not None:
                try:
                    run.params = (plan.adapter.from_builtins if packed else plan.adapter.from_json)(known)
                    return run
                except Exception as unfit:
                    exc = unfit
            run.params = Params(value) if isinstance(value, dict) else Params()
            error = params_error(plan.name, exc)
            raise TaskParamsError(run, str(error), field=error.field) from cause_of(exc)
        return run


def unknown_task(name, registry) -> str:
    import difflib

    close = difflib.get_close_matches(name, registry, 1) if len(name) <= 100 else None
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown task {quoted(name)}: it is not registered with this manager{hint}"
