"""``TaskRun``: the record that it is, and the handle that a running task gets."""

import ast
import asyncio
import dataclasses
import gc
import inspect
import json
import logging
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pydantic
import pytest

from fluidfast import Task, TaskPriority, TaskRun, TaskState, task
from fluidfast.core._machine import Listeners, RunState
from fluidfast.core.params import Params
from fluidfast.core.task import annotated_model
from fluidfast.errors import TaskAbortedError, TaskRunError
from fluidfast.wire._codec import Codec

SECRET = "canary-secret-value"
MOMENT = datetime(2025, 11, 24, 16, 0, 0, 123456, tzinfo=UTC)
SECONDS = 1764000000.123456
PLUS_TWO = timezone(timedelta(hours=2))


class Mail(msgspec.Struct):
    to: str
    copies: int = 1


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr


class Vault(msgspec.Struct):
    key: pydantic.SecretStr


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@task
async def plain(ctx: TaskRun) -> None: ...


@task(priority=TaskPriority.low)
async def mail(ctx: TaskRun[Mail]) -> None: ...


@task
async def login(ctx: TaskRun[Login]) -> None: ...


def make(a_task: Task[Any] = plain, **fields: Any) -> TaskRun[Any, Any]:
    return TaskRun(**{"id": "run-1", "task": a_task, **fields})


RECORD: dict[str, Any] = {
    "id": "run-1",
    "task": mail,
    "priority": TaskPriority.high,
    "params": Mail("a@b.c"),
    "task_manager": SimpleNamespace(),
    "state": TaskState.running,
    "queued": MOMENT,
    "start": MOMENT + timedelta(seconds=1),
    "end": MOMENT + timedelta(seconds=2),
    "execute_after": MOMENT - timedelta(seconds=1),
    "rate_limit_attempt": 1,
    "retry_attempt": 2,
    "from_run_id": "from",
    "root_run_id": "root",
}


def record_of(run: TaskRun[Any, Any]) -> dict[str, Any]:
    return {name: getattr(run, name) for name in RECORD}


# --- made -----------------------------------------------------------------------------------------


def test_every_field() -> None:
    assert record_of(TaskRun(**RECORD)) == RECORD


def test_defaults() -> None:
    run = make(mail)
    assert record_of(run) == {
        "id": "run-1",
        "task": mail,
        "priority": TaskPriority.low,
        "params": None,
        "task_manager": None,
        "state": TaskState.init,
        "queued": None,
        "start": None,
        "end": None,
        "execute_after": None,
        "rate_limit_attempt": 0,
        "retry_attempt": 0,
        "from_run_id": "",
        "root_run_id": "",
    }
    assert run.extra is None
    assert (run.name, run.name_id, run.prio) == ("mail", "mail.run-1", 2)
    assert run.logger is mail.logger
    assert isinstance(run, RunState)


@pytest.mark.parametrize("missing", ["", None])
def test_an_id_is_made_where_there_is_none(missing: Any) -> None:
    made = {make(id=missing).id, make(id=missing).id}
    assert len(made) == 2
    assert all(len(run_id) == 32 and not set(run_id) - set("0123456789abcdef") for run_id in made)


def test_keywords_only() -> None:
    with pytest.raises(TypeError):
        TaskRun("run-1", plain)  # type: ignore[misc]
    with pytest.raises(TypeError):
        TaskRun(task=plain)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        TaskRun(id="")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword"):
        make(parms={})


@pytest.mark.parametrize("given", list(TaskPriority) + [str(priority) for priority in TaskPriority])
def test_priorities(given: Any) -> None:
    run = make(priority=given)
    assert run.priority is TaskPriority(given)
    assert run.prio == list(TaskPriority).index(run.priority)


