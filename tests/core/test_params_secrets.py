"""Secrets in params arrive, and stand in no error, log or repr."""

import dataclasses
import json
import typing
from typing import Any

import attrs
import msgspec
import pydantic
import pydantic_core
import pytest
from kits.params_kit import SECRET, Box, Model, OfBytes, Struct, WithSecret, codecs, task_of
from typing_extensions import TypedDict

from fluidfast.core.params import Params
from fluidfast.errors import ParamsError, TaskParamsError
from fluidfast.wire._codec import Codec


class InData(pydantic.BaseModel):
    @dataclasses.dataclass
    class Inner:
        key: pydantic.SecretStr

    a: Inner


class InTyped(pydantic.BaseModel):
    class Inner(TypedDict):
        key: pydantic.SecretStr

    a: Inner


class InModel(pydantic.BaseModel):
    class Inner(pydantic.BaseModel):
        keys: dict[str, list[pydantic.SecretStr | None]]

    a: list[Inner]
    n: int = 1


class InAny(pydantic.BaseModel):
    a: Any


class OfInt(pydantic.BaseModel):
    a: pydantic.Secret[str]


class SecretStruct(msgspec.Struct):
    a: pydantic.SecretStr | None


@dataclasses.dataclass
class SecretData:
    a: list[pydantic.SecretStr]


@attrs.define
class SecretAttrs:
    a: dict[str, pydantic.SecretStr]


class SecretTyped(TypedDict):
    a: pydantic.SecretStr


@pydantic.dataclasses.dataclass
class SecretModelData:
    a: pydantic.SecretStr
    b: WithSecret | None = None


class Own:
    """A secret that pydantic does not know."""

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "**********"


SECRETS: list[tuple[Any, dict[str, Any]]] = [
    (InData, {"a": {"key": SECRET}}),
    (InTyped, {"a": {"key": SECRET}}),
    (InModel, {"a": [{"keys": {"x": [SECRET, None]}}, {"keys": {}}]}),
    (OfInt, {"a": SECRET}),
    (OfBytes, {"a": SECRET.encode()}),
    (SecretStruct, {"a": SECRET}),
    (SecretData, {"a": ["", SECRET]}),
    (SecretAttrs, {"a": {"x": SECRET}}),
    (SecretTyped, {"a": SECRET}),
    (SecretModelData, {"a": SECRET, "b": {"key": SECRET}}),
    (dict[str, pydantic.SecretStr], {"a": SECRET}),
    (Box[pydantic.Secret[str]], {"a": SECRET}),
    (Box[pydantic.SecretBytes], {"a": SECRET}),
    (Box[Own], {"a": SECRET}),
]


