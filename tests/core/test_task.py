"""``@task`` and what it makes: names, models found in annotations, options, retries, a task as data."""

import asyncio
import functools
import logging
import math
import random
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluidfast import K8sConfig, RetryPolicy, Task, TaskInfo, TaskPriority, TaskRun, every, task
from fluidfast.core.params import Params
from fluidfast.core.task import EmptyParams, TaskOptions, is_async
from fluidfast.errors import TaskDecoratorError

if TYPE_CHECKING:
    from somewhere import Imported, Run  # type: ignore[import-not-found]


class Mail(msgspec.Struct):
    to: str


class Model(pydantic.BaseModel):
    to: str


# --- bare, and with keywords ----------------------------------------------------------------------


def test_bare() -> None:
    @task
    async def send_mail(ctx: TaskRun[Mail]) -> None:
        """Send a mail.

        To whom it may
            concern.
        """

    assert isinstance(send_mail, Task)
    assert send_mail.name == "send_mail"
    assert send_mail.params_model is Mail
    assert send_mail.module == __name__
    assert send_mail.logger is logging.getLogger(f"{__name__}.send_mail")
    assert send_mail.short_description == "Send a mail."
    assert send_mail.description == "Send a mail.\n\nTo whom it may\n    concern."
    assert send_mail.executor.__name__ == "send_mail"
    assert send_mail.run_executor() is send_mail.run_executor(in_process=True) is send_mail.executor
    assert (send_mail.schedule, send_mail.randomize, send_mail.cpu_executor, send_mail.k8s_config) == (None,) * 4
    assert (send_mail.retry, send_mail.rate_limit_retry) == (None, None)
    assert (send_mail.max_concurrency, send_mail.timeout_seconds) == (0, 60)
    assert send_mail.priority is TaskPriority.medium
    assert (send_mail.tags, send_mail.env) == (frozenset(), {})
    assert not send_mail.cpu_bound
    assert send_mail.get_k8s_config() == K8sConfig()


OPTIONS: dict[str, Any] = {
    "name": "other.name",
    "params_model": Model,
    "schedule": every(timedelta(minutes=1)),
    "short_description": "short",
    "description": "long",
    "randomize": lambda: 1.0,
    "max_concurrency": 3,
    "priority": TaskPriority.high,
    "k8s_config": K8sConfig(namespace="n"),
    "timeout_seconds": 0.5,
    "tags": frozenset({"a", "b"}),
    "retry": RetryPolicy(max_attempts=2),
    "rate_limit_retry": RetryPolicy(max_attempts=3),
    "env": {"A": "1"},
}


def test_every_keyword() -> None:
    @task(**OPTIONS)
    async def work(ctx: TaskRun) -> None: ...

    assert {name: getattr(work, name) for name in OPTIONS} == OPTIONS
    assert work.logger.name == f"{__name__}.other.name"
    assert OPTIONS.keys() | {"cpu_bound", "batch", "batch_wait"} >= set(TaskOptions.__annotations__)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_keyword_of_none_is_as_good_as_none(option: str) -> None:
    @task(**{option: None})  # type: ignore[misc]
    async def work(ctx: TaskRun[Mail]) -> None: ...

    bare = task(work.executor)
    assert work == bare


def test_keywords_in_other_forms() -> None:
    @task(priority="low", tags=["a", "a"])
    async def work(ctx: TaskRun) -> None: ...

    assert work.priority is TaskPriority.low
    assert work.tags == {"a"}


def test_a_plain_function() -> None:
    @task
    def work(ctx: TaskRun[Mail]) -> int:
        return 1

    assert work.params_model is Mail
    assert not is_async(work.executor)
    assert work.executor(None) == 1


def test_is_async() -> None:
    async def coroutine() -> None: ...

    class Callable1:
        async def __call__(self) -> None: ...

    class Callable2:
        def __call__(self) -> None: ...

    assert is_async(coroutine)
    assert is_async(functools.partial(coroutine))
    assert is_async(Callable1())
    assert not is_async(Callable2())
    assert not is_async(print)
    assert not is_async(lambda: coroutine())


