"""Params of a task: the kinds of model that a task may name, and how each is validated, written and read.

``msgspec.Struct``, dataclass, TypedDict, attrs class and ``dict`` go through msgspec; a pydantic model or pydantic
dataclass through pydantic, which is imported by whoever defined that model and never by us. A task that names no
model gets ``Params``, a mapping that also reads as attributes and keeps every key.
"""

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec.inspect import DataclassType, DictType, StructType, TypedDictType, UnionType, type_info

from ..errors import ParamsError, TaskDecoratorError
from ..texts import MAX_ERROR, error_text, printable, quoted
from .bag import Bag
from .model import adapter

__all__ = [
    "Params",
    "ParamsAdapter",
    "adapter_for",
    "cause_of",
    "is_pydantic_model",
    "items",
    "known_params",
    "made_of_call",
    "params_error",
    "read_json",
    "read_params",
    "without_constants",
    "write_params",
]

PATH = re.compile(r"at `\$\.?([^`]*)`")
MASKED = b"**********"
"""How pydantic shows a secret."""
MODEL_MARKS = ("__struct_fields__", "__dataclass_fields__", "__attrs_attrs__", "__pydantic_validator__")
CONSTANT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?Infinity|NaN', re.DOTALL)
"""A text of JSON, or what Python's ``json`` writes for a float that JSON has no number for."""
OF_CALL = "__fluidfast_of_call__"
"""Set on a model that was made of a function's arguments."""
UNKNOWN = ("unknown field", "Extra inputs")
"""How msgspec and pydantic say that a model has no such field."""
MISSING = re.compile(r"(?:missing required|unknown) field `([^`]*)`")


class Params(Bag):
    """Params of a task that names no model. They have the methods of a pydantic model that users call."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, handler(dict[str, Any]))

    def model_dump(self, *, mode: str = "python", **options: Any) -> dict[str, Any]:
        """Return a plain dict. ``mode="json"``: of what JSON has, secrets masked. ``options``: those of pydantic."""
        if options:
            return adapter(dict[str, Any]).dump_python(dict(self), mode=mode, **options)  # type: ignore[no-any-return]
        return msgspec.to_builtins(dict(self), enc_hook=str, str_keys=True) if mode == "json" else dict(self)

    def model_dump_json(self, **options: Any) -> str:
        """Return JSON text, secrets masked. ``options``: those of pydantic."""
        if options:
            return adapter(dict[str, Any]).dump_json(dict(self), **options).decode()  # type: ignore[no-any-return]
        return msgspec.json.encode(self.model_dump(mode="json")).decode()


@dataclasses.dataclass(frozen=True, slots=True)
class ParamsAdapter:
    """The functions of a params model that the codec needs. The callables raise whatever their library raises."""

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
    from_json: Callable[[Any], Any]
    """Plain data that Python's ``json`` read, NaN and infinities included -> an object of the model."""
    to_json: Callable[[Any], bytes]
    """``encode`` that writes NaN and infinities as Python's ``json`` does."""
    fields: frozenset[str]
    """Names of the model's fields; empty for a mapping."""
    from_texts: Callable[[Any], Any]
    """A mapping whose values may be texts of numbers, booleans and null -> an object of the model."""
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


def made_of_call(model: Any) -> Any:
    """Mark a model as made of a function's arguments. It refuses unknown params of callers, and workers ignore them."""
    setattr(model, OF_CALL, True)
    return model


def known_params(adapter: ParamsAdapter, value: Any) -> dict[str, Any] | None:
    """Return params from a queue without those that the function does not take. None if there are none of these.

    A release may add an argument to a function, or drop one, while older and newer workers run: as with other models,
    a worker ignores what it does not know.
    """
    if not getattr(adapter.model, OF_CALL, False) or not isinstance(value, dict) or value.keys() <= adapter.fields:
        return None
    return {name: value[name] for name in value.keys() & adapter.fields}


