"""``queue --from``: CSV, gzip, Parquet, files of bad lines, and numbers to go on by."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
import pyarrow.parquet
import pytest
import redis
from kits.command_kit import Running, run, until

from fluidfast import TaskRun, task
from fluidfast.commands.fields import Columns
from fluidfast.commands.group import CommandError
from fluidfast.commands.lines import LineReader
from fluidfast.commands.sources import BadLine, CSVSource

APP = """
import enum
from datetime import datetime
from decimal import Decimal
import msgspec, pydantic
from fluidfast import TaskManager, TaskRun, task

class Color(enum.Enum):
    red = "r"

class Mail(msgspec.Struct):
    to: str
    copies: int = 1
    urgent: bool = False
    at: datetime | None = None
    tags: list[str] = []
    price: Decimal = Decimal(0)
    color: Color = Color.red

class Modelled(pydantic.BaseModel):
    to: str
    copies: int = 1
    urgent: bool = False
    at: datetime | None = None
    tags: list[str] = []

@task
async def mail(ctx: TaskRun[Mail]) -> None: ...

@task
async def modelled(ctx: TaskRun[Modelled]) -> None: ...

@task
async def any(ctx: TaskRun) -> None: ...

manager = TaskManager()
manager.register_from_dict(globals())
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


class Queue:
    """Runs the command, and reads what is on the queue after it."""

    def __init__(self, app: Path, url: str) -> None:
        self.app, self.url = app, url
        self.server, _, self.name = url.partition("?name=")

    def run(self, task: str, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        env = {"FLUID_BROKER_URL": self.url}
        return run("queue", "app:manager", task, *arguments, cwd=self.app, input=input, **env)

    def params(self) -> list[dict[str, Any]]:
        with redis.Redis.from_url(self.server) as client:
            payloads: Any = client.lrange(f"{{{self.name}}}-queue-medium", 0, -1)
        return [json.loads(payload)["params"] for payload in reversed(payloads)]


@pytest.fixture
def queue(app: Path, redis_url: str) -> Queue:
    return Queue(app, redis_url)


TABLE = """\
to,copies,urgent,at,tags
a@b.c,3,true,2026-01-02T03:04:05Z,"[""x"", ""y""]"
"two
lines, and a comma",,,,
"""
WANTED = [
    {"to": "a@b.c", "copies": 3, "urgent": True, "at": "2026-01-02T03:04:05Z", "tags": ["x", "y"]},
    {"to": "two\nlines, and a comma", "copies": 1, "urgent": False, "at": None, "tags": []},
]


@pytest.mark.parametrize("task", ["mail", "modelled"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "-"])
def test_texts_are_read_as_the_model_reads_them(app: Path, queue: Queue, task: str, name: str) -> None:
    text = b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode()
    if name == "t.tsv":
        text = text.replace(b",", b"\t").replace(b"lines\t", b"lines,").replace(b'""\t', b'"",')
    if name != "-":
        (app / name).write_bytes(gzip.compress(text[:50]) + gzip.compress(text[50:]) if name.endswith("gz") else text)
    done = queue.run(task, "--from", name, *(["--format", "csv"] if name == "-" else []), input=text)
    assert (done.returncode, done.stderr) == (0, ""), done
    found = queue.params()
    common = [{key: params[key] for key in WANTED[0]} for params in found]
    assert [{**params, "to": params["to"].replace("\r", "")} for params in common] == WANTED
    if task == "mail":
        assert [(params["price"], params["color"]) for params in found] == [("0", "r")] * 2


def test_texts_of_a_task_without_a_model_stay_texts(queue: Queue) -> None:
    done = queue.run("any", "--from", "-", "--format", "csv", "--delimiter", ";", input=b"a;b\n1;\n")
    assert done.returncode == 0, done
    assert queue.params() == [{"a": "1", "b": ""}]


def test_bad_rows_are_mended_and_queued(app: Path, queue: Queue) -> None:
    rows = ["to,copies", "a,1", "b,many", '"c', 'd",2', "e,1,9", 'f,"1"2', "g,1"]
    (app / "t.csv").write_text("\n".join(rows))
    done = queue.run("mail", "--from", "t.csv", "--rejects", "bad.csv", "--json")
    assert done.returncode == 1
    counts = json.loads(done.stdout)
    assert (counts["queued"], counts["bad"], counts["first_not_queued"], counts["queued_behind"]) == (3, 3, 3, 2)
    assert "3 bad lines not queued; they are in bad.csv" in done.stderr
    assert "line 3: invalid params for task 'mail', field 'copies'" in done.stderr
    rejected = (app / "bad.csv").read_text()
    assert rejected.splitlines()[0] == "to,copies"
    assert rejected.splitlines()[2::2] == ["b,many", "e,1,9", 'f,"1"2']
    assert [line.split(":")[0] for line in rejected.splitlines()[1::2]] == ["# line 3", "# line 6", "# line 7"]
    mended = rejected.replace("many", "2").replace("1,9", "1").replace('"1"2', "12")
    (app / "bad.csv").write_text(mended)
    again = queue.run("mail", "--from", "bad.csv", "--rejects", "worse.csv")
    assert (again.returncode, again.stderr) == (0, ""), again
    assert [params["to"] for params in queue.params()] == ["a", "c\nd", "g", "b", "e", "f"]
    assert not (app / "worse.csv").exists()


def test_bad_lines_are_mended_and_queued(app: Path, queue: Queue) -> None:
    lines = b'{"to": "a"}\n{"to": 1}\n[1]\n\xff{\n{"to": "b"}\r\n'
    (app / "t.ndjson.gz").write_bytes(gzip.compress(lines))
    done = queue.run("mail", "--from", "t.ndjson.gz", "--rejects", "bad")
    assert done.returncode == 1
    assert done.stdout.startswith("queued 2 runs")
    rejected = (app / "bad").read_bytes()
    assert rejected.splitlines()[1::2] == [b'{"to": 1}', b"[1]", b"\xff{"]
    (app / "bad").write_bytes(rejected.replace(b" 1}", b' "c"}').replace(b"[1]", b'{"to": "d"}').replace(b"\xff{", b""))
    assert queue.run("mail", "--from", "bad").returncode == 0
    assert [params["to"] for params in queue.params()] == ["a", "b", "c", "d"]


def test_a_bad_row_stops_and_says_where_to_go_on(app: Path, queue: Queue) -> None:
    (app / "t.csv").write_text('to,copies\na,1\n"b\nb",x\nc,1\n')
    done = queue.run("mail", "--from", "t.csv", "--on-error", "stop", "--rejects", "bad")
    assert done.returncode == 1
    assert "to go on: --start-line 3\n" in done.stderr
    (app / "t.csv").write_text('to,copies\na,1\n"b\nb",2\nc,1\n')
    assert queue.run("mail", "--from", "t.csv", "--start-line", "3").returncode == 0
    assert [params["to"] for params in queue.params()] == ["a", "b\nb", "c"]


def test_after_ctrl_c_it_goes_on_from_the_line_that_it_names(app: Path, queue: Queue) -> None:
    options = ("queue", "app:manager", "mail", "--from", "-")
    with Running(*options, cwd=app, stdin=subprocess.PIPE, FLUID_BROKER_URL=queue.url) as command:
        pipe = command.process.stdin
        assert pipe is not None
        pipe.write(b'{"to": "x"}\n' * 7)
        pipe.flush()
        until(lambda: len(queue.params()) == 7, "seven runs")
        command.signal(signal.SIGINT)
        assert command.end() == 130
    assert "to go on: --start-line 8\n" in command.stderr


@pytest.mark.parametrize("task", ["mail", "modelled", "any"])
def test_parquet(app: Path, queue: Queue, task: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    rows = {"to": [f"r{n}" for n in range(2500)], "copies": [None, *range(2499)], "at": [None, *[at] * 2499]}
    table = pyarrow.table({**rows, "tags": [["x"]] * 2500, "price": [Decimal("1.5")] * 2500})
    pyarrow.parquet.write_table(table, app / "t.parquet")
    done = queue.run(task, "--from", "t.parquet", "--start-line", "2")
    assert (done.returncode, done.stderr) == (0, ""), done
    found = queue.params()
    assert [params["to"] for params in found] == rows["to"][1:]
    assert (found[7]["copies"], found[7]["tags"]) == (7, ["x"])
    assert found[7]["at"].replace("+00:00", "Z") == "2026-01-02T03:04:05Z"
    if task != "any":
        assert queue.run(task, "--from", "t.parquet").returncode == 0
        assert queue.params()[2499]["copies"] == 1, "null, and the field has a default"


def test_bad_rows_of_parquet_become_lines(app: Path, queue: Queue) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"to": ["a", None], "at": [date(2026, 1, 2)] * 2}), app / "t.parquet")
    done = queue.run("mail", "--from", "t.parquet", "--rejects", "bad.ndjson")
    assert done.returncode == 1
    comment, line, *_ = (app / "bad.ndjson").read_text().splitlines()
    assert comment.startswith("# line 1: invalid params for task 'mail', field 'at'")
    assert json.loads(line) == {"to": "a", "at": "2026-01-02"}


