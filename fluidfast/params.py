"""Params of a task: the kinds of model that a task may name, and how each is validated, written and read.

``msgspec.Struct``, dataclass, TypedDict, attrs class and ``dict`` go through msgspec; a pydantic model or pydantic
dataclass through pydantic, which is imported by whoever defined that model and never by us. A task that names no
model gets ``Params``, a mapping that also reads as attributes and keeps every key.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec.inspect import DataclassType, DictType, StructType, TypedDictType, UnionType, type_info

from .errors import ParamsError, TaskDecoratorError
from .texts import MAX_ERROR, error_text, printable, quoted

__all__ = ["Params", "ParamsAdapter", "adapter_for", "cause_of", "params_error"]

PATH = re.compile(r"at `\$\.?([^`]*)`")
MASKED = b"**********"
"""How pydantic shows a secret."""
MODEL_MARKS = ("__struct_fields__", "__dataclass_fields__", "__attrs_attrs__", "model_fields")
MISSING = re.compile(r"(?:missing required|unknown) field `([^`]*)`")


class Params(dict[str, Any]):
    """Params of a task that names no model: ``ctx.params["a"]`` and ``ctx.params.a`` are the same."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the params have no {name!r}, they have: {', '.join(self) or 'nothing'}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclasses.dataclass(frozen=True, slots=True)
class ParamsAdapter:
    """What the codec needs of a params model. The callables raise whatever their library raises."""

    model: Any
    validate: Callable[[Any], Any]
    """A mapping, or an object of the model -> an object of the model."""
    encode: Callable[[Any], bytes]
    """An object of the model -> JSON, secrets revealed."""
    decode: Callable[[bytes], Any]
    """JSON -> an object of the model."""
    to_builtins: Callable[[Any], Any]
    """An object of the model -> what msgspec's encoders take."""
    from_builtins: Callable[[Any], Any]
    """The reverse, for params that came by MessagePack."""
    fields: frozenset[str]
    """Names of the model's fields; empty for a mapping."""
    encode_into: Callable[[Any, bytearray], None] | None = None
    """``encode``, into a buffer that it cuts to the JSON's length; None where the library has no such call."""
    encode_packed_into: Callable[[Any, bytearray], None] | None = None
    """The same for MessagePack, where that is the same as by way of ``to_builtins``; else None."""
    decode_packed: Callable[[bytes], Any] | None = None
    """MessagePack -> an object of the model, where that is the same as by way of ``from_builtins``; else None."""
    converts: bool = False
    """``validate`` of a plain dict is no more than ``msgspec.convert(value, model)``."""


def reveal(value: Any) -> Any:
    """``enc_hook``: pydantic's secrets, and whatever else shows its value by ``get_secret_value``."""
    if hasattr(value, "get_secret_value"):
        found = value.get_secret_value()
        return found.decode() if isinstance(found, bytes) else found
    raise TypeError(f"values of type {type(value).__name__} cannot be written to a queue")


def conceal(kind: Any, value: Any) -> Any:
    """``dec_hook``, the reverse of ``reveal``."""
    if not hasattr(kind, "get_secret_value"):
        raise TypeError(f"values of type {getattr(kind, '__name__', kind)} cannot be read from a queue")
    if isinstance(value, get_origin(kind) or kind):
        return value
    if not hasattr(kind, "__get_pydantic_core_schema__"):
        return kind(value)
    try:
        return secret_validator(kind)(value)
    except ValueError as exc:  # what pydantic says of it repeats the value
        raise ValueError(exc.errors()[0]["msg"]) from None  # type: ignore[attr-defined]


@functools.cache
def secret_validator(kind: Any) -> Callable[[Any], Any]:
    return sys.modules["pydantic"].TypeAdapter(kind).validate_python  # type: ignore[no-any-return]