def adapter_for(model: Any) -> ParamsAdapter:
    """The adapter of a params model.

    Raises:
        TaskDecoratorError: the model is of no kind that params can have.
    """
    if model is Params:
        return mapping_adapter()
    if isinstance(model, type) and hasattr(model, "__pydantic_validator__"):  # a model or a dataclass
        return pydantic_adapter(model)
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
        from_json=lambda value: Params(msgspec.convert(value, dict[str, Any])),
        to_json=json_with_constants,
        fields=frozenset(),
        from_texts=Params,
    )


def msgspec_adapter(model: Any) -> ParamsAdapter:
    try:
        decoder = msgspec.json.Decoder(model, dec_hook=conceal)
        kind = type_info(model)
    except (TypeError, NameError) as exc:
        raise TaskDecoratorError(f"{model!r} cannot be a params model: {exc}") from exc
    if not is_object(kind):
        raise TaskDecoratorError(f"{model!r} cannot be a params model: its values are not written as a JSON object")
    if (lost := private_attribute(kind, {})) is not None:
        raise TaskDecoratorError(
            f"{model!r} cannot be a params model: attribute {lost!r} of an attrs class is private, so it is not written"
        )
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
        from_json=lambda value: convert(value, model, dec_hook=conceal, str_keys=True),
        to_json=json_with_constants,
        fields=frozenset() if isinstance(kind, DictType) else frozenset(field_names(origin)),
        from_texts=lambda value: convert(value, model, strict=False, dec_hook=conceal),
        converts=not secret and (is_mapping or isinstance(kind, StructType | DataclassType)),
    )


def json_with_constants(params: Any) -> bytes:
    """The JSON of an object that msgspec knows, with NaN and infinities as Python's ``json`` writes them."""
    values = msgspec.to_builtins(params, enc_hook=reveal, str_keys=True)
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def without_constants(raw: bytes) -> bytes | None:
    """JSON with null for each NaN, Infinity and -Infinity outside texts; None if it holds none of them."""
    if b"NaN" not in raw and b"Infinity" not in raw:
        return None
    made = CONSTANT.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", raw)
    return None if made == raw else made


def read_json(raw: bytes) -> Any:
    """JSON as builtins, also with the NaN and infinities of Python's ``json``. Raises what msgspec raises."""
    if (plain := without_constants(raw)) is None:
        return msgspec.json.decode(raw)
    msgspec.json.decode(plain)  # all else in it is as JSON should be
    return json.loads(raw)


def write_params(adapter: ParamsAdapter, params: Any) -> bytes:
    """Params for another process of this library, NaN among them or not. ``read_params`` reads them."""
    return adapter.encode(params) if non_finite_field(params) is None else adapter.to_json(params)


def read_params(adapter: ParamsAdapter, raw: bytes) -> Any:
    """Params in JSON that Python's ``json`` may have written. Raises what the model's library raises."""
    try:
        return adapter.decode(raw)
    except Exception:
        if without_constants(raw) is None:
            raise
    return adapter.from_json(json.loads(raw))


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


def private_attribute(kind: Any, seen: dict[int, Any]) -> str | None:
    """The first attribute, at any depth, that msgspec reads but does not write; None if there is none."""
    if isinstance(kind, list | tuple):
        return next((lost for part in kind if (lost := private_attribute(part, seen)) is not None), None)
    if not isinstance(kind, msgspec.inspect.Type | msgspec.inspect.Field) or id(kind) in seen:
        return None
    seen[id(kind)] = kind
    if isinstance(kind, DataclassType) and hasattr(kind.cls, "__attrs_attrs__"):
        for part in kind.fields:
            if part.name.startswith("_"):
                return part.name
    return private_attribute([getattr(kind, name) for name in kind.__struct_fields__ if name != "default"], seen)


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
    """The adapter of a pydantic model or a pydantic dataclass."""
    writer = PydanticWriter(model)
    if is_complete(model):
        writer.prepare()  # raises if no worker could read the model
        validate = model.__pydantic_validator__.validate_python
        decode = model.__pydantic_validator__.validate_json
    else:  # it names a model that is defined further down
        validate = lambda value: model.__pydantic_validator__.validate_python(value)  # noqa: E731
        decode = lambda raw: model.__pydantic_validator__.validate_json(raw)  # noqa: E731
    encode = writer.encode
    return ParamsAdapter(
        model=model,
        validate=lambda value: value if isinstance(value, model) else validate(value),
        encode=encode,
        decode=decode,
        to_builtins=lambda params: msgspec.json.decode(encode(params)),
        from_builtins=lambda value: decode(msgspec.json.encode(value)),
        from_json=lambda value: decode(json.dumps(value)),
        to_json=lambda params: encode(params, constants=True),
        fields=frozenset(getattr(model, "model_fields", None) or model.__pydantic_fields__),
        from_texts=lambda value: validate(value),
    )


