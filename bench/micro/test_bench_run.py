"""Making and copying runs, beside a bare ``msgspec.Struct`` of the same 13 fields and aio-fluid's own TaskRun.

pytest bench/micro/test_bench_run.py --benchmark-only -o addopts=

A round makes OPS of each, so divide its time by that. What is made has an id and, where it says so, validated params.
"""

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

OPS = 2_000
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
    queued: datetime | float | None = None
    start: datetime | float | None = None
    end: datetime | float | None = None
    execute_after: datetime | float | None = None
    rate_limit_attempt: int = 0
    retry_attempt: int = 0
    from_run_id: str = ""
    root_run_id: str = ""


@task
async def work(ctx: TaskRun[Params]) -> None: ...


CODEC = Codec({})
LISTENERS = Listeners(0)
PARAMS = Params(**GIVEN)
convert = msgspec.convert


def times(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, OPS):
            call()

    return run


def aio_fluid() -> tuple[Any, Any, Any]:
    """Its module, a task with the same params, a manager that never connects."""
    scheduler = pytest.importorskip("fluid.scheduler", reason="aio-fluid is not installed beside fluidfast")
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model(
        "Model", user_id=(int, ...), email=(str, ...), amount=(float, ...), tags=(list[str], ...)
    )

    async def work(ctx) -> None: ...

    work.__annotations__["ctx"] = scheduler.TaskRun[model]
    return scheduler, scheduler.task(work), scheduler.TaskManager()


def aio_fluid_creates() -> Callable[[], object]:
    _, a_task, manager = aio_fluid()
    return lambda: manager.create_task_run(a_task, **GIVEN)


CREATE: dict[str, Callable[[], Callable[[], object]]] = {
    "fluidfast Codec.create": lambda: lambda: CODEC.create(work, None, "", GIVEN, None, LISTENERS),
    "fluidfast TaskRun(...)": lambda: lambda: TaskRun(id="", task=work, params=convert(GIVEN, Params)),
    "bare Struct, uuid4().hex": lambda: lambda: Envelope(uuid4().hex, "work", "medium", convert(GIVEN, Params)),
    "bare Struct, an id that is there": lambda: lambda: Envelope("0" * 32, "work", "medium", convert(GIVEN, Params)),
    "aio-fluid create_task_run": aio_fluid_creates,
}


@pytest.mark.parametrize("name", CREATE)
def test_create(benchmark, name):
    benchmark.group = f"a run with an id and validated params, {OPS:,}"
    benchmark.pedantic(times(CREATE[name]()), rounds=30, warmup_rounds=2)


QUEUED: dict[str, Callable[[], object]] = {
    "fluidfast create_with + set_state": lambda: CODEC.create_with(work, None, "", PARAMS, None, LISTENERS).set_state(
        "queued"
    ),
    "bare Struct, uuid4().hex, datetime.now(UTC)": lambda: Envelope(
        uuid4().hex, "work", "medium", PARAMS, "queued", datetime.now(UTC)
    ),
    "bare Struct, uuid4().hex, time.time()": lambda: Envelope(
        uuid4().hex, "work", "medium", PARAMS, "queued", time.time()
    ),
}


@pytest.mark.parametrize("name", QUEUED)
def test_create_queued(benchmark, name):
    benchmark.group = f"a queued run of params that are there, {OPS:,}"
    benchmark.pedantic(times(QUEUED[name]), rounds=30, warmup_rounds=2)


RUN = CODEC.create_with(work, None, "", PARAMS, None, LISTENERS)
ENVELOPE = Envelope("0" * 32, "work", "medium", PARAMS)


def aio_fluid_copies() -> Callable[[], object]:
    _, a_task, manager = aio_fluid()
    run = manager.create_task_run(a_task, **GIVEN)
    return lambda: run.model_copy(update={"retry_attempt": 1})


COPY: dict[str, Callable[[], Callable[[], object]]] = {
    "fluidfast model_copy(update=)": lambda: lambda: RUN.model_copy(update={"retry_attempt": 1}),
    "fluidfast _again": lambda: lambda: RUN._again(0, False),
    "msgspec.structs.replace": lambda: lambda: msgspec.structs.replace(ENVELOPE, retry_attempt=1),
    "aio-fluid model_copy(update=)": aio_fluid_copies,
}


@pytest.mark.parametrize("name", COPY)
def test_copy(benchmark, name):
    benchmark.group = f"a copy with one field changed, {OPS:,}"
    benchmark.pedantic(times(COPY[name]()), rounds=30, warmup_rounds=2)