@codecs
@pytest.mark.parametrize(("model", "given"), SECRETS, ids=lambda value: getattr(value, "__name__", None))
def test_secrets_arrive(model: Any, given: dict[str, Any], msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    run = codec.create(task_of(model), None, "", given, None, None)
    shown = f"{run!r} {run.params!r} {run.params} {run.model_dump()} {run.model_dump_json()}"
    assert SECRET not in shown
    assert "**********" in shown
    payload = codec.encode(run)
    assert SECRET.encode() in payload
    assert b"*****" not in payload
    read = codec.decode(payload, None)
    assert read.params == run.params
    assert codec.decode(codec.encode(read), None).params == run.params
    assert codec.create_with("work", None, "", read.params, None, None).params == run.params


@codecs
def test_secrets_in_fields_of_any_type(msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    for model in (InAny, Params, Box[Any]):
        run = codec.create(task_of(model), None, "", {"a": [pydantic.SecretStr(SECRET)]}, None, None)
        read = codec.decode(codec.encode(run), None)
        assert read.params.a == [SECRET]


def test_a_value_that_looks_like_a_masked_secret() -> None:
    codec = Codec({})
    run = codec.create(task_of(Model), None, "", {"a": 1, "b": "**********"}, None, None)
    assert codec.decode(codec.encode(run), None).params == run.params


def test_a_serializer_of_the_models_own() -> None:
    class Shouting(pydantic.BaseModel):
        key: pydantic.SecretStr
        name: str

        @pydantic.field_serializer("name", when_used="json")
        def shout(self, value: str) -> str:
            return value.upper()

        @pydantic.field_serializer("key", when_used="json")
        def reveal(self, value: pydantic.SecretStr) -> str:
            return value.get_secret_value()

    codec = Codec({})
    run = codec.create(task_of(Shouting), None, "", {"key": SECRET, "name": "x"}, None, None)
    assert json.loads(codec.encode(run))["params"] == {"key": SECRET, "name": "x"}  # for JSON only: not for the queue
    assert codec.decode(codec.encode(run), None).params == run.params


@codecs
@pytest.mark.parametrize(
    ("model", "given"),
    [
        (SecretModelData, {"a": [SECRET]}),
        (SecretModelData, {"b": {"a": "x", "key": SECRET}}),
        (InModel, {"a": [{"keys": {"x": [SECRET]}}], "n": SECRET}),
        (SecretStruct, {"a": [SECRET]}),
        (SecretData, {"a": {"x": SECRET}}),
        (SecretTyped, {"b": SECRET}),
        (dict[str, pydantic.SecretStr], {"a": {"x": SECRET}}),
        (Model, {"a": SECRET, "b": [SECRET]}),
        (Struct, {"a": SECRET, "b": [SECRET]}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_values_are_not_in_errors(model: Any, given: dict[str, Any], msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    a_task = task_of(model)
    with pytest.raises(ParamsError) as caught:
        codec.create(a_task, None, "", given, None, None)
    payload = json.dumps({"task": "work", "params": given}).encode()
    if msgpack:
        payload = msgspec.msgpack.encode(["x", "work", 1, given])
    with pytest.raises(TaskParamsError) as unread:
        codec.decode(payload, None)
    for error in (caught.value, unread.value):
        while error is not None:
            assert SECRET not in f"{error} {error!r}"
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]


def test_the_cause_of_an_error_is_kept_and_shows_no_values() -> None:
    codec = Codec({})
    with pytest.raises(ParamsError) as caught:
        codec.create(task_of(Struct), None, "", {}, None, None)
    assert isinstance(caught.value.__cause__, msgspec.ValidationError)

    class Picky(pydantic.BaseModel):
        a: int
        b: typing.Annotated[float, pydantic.Field(gt=3)]
        c: str
        d: list[int | str] = []

        @pydantic.field_validator("c")
        def check(cls, value: str) -> str:
            if value == "own":
                raise pydantic_core.PydanticCustomError("my_kind", "no {kind}", {"kind": "{b}"})
            raise ValueError("braces {c}")

    for given in ({"a": SECRET, "b": 1, "c": "x", "d": [[SECRET]]}, {"a": [SECRET], "b": SECRET, "c": "own"}):
        with pytest.raises(pydantic.ValidationError) as original:
            Picky(**given)  # type: ignore[arg-type]
        payload = json.dumps({"task": "work", "params": given}).encode()
        for call in (
            lambda: codec.create(task_of(Picky), None, "", given, None, None),  # noqa: B023
            lambda: codec.create_with(task_of(Picky), None, "", Params(given), None, None),  # noqa: B023
            lambda: codec.decode(payload, None),  # noqa: B023
        ):
            with pytest.raises(ParamsError) as refused:
                call()
            cause = refused.value.__cause__
            assert isinstance(cause, pydantic.ValidationError)
            assert [(e["type"], e["loc"], e["msg"]) for e in cause.errors()] == [
                (e["type"], e["loc"], e["msg"]) for e in original.value.errors()
            ]
            assert cause.errors()[0]["input"] == given["a"]
            assert SECRET not in f"{cause} {cause!r} {refused.value}"


def test_an_error_of_the_models_own() -> None:
    class Picky(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("a is below zero")
            if self.a > 9:
                raise ZeroDivisionError("not expected")

    codec = Codec({})
    a_task = task_of(Picky)
    with pytest.raises(ParamsError, match="invalid params for task 'work': a is below zero"):
        codec.create(a_task, None, "", {"a": -1}, None, None)
    with pytest.raises(ParamsError, match="not expected") as caught:
        codec.create(a_task, None, "", {"a": 10}, None, None)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(TaskParamsError, match="not expected"):
        codec.decode(b'{"task":"work","params":{"a":10}}', None)