def is_pydantic_model(model: Any) -> bool:
    """Return whether this is a class of pydantic's models. A record of fluidfast has only their methods."""
    return hasattr(model, "__pydantic_validator__") and hasattr(model, "model_fields")


def is_complete(model: Any) -> bool:
    if getattr(model, "__pydantic_complete__", True):
        return True
    return bool(hasattr(model, "model_rebuild") and model.model_rebuild(raise_errors=False))


class PydanticWriter:
    """Writes a pydantic model or dataclass as the JSON from which its validator makes the same object again: secrets
    revealed, NaN as null."""

    def __init__(self, model: Any) -> None:
        config = getattr(model, "model_config", None) or getattr(model, "__pydantic_config__", None) or {}
        self.model = model
        self.wire: Wire | None = None
        self.modes = {
            "inf_nan_mode": "strings" if config.get("ser_json_inf_nan") == "strings" else "null",
            "bytes_mode": config.get("ser_json_bytes", "utf8"),
            "timedelta_mode": config.get("ser_json_timedelta", "iso8601"),
        }
        self.plain = config.get("ser_json_inf_nan") != "constants" and not has_secret(model, {})

    def prepare(self) -> "Wire":
        self.wire = wire_of(self.model, self.model.__pydantic_serializer__)
        return self.wire

    def encode(self, params: Any, constants: bool = False) -> bytes:
        wire = self.wire or self.prepare()
        raw = b""
        plain = self.plain and not constants
        if plain:
            # No warnings: they would show values, and whoever reads the payload validates it.
            raw = wire.serializer.to_json(params, by_alias=True, round_trip=True, warnings=False)
        if not plain or MASKED in raw:
            shown, values = (
                wire.serializer.to_python(params, mode=mode, by_alias=True, round_trip=True, warnings=False)
                for mode in ("json", "python")
            )
            modes = {**self.modes, "inf_nan_mode": "constants"} if constants else self.modes
            raw = sys.modules["pydantic_core"].to_json(unmask(shown, values), fallback=reveal, **modes)
        if wire.doubtful:
            self.check(raw, params, wire.compared)
        return raw

    def check(self, raw: bytes, params: Any, compared: bool) -> None:
        """Raise UnreadableError if the validator does not read what was written, or (``compared``) reads something
        else."""
        try:
            read = self.model.__pydantic_validator__.validate_json(raw)
        except Exception as exc:
            if non_finite_field(params) is None:  # else the codec says which field holds a NaN
                raise UnreadableError from exc
            return
        if compared and read != params:
            raise UnreadableError(next((name for name, value in items(params) if getattr(read, name) != value), ""))


class UnreadableError(ValueError):
    """Params that a worker could not read as they are. The cause says why; without one the argument names the field
    that would arrive as another value."""


@dataclasses.dataclass(slots=True)
class Wire:
    """How a pydantic model is written to a queue."""

    serializer: Any
    """The model's own, or one made for the queue if that writes something else than the validator reads."""
    doubtful: bool = False
    """Serializers of the application's write a part of it, so only the validator knows whether it can be read: each
    object is read before it is queued."""
    compared: bool = False
    """It may be read as another value, too: each object is compared with how it is read."""


@functools.lru_cache(maxsize=512)
def wire_of(model: Any, serializer: Any) -> Wire:
    """The wire of a complete model. ``serializer``: its own, which is another one after a ``model_rebuild``.

    Raises:
        TaskDecoratorError: a worker could not read one of the fields.
    """
    wire = Wire(serializer)
    rewriter = WireSchema(model, wire)
    schema = rewriter.rewritten(model.__pydantic_core_schema__)
    if rewriter.changed:
        core = sys.modules["pydantic_core"]
        try:
            wire.serializer = core.SchemaSerializer(schema, None, False)  # not with those that inner models have
        except TypeError:  # pydantic before 2.12
            wire.serializer = core.SchemaSerializer(schema)
            wire.doubtful = wire.compared = True
    return wire