def test_what_cannot_be_read_is_said_at_once(app: Path, queue: Queue) -> None:
    (app / "t.csv").write_text("To,copies\na,1\n")
    (app / "s.csv").write_text("to;copies\na;1\n")
    (app / "u.csv").write_text("to,other\na,1\n")
    (app / "d.csv").write_text("to,to\na,1\n")
    (app / "cut.gz").write_bytes(gzip.compress(b'{"to": "x"}\n' * 9 + os.urandom(99))[:60])
    (app / "no.gz").write_bytes(b"plain")
    (app / "no.parquet").write_bytes(b"plain")
    for arguments, *words in (
        (("--from", "t.csv"), "no column 'to', which task 'mail' requires", "did you mean 'To'?"),
        (("--from", "s.csv"), "one column, 'to;copies': try --delimiter ';'"),
        (("--from", "d.csv"), "two of one name"),
        (("--from", "cut.gz"), "cannot read further", "--start-line"),
        (("--from", "no.gz"), "cannot read further", "gzip"),
        (("--from", "no.parquet"), "not a Parquet file"),
        (("--from", "nothing.parquet"), "--from nothing.parquet: No such file"),
        (("--from", "-", "--format", "parquet"), "from a file"),
        (("--from", "t.ndjson", "--delimiter", ";"), "--delimiter is for CSV only"),
        (("--from", "s.csv", "--rejects", "s.csv"), "the file that is read"),
        (("--from", "s.csv", "--rejects", "no/such"), "--rejects no/such: No such file"),
    ):
        done = queue.run("mail", *arguments)
        [line] = done.stderr.splitlines()
        assert done.returncode == 1, done
        for word in ("fluidfast: error: ", *words):
            assert word in line, done
    done = queue.run("mail", "--from", "u.csv")
    assert (done.returncode, done.stderr) == (0, "fluidfast: columns that are no field of 'mail': other\n")
    for usage in (("--rejects", "x"), ("--from", "-", "--params", "{}"), ("--from", "-", "--delimiter", "ab")):
        assert queue.run("mail", *usage).returncode == 2