def unmask(shown: Any, value: Any) -> Any:
    """JSON data with each masked secret in it, at any depth, replaced by what ``value``, the same in Python, has
    there."""
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(shown, dict) and isinstance(value, Mapping) and len(shown) == len(value):
        return {name: unmask(*pair) for name, *pair in zip(shown, shown.values(), value.values(), strict=True)}
    if isinstance(shown, list) and isinstance(value, Collection) and len(shown) == len(value):
        return [unmask(*pair) for pair in zip(shown, value, strict=True)]
    return shown


def adapter_for(model: Any) -> ParamsAdapter:
    """The adapter of a params model.

    Raises:
        TaskDecoratorError: the model is of no kind that params can have.
    """
    if model is Params:
        return mapping_adapter()
    if isinstance(model, type) and hasattr(model, "model_validate") and hasattr(model, "model_fields"):
        return pydantic_adapter(model)
    if isinstance(model, type) and dataclasses.is_dataclass(model) and hasattr(model, "__pydantic_validator__"):
        return pydantic_dataclass_adapter(model)
    return msgspec_adapter(model)


def mapping_adapter() -> ParamsAdapter:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    encoder = json_encoder()

    return ParamsAdapter(
        model=Params,
        validate=Params,
        encode=encoder.encode,
        encode_into=encoder.encode_into,
        decode=lambda raw: Params(decode(raw)),
        to_builtins=lambda params: msgspec.to_builtins(params, enc_hook=reveal),
        from_builtins=lambda value: Params(msgspec.convert(value, dict[str, Any])),
        fields=frozenset(),
    )


def msgspec_adapter(model: Any) -> ParamsAdapter:
    try:
        decoder = msgspec.json.Decoder(model, dec_hook=conceal)
        kind = type_info(model)
    except (TypeError, NameError) as exc:
        raise TaskDecoratorError(f"{model!r} cannot be a params model: {exc}") from exc
    if not is_object(kind):
        raise TaskDecoratorError(f"{model!r} cannot be a params model: its values are not written as a JSON object")
    origin = getattr(model, "__origin__", model)
    is_mapping = isinstance(kind, TypedDictType | DictType)
    secret = has_secret(model, {})
    convert = msgspec.convert

    if secret:

        def validate(value: Any) -> Any:
            return value if not is_mapping and isinstance(value, origin) else convert(value, model, dec_hook=conceal)

    elif is_mapping:

        def validate(value: Any) -> Any:
            return convert(value, model)

    else:

        def validate(value: Any) -> Any:
            return value if isinstance(value, origin) else convert(value, model)

    native = is_same_in_both(kind, set())
    encoder = json_encoder()
    return ParamsAdapter(
        model=model,
        encode_packed_into=msgspec.msgpack.Encoder().encode_into if native else None,
        decode_packed=msgspec.msgpack.Decoder(model).decode if native else None,
        validate=validate,
        encode=encoder.encode,
        encode_into=encoder.encode_into,
        decode=decoder.decode,
        to_builtins=lambda params: msgspec.to_builtins(params, enc_hook=reveal),
        from_builtins=lambda value: convert(value, model, dec_hook=conceal),
        fields=frozenset() if isinstance(kind, DictType) else frozenset(field_names(origin)),
        converts=not secret and (is_mapping or isinstance(kind, StructType | DataclassType)),
    )


def is_object(kind: Any) -> bool:
    """Whether values of a type, as msgspec describes it, are written as a JSON object."""
    if isinstance(kind, UnionType):
        return all(map(is_object, kind.types))
    if isinstance(kind, StructType):
        return not kind.array_like
    return isinstance(kind, DataclassType | TypedDictType | DictType)


NATIVE = (
    msgspec.inspect.BoolType,
    msgspec.inspect.FloatType,
    msgspec.inspect.IntType,
    msgspec.inspect.NoneType,
    msgspec.inspect.StrType,
)


