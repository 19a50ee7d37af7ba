"""pydantic's methods for the records of fluidfast, as aio-fluid's records have them.

``model_dump``, ``model_json_schema`` and the like work. A record may be a field of a pydantic model, or the answer of a
FastAPI route. The records themselves are msgspec structs, dataclasses and compiled classes. The first call that needs
pydantic imports it, and makes a model with the same fields (``twin``) that does the work.
"""

import dataclasses
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, Union, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

__all__ = ["Model", "ModelFields", "adapter", "schema_with", "twin"]


class ModelFields:
    """``model_fields`` of a class: pydantic's description of its fields, by name."""

    def __get__(self, record: Any, cls: Any) -> dict[str, Any]:
        return twin(cls).model_fields  # type: ignore[no-any-return]


class Model:
    """The base of records that are data: msgspec structs and dataclasses."""

    __slots__ = ()
    model_fields = ModelFields()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return schema_with(cls, handler, cls._from_fields, lambda record, info: record._fields(info.mode))

    @classmethod
    def _from_fields(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)

    def _fields(self, mode: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in twin(type(self)).model_fields}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields as they are in JSON: FastAPI calls ``dict(record)`` for a route without a return type."""
        yield from self.model_dump(mode="json").items()

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the fields as a dict; ``options`` as of pydantic's ``model_dump``."""
        return adapter(type(self)).dump_python(self, **options)  # type: ignore[no-any-return]

    def model_dump_json(self, **options: Any) -> str:
        """Return the fields as JSON; ``options`` as of pydantic's ``model_dump_json``."""
        return adapter(type(self)).dump_json(self, **options).decode()  # type: ignore[no-any-return]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with the fields of ``update`` changed. ``deep``: copy what the fields hold, too."""
        if deep:
            from copy import deepcopy

            self = deepcopy(self)
        record: Any = self
        replace = msgspec.structs.replace if isinstance(record, msgspec.Struct) else dataclasses.replace
        return replace(record, **(update or {}))  # type: ignore[no-any-return]

    @classmethod
    def model_validate(cls, value: Any, **options: Any) -> Self:
        """Return a record of a mapping (or of a record). Raises pydantic's ``ValidationError``."""
        return adapter(cls).validate_python(value, **options)  # type: ignore[no-any-return]

    @classmethod
    def model_validate_json(cls, value: str | bytes, **options: Any) -> Self:
        """Return a record of JSON. Raises pydantic's ``ValidationError``."""
        return adapter(cls).validate_json(value, **options)  # type: ignore[no-any-return]

    @classmethod
    def model_json_schema(cls, **options: Any) -> dict[str, Any]:
        """Return the JSON schema; ``options`` as of pydantic's ``model_json_schema``."""
        return twin(cls).model_json_schema(**options)  # type: ignore[no-any-return]


def schema_with(
    cls: Any,
    handler: Any,
    make: Callable[[Mapping[str, Any]], Any],
    fields: Callable[[Any, Any], Mapping[str, Any]],
) -> Any:
    """Return pydantic's core schema of a class: an object of it, or what its ``twin`` accepts.

    ``make``: makes an object of fields. ``fields``: returns those of an object; the second argument has the ``mode``.
    """
    from pydantic_core import core_schema

    model = twin(cls)
    schema = handler.generate_schema(model)

    def validate(value: Any, inner: Callable[[Any], Any]) -> Any:
        if isinstance(value, cls):
            return value
        read = inner(value)
        return make({name: getattr(read, name) for name in read.model_fields_set})

    def serialize(value: Any, inner: Callable[[Any], Any], info: Any) -> Any:
        return inner(model.model_construct(**fields(value, info)))

    return core_schema.no_info_wrap_validator_function(
        validate,
        schema,
        serialization=core_schema.wrap_serializer_function_ser_schema(serialize, info_arg=True, schema=schema),
    )


def make_adapter(cls: Any) -> Any:
    """Return pydantic's ``TypeAdapter`` of a class."""
    return pydantic().TypeAdapter(cls)


def make_twin(cls: Any) -> Any:
    """Return the pydantic model that has the fields of a class."""
    fields = cls.__pydantic_twin__() if hasattr(cls, "__pydantic_twin__") else fields_of(cls)
    return pydantic().create_model(cls.__name__, __module__=cls.__module__, __doc__=cls.__doc__, **fields)


adapter: Callable[[Any], Any] = functools.cache(make_adapter)
twin: Callable[[Any], Any] = functools.cache(make_twin)


def fields_of(cls: Any) -> dict[str, tuple[Any, Any]]:
    """Return the fields of a struct or a dataclass, with their types and defaults."""
    field = pydantic().Field
    found: dict[str, tuple[Any, Any]] = {}
    if issubclass(cls, msgspec.Struct):
        described: Any = [(each.name, each.type, each.default, each.default_factory) for each in struct_fields(cls)]
        nothing: Any = msgspec.NODEFAULT
    else:
        hints = get_type_hints(cls, include_extras=True)
        described = [
            (each.name, hints[each.name], each.default, each.default_factory) for each in dataclasses.fields(cls)
        ]
        nothing = dataclasses.MISSING
    for name, annotation, default, factory in described:
        given = field(default_factory=factory) if factory is not nothing else default
        found[name] = (portable(annotation), ... if given is nothing else given)
    return found


def struct_fields(cls: Any) -> Any:
    return msgspec.structs.fields(cls)


def portable(annotation: Any) -> Any:
    """Return a type that pydantic takes on this Python: before 3.12 it refuses ``typing.TypedDict``."""
    if sys.version_info < (3, 12):
        if is_typeddict(annotation):
            from typing_extensions import TypedDict

            make: Any = TypedDict
            made = make(annotation.__name__, get_type_hints(annotation), total=annotation.__total__)
            made.__doc__ = annotation.__doc__
            return made
        if get_origin(annotation) in (Union, types.UnionType):
            return functools.reduce(operator.or_, map(portable, get_args(annotation)))
    return annotation


def pydantic() -> Any:
    try:
        import pydantic
    except ModuleNotFoundError as exc:
        if exc.name != "pydantic":
            raise
        raise ImportError("this needs pydantic: pip install pydantic") from exc
    return pydantic
