"""The codec beside bare msgspec encoding and decoding a ``Struct`` of the same 13 fields, and beside aio-fluid.

pytest bench/micro/test_bench_codec.py --benchmark-only -o addopts=

A round handles OPS runs, so divide its time by that. Params are {user_id: int, email: str, amount: float, tags: [str,
str]}. "Create" is what a producer does: validate the params, make an id, take the time, write. The bare Struct leaves
out its defaults (``omit_defaults``), so it writes what we write; it has no bounds, no state machine, no typed errors.
As an array it writes all 13 fields, 135 bytes where ours are 100: msgspec omits no defaults there.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import repeat
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from fluidfast import TaskRun, task
from fluidfast.core._machine import Listeners
from fluidfast.wire._codec import Codec

OPS = 1_000
GIVEN = {"user_id": 123, "email": "someone@example.com", "amount": 12.5, "tags": ["new", "eu"]}


class Params(msgspec.Struct):
    user_id: int
    email: str
    amount: float
    tags: list[str]


class Envelope(msgspec.Struct, omit_defaults=True):
    id: str
    task: str
    priority: str
    params: Params
    state: str = "init"
    queued: float | None = None
    start: float | None = None
    end: float | None = None
    execute_after: float | None = None
    rate_limit_attempt: int = 0
    retry_attempt: int = 0
    from_run_id: str = ""
    root_run_id: str = ""


class DatedEnvelope(msgspec.Struct, omit_defaults=True):
    id: str
    task: str
    priority: str
    params: Params
    state: str = "init"
    queued: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None
    execute_after: datetime | None = None
    rate_limit_attempt: int = 0
    retry_attempt: int = 0
    from_run_id: str = ""
    root_run_id: str = ""


class MappingEnvelope(Envelope, omit_defaults=True):
    params: dict[str, Any]


class PackedEnvelope(Envelope, omit_defaults=True, array_like=True):
    pass


@task
async def work(ctx: TaskRun[Params]) -> None: ...


@task
async def plain(ctx: TaskRun) -> None: ...


LISTENERS = Listeners(0)
CODEC, PACKER = Codec({}), Codec({}, msgpack=True)
PARAMS = Params(**GIVEN)
RUN_ID = uuid4().hex
NOW = 1_764_000_000.123456
convert = msgspec.convert

FIELDS = (RUN_ID, "work", "medium", PARAMS, "queued", NOW)
ENVELOPE, PACKED = Envelope(*FIELDS), PackedEnvelope(*FIELDS)
DATED = DatedEnvelope(*FIELDS[:5], datetime.fromtimestamp(NOW, UTC))
MAPPING = MappingEnvelope(RUN_ID, "plain", "medium", GIVEN, "queued", NOW)  # type: ignore[arg-type]
RUN = TaskRun(id=RUN_ID, task=work, params=PARAMS, state="queued", queued=NOW)
PLAIN_RUN = CODEC.create(plain, None, RUN_ID, GIVEN, None, LISTENERS).model_copy(
    update={"state": "queued", "queued": NOW}
)
CODEC.create(work, None, "", GIVEN, None, LISTENERS)
PACKER.create(work, None, "", GIVEN, None, LISTENERS)

to_json, to_msgpack = msgspec.json.Encoder().encode, msgspec.msgpack.Encoder().encode


def times(call: Callable[..., object], *args: object) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, OPS):
            call(*args)

    return run


def aio_fluid() -> tuple[Any, Any]:
    """A task with the same params, and a manager that never connects."""
    scheduler = pytest.importorskip("fluid.scheduler", reason="aio-fluid is not installed beside fluidfast")
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model(
        "Model", user_id=(int, ...), email=(str, ...), amount=(float, ...), tags=(list[str], ...)
    )

    async def work(ctx) -> None: ...

    work.__annotations__["ctx"] = scheduler.TaskRun[model]
    return scheduler.task(work), scheduler.TaskManager()


# --- write ----------------------------------------------------------------------------------------


def aio_fluid_dumps() -> Callable[[], None]:
    a_task, manager = aio_fluid()
    run = manager.create_task_run(a_task, **GIVEN)
    run.set_state(type(run.state).queued, datetime.fromtimestamp(NOW, UTC))
    return times(run.queue_dump_json)


ENCODE: dict[str, Callable[[], Callable[[], None]]] = {
    "fluidfast": lambda: times(CODEC.encode, RUN),
    "bare msgspec, float": lambda: times(to_json, ENVELOPE),
    "bare msgspec, datetime": lambda: times(to_json, DATED),
    "aio-fluid": aio_fluid_dumps,
}


@pytest.mark.parametrize("name", ENCODE)
def test_encode(benchmark, name):
    benchmark.group = f"JSON, encode, {OPS:,}"
    benchmark.pedantic(ENCODE[name](), rounds=40, warmup_rounds=2)


ENCODE_MAPPING = {"fluidfast": (CODEC.encode, PLAIN_RUN), "bare msgspec, float": (to_json, MAPPING)}


@pytest.mark.parametrize("name", ENCODE_MAPPING)
def test_encode_mapping(benchmark, name):
    benchmark.group = f"JSON, encode a run of no model, {OPS:,}"
    benchmark.pedantic(times(*ENCODE_MAPPING[name]), rounds=40, warmup_rounds=2)


ENCODE_MSGPACK = {"fluidfast": (PACKER.encode, RUN), "bare msgspec, float, an array": (to_msgpack, PACKED)}


@pytest.mark.parametrize("name", ENCODE_MSGPACK)
def test_encode_msgpack(benchmark, name):
    benchmark.group = f"MessagePack, encode, {OPS:,}"
    benchmark.pedantic(times(*ENCODE_MSGPACK[name]), rounds=40, warmup_rounds=2)


# --- create and write -----------------------------------------------------------------------------


def bare_floats() -> None:
    for _ in repeat(None, OPS):
        to_json(Envelope(uuid4().hex, "work", "medium", convert(GIVEN, Params), "queued", time.time()))


def bare_datetimes() -> None:
    for _ in repeat(None, OPS):
        to_json(DatedEnvelope(uuid4().hex, "work", "medium", convert(GIVEN, Params), "queued", datetime.now(UTC)))


def fluidfast_one_by_one() -> None:
    create, submit = CODEC.create, CODEC.submit
    for _ in repeat(None, OPS):
        submit(create(work, None, "", GIVEN, None, LISTENERS))


def fluidfast_at_once() -> None:
    CODEC.take(work, None, repeat(GIVEN, OPS), OPS, 1 << 30, None, None, 0)


def aio_fluid_creates() -> Callable[[], None]:
    a_task, manager = aio_fluid()
    queued = type(manager.create_task_run(a_task, **GIVEN).state).queued

    def run() -> None:
        for _ in repeat(None, OPS):
            made = manager.create_task_run(a_task, **GIVEN)
            made.set_state(queued)
            made.queue_dump_json()

    return run


CREATE: dict[str, Callable[[], Callable[[], None]]] = {
    "fluidfast, one by one": lambda: fluidfast_one_by_one,
    "fluidfast, many": lambda: fluidfast_at_once,
    "bare msgspec, uuid4().hex, time.time()": lambda: bare_floats,
    "bare msgspec, uuid4().hex, datetime.now(UTC)": lambda: bare_datetimes,
    "aio-fluid": aio_fluid_creates,
}


@pytest.mark.parametrize("name", CREATE)
def test_create_and_encode(benchmark, name):
    benchmark.group = f"JSON, create and encode, {OPS:,}"
    benchmark.pedantic(CREATE[name](), rounds=40, warmup_rounds=2)


# --- read -----------------------------------------------------------------------------------------

PAYLOAD = CODEC.encode(RUN)
DATED_PAYLOAD = to_json(DATED)
RETRY_PAYLOAD = CODEC.encode(RUN._again(int(NOW * 1e6), False))


def aio_fluid_reads() -> Callable[[], None]:
    """What its broker does with the answer of BRPOP."""
    scheduler_models = pytest.importorskip(
        "fluid.scheduler.models", reason="aio-fluid is not installed beside fluidfast"
    )
    a_task, manager = aio_fluid()
    run = manager.create_task_run(a_task, **GIVEN)
    run.set_state(type(run.state).queued)
    payload = run.queue_dump_json()

    def read() -> object:
        data = json.loads(payload)
        data.update(task=a_task, params=a_task.params_model(**data["params"]), task_manager=manager)
        return scheduler_models.TaskRun(**data)

    return times(read)


DECODE: dict[str, Callable[[], Callable[[], None]]] = {
    "fluidfast": lambda: times(CODEC.decode, PAYLOAD, None, LISTENERS),
    "bare msgspec, float": lambda: times(msgspec.json.Decoder(Envelope).decode, PAYLOAD),
    "bare msgspec, datetime": lambda: times(msgspec.json.Decoder(DatedEnvelope).decode, DATED_PAYLOAD),
    "fluidfast, of a retry": lambda: times(CODEC.decode, RETRY_PAYLOAD, None, LISTENERS),
    "fluidfast, of aio-fluid's form": lambda: times(CODEC.decode, DATED_PAYLOAD, None, LISTENERS),
    "aio-fluid": aio_fluid_reads,
}


@pytest.mark.parametrize("name", DECODE)
def test_decode(benchmark, name):
    benchmark.group = f"JSON, decode, {OPS:,}"
    benchmark.pedantic(DECODE[name](), rounds=40, warmup_rounds=2)


PLAIN_PAYLOAD = CODEC.encode(PLAIN_RUN)
DECODE_MAPPING = {
    "fluidfast": (CODEC.decode, PLAIN_PAYLOAD, None, LISTENERS),
    "bare msgspec, float": (msgspec.json.Decoder(MappingEnvelope).decode, PLAIN_PAYLOAD),
    "json.loads": (json.loads, PLAIN_PAYLOAD),
}


@pytest.mark.parametrize("name", DECODE_MAPPING)
def test_decode_mapping(benchmark, name):
    benchmark.group = f"JSON, decode a run of no model, {OPS:,}"
    benchmark.pedantic(times(*DECODE_MAPPING[name]), rounds=40, warmup_rounds=2)


PACKED_PAYLOAD = PACKER.encode(RUN)
BARE_PACKED_PAYLOAD = to_msgpack(PACKED)
DECODE_MSGPACK = {
    "fluidfast": (PACKER.decode, PACKED_PAYLOAD, None, LISTENERS),
    "bare msgspec, float, an array": (msgspec.msgpack.Decoder(PackedEnvelope).decode, BARE_PACKED_PAYLOAD),
}


@pytest.mark.parametrize("name", DECODE_MSGPACK)
def test_decode_msgpack(benchmark, name):
    benchmark.group = f"MessagePack, decode, {OPS:,}"
    benchmark.pedantic(times(*DECODE_MSGPACK[name]), rounds=40, warmup_rounds=2)


def fluidfast_decodes_many() -> None:
    CODEC.decode_many(PAYLOADS, None, LISTENERS)


def bare_decodes_many() -> None:
    decode = msgspec.json.Decoder(Envelope).decode
    [decode(payload) for payload in PAYLOADS]


PAYLOADS = CODEC.take(work, None, repeat(GIVEN, OPS), OPS, 1 << 30, None, None, 0)[0]


@pytest.mark.parametrize("call", [fluidfast_decodes_many, bare_decodes_many], ids=["fluidfast", "bare msgspec, float"])
def test_decode_many(benchmark, call):
    benchmark.group = f"JSON, decode {OPS:,} at once"
    benchmark.pedantic(call, rounds=40, warmup_rounds=2)