NO_SCHEMA = frozenset(
    (
        "cls", "config", "ctx", "custom_error_context", "default", "discriminator", "expected", "function", "members",
        "metadata",
    )
)  # fmt: skip
"""Keys of a core schema that hold something else than schemas."""
OPAQUE = frozenset(("any", "callable", "function-plain", "is-instance", "is-subclass"))
"""Core schemas of which pydantic does not know how values are written."""


class WireSchema:
    """Rewrites the core schema of a model for the serializer that writes it to queues.

    Each field is written under a name that the validator reads, also one that is excluded. Serializers with
    ``when_used="json"`` are for readers of another kind, and are not applied, as in aio-fluid.
    """

    def __init__(self, model: Any, wire: Wire) -> None:
        self.model = model
        self.wire = wire
        self.changed = False
        self.within_json = 0

    def rewritten(self, schema: Any, by_name: bool = False, path: str = "") -> Any:
        """A copy of a part of the schema. ``by_name``: its fields may be read by their own names. ``path``: of the
        field that it describes."""
        if isinstance(schema, list | tuple):
            return type(schema)([self.rewritten(part, by_name, path) for part in schema])
        if not isinstance(schema, Mapping):
            return schema
        kind = schema.get("type")
        if kind in ("model", "dataclass", "typed-dict") and (config := schema.get("config")) is not None:
            by_name = bool(
                config.get("populate_by_name")
                or config.get("validate_by_name")
                or config.get("validate_by_alias") is False
            )
        if self.within_json and hasattr(schema.get("cls"), "get_secret_value"):
            raise self.refused(path, "a secret that is a part of a Json text stays masked there")
        self.within_json += kind == "json"
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in NO_SCHEMA:
                made[key] = value
            elif key == "fields":
                made[key] = self.fields(value, by_name, path)
            else:
                made[key] = self.rewritten(value, by_name, path)
        self.within_json -= kind == "json"
        if "function" in made.get("serialization", ()):
            self.choose_serializer(made)
        return made

    def fields(self, fields: Any, by_name: bool, path: str) -> Any:
        """The fields of a model or TypedDict (by name), or those of a dataclass (a list)."""
        if isinstance(fields, Mapping):
            return {name: self.field(name, field, by_name, path) for name, field in fields.items()}
        return [
            self.field(field["name"], field, by_name, path) if isinstance(field, Mapping) else field for field in fields
        ]

    def field(self, name: str, field: Mapping[str, Any], by_name: bool, path: str) -> dict[str, Any]:
        path = f"{path}.{name}" if path else name
        made: dict[str, Any] = self.rewritten(field, by_name, path)
        key = name if by_name else key_of(field.get("validation_alias", name))
        if key is None:
            raise self.refused(
                path, "its alias is a path; name it by a plain alias too (AliasChoices), or allow its name"
            )
        if field.get("init_only") and field["schema"]["type"] != "default":
            raise self.refused(path, "an InitVar is not kept, so it cannot be written")
        if field.get("init_only") or field.get("init") is False:
            self.wire.doubtful = self.wire.compared = True
        wanted: dict[str, Any] = {"serialization_alias": key if key != name else None, "serialization_exclude_if": None}
        wanted["serialization_exclude"] = True if field.get("init") is False else None
        for option, value in wanted.items():
            if made.get(option) != value:
                self.changed = True
                made.pop(option, None)
                if value is not None:
                    made[option] = value
        return made

    def refused(self, path: str, why: str) -> TaskDecoratorError:
        return TaskDecoratorError(f"{self.model!r} cannot be a params model: field {path!r} cannot be read back: {why}")

    def choose_serializer(self, made: dict[str, Any]) -> None:
        """Take a function that is for JSON only out of a schema, unless values could not be written without it."""
        chosen = made["serialization"]
        if str(getattr(chosen["function"], "__module__", "")).startswith("pydantic"):
            return
        if chosen.get("when_used") not in ("json", "json-unless-none"):
            self.wire.doubtful = True
            return
        self.changed = True
        if is_opaque(made):
            at = 1 if chosen.get("is_field_serializer") else 0
            made["serialization"] = {**chosen, "function": if_needed(chosen["function"], at)}
            self.wire.doubtful = True
        else:
            del made["serialization"]


