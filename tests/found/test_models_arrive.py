"""Params arrive at the worker as they were queued, whatever model they are of, or the model is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import attrs
import httpx
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, Json, PlainSerializer, WrapSerializer
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from fluidfast import Task, TaskConsumer, TaskManager, TaskRun, task
from fluidfast.commands.queue import Account, Sender
from fluidfast.commands.sources import json_params
from fluidfast.core.params import adapter_for
from fluidfast.errors import ParamsError, TaskDecoratorError
from fluidfast.http import task_manager_fastapi
from fluidfast.wire._codec import Codec


def task_of(model: Any, name: str = "work") -> Task[Any]:
    @task(name=name, params_model=model)
    async def work(ctx: TaskRun) -> None: ...

    return work


# --- models of every kind -------------------------------------------------------------------------


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    zip_code: str
    inner_list: list[int] = []


class InnerAlias(BaseModel):
    address: Camel
    others: dict[str, list[Camel]] = {}


class ValidationAlias(BaseModel):
    x: int = Field(validation_alias="xIn")


class TwoAliases(BaseModel):
    x: int = Field(validation_alias="xIn", serialization_alias="xOut")


class Choices(BaseModel):
    x: int = Field(validation_alias=AliasChoices(AliasPath("deep", 0), "xIn", "other"))


class PathByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    x: int = Field(validation_alias=AliasPath("deep", 0))


class Mixed(BaseModel):
    """By alias outside, by name inside."""

    class Inner(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        some_id: int = Field(alias="someId")

    user_id: int = Field(alias="userId")
    inner: Inner


class JsonField(BaseModel):
    payload: Json[dict[str, int]]
    untyped: Json = None


class JsonModel(BaseModel):
    camel: Json[list[Camel]]


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return 2 * self.a


class OpenComputed(Computed):
    model_config = ConfigDict(extra="allow")


class InnerComputed(BaseModel):
    one: Computed | None = None
    open: OpenComputed


class Excluded(BaseModel):
    a: int
    token: str = Field(exclude=True)


class ExcludedDefault(BaseModel):
    inner: list[Excluded] = Field(default=[], exclude=True)


class Price(BaseModel):
    price: Annotated[float, PlainSerializer(lambda v: round(v, 1), when_used="json")] = 1.26
    many: list[Annotated[Decimal, PlainSerializer(float, when_used="json-unless-none")]] = []
    wrapped: Annotated[Camel | None, WrapSerializer(lambda v, handler: "hidden", when_used="json")] = None


class Meeting(BaseModel):
    when: datetime = datetime(2026, 1, 22, 1, 2, 3, 4, tzinfo=UTC)

    @pydantic.field_serializer("when", when_used="json")
    def for_people(self, value: datetime) -> str:
        return value.strftime("%d/%m/%Y")


class Summary(BaseModel):
    a: int

    @pydantic.model_serializer(when_used="json")
    def short(self) -> str:
        return "short"


class HoldsSummary(BaseModel):
    inner: Summary


class Opaque:
    """A type that pydantic does not know, whose one serializer is for JSON."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


OpaqueField = Annotated[
    Any,
    pydantic.BeforeValidator(lambda v: v if isinstance(v, Opaque) else Opaque(int(v))),
    PlainSerializer(lambda v: str(v.value), when_used="json"),
]


class WithOpaque(BaseModel):
    value: OpaqueField
    pattern: re.Pattern[str] = re.compile("a+")


