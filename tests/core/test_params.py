"""The kinds of params models, each through the codec in both forms; and what is said of params that do not fit."""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, NamedTuple

import attrs
import msgspec
import pydantic
import pytest
from kits.params_kit import SECRET, Box, Model, Struct, T, WithSecret, codecs, task_of
from typing_extensions import TypedDict

from fluidfast.core.params import Params, ParamsAdapter, adapter_for
from fluidfast.errors import ParamsError, PayloadError, TaskDecoratorError, TaskParamsError
from fluidfast.wire._codec import Codec


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    a: int
    b: str = "b"
    c: tuple[float, ...] = ()


@dataclasses.dataclass
class Data:
    a: int
    b: str = "b"
    c: list[float] = dataclasses.field(default_factory=list)


class Typed(TypedDict, total=False):
    a: int
    b: str
    c: list[float]


@attrs.define
class Attrs:
    a: int
    b: str = "b"
    c: list[float] = attrs.field(factory=list)


@pydantic.dataclasses.dataclass
class ModelData:
    a: int
    b: str = "b"
    c: list[float] = dataclasses.field(default_factory=list)


class ModelBox(pydantic.BaseModel, Generic[T]):
    a: T
    b: str = "b"
    c: list[float] = []


MODELS: list[Any] = [Struct, Frozen, Data, Attrs, Model, ModelData, Box[int], ModelBox[int]]


MAPPINGS: list[Any] = [Typed, dict, dict[str, Any], Mapping[str, Any], Params]


models = pytest.mark.parametrize("model", MODELS, ids=lambda model: getattr(model, "__name__", str(model)))


kinds = pytest.mark.parametrize("model", MODELS + MAPPINGS, ids=str)


