"""Payloads that were written once, by fluidfast of each version and by aio-fluid, and must be read for ever.

    python tests/wire/test_golden.py     prints what this version writes, as lines of a golden file; changes nothing

The files are never changed: a new version gets a file of its own, and their digests stand below.
"""

import datetime as dt
import decimal
import enum
import hashlib
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from fluidfast import TaskRun, task
from fluidfast.core.params import Params
from fluidfast.wire._codec import Codec

GOLDEN = Path(__file__).with_name("golden")
DIGESTS = {
    "aio_fluid_2.12.jsonl": "3b3605c0537de02297f55e4395ea94773d0dbe2649765b6e3a1964eaedc7721f",
    "fluidfast_0.1.0.jsonl": "50768d2a30201042745be90f671689407cfabb7c16b642fca55f46b36914cd3d",
}
T = datetime(2025, 11, 24, 16, 0, 0, 123456, tzinfo=UTC)


def seconds(number: float) -> dt.timedelta:
    return dt.timedelta(seconds=number)


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / name).read_text("ascii").splitlines()]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_files_are_as_they_were(name: str) -> None:
    assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == DIGESTS[name]


def test_no_file_is_forgotten() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(DIGESTS)


# --- the tasks ------------------------------------------------------------------------------------


class Colour(enum.Enum):
    red = "red"


class Mail(pydantic.BaseModel):
    user_id: int
    email: str
    amount: float
    tags: list[str] = []


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr
    keys: list[pydantic.SecretStr] = []
    raw: pydantic.SecretBytes = pydantic.SecretBytes(b"raw")


class Rich(pydantic.BaseModel):
    when: datetime
    naive: datetime
    day: dt.date
    span: dt.timedelta
    money: decimal.Decimal
    uid: uuid.UUID
    colour: Colour
    table: dict[int, str]
    maybe: int | None = None
    text: str
    flag: bool
    pair: tuple[int, str]
    big: int
    nested: Mail


class MailStruct(msgspec.Struct):
    user_id: int
    email: str
    amount: float
    tags: list[str] = []


class RichStruct(msgspec.Struct):
    when: datetime
    naive: datetime
    day: dt.date
    span: dt.timedelta
    money: decimal.Decimal
    uid: uuid.UUID
    colour: Colour
    table: dict[int, str]
    text: str
    flag: bool
    pair: tuple[int, str]
    big: int
    raw: bytes
    nested: MailStruct
    maybe: int | None = None


@task
async def plain(ctx: TaskRun) -> None: ...


@task(priority="high")
async def mail(ctx: TaskRun[Mail]) -> None: ...


@task
async def login(ctx: TaskRun[Login]) -> None: ...


@task
async def rich(ctx: TaskRun[Rich]) -> None: ...


@task
async def anything(ctx: TaskRun[dict[str, Any]]) -> None: ...


@task(priority="low")
async def mail_struct(ctx: TaskRun[MailStruct]) -> None: ...


@task
async def rich_struct(ctx: TaskRun[RichStruct]) -> None: ...


@task(name='tâche "\\" 仕事')
async def foreign(ctx: TaskRun) -> None: ...


TASKS = {a_task.name: a_task for a_task in (plain, mail, login, rich, anything, mail_struct, rich_struct, foreign)}
MAIL: dict[str, Any] = {"user_id": 123, "email": "someone@example.com", "amount": 12.5, "tags": ["a", "é"]}
RICH: dict[str, Any] = {
    "when": T,
    "naive": datetime(2025, 11, 24, 16),
    "day": dt.date(2025, 11, 24),
    "span": dt.timedelta(days=1, seconds=90.5),
    "money": decimal.Decimal("1.10"),
    "uid": uuid.UUID(int=7),
    "colour": Colour.red,
    "table": {1: "x"},
    "maybe": None,
    "text": 'é"\\\n\u2028仕',
    "flag": True,
    "pair": (1, "x"),
    "big": 2**63,
}
LOGIN: dict[str, Any] = {
    "user": "u",
    "password": pydantic.SecretStr("hunter2"),
    "keys": [pydantic.SecretStr("k1"), pydantic.SecretStr("k2")],
    "raw": pydantic.SecretBytes(b"raw"),
}


def record_of(run: TaskRun[Any, Any]) -> dict[str, Any]:
    names = ("id", "priority", "state", "params", "queued", "start", "end", "execute_after", "from_run_id")
    more = ("rate_limit_attempt", "retry_attempt", "root_run_id", "extra")
    return {"task": run.name, **{name: getattr(run, name) for name in names + more}}