@pytest.mark.parametrize("given", ["", "urgent", "High", 1, 0, [], {}, b"high"])
def test_a_priority_that_is_none(given: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown priority .*, expected one of high, medium, low"):
        make(priority=given)
    with pytest.raises(ValueError, match="unknown priority"):
        make().model_copy(update={"priority": given})


TIMES = ("queued", "start", "end", "execute_after")
times = pytest.mark.parametrize("field", TIMES)


@times
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (MOMENT, MOMENT),
        (MOMENT.replace(tzinfo=None), MOMENT),
        (MOMENT.astimezone(PLUS_TWO), MOMENT),
        (SECONDS, MOMENT),
        (1764000000, MOMENT.replace(microsecond=0)),
        ("2025-11-24T16:00:00.123456Z", MOMENT),
        ("2025-11-24T16:00:00.123456+00:00", MOMENT),
        ("2025-11-24T18:00:00.123456+02:00", MOMENT),
        ("2025-11-24T16:00:00.123456", MOMENT),
        ("2025-11-24 16:00:00.123456", MOMENT),
        ("2025-11-24", datetime(2025, 11, 24, tzinfo=UTC)),
        (date(2025, 11, 24), datetime(2025, 11, 24, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (-0.000001, datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        (datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)),
        (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_times(field: str, given: Any, expected: datetime | None) -> None:
    for run in (make(**{field: given}), make(**{field: MOMENT}).model_copy(update={field: given})):
        assert getattr(run, field) == expected
        if expected is not None:
            assert getattr(run, field).tzinfo is UTC
            assert isinstance(run.model_dump_json(), str)


@times
@pytest.mark.parametrize(
    "given",
    [
        "",
        "now",
        "1764000000",
        "2025-11-24T16:00:00+99:00",
        "2025-13-01",
        float("nan"),
        float("inf"),
        -float("inf"),
        1e300,
        10**400,
        2**63,
        1764000000000,  # milliseconds
        253402300800,  # the year 10000
        -62135596801,  # the year 0
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        b"2025-11-24",
        timedelta(1),
        [],
    ],
)
def test_a_time_that_is_none(field: str, given: Any) -> None:
    run = make(**{field: MOMENT})
    with pytest.raises(ValueError, match=r"not a time|[Ii]soformat|cannot convert float NaN|must be|must be in|offset"):
        make(**{field: given})
    with pytest.raises(ValueError):  # noqa: PT011
        run.model_copy(update={field: given})
    assert getattr(run, field) == MOMENT


def test_execute_after_can_be_set() -> None:
    run = make()
    run.execute_after = MOMENT
    assert run.execute_after == MOMENT
    run.execute_after = None
    assert run.execute_after is None


@pytest.mark.parametrize("field", ["rate_limit_attempt", "retry_attempt"])
def test_attempts_are_ints(field: str) -> None:
    for wrong, error in ((None, TypeError), ("1", TypeError), ([], TypeError), (2**31, OverflowError)):
        with pytest.raises(error):
            make(**{field: wrong})
    run = make(**{field: 2**31 - 1})
    assert getattr(run, field) == 2**31 - 1
    setattr(run, field, 4)
    assert getattr(run, field) == 4


@pytest.mark.parametrize("field", ["id", "from_run_id", "root_run_id"])
def test_ids_are_text(field: str) -> None:
    for wrong in (1, b"x", ["x"]):
        with pytest.raises(TypeError):
            make(**{field: wrong})
        with pytest.raises(TypeError):
            make().model_copy(update={field: wrong})


def test_what_cannot_be_set() -> None:
    run = make()
    for name in ("id", "task", "task_manager", "prio", "priority", "state", "queued", "from_run_id", "name", "other"):
        with pytest.raises(AttributeError):
            setattr(run, name, "x")
    run.params = {"a": 1}
    assert run.params == {"a": 1}


def test_listeners_are_the_managers() -> None:
    seen: list[Any] = []
    dispatcher = SimpleNamespace(listeners=Listeners(0b10), dispatch=seen.append)
    run = make(task_manager=SimpleNamespace(dispatcher=dispatcher))
    run.set_state("running")
    assert [snapshot.state for snapshot in seen] == ["queued"]
    with pytest.raises(TypeError):
        make(task_manager=SimpleNamespace(dispatcher=SimpleNamespace(listeners=7)))


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [MOMENT, MOMENT.replace(tzinfo=None), MOMENT.astimezone(PLUS_TWO), SECONDS, "2025-11-24T16:00:00.123456Z"],
)
def test_set_state_at_a_time(given: Any) -> None:
    run = make()
    run.set_state("queued", given)
    run.set_state(TaskState.success, state_time=MOMENT + timedelta(seconds=1))
    assert (run.queued, run.start, run.end) == (MOMENT, *[MOMENT + timedelta(seconds=1)] * 2)
    assert run.in_queue == run.total == timedelta(seconds=1)
    assert run.duration == timedelta(0)


def test_set_state_now() -> None:
    run = make()
    before = datetime.now(UTC)
    run.set_state("running")
    assert run.queued == run.start
    assert run.start is not None
    assert before - timedelta(milliseconds=1) <= run.start <= datetime.now(UTC)


def test_set_state_at_no_time() -> None:
    run = make()
    with pytest.raises(ValueError, match="Invalid isoformat"):
        run.set_state("queued", "soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a time"):
        run.set_state("queued", 1e300)  # type: ignore[arg-type]
    assert run.state is TaskState.init
    assert run.queued is None


def test_again() -> None:
    run = TaskRun(**RECORD | {"state": "failure"})
    run.extra = {"reply": b'"x"'}
    again = run._again(1764000000_000001, False)
    assert record_of(again) == RECORD | {
        "state": "queued",
        "start": None,
        "end": None,
        "execute_after": datetime(2025, 11, 24, 16, 0, 0, 1, tzinfo=UTC),
        "retry_attempt": 3,
    }
    assert again.extra == {"reply": b'"x"'}
    limited = run._again(0, True)
    assert (limited.rate_limit_attempt, limited.retry_attempt, limited.execute_after) == (2, 2, None)
    assert record_of(run) == RECORD | {"state": "failure"}


# --- copies ---------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "id": "run-2",
    "task": plain,
    "priority": TaskPriority.medium,
    "params": Mail("d@e.f"),
    "task_manager": SimpleNamespace(other=True),
    "state": TaskState.interrupted,
    "queued": MOMENT + timedelta(days=1),
    "start": None,
    "end": MOMENT + timedelta(days=2),
    "execute_after": None,
    "rate_limit_attempt": 0,
    "retry_attempt": 7,
    "from_run_id": "",
    "root_run_id": "other",
}


def test_the_changes_are_of_every_field() -> None:
    assert CHANGES.keys() == RECORD.keys()
    assert not [name for name in RECORD if RECORD[name] == CHANGES[name]]


@pytest.mark.parametrize("field", CHANGES)
def test_model_copy_of_every_field(field: str) -> None:
    run = TaskRun(**RECORD)
    copied = run.model_copy(update={field: CHANGES[field]})
    assert record_of(copied) == RECORD | {field: CHANGES[field]}
    assert record_of(run) == RECORD


def test_model_copy_of_all_and_of_nothing() -> None:
    run = TaskRun(**RECORD)
    run.extra = {"trace": b"1"}
    assert record_of(run.model_copy(update=CHANGES)) == CHANGES
    for copied in (run.model_copy(), run.model_copy(update=None), run.model_copy(update={})):
        assert copied is not run
        assert type(copied) is TaskRun
        assert copied.params is run.params
        assert copied.extra == {"trace": b"1"}
        assert record_of(copied) == RECORD


def test_model_copy_deep() -> None:
    run = make(params={"a": [1]})
    deep, shallow = run.model_copy(deep=True), run.model_copy()
    run.params["a"].append(2)
    assert deep.params == {"a": [1]}
    assert shallow.params == {"a": [1, 2]}
    assert deep.task is run.task


@pytest.mark.parametrize("field", ["name", "extra", "duration", "", "Id", 5])
def test_model_copy_of_no_field(field: Any) -> None:
    with pytest.raises(TypeError, match=f"a run has no field {field!r}"):
        make().model_copy(update={field: 1})


def test_model_copy_without_an_id_makes_one() -> None:
    for missing in (None, ""):
        assert len(make().model_copy(update={"id": missing}).id) == 32
        copied = make().model_copy(update={"from_run_id": missing, "root_run_id": missing})
        assert (copied.from_run_id, copied.root_run_id) == ("", "")


# --- dumps ----------------------------------------------------------------------------------------


def test_model_dump() -> None:
    run = TaskRun(**RECORD)
    dumped = run.model_dump()
    assert dumped == {name: value for name, value in RECORD.items() if name != "task_manager"} | {"task": "mail"}
    assert list(dumped)[:4] == ["id", "task", "priority", "params"]


def test_model_dump_as_json() -> None:
    run = TaskRun(**RECORD)
    expected = {
        "id": "run-1",
        "task": "mail",
        "priority": "high",
        "params": {"to": "a@b.c", "copies": 1},
        "state": "running",
        "queued": "2025-11-24T16:00:00.123456Z",
        "start": "2025-11-24T16:00:01.123456Z",
        "end": "2025-11-24T16:00:02.123456Z",
        "execute_after": "2025-11-24T15:59:59.123456Z",
        "rate_limit_attempt": 1,
        "retry_attempt": 2,
        "from_run_id": "from",
        "root_run_id": "root",
    }
    dumped = run.model_dump(mode="json")
    assert dumped == expected
    assert {type(value) for value in dumped.values()} == {str, int, dict}
    assert json.loads(run.model_dump_json()) == expected
    assert json.loads(make().model_dump_json())["queued"] is None


def test_model_dump_of_some() -> None:
    run = make(mail, params=Mail("x"))
    assert run.model_dump(include={"id", "state"}) == {"id": "run-1", "state": TaskState.init}
    assert "params" not in run.model_dump(exclude={"params"})
    assert len(run.model_dump(exclude=["params", "id"])) == 11
    assert run.model_dump(include=["id", "params"], exclude=("params",)) == {"id": "run-1"}
    assert json.loads(run.model_dump_json(include=["id"])) == {"id": "run-1"}
    assert json.loads(run.model_dump_json(exclude={"params", "queued"})).keys() & {"params", "queued"} == set()


@pytest.mark.parametrize(
    ("params", "python", "as_json"),
    [
        (None, None, None),
        (Params(a=1, when=MOMENT), {"a": 1, "when": MOMENT}, {"a": 1, "when": "2025-11-24T16:00:00.123456Z"}),
        # names that are also names of methods are params like others
        (Params(model_dump="x", items=1), {"model_dump": "x", "items": 1}, {"model_dump": "x", "items": 1}),
        (Point(1.5), Point(1.5), {"x": 1.5, "y": 0.0}),
        (Mail("x"), Mail("x"), {"to": "x", "copies": 1}),
    ],
)
def test_params_in_dumps(params: Any, python: Any, as_json: Any) -> None:
    run = make(params=params)
    assert run.model_dump()["params"] == python
    assert run.model_dump(mode="json")["params"] == as_json
    assert json.loads(run.model_dump_json())["params"] == as_json


@pytest.mark.parametrize(
    "params",
    [
        Login(user="u", password=pydantic.SecretStr(SECRET)),
        Vault(pydantic.SecretStr(SECRET)),
        Params(key=pydantic.SecretStr(SECRET), more=[pydantic.SecretStr(SECRET)]),
        Params(inner=Login(user="u", password=pydantic.SecretStr(SECRET))),
    ],
    ids=["pydantic", "struct", "mapping", "nested"],
)
def test_secrets_are_masked(params: Any) -> None:
    run = make(params=params)
    shown = [
        repr(run),
        str(run),
        f"{run}",
        run.model_dump_json(),
        str(run.model_dump(mode="json")),
        str(run.model_dump()),
        str(params),
    ]
    assert not [text for text in shown if SECRET in text]
    assert "**********" in run.model_dump_json()


def test_repr_hides_params() -> None:
    run = make(params=Params(token=SECRET), priority="high", state="running")
    assert repr(run) == str(run) == "<TaskRun plain.run-1 running high>"


def test_runs_compare_by_value() -> None:
    run = make(params=Params(a=1), priority="high")
    same = run.model_copy(deep=True)
    assert run == run
    assert run == same
    assert hash(run) == hash(same)
    assert len({run, same}) == 1
    assert run != run.id
    assert [run] == [same]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "another"},
        {"task": plain._replace(name="another")},
        {"priority": "low"},
        {"params": Params(a=2)},
        {"state": "running"},
        {"queued": 1.0},
        {"start": 1.0},
        {"end": 1.0},
        {"execute_after": 1.0},
        {"rate_limit_attempt": 1},
        {"retry_attempt": 1},
        {"from_run_id": "parent"},
        {"root_run_id": "root"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_that_differ_in_one_field(change: dict[str, Any]) -> None:
    run = make(params=Params(a=1), priority="high")
    other = run.model_copy(update=change)
    assert run != other
    assert other == other.model_copy()


# --- subscription ---------------------------------------------------------------------------------


def test_subscription() -> None:
    alias: Any = TaskRun[Mail]
    assert typing.get_origin(alias) is TaskRun
    assert typing.get_args(alias) == (Mail,)
    assert typing.get_args(TaskRun[Mail, int]) == (Mail, int)
    made = alias(id="x", task=plain)
    assert type(made) is TaskRun
    assert made.id == "x"
    assert isinstance(alias, types.GenericAlias)


ALIASES = """
type Run[P] = TaskRun[P, Deps]
type MailRun = TaskRun[Mail, Deps]
type AnyRun = TaskRun

async def generic(ctx: Run[Mail]) -> None: ...
async def fixed(ctx: MailRun) -> None: ...
async def bare(ctx: AnyRun) -> None: ...
async def text(ctx: "Run[Mail]") -> None: ...
"""


def test_type_aliases() -> None:
    """``type`` statements are a syntax error before Python 3.12, and an alias like any other from then on."""
    namespace: dict[str, Any] = {"TaskRun": TaskRun, "Mail": Mail, "Deps": SimpleNamespace}
    if sys.version_info < (3, 12):
        with pytest.raises(SyntaxError):
            exec(ALIASES, namespace)
        return
    exec(ALIASES, namespace)
    models = {name: annotated_model(namespace[name], name, {}) for name in ("generic", "fixed", "bare", "text")}
    assert models == {"generic": Mail, "fixed": Mail, "bare": Params, "text": Mail}


# --- the handle -----------------------------------------------------------------------------------


class Manager:
    """As much of a manager as a run asks for."""

    deps = SimpleNamespace(db="db")

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.broker = SimpleNamespace(lock=self._noted("lock"))
        self.queue = self._noted("queue")

    def _noted(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> str:
            self.calls.append((name, args, kwargs))
            return f"what {name} returns"

        return call


def test_queue() -> None:
    manager = Manager()
    run = make(task_manager=manager)
    assert run.queue("other") == "what queue returns"
    run.queue(mail, TaskPriority.high, to="x", copies=2)
    run.queue("other", priority="low", a=1)
    assert manager.calls == [
        ("queue", ("other",), {"priority": None, "from_task_run": run}),
        ("queue", (mail,), {"priority": "high", "from_task_run": run, "to": "x", "copies": 2}),
        ("queue", ("other",), {"priority": "low", "from_task_run": run, "a": 1}),
    ]


def test_lock() -> None:
    manager = Manager()
    run = make(task_manager=manager)
    assert run.lock() == "what lock returns"
    run.lock(timeout=5)
    run.lock(2.5, "part")
    run.lock(name="")
    assert manager.calls == [
        ("lock", ("tasks:plain",), {"timeout": None}),
        ("lock", ("tasks:plain",), {"timeout": 5}),
        ("lock", ("tasks:plain:part",), {"timeout": 2.5}),
        ("lock", ("tasks:plain",), {"timeout": None}),
    ]


def test_deps_and_logger() -> None:
    run = make(task_manager=Manager())
    assert run.deps.db == "db"
    assert isinstance(run.logger, logging.Logger)
    assert run.logger.name.endswith(".plain")


def test_abort() -> None:
    run = make(state="running")
    with pytest.raises(TaskAbortedError, match=r"^no more$"):
        run.abort("no more")
    with pytest.raises(TaskAbortedError, match=r"^$"):
        run.abort()
    assert run.state is TaskState.running


def test_queue_dump_json() -> None:
    run = make(login, params=Login(user="u", password=pydantic.SecretStr(SECRET)))
    assert json.loads(run.queue_dump_json()) == {
        "id": "run-1",
        "task": "login",
        "priority": "medium",
        "state": "init",
        "params": {"user": "u", "password": SECRET},
    }


async def test_execute() -> None:
    seen: list[Any] = []

    @task
    async def work(ctx: TaskRun) -> None:
        seen.append((ctx, ctx.state))

    run = make(work)
    await run.execute()
    assert seen == [(run, TaskState.running)]
    assert run.state is TaskState.success
    assert run.queued == run.start
    assert run.duration is not None


async def test_execute_a_plain_function_in_a_thread() -> None:
    threads: list[threading.Thread] = []

    @task
    def work(ctx: TaskRun) -> None:
        threads.append(threading.current_thread())

    run = make(work)
    await run.execute()
    assert threads != [threading.current_thread()]
    assert run.state is TaskState.success


async def test_execute_ends_as_the_task_does() -> None:
    @task
    async def fails(ctx: TaskRun) -> None:
        raise ZeroDivisionError

    @task
    async def aborts(ctx: TaskRun) -> None:
        ctx.abort("enough")

    @task(timeout_seconds=0.01)
    async def sleeps(ctx: TaskRun) -> None:
        await asyncio.Event().wait()

    for a_task, error, state in (
        (fails, ZeroDivisionError, "failure"),
        (aborts, TaskAbortedError, "aborted"),
        (sleeps, TimeoutError, "failure"),
    ):
        run = make(a_task)
        with pytest.raises(error):
            await run.execute()
        assert run.state == state
        assert run.is_done


async def test_execute_that_is_cancelled() -> None:
    started = asyncio.Event()

    @task
    async def sleeps(ctx: TaskRun) -> None:
        started.set()
        await asyncio.Event().wait()

    run = make(sleeps)
    execution = asyncio.ensure_future(run.execute())
    await started.wait()
    execution.cancel()
    with pytest.raises(asyncio.CancelledError):
        await execution
    assert run.state is TaskState.interrupted


async def test_execute_twice() -> None:
    run = make()
    await run.execute()
    with pytest.raises(TaskRunError, match="invalid state transition success -> running"):
        await run.execute()
    assert run.state is TaskState.success


class TestInThePlaceOfOneThatIsGone:
    """A run is made where another one was; nothing of that is left, and it goes as any object does."""

    FIELDS = ("state", "queued", "start", "end", "execute_after", "rate_limit_attempt", "retry_attempt", "extra")

    codec = Codec({})

    def make(self) -> Any:
        return self.codec.create(plain, None, "new", {}, None, Listeners(0))

    def test_nothing_is_left(self) -> None:
        first = self.make()
        wanted = [getattr(first, name) for name in self.FIELDS]
        for _ in range(3):
            used: list[Any] = [
                TaskRun(
                    id=f"old-{n}", task=mail, params=Mail("me"), state=TaskState.running, queued=MOMENT, start=MOMENT,
                    end=MOMENT, execute_after=MOMENT, rate_limit_attempt=3, retry_attempt=4, from_run_id="a",
                    root_run_id="b",
                )
                for n in range(2000)
            ]  # fmt: skip
            for run in used:
                run.extra = {"reply": b"1"}
            places = set(map(id, used))
            del used, run
            fresh = [self.make() for _ in range(2000)]
            assert len(places & set(map(id, fresh))) >= 1000
            for run in fresh:
                assert [getattr(run, name) for name in self.FIELDS] == wanted
                assert (run.task, run.params, run.from_run_id, run.root_run_id) == (plain, first.params, "", "")
            assert gc.is_tracked(fresh[0])
            del run, fresh

    def test_a_cycle_goes(self) -> None:
        class Kept:
            pass

        for _ in range(3):
            runs = [self.make() for _ in range(2000)]
            gone = []
            for run in runs:
                kept = Kept()
                run.params = {"kept": kept, "run": run}
                gone.append(weakref.ref(kept))
            del runs, run, kept
            gc.collect()
            assert not [ref for ref in gone if ref() is not None]

    def test_of_a_subclass(self) -> None:
        class Own(TaskRun[Any, Any]):
            def __init__(self, **fields: Any) -> None:
                super().__init__(**fields)
                self.more = list(range(10))

        for _ in range(3):
            owns = [Own(id="own", task=plain) for _ in range(2000)]
            others = [self.make() for _ in range(2000)]
            assert all(type(run) is Own and len(run.more) == 10 for run in owns)
            assert all(type(run) is TaskRun for run in others)
            del owns, others


def test_the_signature_is_that_of_the_stub() -> None:
    stub = ast.parse(Path(sys.modules[TaskRun.__module__].__file__ or "").with_name("_run.pyi").read_text())
    [init] = (
        function
        for cls in stub.body
        if isinstance(cls, ast.ClassDef) and cls.name == "TaskRun"
        for function in cls.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    )
    given_by_name = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    required = {arg.arg for arg, value in given_by_name if value is None}
    signature = inspect.signature(TaskRun)
    assert list(signature.parameters) == [arg.arg for arg in init.args.kwonlyargs]
    assert {name for name, one in signature.parameters.items() if one.default is one.empty} == required
    given = signature.bind(id="r1", task=plain)
    given.apply_defaults()
    assert TaskRun(**given.kwargs).id == "r1"
