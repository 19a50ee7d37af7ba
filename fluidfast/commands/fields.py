"""The fields of a task's params model: as options of ``exec NAME``, and as columns of a table of texts.

A field of a plain type is ``--name VALUE``, a boolean ``--name/--no-name``, an enum or a Literal a choice, a list of
plain values the option again and again; anything else is JSON. The model's own decoder reads each value, so
a value means the same here as on a queue.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from ..core.params import Params, is_pydantic_model
from ..core.task import Task

__all__ = ["JSON", "RESERVED", "Columns", "FieldOptions", "field_name"]

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
    Choice = click.Choice[str]
else:  # they take no arguments in click 8.1
    ParamType = click.ParamType
    Choice = click.Choice

RESERVED = frozenset(("help", "log", "params", "run_id"))
"""Names that ``exec`` has options of its own for. A field of such a name is given by --params."""

inspect = msgspec.inspect
SEQUENCES = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType, inspect.CollectionType)
STRUCTURED = (
    *SEQUENCES,
    inspect.DictType,
    inspect.TypedDictType,
    inspect.StructType,
    inspect.DataclassType,
    inspect.NamedTupleType,
    inspect.TupleType,
    inspect.AnyType,
)


class JsonValue(ParamType):
    """A value written as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str | bytes):
            return value
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as exc:
            self.fail(f"this is not JSON: {exc}", param, ctx)


class OneOf(Choice):
    """A choice between values; gives the value that is written like what was given."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.by_label = {str(value): value for value in values}
        super().__init__(list(self.by_label))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.by_label[super().convert(value, param, ctx)]


JSON = JsonValue()


@dataclass(frozen=True)
class Field:
    """One field of a params model. ``key``: its name in JSON."""

    name: str
    key: str
    annotation: Any
    required: bool
    default: Any = None
    description: str = ""


class FieldOptions:
    """The options of one task."""

    def __init__(self, task: Task[Any]) -> None:
        self.keys: dict[str, str] = {}
        self.options: list[click.Option] = []
        reserved: list[str] = []
        for field in model_fields(task.params_model):
            if field.name in RESERVED:
                reserved.append(field.key)
            elif field.name.isidentifier():
                self.keys[field.name] = field.key
                self.options.append(option_of(field))
        self.hint = f" The only way to give {', '.join(reserved)}." if reserved else ""

    def given(self, ctx: click.Context) -> dict[str, Any]:
        """Return the fields that the command line gives, by name, in JSON. The model fills in the others."""
        sources = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        return {key: ctx.params[name] for name, key in self.keys.items() if ctx.get_parameter_source(name) in sources}


class Columns:
    """Makes params of a row of a table, for the fields of one task. ``required``: fields without a default."""

    def __init__(self, task: Task[Any]) -> None:
        fields = list(model_fields(task.params_model))
        self.known = frozenset(field.key for field in fields)
        self.required = frozenset(field.key for field in fields if field.required)
        self._nullable = frozenset(field.key for field in fields if allows_none(field.annotation))
        self._structured = frozenset(field.key for field in fields if is_structured(field.annotation))

    def of_texts(self, row: Mapping[str, str]) -> dict[str, Any]:
        """Return the values of a row of texts. An empty one is left out: the default of its field applies. That of a
        field with a structure is JSON.

        Raises:
            ValueError: it is not JSON.
        """
        values: dict[str, Any] = {}
        for name, text in row.items():
            if not text and name in self.known:
                if name in self.required:
                    values[name] = None if name in self._nullable else ""
            elif name in self._structured:
                try:
                    values[name] = msgspec.json.decode(text)
                except (msgspec.DecodeError, RecursionError) as exc:
                    raise ValueError(f"column {name!r} is not JSON: {exc}") from None
            else:
                values[name] = text
        return values

    def of_values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row without the nulls of fields that cannot be null and have a default."""
        optional = self.known - self.required - self._nullable
        return {name: value for name, value in row.items() if value is not None or name not in optional}


