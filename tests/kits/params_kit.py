"""Params models of every kind, for the tests of params."""

import datetime as dt
from typing import Any, Generic, TypeVar

import msgspec
import pydantic
import pytest

from fluidfast import Task, TaskRun, task

SECRET = "canary-secret-value"


T = TypeVar("T")


class Struct(msgspec.Struct):
    a: int
    b: str = "b"
    c: list[float] = []


class Model(pydantic.BaseModel):
    a: int
    b: str = "b"
    c: list[float] = []


class Box(msgspec.Struct, Generic[T]):
    a: T
    b: str = "b"
    c: list[float] = []


def task_of(model: Any) -> Task[Any]:
    @task(name="work", params_model=model)
    async def work(ctx: TaskRun) -> None: ...

    return work


codecs = pytest.mark.parametrize("msgpack", [False, True], ids=["json", "msgpack"])


class WithSecret(pydantic.BaseModel):
    a: float | None = None
    key: pydantic.SecretStr = pydantic.SecretStr("k")


class OfBytes(pydantic.BaseModel):
    a: pydantic.SecretBytes
    when: dt.datetime = dt.datetime(2025, 11, 24)
    table: dict[int, dt.date] = {1: dt.date(2025, 11, 24)}