def a_record(run_id: str, name: str = "plain", params: Any = None, **changes: Any) -> dict[str, Any]:
    return {
        "id": run_id,
        "task": name,
        "priority": "medium",
        "state": "queued",
        "params": {} if params is None else params,
        "queued": T,
        "start": None,
        "end": None,
        "execute_after": None,
        "from_run_id": "",
        "rate_limit_attempt": 0,
        "retry_attempt": 0,
        "root_run_id": "",
        "extra": None,
        **changes,
    }


# --- aio-fluid ------------------------------------------------------------------------------------

RICH_OF_AIO = Rich(**RICH, nested=Mail(**MAIL))
AIO_FLUID: dict[str, dict[str, Any]] = {
    "init": a_record("0" * 31 + "1", queued=None),
    "queued": a_record("0" * 31 + "1"),
    "whole second, priority given": a_record("2", priority="low", queued=T.replace(microsecond=0)),
    "params": a_record("0" * 31 + "3", "mail", Mail(**MAIL), priority="high"),
    "chain": a_record(
        "0" * 31 + "4", "mail", Mail(**MAIL), priority="high", from_run_id="f" * 32, root_run_id="0" * 32
    ),
    "secrets": a_record("0" * 31 + "5", "login", Login(**LOGIN)),
    "rich": a_record("0" * 31 + "6", "rich", RICH_OF_AIO),
    "retry after failure, as made": a_record(
        "0" * 31 + "6", "rich", RICH_OF_AIO, queued=None, execute_after=T + seconds(2), retry_attempt=1
    ),
    "retry after failure, queued": a_record(
        "0" * 31 + "6", "rich", RICH_OF_AIO, queued=T + seconds(2), execute_after=T + seconds(2), retry_attempt=1
    ),
    "second retry": a_record(
        "0" * 31 + "6", "rich", RICH_OF_AIO, queued=T + seconds(3), execute_after=T + seconds(4), retry_attempt=2
    ),
    "rate limited": a_record("0" * 31 + "7", "rich", RICH_OF_AIO, execute_after=T + seconds(5), rate_limit_attempt=1),
    "priority high": a_record("id-high", priority="high"),
    "priority medium": a_record("id-medium"),
    "priority low": a_record("id-low", priority="low"),
    "any values": a_record(
        "0" * 31 + "8",
        "anything",
        {"a": {"b": [None, True, {"c": "😀 \x00 \x7f"}], "": -0.0, "e": 1e-7, "i": -(2**63)}},
    ),
}


@pytest.mark.parametrize("name", AIO_FLUID)
def test_what_aio_fluid_wrote(name: str) -> None:
    (payload,) = [line["payload"].encode() for line in lines_of("aio_fluid_2.12.jsonl") if line["name"] == name]
    codec = Codec(dict(TASKS))
    before = datetime.now(UTC)
    run = codec.decode(payload, None)
    expected = dict(AIO_FLUID[name])
    if expected["queued"] is None:
        assert run.queued is not None
        assert before - seconds(1) < run.queued <= datetime.now(UTC)
        expected["queued"] = run.queued
    found = record_of(run)
    assert found == expected
    if isinstance(found["params"], dict):  # True is not 1, and 0.0 not -0.0
        assert repr(found["params"]) == repr(expected["params"])
    # and in our own words it is the same run
    for writer in (codec, Codec(dict(TASKS), msgpack=True)):
        assert record_of(codec.decode(writer.encode(run), None)) == expected


def test_every_line_of_aio_fluid_is_read() -> None:
    assert [line["name"] for line in lines_of("aio_fluid_2.12.jsonl")] == list(AIO_FLUID)


# --- fluidfast ------------------------------------------------------------------------------------