def is_same_in_both(kind: Any, seen: set[Any]) -> bool:
    """Whether values of a type look the same in MessagePack as in JSON: no times, bytes, decimals, unknown types."""
    if isinstance(kind, NATIVE):
        return True
    if isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        return is_same_in_both(kind.item_type, seen)
    if isinstance(kind, msgspec.inspect.TupleType):
        return all(is_same_in_both(item, seen) for item in kind.item_types)
    if isinstance(kind, msgspec.inspect.DictType):
        return isinstance(kind.key_type, msgspec.inspect.StrType) and is_same_in_both(kind.value_type, seen)
    if isinstance(kind, msgspec.inspect.UnionType):
        return all(is_same_in_both(item, seen) for item in kind.types)
    if isinstance(kind, msgspec.inspect.StructType):
        if kind.cls in seen:
            return True
        seen.add(kind.cls)
        return not kind.array_like and all(is_same_in_both(part.type, seen) for part in kind.fields)
    return False


def field_names(model: Any) -> Iterator[str]:
    if fields := getattr(model, "__struct_fields__", None):
        yield from fields
    elif dataclasses.is_dataclass(model):
        yield from (field.name for field in dataclasses.fields(model))
    elif attrs := getattr(model, "__attrs_attrs__", None):
        yield from (field.name for field in attrs)
    else:
        yield from getattr(model, "__annotations__", ())


def json_encoder() -> msgspec.json.Encoder:
    return msgspec.json.Encoder(enc_hook=reveal)


def pydantic_adapter(model: Any) -> ParamsAdapter:
    fields = model.model_fields
    config = model.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    by_alias = not by_name and any(field.alias or field.validation_alias for field in fields.values())
    encode = pydantic_encoder(model, config, by_alias)
    if model.__pydantic_complete__ or model.model_rebuild(raise_errors=False):
        validate = model.__pydantic_validator__.validate_python
        decode = model.__pydantic_validator__.validate_json
    else:  # it names a model that is defined further down
        validate, decode = model.model_validate, model.model_validate_json

    return ParamsAdapter(
        model=model,
        validate=lambda value: value if isinstance(value, model) else validate(value),
        encode=encode,
        decode=decode,
        to_builtins=lambda params: msgspec.json.decode(encode(params)),
        from_builtins=lambda value: decode(msgspec.json.encode(value)),
        fields=frozenset(fields),
    )


def pydantic_encoder(model: Any, config: Any, by_alias: bool) -> Callable[[Any], bytes]:
    """What writes a pydantic model or dataclass as JSON, secrets revealed, NaN as null."""
    modes = {
        "inf_nan_mode": "strings" if config.get("ser_json_inf_nan") == "strings" else "null",
        "bytes_mode": config.get("ser_json_bytes", "utf8"),
        "timedelta_mode": config.get("ser_json_timedelta", "iso8601"),
    }
    plain = config.get("ser_json_inf_nan") != "constants" and not has_secret(model, {})

    # No warnings: they would show values, and whoever reads the payload validates it.
    def encode(params: Any) -> bytes:
        serializer = model.__pydantic_serializer__
        if plain:
            raw: bytes = serializer.to_json(params, by_alias=by_alias, warnings=False)
            if MASKED not in raw:
                return raw
        values = unmask(
            serializer.to_python(params, mode="json", by_alias=by_alias, warnings=False),
            serializer.to_python(params, by_alias=by_alias, warnings=False),
        )
        return sys.modules["pydantic_core"].to_json(values, fallback=reveal, **modes)  # type: ignore[no-any-return]

    return encode


