# Part of _codec.pyx: `TaskPlan`, all that the codec keeps ready for one task.

cdef Py_ssize_t SCRATCH = 4096
cdef bytearray _scratch = None


cdef bytearray take_scratch():
    """A buffer for params, that ``give_back`` takes. The taker has it alone: an encoder may run code that encodes."""
    global _scratch
    cdef bytearray scratch = _scratch
    _scratch = None
    if scratch is None:
        return PyByteArray_FromStringAndSize(NULL, SCRATCH)
    PyByteArray_Resize(scratch, SCRATCH)        # sets the length; frees what large params took
    return scratch


cdef void give_back(object scratch) noexcept:
    global _scratch
    if type(scratch) is bytearray:
        _scratch = <bytearray>scratch


cdef object as_params(dict value):
    """A new dict that nobody else holds, made a Params: what an assignment to its ``__class__`` does for other classes
    of one layout. A copy would cost a sixth of reading a run."""
    if not SAME_LAYOUT:
        return PARAMS(value)
    Py_INCREF(PARAMS)                   # an object of a class made in Python holds its class
    Py_SET_TYPE(value, <PyTypeObject*>PARAMS)
    return value


cdef class TaskPlan:
    """What the codec keeps ready for one task."""

    def __init__(self, task):
        self.task = task
        self.name = task.name
        self.adapter = adapter_for(task.params_model)
        self.encode_params = self.adapter.encode
        self.encode_into = self.adapter.encode_into
        self.is_mapping = self.adapter.model is Params
        self.decode_params = AS_MAPPING if self.is_mapping else self.adapter.decode
        self.validate = self.adapter.validate
        self.convert_to = self.adapter.model if self.adapter.converts else None
        self.encode_packed_into = self.adapter.encode_packed_into
        self.decode_packed = self.adapter.decode_packed
        self.packed_name = MSGPACK(task.name)
        self.heads = tuple([
            b'","task":' + JSON(task.name) + b',"priority":"' + priority.encode() + b'","state":"queued","queued":'
            for priority in PRIORITIES
        ])

    cdef object params_json(self, object params, const char** text, Py_ssize_t* length):
        """Writes params as a JSON object; ``text`` is valid as long as what this returns, which is to be given back."""
        cdef object owner
        try:
            if self.encode_into is None:
                owner = self.encode_params(params)
                text[0] = PyBytes_AS_STRING(<bytes?>owner)
                length[0] = PyBytes_GET_SIZE(owner)
            else:
                owner = take_scratch()
                self.encode_into(params, owner)
                text[0] = PyByteArray_AS_STRING(owner)
                length[0] = PyByteArray_GET_SIZE(owner)
        except Exception as exc:
            raise params_error(self.name, exc, params) from cause_of(exc)
        if length[0] and text[0][0] != 123:
            raise ParamsError(
                f"invalid params for task {self.name!r}: they must be written as a JSON object", task_name=self.name
            )
        if too_deep(text[0], length[0]):
            raise ParamsError(
                f"invalid params for task {self.name!r}: nested deeper than {MAX_DEPTH} levels", task_name=self.name
            )
        # msgspec writes NaN and the infinities as null: that is another value, or none at all
        if contains_null(text[0], length[0]):
            field = non_finite_field(params)
            if field is not None:
                raise ParamsError(
                    f"invalid params for task {self.name!r}, field {quoted(field)}: NaN and infinity cannot be queued",
                    task_name=self.name, field=field,
                )
        return owner

    cdef object params_of(self, bytes raw):
        """The params in JSON. Raises what the model's library raises."""
        cdef object value = self.decode_params(raw)
        if not self.is_mapping:
            return value
        return as_params(value)