def test_other_callables() -> None:
    class Sender:
        """Sends."""

        async def __call__(self, ctx: TaskRun[Mail]) -> None: ...

        async def method(self, ctx: TaskRun[Mail]) -> None: ...

        @staticmethod
        async def static(ctx: TaskRun[Mail]) -> None: ...

        @classmethod
        async def of_class(cls, ctx: TaskRun[Mail]) -> None: ...

    async def with_more(ctx: TaskRun[Mail], more: int) -> None: ...

    @functools.wraps(with_more)
    async def wrapper(*args: Any) -> None: ...

    sender = Sender()
    for function, name in (
        (sender, "Sender"),
        (sender.method, "method"),
        (Sender.static, "static"),
        (Sender.of_class, "of_class"),
        (functools.partial(with_more, more=1), "partial"),
        (functools.partial(functools.partial(sender.method)), "partial"),
        (wrapper, "with_more"),
    ):
        made = task(function)
        assert (made.name, made.params_model) == (name, Mail)
        assert made.executor is function or made.executor == function
    assert task(sender).description == "Sends."
    assert task(len).params_model is Params


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task(), "write @task without parentheses, or give it keywords"),
        (lambda: task(7), "@task needs a function, not 7"),
        (lambda: task(name="x")(7), "@task needs a function, not 7"),
        (lambda: task(print, name="x"), "@task takes a function or keywords, not both"),
        (lambda: task(nme="x"), "@task has no option 'nme'; did you mean 'name'?"),
        (lambda: task(b=1, a=2), "@task has no option 'b'; it has: name, params_model"),
        (lambda: task(priority="urgent")(print), "task 'print': 'urgent' is not a valid TaskPriority"),
        (lambda: task(timeout_seconds=0)(print), "task 'print': timeout_seconds is 0, it must be above 0"),
        (lambda: task(timeout_seconds=-1)(print), "task 'print': timeout_seconds is -1, it must be above 0"),
        (lambda: task(timeout_seconds=math.nan)(print), "timeout_seconds is nan, it must be above 0"),
        (lambda: task(max_concurrency=-1)(print), "task 'print': max_concurrency is -1, it must be at least 0"),
        (lambda: task(params_model=int)(print), "<class 'int'> cannot be a params model"),
        (lambda: task(name="\ud800")(print), "a task's name must be text that can be written as UTF-8"),
        (lambda: task(name=7)(print), "a task's name must be text that can be written as UTF-8, not 7"),
    ],
)
def test_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TaskDecoratorError) as caught:
        call()
    assert message in str(caught.value)


def test_a_task_of_a_task() -> None:
    @task
    async def work(ctx: TaskRun) -> None: ...

    for call in (task, task(name="other")):
        with pytest.raises(TaskDecoratorError, match="needs a function"):
            call(work)


def test_a_model_of_no_kind() -> None:
    class Plain:
        to: str

    with pytest.raises(TaskDecoratorError, match=r"Plain.* cannot be a params model"):

        @task
        async def work(ctx: TaskRun[Plain]) -> None: ...


# --- models in annotations ------------------------------------------------------------------------


def test_annotations() -> None:
    class Deps: ...

    async def one(ctx: TaskRun[Mail]) -> None: ...
    async def two(ctx: TaskRun[Mail, Deps]) -> None: ...
    async def second(self: Any = None, ctx: TaskRun[Mail] = None) -> None: ...  # type: ignore[assignment]
    async def positional(ctx: TaskRun[Model], /) -> None: ...
    async def of_dict(ctx: TaskRun[dict[str, int]]) -> None: ...
    async def bare(ctx: TaskRun) -> None: ...
    async def none(ctx) -> None: ...  # type: ignore[no-untyped-def]
    async def nothing(*_: int) -> None: ...
    async def any_params(ctx: TaskRun[Any]) -> None: ...
    async def none_params(ctx: TaskRun[None]) -> None: ...
    async def other(ctx: int) -> None: ...
    async def returned(ctx) -> TaskRun[Mail]: ...  # type: ignore[empty-body,no-untyped-def]

    found = {
        function.__name__: task(function).params_model
        for function in (
            one,
            two,
            second,
            positional,
            of_dict,
            bare,
            none,
            nothing,
            any_params,
            none_params,
            other,
            returned,
        )
    }
    assert found == {
        **dict.fromkeys(("one", "two", "second"), Mail),
        "positional": Model,
        "of_dict": dict[str, int],
        **dict.fromkeys(("bare", "none", "nothing", "any_params", "none_params", "other", "returned"), Params),
    }
    assert EmptyParams is Params


