# Part of _codec.pyx: the MessagePack form.

class PackedRun(msgspec.Struct, array_like=True):
    """The MessagePack form, read. Append-only: what a newer version adds behind is ignored."""

    id: object                      # text, or the 16 bytes of 32 hex digits
    task: str
    priority: int
    params: msgspec.Raw
    state: int = 1
    queued: float | None = None
    start: float | None = None
    end: float | None = None
    execute_after: float | None = None
    rate_limit_attempt: int = 0
    retry_attempt: int = 0
    from_run_id: str = ""
    root_run_id: str = ""
    extra: dict[str, bytes] | None = None


cdef object UNPACK = msgspec.msgpack.Decoder(PackedRun).decode
cdef object FROM_MSGPACK = msgspec.msgpack.decode


cdef bytes pack_queued(TaskPlan plan, TaskRun run):
    """The short form of a run that was just queued, [id, task, priority, params, 1, queued], or None.

    0x96, 0xc4 0x10 and 16 bytes, the name, one byte, the params, 0x01, 0xcb and a big-endian double.
    """
    cdef bytes payload
    cdef bytearray scratch
    cdef const unsigned char* params
    cdef uint8_t identity[16]
    cdef unsigned char* at
    cdef Py_ssize_t name_length, params_length
    cdef double seconds
    cdef uint64_t bits
    cdef int i
    if not (
        plan.encode_packed_into is not None and run._state == QUEUED and run.queued_us > 0 and run.after_us == 0
        and run.start_us == 0 and run.end_us == 0 and run.rate_limit_attempt == 0 and run.retry_attempt == 0
        and not run.from_run_id and not run.root_run_id and not run.extra and pack_identity(run.id, identity)
    ):
        return None
    scratch = take_scratch()
    try:
        plan.encode_packed_into(run.params, scratch)
    except Exception:
        return None                 # the general way says what is wrong
    params = <const unsigned char*>PyByteArray_AS_STRING(scratch)
    params_length = PyByteArray_GET_SIZE(scratch)
    if params_length == 0 or is_suspect(params, params_length):
        return None
    if (params[0] & 0xf0) != 0x80 and (params[0] & 0xfe) != 0xde:
        return None                 # no map
    name_length = PyBytes_GET_SIZE(plan.packed_name)
    payload = PyBytes_FromStringAndSize(NULL, 19 + name_length + 1 + params_length + 10)
    at = <unsigned char*>PyBytes_AS_STRING(payload)
    at[0] = 0x96
    at[1] = 0xc4
    at[2] = 0x10
    memcpy(at + 3, identity, 16)
    at += 19
    memcpy(at, PyBytes_AS_STRING(plan.packed_name), name_length)
    at += name_length
    at[0] = run.prio
    memcpy(at + 1, params, params_length)
    give_back(scratch)
    at += 1 + params_length
    at[0] = QUEUED
    at[1] = 0xcb
    seconds = run.queued_us / 1e6
    memcpy(&bits, &seconds, 8)
    for i in range(8):
        at[2 + i] = bits >> (56 - 8 * i) & 0xff
    return payload


cdef bytes write_msgpack(TaskPlan plan, TaskRun run):
    cdef bytes short = pack_queued(plan, run)
    cdef const char* text
    cdef Py_ssize_t length
    if short is not None:
        return short
    try:
        params = plan.adapter.to_builtins(run.params)
    except Exception as exc:
        raise params_error(plan.name, exc, run.params) from cause_of(exc)
    plan.params_json(run.params, &text, &length)  # the same bounds and the same errors, whichever form travels
    identity = run.id
    if len(identity) == 32:
        try:
            packed = bytes.fromhex(identity)
            if packed.hex() == identity:
                identity = packed
        except ValueError:
            pass
    fields = [
        identity, plan.name, run.prio, params, run._state,
        run.queued_us / 1e6 if run.queued_us else None,
        run.start_us / 1e6 if run.start_us else None,
        run.end_us / 1e6 if run.end_us else None,
        run.after_us / 1e6 if run.after_us else None,
        run.rate_limit_attempt, run.retry_attempt, run.from_run_id, run.root_run_id, run.extra,
    ]
    while len(fields) > 6 and not fields[-1]:
        fields.pop()
    try:
        return MSGPACK(fields)
    except (OverflowError, TypeError) as exc:       # JSON has more numbers, and more keys
        raise params_error(plan.name, exc, run.params) from exc
