"""The params model of a function that takes its params as arguments: ``@manager.task`` reads its signature.

The model is a ``msgspec.Struct``; or a pydantic model, if an annotation has a part that only pydantic reads.
"""

import copy
import functools
import inspect
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from msgspec.inspect import CustomType, type_info

from ..checks import shown
from ..errors import TaskDecoratorError
from ..texts import error_text
from .params import conceal, json_encoder, made_of_call
from .task import Spread, Task, make_task, name_for

__all__ = ["task_of"]

Parameter = inspect.Parameter
IMMUTABLE = (
    bool, int, float, str, bytes, Decimal, Enum, UUID, date, datetime, time, timedelta, type(None),
)  # fmt: skip
RUN = re.compile(r"(\w+\.)*TaskRun(\[.*\])?", re.DOTALL)


def task_of(function: Callable[..., Any], options: Mapping[str, Any], scope: dict[str, Any]) -> Task[Any, Any]:
    """Return the task of a function that takes its params as arguments, or its run, as with ``@task``.

    ``scope``: the names around the function, for annotations that are text.

    Raises:
        TaskDecoratorError: the function cannot be called with params that were read from a queue, or as ``task``.
    """
    name = name_for(function, options)
    signature = Signature.of(function, name, scope)
    if signature.takes_run_only() or options.get("params_model") is not None or options.get("batch"):
        signature.refuse_params(options)
        return make_task(function, dict(options), scope)
    positional = [each.name for each in signature.params if each.kind is not Parameter.KEYWORD_ONLY]
    keyword = [each.name for each in signature.params if each.kind is Parameter.KEYWORD_ONLY]
    spread = Spread(function, positional, keyword, takes_run=signature.takes_run)
    if not hasattr(function, "__name__"):  # a partial, an object with a __call__
        spread.__name__ = name  # type: ignore[attr-defined]
    return make_task(spread, {**options, "params_model": signature.model()}, scope)


