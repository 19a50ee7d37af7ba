"""``@manager.task`` reads a signature: the model that it makes of it, and what it refuses with the line to write."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pydantic
import pytest

from fluidfast import BoundTask, TaskManager, TaskRun
from fluidfast.core.params import Params, adapter_for
from fluidfast.core.task import is_async
from fluidfast.errors import ParamsError, TaskDecoratorError, TaskNameTaken

if typing.TYPE_CHECKING:
    from somewhere import Hidden  # type: ignore[import-not-found]


class Mail(msgspec.Struct):
    to: str


class User(pydantic.BaseModel):
    name: str


@pytest.fixture
def manager() -> TaskManager:
    return TaskManager(broker_url="memory://signatures")


def model_of(bound: BoundTask[..., Any]) -> Any:
    return bound.task.params_model


# --- the model


def test_the_model_has_the_names_types_and_defaults(manager: TaskManager) -> None:
    @manager.task
    async def send_mail(to: str, when: datetime, copies: int = 1, *, tags: list[str] | None = None) -> None: ...

    model = model_of(send_mail)
    assert issubclass(model, msgspec.Struct)
    assert (model.__name__, model.__module__) == ("SendMailParams", __name__)
    now = datetime(2030, 1, 1, tzinfo=UTC)
    made = adapter_for(model).validate({"to": "x", "when": now})
    assert (made.to, made.when, made.copies, made.tags) == ("x", now, 1, None)
    assert manager.registry["send_mail"] is send_mail.task


def test_text_annotations_of_local_types(manager: TaskManager) -> None:
    class Local(msgspec.Struct):
        n: int

    @manager.task
    async def work(one: Local, many: list[Local]) -> None: ...

    made = adapter_for(model_of(work)).validate({"one": {"n": 1}, "many": [{"n": 2}]})
    assert (made.one, made.many) == (Local(1), [Local(2)])


def test_constraints_of_msgspec(manager: TaskManager) -> None:
    @manager.task
    async def work(n: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...

    with pytest.raises(ParamsError, match="'n'"):
        manager.create_task_run(work, n=0)


def test_a_pydantic_model_among_them_makes_a_pydantic_model(manager: TaskManager) -> None:
    @manager.task
    async def greet(user: User, n: pydantic.PositiveInt = 1, copy: bool = False) -> None: ...

    assert issubclass(model_of(greet), pydantic.BaseModel)
    run = manager.create_task_run(greet, user={"name": "Grace"}, copy=True)
    assert (run.params.user, run.params.n, run.params.copy) == (User(name="Grace"), 1, True)
    with pytest.raises(ParamsError, match="greater than 0"):
        manager.create_task_run(greet, user={"name": "Grace"}, n=0)
    with pytest.raises(ParamsError, match="did you mean 'user'"):
        manager.create_task_run(greet, usr={"name": "Grace"}, user={"name": "Grace"})


def test_mutable_defaults_are_not_shared(manager: TaskManager) -> None:
    @manager.task
    async def work(tags: list[str] = ["a"], mail: Mail = Mail("x")) -> None: ...  # noqa: B006, B008

    one, two = (manager.create_task_run(work).params for _ in range(2))
    assert (one.tags, one.mail) == (["a"], Mail("x"))
    assert one.tags is not two.tags
    assert one.mail is not two.mail


def test_params_without_annotations_take_what_json_holds(manager: TaskManager) -> None:
    @manager.task
    def work(a, b=None): ...  # type: ignore[no-untyped-def]

    assert manager.create_task_run(work, a=[1, {"x": None}]).params.a == [1, {"x": None}]


@pytest.mark.parametrize("annotation", ["TaskRun", "TaskRun[Any, dict]", "TaskRun | None", None, "Any"])
def test_the_run_comes_first(manager: TaskManager, annotation: str | None) -> None:
    def work(ctx, n: int) -> None: ...  # type: ignore[no-untyped-def]

    if annotation is not None:
        work.__annotations__["ctx"] = annotation
    assert [field.name for field in msgspec.structs.fields(model_of(manager.task(work)))] == ["n"]


def test_a_ctx_that_is_something_else_is_a_param(manager: TaskManager) -> None:
    @manager.task
    def work(ctx: str) -> None: ...

    assert manager.create_task_run(work, ctx="x").params.ctx == "x"


def test_functions_in_the_shape_of_task(manager: TaskManager) -> None:
    @manager.task
    async def model(ctx: TaskRun[Mail]) -> None: ...

    @manager.task
    async def anything(ctx: TaskRun) -> None: ...

    @manager.task(batch=3)
    async def batch(runs: list[TaskRun[Mail]]) -> None: ...

    @manager.task(params_model=Mail)
    async def named(run) -> None: ...  # type: ignore[no-untyped-def]

    assert [model_of(each) for each in (model, anything, batch, named)] == [Mail, Params, Mail, Mail]


def test_within_a_decorator_that_passes_everything_on(manager: TaskManager) -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @manager.task
    @traced
    def work(n: int) -> int:
        return n

    assert manager.create_task_run(work, n=1).params.n == 1
    assert work(3) == 3


def test_a_partial(manager: TaskManager) -> None:
    def work(to: str, n: int) -> str:
        return to * n

    bound = manager.task(name="part")(functools.partial(work, n=3))
    assert manager.create_task_run(bound, to="a").params.n == 3


# --- the name


def test_the_same_function_again_and_another_one(manager: TaskManager) -> None:
    def define(source: str) -> Callable[..., Any]:
        namespace: dict[str, Any] = {"__name__": "app"}
        exec(source, namespace)
        return typing.cast(Callable[..., Any], namespace["work"])

    manager.task(define("def work(n: int): ..."))
    again = manager.task(define("def work(n: int, m: int = 0): ..."))  # a module that was loaded again
    assert manager.registry["work"] is again.task
    with pytest.raises(TaskNameTaken, match=r"app\.work"):

        @manager.task(name="work")
        def other(n: int) -> None: ...


def test_functions_of_one_factory_are_different(manager: TaskManager) -> None:
    def factory(host: str) -> Callable[[int], str]:
        def work(n: int) -> str:
            return host * n

        return work

    manager.task(factory("a"))
    manager.task(factory("a"))
    with pytest.raises(TaskNameTaken):
        manager.task(factory("b"))


def test_an_async_function_needs_no_thread(manager: TaskManager) -> None:
    @manager.task
    async def here(n: int) -> None: ...

    @manager.task
    def there(n: int) -> None: ...

    assert is_async(here.task.executor)
    assert not is_async(there.task.executor)


# --- refused


class Holder:
    def method(self, n: int) -> None: ...


def variable(*items: int) -> None: ...
def keywords(**options: int) -> None: ...
def hidden(n: Hidden) -> None: ...
def no_type(path: Path) -> None: ...
def wrong_default(n: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013
def odd_default(n: Any = object()) -> None: ...  # noqa: B008
def model_and_params(ctx: TaskRun[Mail], n: int) -> None: ...
def generator(n: int) -> Any:
    yield n


def pydantic_and_meta(user: User, n: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...
def pydantic_default(user: User = None) -> None: ...  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (Holder.method, {}, "Holder.method is a method, .*; write a function, def method\\(n\\)"),
        (variable, {}, r"\*items has no names on a queue; take a list: items: list\[str\]"),
        (keywords, {}, r"take a mapping: options: dict\[str, Any\]"),
        (hidden, {}, "cannot resolve the annotation 'Hidden' of n .*: import its names where the program runs"),
        (no_type, {}, "param path: values of type Path cannot be written to a queue; .* path: str"),
        (wrong_default, {}, r"param n: its default None does not fit .*; write n: int \| None = None"),
        (odd_default, {}, "param n: its default <object .* does not fit"),
        (pydantic_default, {}, r"param user: its default None does not fit .*; write user: User \| None = None"),
        (pydantic_and_meta, {}, "param n: .* write pydantic.Field in its place"),
        (model_and_params, {}, "names a params model, and the function also takes n; write ctx: TaskRun, or move"),
        (generator, {}, "is a generator"),
        (no_type, {"batch": 3, "name": "a"}, ""),
        (lambda a, b: None, {"batch": 3}, "with batch= a function takes one argument, .* takes a, b; write def <lam"),
        (lambda a, b: None, {"params_model": Mail}, r"with params_model= .* write def <lambda>\(ctx: TaskRun\[Model"),
        (Mail, {}, "@task needs a function"),
        (7, {}, "@task needs a function, not 7"),
        (len, {"schedule": "61 * * * *"}, "61"),
        (len, {"schedule": "every day"}, "task 'len'"),
    ],
)
def test_refused_where_it_is_written(
    manager: TaskManager, function: Any, options: dict[str, Any], message: str
) -> None:
    if not message:
        assert manager.task(**options)(function).task.batch == 3
        return
    with pytest.raises(TaskDecoratorError, match=message):
        manager.task(**options)(function)
    assert manager.registry == {}


def test_unknown_options(manager: TaskManager) -> None:
    with pytest.raises(TaskDecoratorError, match=r"@manager\.task has no option 'retires'; did you mean 'retry'"):
        manager.task(retires=3)  # type: ignore[call-overload]


def test_a_bound_task_is_no_function(manager: TaskManager) -> None:
    @manager.task
    def work(n: int) -> None: ...

    with pytest.raises(TaskDecoratorError, match="not the task 'work'"):
        manager.task(work)


# --- releases beside each other


@pytest.mark.parametrize("wire", ["json", "msgpack"])
@pytest.mark.parametrize("kind", [int, pydantic.PositiveInt])
def test_a_worker_ignores_params_that_its_function_does_not_take(wire: str, kind: Any) -> None:
    newer = TaskManager(broker_url=f"memory://newer?wire={wire}")
    older = TaskManager(broker_url=f"memory://older?wire={wire}")

    def with_more(n: int, note: str = "") -> None: ...
    def work(n: int) -> None: ...

    for function, manager in ((with_more, newer), (work, older)):
        function.__annotations__["n"] = kind
        manager.task(name="work")(function)
    run = newer.create_task_run("work", n=7, note="later")
    read = older.broker.codec.decode(newer.broker.codec.submit(run), older)
    assert read.params.n == 7
    assert not hasattr(read.params, "note")
    with pytest.raises(ParamsError, match="'note'"):  # a caller is told
        older.create_task_run("work", n=7, note="later")
