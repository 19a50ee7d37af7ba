# Part of _codec.pyx: the JSON form.

class JsonRun(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON form with no further keys but those of a run that is waited for, read. Values are of any type: what is
    wrong with one is said later."""

    id: object = None
    task: object = None
    priority: object = None
    params: msgspec.Raw = msgspec.Raw(b"{}")
    state: object = None
    queued: object = None
    start: object = None
    end: object = None
    execute_after: object = None
    rate_limit_attempt: object = None
    retry_attempt: object = None
    from_run_id: object = None
    root_run_id: object = None
    reply: msgspec.Raw = msgspec.Raw()
    reply_token: msgspec.Raw = msgspec.Raw()


cdef object AS_JSON_RUN = msgspec.json.Decoder(JsonRun).decode


cdef bytes further_key(object value):
    """The value of a key that is none of ours, as it will stand in a payload again. Raises what the decoder raises."""
    cdef bytes text = bytes(value)
    AS_RAW(text)
    text.decode()
    if too_deep(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)):
        raise PayloadError(f"nested deeper than {MAX_DEPTH} levels")
    return text


cdef bint is_simple_text(bytes value) noexcept:
    """Whether a JSON value is a string of printable ASCII without escapes."""
    cdef const char* at = PyBytes_AS_STRING(value)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(value), i
    if length < 2 or at[0] != 34 or at[length - 1] != 34:
        return False
    for i in range(1, length - 1):
        if at[i] < 32 or at[i] > 126 or at[i] == 34 or at[i] == 92:
            return False
    return True


cdef dict simple_extra(object wire):
    """The further keys in a JsonRun, or None if one of them is more than simple text."""
    cdef dict extra = {}
    cdef bytes reply = bytes(wire.reply), token = bytes(wire.reply_token)
    if reply:
        extra["reply"] = reply
        if not is_simple_text(reply):
            return None
    if token:
        extra["reply_token"] = token
        if not is_simple_text(token):
            return None
    return extra


cdef bytes optional_json(TaskRun run):
    """``,"name":value`` for each field behind ``queued`` that has not its default, and for further keys."""
    cdef list parts = []
    if run.start_us:
        parts += (b',"start":', seconds_json(run.start_us))
    if run.end_us:
        parts += (b',"end":', seconds_json(run.end_us))
    if run.after_us:
        parts += (b',"execute_after":', seconds_json(run.after_us))
    if run.rate_limit_attempt:
        parts.append(b',"rate_limit_attempt":%d' % run.rate_limit_attempt)
    if run.retry_attempt:
        parts.append(b',"retry_attempt":%d' % run.retry_attempt)
    if run.from_run_id:
        parts += (b',"from_run_id":', JSON(run.from_run_id))
    if run.root_run_id:
        parts += (b',"root_run_id":', JSON(run.root_run_id))
    if run.extra:
        for name, value in run.extra.items():
            parts += (b",", JSON(name), b":", value)
    return b"".join(parts)


cdef bytes general_json(TaskPlan plan, TaskRun run, bytes rest, bytes params):
    """The JSON form of a run in any state. ``rest``: its ``optional_json``."""
    parts = [b'{"id":', JSON(run.id), b',"task":', JSON(plan.name)]
    parts.append(f',"priority":"{_priorities[run.prio]}","state":"{_states[run._state]}"'.encode())
    if run.queued_us:
        parts += (b',"queued":', seconds_json(run.queued_us))
    parts += (rest, b',"params":', params, b"}")
    return b"".join(parts)


cdef bytes write_json(TaskPlan plan, TaskRun run):
    cdef const char* params
    cdef Py_ssize_t params_length
    cdef object owner = plan.params_json(run.params, &params, &params_length)
    cdef bytes head, payload
    cdef bytes rest = b""
    cdef char* at
    cdef Py_ssize_t id_length
    if (
        run.after_us or run.start_us or run.end_us or run.rate_limit_attempt or run.retry_attempt
        or run.from_run_id or run.root_run_id or run.extra
    ):
        rest = optional_json(run)
    if run._state == QUEUED and MIN_TIME <= run.queued_us < MAX_TIME and is_plain(run.id):
        head = <bytes>plan.heads[run.prio]
        id_length = PyUnicode_GET_LENGTH(run.id)
        payload = PyBytes_FromStringAndSize(
            NULL,
            7 + id_length + PyBytes_GET_SIZE(head) + 17 + PyBytes_GET_SIZE(rest) + 10 + params_length + 1
        )
        at = PyBytes_AS_STRING(payload)
        memcpy(at, b'{"id":"', 7)
        at += 7
        memcpy(at, PyUnicode_1BYTE_DATA(run.id), id_length)
        at += id_length
        memcpy(at, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        at += PyBytes_GET_SIZE(head)
        at = put_time(at, run.queued_us)
        memcpy(at, PyBytes_AS_STRING(rest), PyBytes_GET_SIZE(rest))
        at += PyBytes_GET_SIZE(rest)
        memcpy(at, b',"params":', 10)
        at += 10
        memcpy(at, params, params_length)
        at[params_length] = 125
    else:
        payload = general_json(plan, run, rest, params[:params_length])
    give_back(owner)
    return payload


cdef object json_time(object value):
    """A time as pydantic, and so aio-fluid, reads it: digits in a text are a number, and a number beyond WATERSHED
    counts milliseconds."""
    if isinstance(value, str):
        if NUMBER(value) is None:
            return value.upper()
        value = float(value) if "." in value else int(value)
    if isinstance(value, (int, float)) and WATERSHED < abs(value) < 1e18:
        return value / 1000
    return value


cdef int64_t iso_micros(str text) noexcept:
    """Microseconds since the epoch in ``YYYY-MM-DDTHH:MM:SS[.ffffff]Z``, as aio-fluid writes a time; -1 for another
    text, for what may be none, and for what is before 1970."""
    cdef const char* at
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(text)
    cdef int64_t year, month, day, hour, minute, second
    cdef int64_t fraction = 0
    if not PyUnicode_IS_COMPACT_ASCII(text) or (length != 20 and length != 27):
        return -1
    at = <const char*>PyUnicode_1BYTE_DATA(text)
    if at[4] != 45 or at[7] != 45 or at[10] != 84 or at[13] != 58 or at[16] != 58 or at[length - 1] != 90:
        return -1
    if length == 27:
        fraction = take_digits(at + 20, 6) if at[19] == 46 else -1
    year, month, day = take_digits(at, 4), take_digits(at + 5, 2), take_digits(at + 8, 2)
    hour, minute, second = take_digits(at + 11, 2), take_digits(at + 14, 2), take_digits(at + 17, 2)
    if year < 1970 or not 1 <= month <= 12 or not 1 <= day <= DAYS[month]:
        return -1
    if not 0 <= hour < 24 or not 0 <= minute < 60 or not 0 <= second < 60 or fraction < 0:
        return -1
    if month < 3:                   # years that begin in March: the leap day is their last
        year -= 1
        month += 12
    day += 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 - 719469
    return (((day * 24 + hour) * 60 + minute) * 60 + second) * 1000000 + fraction


cdef int64_t json_micros(object value) except? -1:
    cdef int64_t moment = iso_micros(value) if type(value) is str else -1
    return moment if moment >= 0 else micros(json_time(value))


cdef bytes seconds_json(int64_t moment):
    cdef bytes text
    if MIN_TIME <= moment < MAX_TIME:
        text = PyBytes_FromStringAndSize(NULL, 17)
        put_time(PyBytes_AS_STRING(text), moment)
        return text
    if not -WATERSHED * 1000000 <= moment <= WATERSHED * 1000000:
        return f'"{(EPOCH + timedelta(microseconds=moment)).isoformat(timespec="microseconds")[:-6]}Z"'.encode()
    # exact to the microsecond, where a float's repr would be too but only just
    return (f"{moment // 1000000}.{moment % 1000000:06d}" if moment > 0 else repr(moment / 1e6)).encode()


cdef tuple with_constants(bytes payload, bytes plain):
    """The fields of a JSON object in which Python's json (as aio-fluid uses it) wrote NaN or infinities, and its params
    with them. ``plain``: the object with null in their place. Only params may have them; in further keys they are null.
    """
    try:
        fields = RAW_FIELDS(plain)
        FROM_JSON(fields.get("params", b"{}"))      # all else in it is as in any payload
        found = json.loads(payload.decode(), parse_int=long_number)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise PayloadError(f"not a JSON object: {brief(exc)}") from exc
    for name, value in found.items():
        if name in FIELDS and name != "params" and is_non_finite(value):
            raise PayloadError(f"not a run: {name} is {value!r}"[:300])
    params = found.get("params")
    return fields, {} if params is None else params


def long_number(digits):
    """An integer in JSON: msgspec reads one that is longer than int() takes as a float."""
    return int(digits) if len(digits) < 4300 else float(digits)


cdef int match_head(TaskPlan plan, const char* at, const char* end) noexcept:
    """The priority whose head stands at ``at``, or -1."""
    cdef int prio
    cdef Py_ssize_t length
    cdef bytes head
    for prio in range(1, 4):
        prio %= 3                       # medium first: it is the default
        head = <bytes>plan.heads[prio]
        length = PyBytes_GET_SIZE(head)
        if end - at >= length and memcmp(at, PyBytes_AS_STRING(head), length) == 0:
            return prio
    return -1