@dataclass(frozen=True)
class Signature:
    """The arguments of a function that are params. ``takes_run``: its first one is the run."""

    name: str
    """Of the task."""
    function: Callable[..., Any]
    """The one that has the arguments: within wrappers and partials."""
    params: list[Parameter]
    """With annotations that are types."""
    takes_run: bool
    run_model: Any
    """P of ``ctx: TaskRun[P]``; None if the annotation has none."""

    @classmethod
    def of(cls, function: Callable[..., Any], name: str, scope: dict[str, Any]) -> "Signature":
        """Read a function's signature.

        Raises:
            TaskDecoratorError: it is a method, takes ``*args`` or ``**kwargs``, or an annotation cannot be resolved.
        """
        function = unwrapped(function)
        try:
            params = list(inspect.signature(function, follow_wrapped=False).parameters.values())
        except (TypeError, ValueError) as exc:
            raise TaskDecoratorError(f"task {name!r}: {error_text(exc)}: write a function around it") from exc
        refuse_method(function, name, params)
        resolve = functools.partial(resolved, function=function, scope=scope, name=name)
        takes_run, run_model = False, None
        if params and is_run(params[0], resolve):
            takes_run, run_model = True, model_in(params[0], resolve)
            params = params[1:]
        for each in params:
            if each.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                raise TaskDecoratorError(variable(name, each))
        params = [each.replace(annotation=resolve(each)) for each in params]
        return cls(name, function, params, takes_run, run_model)

    def takes_run_only(self) -> bool:
        """Return whether the run, or its batch, is all that the function takes."""
        return self.takes_run and not self.params

    def refuse_params(self, options: Mapping[str, Any]) -> None:
        """Raise TaskDecoratorError if a function that has to take its run, or its runs, takes params."""
        if len(self.params) + self.takes_run == 1:
            return
        option = "batch" if options.get("batch") else "params_model"
        argument = "runs: list[TaskRun[Model]]" if options.get("batch") else "ctx: TaskRun[Model]"
        names = ", ".join(each.name for each in self.params)
        raise TaskDecoratorError(
            f"task {self.name!r}: with {option}= a function takes one argument, and this one takes {names or 'none'}; "
            f"write def {self.function_name}({argument}), with the params as the fields of Model"
        )

    @property
    def function_name(self) -> str:
        return getattr(self.function, "__name__", "run")

    def model(self) -> Any:
        """Return the params model.

        Raises:
            TaskDecoratorError: an annotation is of no type that a queue can hold, or a default does not fit its own.
        """
        if self.run_model is not None:
            names = ", ".join(each.name for each in self.params)
            raise TaskDecoratorError(
                f"task {self.name!r}: ctx: TaskRun[...] names a params model, and the function also takes {names}; "
                "write ctx: TaskRun, or move them into the model"
            )
        title = "".join(part[:1].upper() + part[1:] for part in re.split(r"\W|_", self.function_name)) + "Params"
        uses_pydantic = any(is_of_pydantic(each.annotation) for each in self.params)
        model = (self.pydantic_model if uses_pydantic else self.struct)(title)
        return made_of_call(model)

    def struct(self, title: str) -> Any:
        for each in self.params:
            self.check(each)
        fields = [
            (each.name, each.annotation)
            if each.default is Parameter.empty
            else (each.name, each.annotation, field_of(each.default))
            for each in self.params
        ]
        try:
            return msgspec.defstruct(
                title, fields, module=self.function.__module__, kw_only=True, forbid_unknown_fields=True
            )
        except Exception as exc:
            raise self.refused(exc) from exc

    def check(self, param: Parameter) -> None:
        """Raise TaskDecoratorError if the values of a param, or its default, cannot be written to a queue."""
        where = f"task {self.name!r}: param {param.name}"
        try:
            decoder = msgspec.json.Decoder(param.annotation, dec_hook=conceal)
            unknown = next(unreadable(type_info(param.annotation), set()), None)
        except Exception as exc:
            raise TaskDecoratorError(f"{where}: {error_text(exc)}") from exc
        if unknown is not None:
            raise TaskDecoratorError(
                f"{where}: values of type {getattr(unknown, '__qualname__', unknown)} cannot be written to a queue; "
                f"take what makes one, such as its id or its text: {param.name}: str"
            )
        if param.default is Parameter.empty:
            return
        try:
            decoder.decode(json_encoder().encode(param.default))
        except Exception as exc:
            raise misfit_default(where, param, exc) from exc

    def pydantic_model(self, title: str) -> Any:
        pydantic = sys.modules["pydantic"]
        fields: dict[str, Any] = {}
        for each in self.params:
            has_default = each.default is not Parameter.empty
            fields[each.name] = (each.annotation, each.default if has_default else ...)
            if has_meta(each.annotation):
                raise TaskDecoratorError(
                    f"task {self.name!r}: param {each.name}: pydantic reads the params of this function, and does not "
                    "know msgspec.Meta; write pydantic.Field in its place"
                )
            if has_default:
                try:
                    pydantic.TypeAdapter(each.annotation).validate_python(each.default)
                except Exception as exc:
                    raise misfit_default(f"task {self.name!r}: param {each.name}", each, exc) from exc
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a param may be named as a method of models
                return pydantic.create_model(
                    title,
                    __config__=pydantic.ConfigDict(extra="forbid", protected_namespaces=()),
                    __module__=self.function.__module__,
                    **fields,
                )
        except Exception as exc:
            raise self.refused(exc) from exc

    def refused(self, exc: Exception) -> TaskDecoratorError:
        names = ", ".join(each.name for each in self.params)
        return TaskDecoratorError(f"task {self.name!r}: no params model can be made of {names}: {error_text(exc)}")


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that has the arguments: that within decorators that pass ``*args, **kwargs`` on."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        kinds = [each.kind for each in inspect.signature(function, follow_wrapped=False).parameters.values()]
        if kinds != [Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD]:
            break
        function = inner
    return function


def refuse_method(function: Callable[..., Any], name: str, params: list[Parameter]) -> None:
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    is_in_class = owner and not owner.endswith("<locals>") and inspect.isfunction(function)
    if is_in_class and params and params[0].name in ("self", "cls"):
        called = getattr(function, "__name__", "run")
        rest = ", ".join(each.name for each in params[1:])
        raise TaskDecoratorError(
            f"task {name!r}: {function.__qualname__} is a method, and a worker has no object to call it on; write a "
            f"function, def {called}({rest}), which makes the object, or reach it by ctx.deps"
        )


def variable(name: str, param: Parameter) -> str:
    """Return the error for ``*args`` or ``**kwargs``."""
    if param.kind is Parameter.VAR_POSITIONAL:
        return f"task {name!r}: *{param.name} has no names on a queue; take a list: {param.name}: list[str]"
    return (
        f"task {name!r}: **{param.name} has no fields to check; name each param, or take a mapping: "
        f"{param.name}: dict[str, Any]"
    )