class Node(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    next_one: Node | None = None
    node_value: int = Field(default=0, exclude=True)


class Cat(BaseModel):
    kind_of: Literal["cat"] = Field(default="cat", alias="kindOf")
    lives_left: int = Field(default=9, alias="livesLeft")


class Dog(BaseModel):
    kind_of: Literal["dog"] = Field(default="dog", alias="kindOf")
    dog_name: str = Field(alias="dogName")


class Tagged(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind_of")]
    plain: Cat | Dog | None = None


class Typed(TypedDict):
    some_key: Annotated[int, Field(alias="someKey")]


class HoldsTyped(BaseModel):
    typed: Typed


class Secretive(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    api_key: pydantic.SecretStr
    hidden_key: pydantic.SecretStr = Field(default=pydantic.SecretStr("d"), exclude=True)


@pydantic.dataclasses.dataclass
class AliasedDataclass:
    x: int = Field(alias="ex")
    hidden: int = Field(default=3, exclude=True)


class Root(pydantic.RootModel[dict[str, Camel]]):
    pass


AT = datetime(2026, 1, 22, 1, 2, 3, 4, tzinfo=UTC)
CASES: list[Any] = [
    InnerAlias.model_validate({"address": {"zipCode": "1"}, "others": {"x": [{"zipCode": "2", "innerList": [1]}]}}),
    ValidationAlias(xIn=1),
    TwoAliases(xIn=1),
    Choices(xIn=1),  # type: ignore[call-arg]
    PathByName(x=1),
    Mixed.model_validate({"userId": 1, "inner": {"some_id": 2}}),
    JsonField(payload='{"a": 1}', untyped="[1, null]"),  # type: ignore[arg-type]
    JsonModel(camel='[{"zipCode": "1"}]'),  # type: ignore[arg-type]
    Computed(a=1),
    InnerComputed(one=Computed(a=1), open=OpenComputed.model_validate({"a": 2, "more": [3]})),
    Excluded(a=1, token="t"),
    ExcludedDefault(inner=[Excluded(a=1, token="t")]),
    Price(price=1.26, many=[Decimal("1.10")], wrapped=Camel(zipCode="1")),
    Meeting(when=AT),
    Summary(a=3),
    HoldsSummary(inner=Summary(a=4)),
    WithOpaque(value=5),
    Node.model_validate({"nextOne": {"nextOne": {"nodeValue": 3}, "nodeValue": 2}, "nodeValue": 1}),
    Tagged.model_validate({"pet": {"kindOf": "dog", "dogName": "x"}, "plain": {"kindOf": "cat", "livesLeft": 2}}),
    HoldsTyped.model_validate({"typed": {"someKey": 1}}),
    Secretive.model_validate({"apiKey": "k", "hiddenKey": "h"}),
    AliasedDataclass(ex=1, hidden=4),  # type: ignore[call-arg]
    Root.model_validate({"a": {"zipCode": "1"}}),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: type(case).__name__)
wires = pytest.mark.parametrize("msgpack", [False, True], ids=["json", "msgpack"])


@cases
@wires
def test_each_kind_arrives_equal(case: Any, msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    run = codec.create_with(task_of(type(case)), None, "", case, None, None)
    payload = codec.submit(run)
    read = codec.decode(payload, None)
    assert read.params == case
    assert type(read.params) is type(case)
    assert codec.encode(read) == payload


@cases
def test_what_is_written_can_be_read_by_aio_fluid(case: Any) -> None:
    """Its worker does ``params_model(**json.loads(...)["params"])``."""
    written = json.loads(adapter_for(type(case)).encode(case))
    assert (type(case).model_validate(written) if hasattr(case, "model_validate") else type(case)(**written)) == case


def test_the_usual_models_keep_their_own_serializer() -> None:
    from fluidfast.core.params import wire_of

    class Usual(BaseModel):
        a: int
        b: list[dict[str, datetime]] = []
        c: Decimal | None = None

    class Outer(BaseModel):
        inner: Usual
        again: Outer | None = None

    for model in (Usual, Outer):
        wire = wire_of(model, model.__pydantic_serializer__)
        assert wire.serializer is model.__pydantic_serializer__
        assert not wire.doubtful
        assert not wire.compared


# --- what is refused ------------------------------------------------------------------------------


class ByPath(BaseModel):
    x: int = Field(validation_alias=AliasPath("deep", 0))


class HoldsByPath(BaseModel):
    items: list[ByPath]


@pydantic.dataclasses.dataclass
class NeedsInit:
    x: int
    y: dataclasses.InitVar[int]


class SecretInJson(BaseModel):
    holder: Json[Secretive]


@attrs.define
class Private:
    _x: int


@attrs.define
class HoldsPrivate:
    inner: dict[str, list[Private | None]]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (ByPath, "x"),
        (HoldsByPath, "items.x"),
        (NeedsInit, "y"),
        (SecretInJson, "holder.api_key"),
        (Private, "_x"),
        (HoldsPrivate, "_x"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_with_the_field(model: Any, field: str) -> None:
    with pytest.raises(TaskDecoratorError, match=rf"cannot be a params model: .*'{field}'"):
        task_of(model)


class ForPeople(BaseModel):
    when: datetime = AT

    @pydantic.field_serializer("when")
    def for_people(self, value: datetime) -> str:
        return value.strftime("%d.%m.%Y")


@pydantic.dataclasses.dataclass
class SetLater:
    x: int
    y: int = Field(default=1, init=False)


@wires
def test_params_that_would_not_be_read_are_refused(msgpack: bool) -> None:
    codec = Codec({}, msgpack=msgpack)
    later = SetLater(1)
    for case, field in (
        (ForPeople(), "when"),
        (dataclasses.replace(later), ""),
    ):
        run = codec.create_with(task_of(type(case)), None, "", case, None, None)
        if not field:
            assert codec.decode(codec.encode(run), None).params == case
            case.y, field = 7, "y"  # type: ignore[union-attr]
        with pytest.raises(ParamsError, match=f"task 'work', field '{field}': as it is written, a worker ") as caught:
            codec.encode(run)
        assert caught.value.field == field
        assert "canary" not in f"{caught.value} {caught.value.__cause__}"


def test_nan_is_named_also_where_the_application_writes() -> None:
    class Rounded(BaseModel):
        x: Annotated[float, PlainSerializer(lambda v: round(v, 3))]

    run = Codec({}).create(task_of(Rounded), None, "", {"x": float("nan")}, None, None)
    with pytest.raises(ParamsError, match="field 'x': NaN and infinity cannot be queued"):
        Codec({}).encode(run)


# --- generated models -----------------------------------------------------------------------------

SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(2**62), 2**62)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, st.text(st.characters(codec="utf-8"), max_size=5)),
    (bool, st.booleans()),
    (datetime, st.datetimes(timezones=st.just(UTC))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=3)),
    (pydantic.SecretStr, st.text("abc*", max_size=3).map(pydantic.SecretStr)),
    (Literal["x", "y"], st.sampled_from("xy")),
]
NAMES = ("some_a", "some_b", "some_c")


@st.composite
def models(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A model, and a strategy of objects of it."""
    config: dict[str, Any] = {"extra": draw(st.sampled_from(["ignore", "forbid", "allow"]))}
    if draw(st.booleans()):
        config["populate_by_name"] = True
    if draw(st.booleans()):
        config["alias_generator"] = to_camel
    fields: dict[str, Any] = {}
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name in NAMES[: draw(st.integers(1, 3))]:
        if depth and draw(st.booleans()):
            kind, value = draw(models(depth - 1))
        else:
            kind, value = draw(st.sampled_from(SCALARS))
        holds_secret = depth == 0 and kind is pydantic.SecretStr
        shape = draw(st.sampled_from(["one", "list", "dict", "maybe", "json", "rounded"]))
        if shape == "list":
            kind, value = list[kind], st.lists(value, max_size=2)  # type: ignore[valid-type]
        elif shape == "dict":
            kind, value = dict[str, kind], st.dictionaries(st.text("ab", max_size=2), value, max_size=2)  # type: ignore[valid-type]
        elif shape == "maybe":
            kind, value = kind | None, value | st.none()
        elif shape == "json" and kind in (int, str, bool) and not holds_secret:
            kind = Json[kind]  # type: ignore[valid-type,misc]
        elif shape == "rounded":
            kind = Annotated[kind, PlainSerializer(lambda v: "for people", when_used="json")]
        options: dict[str, Any] = {}
        alias = draw(st.sampled_from(["none", "alias", "validation", "both", "choices", "excluded"]))
        if alias == "alias":
            options["alias"] = f"{name}-in"
        elif alias == "validation":
            options["validation_alias"] = f"{name}-in"
        elif alias == "both":
            options.update(validation_alias=f"{name}-in", serialization_alias=f"{name}-out")
        elif alias == "choices":
            options["validation_alias"] = AliasChoices(AliasPath("deep", name), f"{name}-in", name)
        elif alias == "excluded":
            options["exclude"] = True
        fields[name] = (kind, Field(**options))
        values[name] = value
    computed = draw(st.booleans())
    base: Any = BaseModel
    if computed:

        class Base(BaseModel):
            @pydantic.computed_field
            @property
            def extra_one(self) -> int:
                return 1

        base = Base
    made: Any = pydantic.create_model("Made", __base__=type("Configured", (base,), {"model_config": config}), **fields)
    return made, st.fixed_dictionaries(values).map(lambda found: made.model_construct(**found))


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_models_arrive_equal(data: st.DataObject) -> None:
    model, values = data.draw(models())
    the_task = task_of(model)
    for _ in range(3):
        value = data.draw(values)
        for msgpack in (False, True):
            codec = Codec({}, msgpack=msgpack)
            run = codec.create_with(the_task, None, "", value, None, None)
            read = codec.decode(codec.encode(run), None)
            assert read.params.model_dump() == value.model_dump()
            for name in model.model_fields:
                assert getattr(read.params, name) == getattr(value, name)


# --- through a broker, by every way in ------------------------------------------------------------


@pytest.fixture
async def consumer(broker_url: str, no_leaked_keys: Any) -> AsyncIterator[TaskConsumer]:
    got: dict[str, Any] = {}

    async def keep(ctx: TaskRun) -> None:
        got[ctx.id] = ctx.params

    made = TaskConsumer(broker_url=broker_url, deps=got, max_concurrent_tasks=20)
    for case in CASES:
        made.register_task(task(name=type(case).__name__, params_model=type(case))(keep))
    await made.startup()
    yield made
    await made.shutdown()
    no_leaked_keys.allow("*-tasks-*")


async def test_every_way_in_arrives(consumer: TaskConsumer, broker_url: str) -> None:
    """Objects by ``queue``, ``queue_many`` and ``sync``; their JSON by HTTP and by the lines of ``queue --from``."""
    expected: dict[str, Any] = {}
    ended = asyncio.Event()

    def note(run: TaskRun[Any]) -> None:
        if len(consumer.deps) == 5 * len(CASES):
            ended.set()

    for state in ("success", "failure"):
        consumer.dispatcher.register_handler(f"{state}.noted", note)
    app = task_manager_fastapi(TaskManager(broker_url=broker_url), insecure=True)
    other = app.state.task_manager
    for one in consumer.registry.values():
        other.register_task(one)
    blocking = TaskManager(broker_url=broker_url)
    for one in consumer.registry.values():
        blocking.register_task(one)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
    try:
        for case in CASES:
            name = type(case).__name__
            body = adapter_for(type(case)).encode(case)
            expected[(await other.queue(name, params=case)).id] = case
            summary = await other.queue_many(name, [case], return_ids=True)
            expected[summary.run_ids[0]] = case
            expected[(await asyncio.to_thread(blocking.sync.queue, name, params=case)).id] = case
            response = await http.post(f"/tasks/{name}", content=body, headers={"content-type": "application/json"})
            assert response.status_code == 200, response.text
            expected[response.json()["id"]] = case
            run, payload = Sender(other, other.registry[name], None, Account()).make(json_params(body))
            await other.intake.hand_over(run.prio, payload)
            expected[run.id] = case
        async with asyncio.timeout(20):
            await ended.wait()
        assert {run_id: type(params) for run_id, params in consumer.deps.items()} == {
            run_id: type(params) for run_id, params in expected.items()
        }
        assert consumer.deps == expected
        assert await consumer.dead.count() == 0
    finally:
        await http.aclose()
        await asyncio.to_thread(blocking.sync.close)
        await other.on_shutdown()