def key_of(alias: Any) -> str | None:
    """A plain name by which a field is read; None if there are only paths into something."""
    if isinstance(alias, str):
        return alias
    paths = alias if alias and isinstance(alias[0], list | tuple) else [alias]
    return next((path[0] for path in paths if len(path) == 1 and isinstance(path[0], str)), None)


def is_opaque(schema: Any) -> bool:
    while (inner := schema.get("schema") or schema.get("lax_schema") or schema.get("python_schema")) is not None:
        if schema["type"] in OPAQUE or not isinstance(inner, Mapping):
            break
        schema = inner
    return schema["type"] in OPAQUE


def if_needed(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """A serializer that leaves values as they are that can be written. ``at``: which of its arguments is the value."""

    def serialize(*args: Any) -> Any:
        try:
            sys.modules["pydantic_core"].to_json(args[at])
        except ValueError:
            return function(*args)
        return args[at]

    return serialize


def has_secret(annotation: Any, seen: dict[int, Any]) -> bool:
    """Whether a type holds, at any depth, a type that hides its value (``get_secret_value``)."""
    if id(annotation) in seen:
        return False
    seen[id(annotation)] = annotation
    if isinstance(annotation, type) and hasattr(annotation, "get_secret_value"):
        return True
    if any(has_secret(part, seen) for part in (get_origin(annotation), *get_args(annotation))):
        return True
    if hasattr(annotation, "__pydantic_validator__"):
        fields = getattr(annotation, "model_fields", None) or annotation.__pydantic_fields__
        return any(has_secret(field.annotation, seen) for field in fields.values())
    try:
        hints = get_type_hints(annotation) if isinstance(annotation, type) else {}
    except Exception:  # a name that cannot be resolved: the model's library will say so, if it minds
        return False
    return any(has_secret(hint, seen) for hint in hints.values())


def params_error(task_name: str, exc: BaseException, params: Any = None, *, known: Iterable[str] = ()) -> ParamsError:
    """Says which field of a task's params is wrong, without repeating any value of theirs. ``known``: its fields."""
    field, why = reason_of(exc, params)
    if any(text in why for text in UNKNOWN):
        close = get_close_matches(field, list(known), 1)
        why += f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}" if known else ""
    where = f", field {quoted(field)}" if field else ""
    return ParamsError(f"invalid params for task {task_name!r}{where}: {why}", task_name=task_name, field=field)


def reason_of(exc: BaseException, params: Any = None) -> tuple[str, str]:
    """The field that an error is about, and what it says of it."""
    if isinstance(exc, UnreadableError):
        if exc.__cause__ is None:
            return str(exc), "as it is written, a worker would read another value"
        field, why = reason_of(exc.__cause__)
        return field, f"as it is written, a worker could not read it: {why}"
    errors = getattr(exc, "errors", None)
    if callable(errors):  # pydantic
        first, *others = errors(include_url=False, include_input=False)
        field = ".".join(str(part) for part in first["loc"])
        return field, printable(str(first["msg"]), MAX_ERROR) + (f" (and {len(others)} more)" if others else "")
    why = error_text(exc) or type(exc).__name__
    found = PATH.search(why)
    missing = MISSING.search(why)
    field = (found.group(1) if found else "") or (missing.group(1) if missing else "")
    if not field and params is not None:
        field = unwritable_field(params)
    return field, why


def cause_of(exc: BaseException) -> BaseException | None:
    """Return what a ``params_error`` is chained to.

    An error of pydantic's becomes one that does not show the values, which may be secrets, in its text; its
    ``errors()`` has them still.
    """
    if isinstance(exc, UnreadableError) and exc.__cause__ is not None:
        exc = exc.__cause__
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
    elif is_pydantic_model(type(params)):  # pydantic: declared or extra, its own or inherited
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