def field_name(task: Task[Any], key: str) -> str:
    """Return the name of the params field that has this name in JSON."""
    return next((field.name for field in model_fields(task.params_model) if field.key == key), key)


def model_fields(model: Any) -> Iterator[Field]:
    """The fields of a params model of any kind; of a mapping: none."""
    if model is Params:
        return
    if is_pydantic_model(model):
        yield from pydantic_fields(model)
        return
    try:
        info = inspect.type_info(model)
    except TypeError:
        return
    for field in getattr(info, "fields", ()):
        default = None if field.default is msgspec.NODEFAULT else field.default
        kind, description = field.type, ""
        if isinstance(kind, inspect.Metadata):
            description = (kind.extra_json_schema or {}).get("description", "")
        yield Field(field.name, field.encode_name, kind, field.required, default, description)


def pydantic_fields(model: Any) -> Iterator[Field]:
    config = model.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    for name, field in model.model_fields.items():
        alias = field.validation_alias or field.alias
        key = name if by_name or alias is None else alias
        if not isinstance(key, str):  # a path, or a choice of them: --params can say it
            continue
        required = field.is_required()
        default = None if required or field.default_factory is not None else field.default
        yield Field(name, key, field.annotation, required, default, field.description or "")


def option_of(field: Field) -> click.Option:
    kind, multiple = click_type(field.annotation)
    flag = "--" + field.name.replace("_", "-")
    if field.required:
        note = "[required]"
    elif field.default is None:
        note = ""
    else:
        note = f"[default: {label(field.default)}]"
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if kind is click.BOOL else flag, field.name],
        type=None if kind is click.BOOL else kind,
        multiple=multiple,
        default=None,
        help=" ".join(part for part in (field.description, note) if part),
    )


def click_type(annotation: Any) -> tuple[ParamType, bool]:
    """The type of an option, and whether it may be given several times."""
    node = node_of(annotation)
    if isinstance(node, SEQUENCES):
        item = plain_type(node_of(node.item_type))
        return (JSON, False) if item is None else (item, True)
    return plain_type(node) or JSON, False


def node_of(annotation: Any) -> Any:
    """msgspec's description of a type, without None and without what is said about it."""
    try:
        node = annotation if isinstance(annotation, inspect.Type) else inspect.type_info(annotation)
    except TypeError:  # nothing that msgspec knows
        return None
    while isinstance(node, inspect.Metadata):
        node = node.type
    if isinstance(node, inspect.UnionType):
        kinds = [kind for kind in node.types if not isinstance(kind, inspect.NoneType)]
        if len(kinds) == 1:
            return node_of(kinds[0])
    return node


def is_structured(annotation: Any) -> bool:
    kind, multiple = click_type(annotation)
    return multiple or (kind is JSON and not isinstance(node_of(annotation), inspect.AnyType | None))


def allows_none(annotation: Any) -> bool:
    try:
        node = annotation if isinstance(annotation, inspect.Type) else inspect.type_info(annotation)
    except TypeError:
        return False
    while isinstance(node, inspect.Metadata):
        node = node.type
    kinds = node.types if isinstance(node, inspect.UnionType) else (node,)
    return any(isinstance(kind, inspect.NoneType | inspect.AnyType) for kind in kinds)


def plain_type(node: Any) -> ParamType | None:
    """The type of an option whose value is one word; None: it has a structure, so it is written in JSON."""
    if isinstance(node, inspect.BoolType):
        return click.BOOL
    if isinstance(node, inspect.IntType):
        return click.INT
    if isinstance(node, inspect.FloatType):
        return click.FLOAT
    if isinstance(node, inspect.EnumType):
        return OneOf(member.value for member in node.cls)
    if isinstance(node, inspect.LiteralType):
        return OneOf(node.values)
    if isinstance(node, inspect.UnionType):
        return None if any(plain_type(node_of(kind)) is None for kind in node.types) else click.STRING
    if isinstance(node, inspect.CustomType):
        structured = is_pydantic_model(node.cls)
        return None if structured else click.STRING
    return None if isinstance(node, STRUCTURED) else click.STRING


def label(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(label(item) for item in value)
    return str(value)