@kinds
@codecs
def test_there_and_back(model: Any, msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    given = {"a": 1, "b": "é", "c": [0.5, 2.0]}
    run = codec.create(task_of(model), None, "", given, None, None)
    if model in MODELS:
        assert isinstance(run.params, getattr(model, "__origin__", model))
        assert (run.params.a, run.params.b, list(run.params.c)) == (1, "é", [0.5, 2.0])
    else:
        assert run.params == given
        assert run.params is not given
    payload = codec.encode(run)
    if not msgpack:
        assert json.loads(payload)["params"] == given
    read = codec.decode(payload, None)
    assert read.params == run.params
    assert type(read.params) is type(run.params)
    assert codec.decode(codec.encode(read), None).params == run.params


@kinds
@codecs
def test_defaults(model: Any, msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    run = codec.create(task_of(model), None, "", {"a": 1}, None, None)
    if model in MODELS:
        assert (run.params.b, list(run.params.c)) == ("b", [])
    else:
        assert run.params == {"a": 1}
    assert codec.decode(codec.encode(run), None).params == run.params


@models
@codecs
def test_an_object_of_the_model(model: Any, msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    given = model(1, "x") if model not in (Model, ModelBox[int]) else model(a=1, b="x")
    run = codec.create_with(task_of(model), None, "", given, None, None)
    assert run.params is given
    assert codec.decode(codec.encode(run), None).params == given
    other = Struct(1) if model is not Struct else Data(1)
    with pytest.raises(ParamsError, match="invalid params for task 'work'"):
        codec.create_with(task_of(model), None, "", other, None, None)


@models
@codecs
@pytest.mark.parametrize(
    ("given", "field"),
    [({}, "a"), ({"a": "one"}, "a"), ({"a": 1, "b": 2}, "b"), ({"a": 1, "c": 7}, "c"), ({"a": None}, "a")],
)
def test_params_that_do_not_fit(model: Any, msgpack: bool, given: dict[str, Any], field: str) -> None:
    codec = Codec({}, msgpack=msgpack)
    a_task = task_of(model)
    with pytest.raises(ParamsError, match=f"^invalid params for task 'work', field '{field}'") as caught:
        codec.create(a_task, None, "", given, None, None)
    assert (caught.value.task_name, caught.value.field) == ("work", field)
    payload = json.dumps({"id": "x", "task": "work", "params": given}).encode()
    if msgpack:
        payload = msgspec.msgpack.encode(["x", "work", 1, given])
    with pytest.raises(TaskParamsError, match=f"^invalid params for task 'work', field '{field}'") as unread:
        codec.decode(payload, None)
    assert (unread.value.task_name, unread.value.field) == ("work", field)
    assert unread.value.task_run.params == given


@codecs
@pytest.mark.parametrize("model", [Struct, Frozen, Data, Attrs, Typed, Box[int], dict[str, int]], ids=str)
@pytest.mark.parametrize("value", ["5", True, 5.5])
def test_nothing_is_converted(model: Any, value: Any, msgpack: bool) -> None:
    """Neither form is laxer than the other, nor than what ``queue`` takes."""
    codec = Codec({}, msgpack=msgpack)
    with pytest.raises(ParamsError, match=r"field 'a'|\[...\]"):
        codec.create(task_of(model), None, "", {"a": value}, None, None)
    payload = json.dumps({"task": "work", "params": {"a": value}}).encode()
    if msgpack:
        payload = msgspec.msgpack.encode(["x", "work", 1, {"a": value}])
    with pytest.raises(TaskParamsError):
        codec.decode(payload, None)


@models
def test_unknown_fields(model: Any) -> None:
    codec = Codec({})
    a_task = task_of(model)
    if model is Frozen:
        with pytest.raises(ParamsError, match="field 'z'"):
            codec.create(a_task, None, "", {"a": 1, "z": 2}, None, None)
    elif model is ModelData:
        assert codec.create(a_task, None, "", {"a": 1, "z": 2}, None, None).params == model(1)
    else:
        assert codec.create(a_task, None, "", {"a": 1, "z": 2}, None, None).params == model(a=1)


@kinds
def test_names_of_fields(model: Any) -> None:
    names = adapter_for(model).fields
    assert names == (frozenset("abc") if model in MODELS or model is Typed else frozenset())


@pytest.mark.parametrize("keys", [("a", "b"), ("d", "a", "b")])
def test_names_of_inherited_fields(keys: tuple[str, ...]) -> None:
    for base in (Struct, Data, Attrs, Model):
        derived: Any = type("Derived", (base,), {"__annotations__": {"d": int}, "d": 4})
        if base is Data:
            derived = dataclasses.dataclass(derived)
        elif base is Attrs:
            derived = attrs.define(derived)
        assert set(keys) <= adapter_for(derived).fields


class ArrayLike(msgspec.Struct, array_like=True):
    a: int


class Pair(NamedTuple):
    a: int


class Unknown:
    a: int


class LikeParams(dict[str, Any]):
    pass


@dataclasses.dataclass
class Unresolved:
    a: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "model",
    [
        int,
        str,
        object,
        list,
        list[int],
        Any,
        ArrayLike,
        Pair,
        Unknown,
        LikeParams,
        Unresolved,
        Struct | int,
        None,
        7,
        "x",
    ],
    ids=str,
)
def test_what_is_not_written_as_an_object(model: Any) -> None:
    with pytest.raises(TaskDecoratorError, match="cannot be a params model"):
        adapter_for(model)
    if model is not None:
        with pytest.raises(TaskDecoratorError, match="cannot be a params model"):
            task_of(model)


def test_a_union_of_tagged_structs() -> None:
    class Cat(msgspec.Struct, tag=True):
        lives: int

    class Dog(msgspec.Struct, tag=True):
        name: str

    codec = Codec({})
    run = codec.create(task_of(Cat | Dog), None, "", {"type": "Dog", "name": "x"}, None, None)
    assert run.params == Dog("x")
    assert codec.decode(codec.encode(run), None).params == Dog("x")
    assert codec.create_with("work", None, "", Cat(9), None, None).params == Cat(9)


def test_a_model_that_names_a_later_one() -> None:
    class Early(pydantic.BaseModel):
        later: "Later"

    a_task = task_of(Early)

    class Later(pydantic.BaseModel):
        a: int

    Early.model_rebuild()
    codec = Codec({})
    run = codec.create(a_task, None, "", {"later": {"a": 1}}, None, None)
    assert run.params == Early(later=Later(a=1))
    assert codec.decode(codec.encode(run), None).params == run.params


VALUES: dict[str, tuple[Any, Any, Any]] = {  # name: type, value, as JSON
    "when": (dt.datetime, dt.datetime(2025, 11, 24, 16, 0, 0, 1, tzinfo=dt.UTC), "2025-11-24T16:00:00.000001Z"),
    "naive": (dt.datetime, dt.datetime(2025, 11, 24, 16), "2025-11-24T16:00:00"),
    "day": (dt.date, dt.date(2025, 11, 24), "2025-11-24"),
    "clock": (dt.time, dt.time(16, 30), "16:30:00"),
    "span": (dt.timedelta, dt.timedelta(seconds=90), "PT90S"),
    "money": (decimal.Decimal, decimal.Decimal("1.10"), "1.10"),
    "uid": (uuid.UUID, uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "colour": (Colour, Colour.blue, "blue"),
    "choice": (Literal["x", "y"], "y", "y"),
    "numbers": (set[int], {3}, [3]),
    "pair": (tuple[int, str], (1, "x"), [1, "x"]),
    "table": (dict[int, str], {1: "x"}, {"1": "x"}),
    "maybe": (int | None, None, None),
    "big": (int, 2**63, 2**63),
    "small": (float, -0.1, -0.1),
    "text": (str, 'é"\\\n\u2028仕', 'é"\\\n\u2028仕'),
    "flag": (bool, True, True),
    "inner": (Struct, Struct(1), {"a": 1, "b": "b", "c": []}),
    "rows": (list[Data], [Data(1)], [{"a": 1, "b": "b", "c": []}]),
}


def of_values(name: str) -> list[Any]:
    kind = VALUES[name][0]
    found = [
        msgspec.defstruct("OfStruct", [("value", kind)]),
        dataclasses.make_dataclass("OfData", [("value", kind)]),
        attrs.make_class("OfAttrs", {"value": attrs.field(type=kind)}),
        TypedDict("OfTyped", {"value": kind}),  # type: ignore[operator]
    ]
    if name != "inner":
        found.append(pydantic.create_model("OfModel", value=(kind, ...)))
        found.append(pydantic.dataclasses.dataclass(dataclasses.make_dataclass("OfModelData", [("value", kind)])))
    return found


@codecs
@pytest.mark.parametrize("name", VALUES)
def test_values(name: str, msgpack: bool) -> None:
    _, value, as_json = VALUES[name]
    for model in of_values(name):
        codec = Codec({}, msgpack=msgpack)
        run = codec.create(task_of(model), None, "", {"value": value}, None, None)
        payload = codec.encode(run)
        if not msgpack:
            found = json.loads(payload)["params"]["value"]
            if name == "span":
                assert found in ("PT90S", "PT1M30S")
            else:
                assert found == as_json
        read = codec.decode(payload, None).params
        found = read["value"] if isinstance(read, dict) else read.value
        assert (found, type(found)) == (value, type(value))


@codecs
def test_values_in_params_of_no_model(msgpack: bool) -> None:
    """They are written as text, and stay text: nothing says what they were."""
    codec = Codec({}, msgpack=msgpack)
    given = {name: value for name, (_, value, _) in VALUES.items() if name != "table"}
    run = codec.create(task_of(Params), None, "", given, None, None)
    assert run.params == given
    read = codec.decode(codec.encode(run), None).params
    assert read == {name: VALUES[name][2] for name in given}


@codecs
def test_bytes(msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    of_struct = msgspec.defstruct("OfBytes", [("value", bytes)])
    for model, value in (
        (of_struct, b"\x00\xff"),
        (pydantic.create_model("M", value=(bytes, ...)), b"text"),
        (
            pydantic.create_model(
                "M", value=(bytes, ...), __config__={"ser_json_bytes": "base64", "val_json_bytes": "base64"}
            ),
            b"\x00\xff",
        ),
    ):
        run = codec.create(task_of(model), None, "", {"value": value}, None, None)
        assert codec.decode(codec.encode(run), None).params.value == value
    run = codec.create(
        task_of(pydantic.create_model("M", value=(bytes, ...))), None, "", {"value": b"\xff"}, None, None
    )
    with pytest.raises(ParamsError, match="invalid params for task 'work'"):
        codec.encode(run)


def test_params_read_both_ways() -> None:
    params = Params(a=1, items=2)
    assert (params["a"], params.a, params["items"]) == (1, 1, 2)
    assert callable(params.items)
    params.b = 3
    params["c"] = 4
    del params.a
    assert params == {"items": 2, "b": 3, "c": 4}
    assert isinstance(params, dict)


def test_params_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="there is no 'z', only: a, b"):
        Params(a=1, b=2).z  # noqa: B018
    with pytest.raises(AttributeError, match="only: nothing"):
        Params().z  # noqa: B018
    with pytest.raises(KeyError):
        Params()["z"]
    with pytest.raises(AttributeError, match="z"):
        del Params().z
    assert not hasattr(Params(), "z")


@codecs
def test_aliases(msgpack: bool) -> None:
    class ByAlias(pydantic.BaseModel):
        user_id: int = pydantic.Field(alias="userId")

    class ByName(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(populate_by_name=True)
        user_id: int = pydantic.Field(alias="userId")

    class Written(pydantic.BaseModel):
        user_id: int = pydantic.Field(serialization_alias="userId")

    codec = Codec({}, msgpack=msgpack)
    for model, given, key in (
        (ByAlias, "userId", b"userId"),
        (ByName, "user_id", b"user_id"),
        (Written, "user_id", b"user_id"),
    ):
        run = codec.create(task_of(model), None, "", {given: 7}, None, None)
        payload = codec.encode(run)
        assert key in payload
        assert codec.decode(payload, None).params.user_id == 7


def test_extra_fields_of_pydantic() -> None:
    class Open(pydantic.BaseModel, extra="allow"):
        a: int

    codec = Codec({})
    run = codec.create(task_of(Open), None, "", {"a": 1, "z": [2]}, None, None)
    assert codec.decode(codec.encode(run), None).params.z == [2]
    run = codec.create(task_of(Open), None, "", {"a": 1, "z": math.nan}, None, None)
    with pytest.raises(ParamsError, match="field 'z'"):
        codec.encode(run)


def test_several_errors_are_counted() -> None:
    codec = Codec({})
    with pytest.raises(ParamsError, match=r"field 'a': Input should be a valid integer.* \(and 1 more\)$"):
        codec.create(task_of(Model), None, "", {"a": "x", "b": 7}, None, None)
    with pytest.raises(ParamsError, match=r"field 'c\.1': "):
        codec.create(task_of(Model), None, "", {"a": 1, "c": [1, "x"]}, None, None)


def test_no_warnings_that_show_values() -> None:
    codec = Codec({})
    run = codec.create(task_of(Model), None, "", {"a": 1}, None, None)
    run.params.a = SECRET
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        payload = codec.encode(run)
    assert shown == []
    with pytest.raises(TaskParamsError, match="field 'a'"):
        codec.decode(payload, None)


class Holder(pydantic.BaseModel):
    a: WithSecret | list[float] | dict[str, float | None] | None = None


class Derived(Model):
    d: int = 0


class Constants(pydantic.BaseModel, ser_json_inf_nan="constants"):
    c: float | None


@codecs
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda n: Struct(1, c=[n]), "c"),
        (lambda n: Data(1, c=[n]), "c"),
        (lambda n: Attrs(1, c=[n]), "c"),
        (lambda n: Model(a=1, c=[n]), "c"),
        (lambda n: ModelData(1, c=[n]), "c"),
        (lambda n: Derived(a=1, c=[n]), "c"),
        (lambda n: WithSecret(a=n), "a"),
        (lambda n: Holder(a=WithSecret(a=n)), "a"),
        (lambda n: Holder(a=[n]), "a"),
        (lambda n: Holder(a={"x": n}), "a"),
        (lambda n: Constants(c=n), "c"),
        (lambda n: Box(a=Attrs(1, c=[n])), "a"),
        (lambda n: Box(a=(Data(1, c=[n]),)), "a"),
    ],
)
def test_nan_in_any_kind(make: Callable[[float], Any], field: str, number: float, msgpack: bool) -> None:
    params = make(number)
    codec = Codec({}, msgpack=msgpack)
    model = Box[Any] if isinstance(params, Box) else type(params)
    run = codec.create_with(task_of(model), None, "", params, None, None)
    with pytest.raises(ParamsError, match=f"task 'work', field '{field}': NaN and infinity cannot be queued"):
        codec.encode(run)


class Node(msgspec.Struct):
    a: float = 0
    next: "Node | None" = None


@codecs
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("model", [Struct, Data, Attrs, Model, Typed, dict[str, list[float]], Params], ids=str)
def test_nan_that_somebody_else_wrote(model: Any, number: float, msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    codec.create(task_of(model), None, "", {"c": []} if model == dict[str, list[float]] else {"a": 1}, None, None)
    head = ["x" * 32, bytes(16)]
    params = {"c": [1.5, number]} if model == dict[str, list[float]] else {"a": 1, "c": [1.5, number]}
    if not msgpack:  # aio-fluid writes JSON only
        read = codec.decode(json.dumps({"task": "work", "params": params}).encode(), None).params
        assert repr((read["c"] if isinstance(read, dict) else read.c)[1]) == repr(number)
        return
    for payload in [msgspec.msgpack.encode([run_id, "work", 1, params, 1, 1764000000.5]) for run_id in head]:
        with pytest.raises((PayloadError, TaskParamsError)):
            codec.decode(payload, None)


@codecs
def test_depth_in_a_model(msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    a_task = task_of(Node)
    node = Node()
    for _ in range(63):
        node = Node(1, node)
    run = codec.create_with(a_task, None, "", node, None, None)
    assert codec.decode(codec.submit(run), None).params == node
    deep = codec.create_with(a_task, None, "", Node(1, node), None, None)
    with pytest.raises(ParamsError, match="nested deeper than 64 levels"):
        codec.submit(deep)
    params = msgspec.to_builtins(Node(1, node))
    payloads = [json.dumps({"id": "x", "task": "work", "params": params}).encode()]
    if msgpack:
        payloads = [msgspec.msgpack.encode([bytes(16), "work", 1, params, 1, 1764000000.5])]
    for payload in payloads:
        with pytest.raises(PayloadError, match="nested deeper than 64 levels"):
            codec.decode(payload, None)


@codecs
def test_nan_as_text(msgpack: bool) -> None:
    """A model that has a text for them keeps them."""

    class Strings(pydantic.BaseModel, ser_json_inf_nan="strings"):
        a: float
        key: pydantic.SecretStr | None = None

    codec = Codec({}, msgpack=msgpack)
    for key in (None, "k"):
        run = codec.create(task_of(Strings), None, "", {"a": math.inf, "key": key}, None, None)
        assert codec.decode(codec.encode(run), None).params == run.params


def test_null_is_no_nan() -> None:
    codec = Codec({})
    for params in (WithSecret(), Holder(), Constants(c=None)):
        run = codec.create_with(task_of(type(params)), None, "", params, None, None)
        assert b"null" in codec.encode(run)


def test_adapter_is_frozen() -> None:
    adapter = adapter_for(Struct)
    assert isinstance(adapter, ParamsAdapter)
    assert adapter.model is Struct
    with pytest.raises(dataclasses.FrozenInstanceError):
        adapter.model = Data  # type: ignore[misc]


def test_values_that_cannot_be_written_are_named() -> None:
    codec = Codec({})
    for model in (Struct, Data, Attrs, Params, Model, ModelData):
        run = codec.create(task_of(model), None, "", {"a": 1}, None, None)
        if isinstance(run.params, dict):
            run.params["b"] = object()
        else:
            run.params.b = object()  # type: ignore[union-attr]
        with pytest.raises(ParamsError, match="invalid params for task 'work', field 'b'") as caught:
            codec.encode(run)
        assert caught.value.field == "b"


def test_pydantic_is_imported_by_whoever_uses_it() -> None:
    import subprocess
    import sys

    script = (
        "import sys, msgspec; from fluidfast.wire._codec import Codec; from fluidfast import task, TaskRun\n"
        "class P(msgspec.Struct):\n a: int\n"
        "@task\nasync def work(ctx: TaskRun[P]): ...\n"
        "codec = Codec({}); run = codec.create(work, None, '', {'a': 1}, None, None)\n"
        "codec.decode(codec.submit(run), None); run.model_dump_json()\n"
        "assert not [name for name in sys.modules if name.startswith(('pydantic', 'attr'))]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