def test_a_named_model_counts_more_than_the_annotation() -> None:
    @task(params_model=Model)
    async def work(ctx: TaskRun[Mail]) -> None: ...

    @task(params_model=Mail)
    async def odd(ctx: "TaskRun[Nowhere]") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert (work.params_model, odd.params_model) == (Model, Mail)


def test_text_annotations_and_local_models() -> None:
    class Local(msgspec.Struct):
        a: int

    @task
    async def bare(ctx: "TaskRun[Local]") -> None: ...

    @task(name="with keywords")
    async def keywords(ctx: "TaskRun[Local, int]") -> None: ...

    def decorate() -> Task[Any]:
        class Local(msgspec.Struct):
            b: int

        @task(tags=["x"])
        async def inner(ctx: "TaskRun[Local]") -> None: ...

        return inner

    assert bare.params_model is keywords.params_model is Local
    assert decorate().params_model.__struct_fields__ == ("b",)


def test_text_annotations_for_type_checkers_only() -> None:
    @task
    async def bare(ctx: "Run") -> None: ...

    assert bare.params_model is Params
    with pytest.raises(
        TaskDecoratorError,
        match=r"task 'subscribed': cannot resolve the annotation 'TaskRun\[Imported\]'.*params_model=",
    ):

        @task
        async def subscribed(ctx: "TaskRun[Imported]") -> None: ...


FUTURE = '''
from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fluidfast import TaskRun, task

if TYPE_CHECKING:
    from somewhere import Deps


class Mail(msgspec.Struct):
    to: str


@task
async def bare(ctx: TaskRun[Mail]) -> None:
    """Bare."""


@task(name="renamed", priority="high")
async def keywords(ctx: TaskRun[Mail]) -> None: ...


@task
def plain(ctx: TaskRun) -> None: ...


def local():
    class Local(msgspec.Struct):
        a: int

    @task
    async def work(ctx: TaskRun[Local]) -> None: ...

    return work, Local


class Service:
    class Inner(msgspec.Struct):
        a: int

    @task
    async def work(ctx: TaskRun[Inner]) -> None: ...

    async def method(self, ctx: TaskRun[Mail]) -> None: ...


def with_deps():
    @task
    async def work(ctx: TaskRun[Mail, Deps]) -> None: ...
'''