RICH_OF_OURS = RichStruct(**RICH, raw=b"\x00\xff", nested=MailStruct(**MAIL))
VALUES = {
    "none": None,
    "flags": [True, False],
    "ints": [0, -1, 127, 128, 2**31, -(2**63), 2**64 - 1],
    "floats": [0.0, -0.5, 1e-7, 1e21, 1.7976931348623157e308, 5e-324],
    "texts": ["", 'é"\\/\n\t\x00\x7f\u2028', "😀仕", "x" * 40],
    "": {"deep": [[[{}]], []]},
}
HEX = "0123456789abcdef0123456789abcdef"
FLUIDFAST: dict[str, dict[str, Any]] = {
    "plain": a_record(HEX),
    "high": a_record(HEX, priority="high"),
    "low": a_record(HEX, priority="low"),
    "values": a_record(HEX, params=VALUES),
    "any id": a_record('é "\\" 7'),
    "upper-case id": a_record(HEX.upper()),
    "short id": a_record("7"),
    "foreign": a_record(HEX, foreign.name),
    "struct": a_record(HEX, "mail_struct", MailStruct(**MAIL), priority="low"),
    "rich struct": a_record(HEX, "rich_struct", RICH_OF_OURS),
    "pydantic": a_record(HEX, "mail", Mail(**MAIL), priority="high"),
    "secrets": a_record(HEX, "login", Login(**LOGIN)),
    "whole second": a_record(HEX, queued=T.replace(microsecond=0)),
    "early": a_record(HEX, queued=datetime(2001, 1, 1, tzinfo=UTC)),
    "late": a_record(HEX, queued=datetime(2241, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    "before the epoch": a_record(HEX, execute_after=datetime(1969, 12, 31, 23, 59, 59, 500000, tzinfo=UTC)),
    "delayed": a_record(HEX, execute_after=T + seconds(0.000001)),
    "rate limited": a_record(HEX, rate_limit_attempt=1),
    "retried": a_record(HEX, retry_attempt=2**31 - 1, execute_after=T + seconds(60)),
    "chain": a_record(HEX, from_run_id="f" * 32, root_run_id="é"),
    "further keys": a_record(HEX, params={"a": 1}, extra={"reply": b'"m"', "trace": b'{"id":[1, 2.0]}', "é": b"null"}),
    "everything": a_record(
        HEX,
        "mail_struct",
        MailStruct(**MAIL),
        priority="high",
        execute_after=T + seconds(60),
        rate_limit_attempt=1,
        retry_attempt=2,
        from_run_id="f" * 32,
        root_run_id="0" * 32,
        extra={"x": b"1"},
    ),
    "finished": a_record(HEX, state="success", start=T + seconds(1), end=T + seconds(2.5)),
    "failed": a_record(HEX, state="failure", start=T + seconds(1), end=T + seconds(1), retry_attempt=1),
    "not queued": a_record(HEX, state="init", queued=None),
}


def run_of(record: dict[str, Any]) -> TaskRun[Any, Any]:
    fields = {name: value for name, value in record.items() if name not in ("task", "extra", "params")}
    params = record["params"]
    if record["task"] in ("plain", foreign.name):
        params = Params(params)
    run: TaskRun[Any, Any] = TaskRun(task=TASKS[record["task"]], params=params, **fields)
    run.extra = record["extra"]
    return run


def written() -> Iterator[dict[str, Any]]:
    codec, packer = Codec(dict(TASKS)), Codec(dict(TASKS), msgpack=True)
    for name, record in FLUIDFAST.items():
        run = run_of(record)
        yield {"name": name, "json": codec.encode(run).decode(), "msgpack": packer.encode(run).hex()}


def test_what_is_written_is_what_was_written() -> None:
    assert list(written()) == lines_of("fluidfast_0.1.0.jsonl")


@pytest.mark.parametrize("wire", ["json", "msgpack"])
@pytest.mark.parametrize("name", FLUIDFAST)
def test_what_fluidfast_wrote(name: str, wire: str) -> None:
    (line,) = [line for line in lines_of("fluidfast_0.1.0.jsonl") if line["name"] == name]
    payload = line["json"].encode() if wire == "json" else bytes.fromhex(line["msgpack"])
    codec = Codec(dict(TASKS))
    run = codec.decode(payload, None)
    # on a queue, a run is queued
    expected = {**FLUIDFAST[name], "state": "queued", "start": None, "end": None}
    if expected["queued"] is None:
        expected["queued"] = run.queued
    found = record_of(run)
    assert found == expected
    if isinstance(found["params"], dict):  # True is not 1, and 0.0 not -0.0
        assert repr(found["params"]) == repr(expected["params"])
    if wire == "json" and expected["queued"] is not None and FLUIDFAST[name]["queued"] is not None:
        # as an answer, it is in the state that it says
        assert record_of(codec.decode_finished(payload, None)) == FLUIDFAST[name]


if __name__ == "__main__":
    for line in written():
        print(json.dumps(line))