def has_secret(annotation: Any, seen: dict[int, Any]) -> bool:
    """Whether a type holds, at any depth, a type that hides its value (``get_secret_value``)."""
    if id(annotation) in seen:
        return False
    seen[id(annotation)] = annotation
    if isinstance(annotation, type) and hasattr(annotation, "get_secret_value"):
        return True
    if any(has_secret(part, seen) for part in (get_origin(annotation), *get_args(annotation))):
        return True
    fields = getattr(annotation, "model_fields", None) or getattr(annotation, "__pydantic_fields__", None)
    if isinstance(fields, dict):
        return any(has_secret(field.annotation, seen) for field in fields.values())
    try:
        hints = get_type_hints(annotation) if isinstance(annotation, type) else {}
    except Exception:  # a name that cannot be resolved: the model's library will say so, if it minds
        return False
    return any(has_secret(hint, seen) for hint in hints.values())


def pydantic_dataclass_adapter(model: Any) -> ParamsAdapter:
    validator = model.__pydantic_validator__
    encode = pydantic_encoder(model, getattr(model, "__pydantic_config__", {}), False)

    return ParamsAdapter(
        model=model,
        validate=lambda value: value if isinstance(value, model) else validator.validate_python(value),
        encode=encode,
        decode=validator.validate_json,
        to_builtins=lambda params: msgspec.json.decode(encode(params)),
        from_builtins=lambda value: validator.validate_json(msgspec.json.encode(value)),
        fields=frozenset(field.name for field in dataclasses.fields(model)),
    )


def params_error(task_name: str, exc: BaseException, params: Any = None) -> ParamsError:
    """Says which field of a task's params is wrong, without repeating any value of theirs."""
    errors = getattr(exc, "errors", None)
    if callable(errors):  # pydantic
        first, *others = errors(include_url=False, include_input=False)
        field = ".".join(str(part) for part in first["loc"])
        why = printable(str(first["msg"]), MAX_ERROR) + (f" (and {len(others)} more)" if others else "")
    else:
        why = error_text(exc) or type(exc).__name__
        found = PATH.search(why)
        missing = MISSING.search(why)
        field = (found.group(1) if found else "") or (missing.group(1) if missing else "")
        if not field and params is not None:
            field = unwritable_field(params)
    where = f", field {quoted(field)}" if field else ""
    return ParamsError(f"invalid params for task {task_name!r}{where}: {why}", task_name=task_name, field=field)


def cause_of(exc: BaseException) -> BaseException | None:
    """Return what a ``params_error`` is chained to.

    An error of pydantic's becomes one that does not show the values, which may be secrets, in its text; its
    ``errors()`` has them still.
    """
    core = sys.modules.get("pydantic_core")
    if core is None or not isinstance(exc, core.ValidationError):
        return None if callable(getattr(exc, "errors", None)) else exc
    lines = [
        {"type": core.PydanticCustomError(e["type"], e["msg"], e.get("ctx")), "loc": e["loc"], "input": e["input"]}
        for e in exc.errors(include_url=False)
    ]
    hidden: Exception = core.ValidationError.from_exception_data(exc.title, lines, hide_input=True)
    return hidden


def unwritable_field(params: Any) -> str:
    encode = json_encoder().encode
    for name, value in items(params):
        try:
            encode(value)
        except Exception:
            return name
    return ""


def items(params: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(params, Mapping):
        yield from ((str(name), value) for name, value in params.items())
    elif hasattr(type(params), "model_fields"):  # pydantic: declared or extra, its own or inherited
        yield from {**vars(params), **(params.__pydantic_extra__ or {})}.items()
    else:
        yield from ((name, getattr(params, name, None)) for name in field_names(type(params)))


def non_finite_field(params: Any) -> str | None:
    """The field with the first NaN or infinity in params, or None. JSON has no number for them."""
    config = getattr(type(params), "model_config", None) or getattr(type(params), "__pydantic_config__", {})
    if config.get("ser_json_inf_nan") == "strings":
        return None
    for name, value in items(params):
        if is_non_finite(value):
            return name
    return None


def is_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(is_non_finite(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(is_non_finite(item) for item in value)
    if any(hasattr(type(value), mark) for mark in MODEL_MARKS):
        return any(is_non_finite(item) for _, item in items(value))
    return False