# -- the reader of CSV


@task
async def untyped(ctx: TaskRun) -> None: ...


async def records(text: bytes, max_bytes: int = 100) -> list[tuple[int, Any]]:
    stream = io.BytesIO(text)
    lines = LineReader(lambda: stream.read(3), max_bytes=max_bytes)
    source = CSVSource(untyped, 0, lines, None, delimiter=",")
    found = []
    async for some in source.entries():
        for number, raw in some:
            try:
                found.append((number, [str(cell) for cell in source.params(raw).values()]))
            except BadLine as exc:
                found.append((number, str(exc)))
    assert csv.field_size_limit(131072) == max_bytes
    return found


async def test_records() -> None:
    assert await records(b"a,b\n1,2\n") == [(2, ["1", "2"])]
    assert await records(b'\na,b\n\n1,5" pipe\n3,4') == [(4, ["1", '5" pipe']), (5, ["3", "4"])]
    assert await records(b'a\n"1\n\n""2""\n"\n3\n') == [(2, ['1\n\n"2"\n']), (6, ["3"])]
    assert await records(b'a,b\n"1,2\n3,4\n') == [(2, "it is not CSV: unexpected end of data")]
    open_quote = b'a,b\n"' + b"x\n" * 60 + b"1,2\n"
    assert (await records(open_quote))[0] == (2, "it is longer than the largest allowed run (max_payload_bytes)")
    assert (await records(open_quote))[-1] == (62, ["1", "2"])
    assert await records(b"") == []
    with pytest.raises(CommandError, match="without a name"):
        await records(b"a,,b\n1,2,3\n")


class Model(msgspec.Struct):
    a: int | None
    b: list[int] | None = None
    c: str = "c"


@task
async def modelled(ctx: TaskRun[Model]) -> None: ...


def test_columns() -> None:
    columns = Columns(modelled)
    assert columns.of_texts({"a": "", "b": "[1]", "c": "", "d": ""}) == {"a": None, "b": [1], "d": ""}
    with pytest.raises(ValueError, match="column 'b' is not JSON"):
        columns.of_texts({"b": "[1"})
    assert columns.of_values({"a": None, "b": None, "c": None}) == {"a": None, "b": None}