def resolved(param: Parameter, *, function: Any, scope: dict[str, Any], name: str) -> Any:
    """Return the annotation of a param as a type, also if it is written as text; ``Any`` if it has none."""
    if param.annotation is Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={param.name: param.annotation})
    within = function
    while isinstance(within, functools.partial):
        within = within.func
    within = inspect.unwrap(within if inspect.isroutine(within) else type(within).__call__)
    try:
        found = get_type_hints(holder, getattr(within, "__globals__", {}), scope, include_extras=True)[param.name]
    except Exception as exc:
        raise TaskDecoratorError(
            f"task {name!r}: cannot resolve the annotation {param.annotation!r} of {param.name} "
            f"({type(exc).__name__}: {error_text(exc)}): import its names where the program runs, not for type "
            "checkers only"
        ) from exc
    return Any if found is object else found


def is_run(param: Parameter, resolve: Callable[[Parameter], Any]) -> bool:
    """Return whether a function's first argument is the run: it is annotated so, or named ``ctx`` and not at all."""
    if param.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return False
    if param.annotation is Parameter.empty:
        return param.name == "ctx"
    if isinstance(param.annotation, str) and RUN.fullmatch(param.annotation.strip()):
        return True
    try:
        annotation = resolve(param)
    except TaskDecoratorError:
        return False  # it is said of a param
    return any(map(is_run_type, variants(annotation))) or (annotation is Any and param.name == "ctx")


def is_run_type(annotation: Any) -> bool:
    from ._run import TaskRun

    origin = get_origin(annotation)
    value = getattr(origin or annotation, "__value__", None)  # of a ``type`` alias
    return annotation is TaskRun or origin is TaskRun or (value is not None and is_run_type(value))


def model_in(param: Parameter, resolve: Callable[[Parameter], Any]) -> Any:
    """Return P of ``TaskRun[P]``, or None."""
    if not isinstance(param.annotation, str) and param.annotation is Parameter.empty:
        return None
    try:
        annotation = resolve(param)
    except TaskDecoratorError:
        return None
    found = next(filter(is_run_type, variants(annotation)), None)
    model = next(iter(get_args(found)), None)
    return None if model is Any else model


def variants(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def parts(annotation: Any) -> Iterator[Any]:
    """Yield a type, all that it is made of, and what ``Annotated`` says of them."""
    yield annotation
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
        yield from parts(annotation.__origin__)
    else:
        for part in get_args(annotation):
            yield from parts(part)
    if (value := getattr(annotation, "__value__", None)) is not None:  # of a ``type`` alias
        yield from parts(value)


def is_of_pydantic(annotation: Any) -> bool:
    """Return whether pydantic has to read values of a type: its models and types, and constraints of its kind."""
    return "pydantic" in sys.modules and any(
        hasattr(part, "__get_pydantic_core_schema__")
        or hasattr(part, "__pydantic_validator__")
        or (getattr(type(part), "__module__", "") or "").partition(".")[0] in ("pydantic", "annotated_types")
        for part in parts(annotation)
    )


def has_meta(annotation: Any) -> bool:
    return any(isinstance(part, msgspec.Meta) for part in parts(annotation))


def unreadable(kind: Any, seen: set[int]) -> Iterator[Any]:
    """Yield each type, at any depth, that msgspec neither writes nor reads."""
    if isinstance(kind, list | tuple):
        for part in kind:
            yield from unreadable(part, seen)
    elif isinstance(kind, CustomType):
        if not hasattr(kind.cls, "get_secret_value"):
            yield kind.cls
    elif isinstance(kind, msgspec.inspect.Type | msgspec.inspect.Field) and id(kind) not in seen:
        seen.add(id(kind))
        yield from unreadable([getattr(kind, name) for name in kind.__struct_fields__ if name != "default"], seen)


def field_of(default: Any) -> Any:
    """Return the field of a param with a default, of which each object gets a copy of its own."""
    if isinstance(default, IMMUTABLE):
        return msgspec.field(default=default)
    return msgspec.field(default_factory=functools.partial(copy.deepcopy, default))


def misfit_default(where: str, param: Parameter, exc: Exception) -> TaskDecoratorError:
    errors = getattr(exc, "errors", None)  # pydantic's text repeats the value, and adds a link
    why = errors(include_url=False)[0]["msg"] if callable(errors) else error_text(exc)
    if param.default is None:
        hint = f"write {param.name}: {shown_type(param.annotation)} | None = None"
    else:
        hint = "give it a default of its type"
    return TaskDecoratorError(f"{where}: its default {shown(param.default)} does not fit its annotation: {why}; {hint}")


def shown_type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