@pytest.fixture
def future() -> Iterator[types.ModuleType]:
    module = types.ModuleType("fluidfast_tests_future")
    sys.modules[module.__name__] = module
    exec(compile(textwrap.dedent(FUTURE), "future.py", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def test_a_module_with_postponed_annotations(future: types.ModuleType) -> None:
    assert future.bare.params_model is future.Mail
    assert future.bare.module == future.__name__
    assert (future.keywords.params_model, future.keywords.name) == (future.Mail, "renamed")
    assert future.plain.params_model is Params
    work, local = future.local()
    assert work.params_model is local
    assert future.Service.work.params_model is future.Service.Inner
    assert task(future.Service().method).params_model is future.Mail
    with pytest.raises(TaskDecoratorError, match="'Deps' is not defined"):
        future.with_deps()


# --- cpu bound ------------------------------------------------------------------------------------


def test_cpu_bound() -> None:
    @task(cpu_bound=True, env={"A": "1"})
    def work(ctx: TaskRun[Mail]) -> None: ...

    assert work.cpu_bound
    assert work.cpu_executor is not None
    assert work.cpu_executor.__name__ == "work"
    assert work.run_executor() is work.executor is not work.cpu_executor
    assert work.run_executor(in_process=True) is work.cpu_executor
    assert work.params_model is Mail
    assert work.info().cpu_bound

    @task(cpu_bound=False)
    def not_so(ctx: TaskRun) -> None: ...

    assert not not_so.cpu_bound


# --- the tuple ------------------------------------------------------------------------------------


def test_a_task_is_a_tuple() -> None:
    @task
    async def work(ctx: TaskRun) -> None: ...

    changed = work._replace(name="other", priority=TaskPriority.low)
    assert (changed.name, changed.priority, changed.executor) == ("other", "low", work.executor)
    assert (work.name, work.priority) == ("work", "medium")
    assert changed != work
    assert work._replace() == work
    assert Task._fields[:6] == ("name", "executor", "params_model", "logger", "cpu_executor", "module")
    assert dict(zip(work._fields, work, strict=True)) == work._asdict()
    with pytest.raises(AttributeError):
        work.name = "other"  # type: ignore[misc]
    with pytest.raises((TypeError, ValueError), match="unexpected field"):  # by version of Python
        work._replace(nme="x")
    assert get_type_hints(Task)["timeout_seconds"] is float
    made = Task("n", work.executor, Params, work.logger)
    assert (made.timeout_seconds, made.cpu_bound) == (60, False)


def test_a_task_runs_by_itself() -> None:
    seen = []

    @task
    async def work(ctx: TaskRun) -> None:
        seen.append(ctx)

    asyncio.run(work.executor("the run"))
    assert seen == ["the run"]


# --- as data --------------------------------------------------------------------------------------


def test_info() -> None:
    @task(**OPTIONS)
    async def work(ctx: TaskRun) -> None: ...

    info = work.info()
    assert isinstance(info, TaskInfo)
    assert info == TaskInfo(
        name="other.name",
        short_description="short",
        description="long",
        module=__name__,
        priority=TaskPriority.high,
        cpu_bound=False,
        max_concurrency=3,
        schedule=str(OPTIONS["schedule"]),
        tags=frozenset({"a", "b"}),
        timeout_seconds=0.5,
        k8s_config=K8sConfig(namespace="n"),
        retry=RetryPolicy(max_attempts=2).info(),
        rate_limit_retry=RetryPolicy(max_attempts=3).info(),
        env={"A": "1"},
        enabled=True,
    )
    assert msgspec.json.decode(msgspec.json.encode(info), type=TaskInfo) == info


def test_info_with_what_the_broker_knows() -> None:
    @task
    async def work(ctx: TaskRun) -> None: ...

    end = datetime(2025, 11, 24, tzinfo=UTC)
    info = work.info(enabled=False, last_run_end=end, last_run_duration=timedelta(seconds=1), last_run_state="success")
    assert (info.enabled, info.last_run_end, info.last_run_state) == (False, end, "success")
    assert work.info(last_run_end=None, enabled=None).enabled is True
    assert (work.info().schedule, work.info().retry, work.info().k8s_config) == (None, None, None)
    with pytest.raises(TypeError):
        work.info(unknown=1)


def test_info_of_a_retry_policy() -> None:
    info = RetryPolicy(3, 1.5, 2.0, 30.0, (ValueError, OSError), 0.5).info()
    assert msgspec.to_builtins(info) == {
        "max_attempts": 3,
        "wait": 1.5,
        "backoff": 2.0,
        "max_wait": 30.0,
        "exceptions": ["ValueError", "OSError"],
        "jitter": 0.5,
    }


# --- retries --------------------------------------------------------------------------------------


def test_delays() -> None:
    assert [RetryPolicy().delay(n) for n in (1, 2, 9)] == [1.0, 1.0, 1.0]
    assert [RetryPolicy(wait=2, backoff=3, max_wait=50).delay(n) for n in range(1, 6)] == [2, 6, 18, 50, 50]
    assert [RetryPolicy(wait=8, backoff=0.5).delay(n) for n in (1, 2, 3)] == [8, 4, 2]
    assert [RetryPolicy(wait=5, backoff=0).delay(n) for n in (1, 2)] == [5, 0]
    assert RetryPolicy(wait=100).delay(1) == 60


@pytest.mark.parametrize("backoff", [2.0, 2, 1e300, math.inf])
def test_delays_without_bound(backoff: float) -> None:
    assert RetryPolicy(wait=1.0, backoff=backoff).delay(100_000) == 60
    assert RetryPolicy(wait=0.0, backoff=10.0).delay(1_000) == 0
    longest = RetryPolicy(wait=1.0, backoff=backoff, max_wait=math.inf).delay(100_000)
    assert longest == RetryPolicy(wait=math.inf, max_wait=math.inf).delay(1) == 100 * 365 * 86400
    datetime.now(UTC) + timedelta(seconds=longest)


retry_numbers = st.floats(0, 1e6)


@given(retry_numbers, st.floats(0, 10), retry_numbers, st.floats(0, 1), st.integers(1, 400), st.integers())
def test_jitter_is_within_its_bounds(
    wait: float, backoff: float, max_wait: float, jitter: float, attempt: int, seed: int
) -> None:
    full = RetryPolicy(None, wait, backoff, max_wait).delay(attempt)
    assert 0 <= full <= max_wait
    random.seed(seed)
    delay = RetryPolicy(None, wait, backoff, max_wait, jitter=jitter).delay(attempt)
    assert full * (1 - jitter) * (1 - 1e-12) <= delay <= full


def test_jitter_spreads() -> None:
    policy = RetryPolicy(wait=10, jitter=0.5)
    delays = [policy.delay(1) for _ in range(1000)]
    assert 5 <= min(delays) < 6
    assert 9 < max(delays) <= 10
    assert 7 < sum(delays) / 1000 < 8
    assert {RetryPolicy(wait=10).delay(1) for _ in range(9)} == {10}
    assert min(RetryPolicy(wait=10, jitter=1).delay(1) for _ in range(1000)) < 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_attempts": -1}, "max_attempts"),
        ({"wait": -0.1}, "wait"),
        ({"backoff": -1}, "backoff"),
        ({"max_wait": -1}, "max_wait"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": 1.1}, "jitter"),
        ({"wait": math.nan}, "wait"),
        ({"backoff": math.nan}, "backoff"),
        ({"max_wait": math.nan}, "max_wait"),
        ({"jitter": math.nan}, "jitter"),
        ({"exceptions": (7,)}, "exceptions"),
        ({"exceptions": (int,)}, "exceptions"),
        ({"exceptions": int}, "exceptions"),
        ({"exceptions": "ValueError"}, "exceptions"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        RetryPolicy(**options)


def test_which_errors_are_retried() -> None:
    assert RetryPolicy().matches(ValueError())
    policy = RetryPolicy(exceptions=(OSError, ValueError))
    assert policy.matches(ConnectionError())
    assert policy.matches(UnicodeDecodeError("utf-8", b"", 0, 1, ""))
    assert not policy.matches(KeyError())
    for kinds in (OSError, [OSError], {OSError}):
        policy = RetryPolicy(exceptions=kinds)  # type: ignore[arg-type]
        assert policy.exceptions == (OSError,)
        assert policy.matches(ConnectionError())
        assert policy.info().exceptions == ["OSError"]


def test_how_often() -> None:
    assert [RetryPolicy(max_attempts=2).allows(n) for n in (0, 1, 2, 3)] == [True, True, False, False]
    assert not RetryPolicy(max_attempts=0).allows(0)
    assert RetryPolicy().allows(10**9)


def test_a_policy_is_a_value() -> None:
    assert RetryPolicy(max_attempts=1) == RetryPolicy(1)
    assert hash(RetryPolicy(max_attempts=1)) == hash(RetryPolicy(1))
    with pytest.raises(AttributeError):
        RetryPolicy().wait = 2  # type: ignore[misc]
