"""The formats of a log, and the line a run."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from fluidfast import TaskRun, TaskState, task
from fluidfast.observe import JsonFormatter, LineFormatter, RunFilter
from fluidfast.observe._runs import RunLines
from fluidfast.observe.filters import WORKER


@task
async def send(ctx: TaskRun) -> None: ...


def record(message: str = "hello", **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("app", logging.INFO, __file__, 1, "%s", (message,), None)
    vars(made).update(fields)
    return made


IN_A_RUN = {"run_id": "10c7", "task": "send", "attempt": 2, "batch": 0, "worker": 1}
OUTSIDE = {"run_id": "", "task": "", "attempt": 0, "batch": 0, "worker": 1}


def test_text() -> None:
    formatter = LineFormatter("%(levelname)s %(message)s")
    assert formatter.format(record(**OUTSIDE)) == "INFO hello"
    assert formatter.format(record(**IN_A_RUN)) == "INFO hello [task=send run=10c7 attempt=2]"
    batch = {**IN_A_RUN, "batch": 500}
    assert formatter.format(record(**batch)) == "INFO hello [task=send run=10c7 and 499 more attempt=2]"
    said = "run failed: task=send run=10c7 attempt=2/3"
    assert formatter.format(record(said, **IN_A_RUN)) == f"INFO {said}"
    assert LineFormatter("%(run_id)s %(message)s").format(record(**IN_A_RUN)) == "10c7 hello"


def test_the_default_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER, raising=False)
    assert LineFormatter().format(record()).endswith(" INFO    app: hello")
    monkeypatch.setenv(WORKER, "2")
    assert LineFormatter().format(record()).endswith(" INFO    app[2]: hello")


def test_json() -> None:
    formatter = JsonFormatter()
    made = record(created=1_764_000_000.1239, **IN_A_RUN)
    assert json.loads(formatter.format(made)) == {
        "time": "2025-11-24T16:00:00.123Z", "level": "INFO", "name": "app", "message": "hello",
        "task": "send", "run_id": "10c7", "attempt": 2, "worker": 1,
    }  # fmt: skip
    assert json.loads(formatter.format(record(**OUTSIDE))).keys() == {"time", "level", "name", "message", "worker"}


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, 3),
        (None, None),
        (True, True),
        (1 << 70, 1 << 70),
        ({"a": [1, "\u202e"]}, {"a": [1, "\u202e"]}),
        ("\udce9\u202e", "\\udce9\\u202e"),
        (float("nan"), None),
        (["x"] * 20_000, None),
        (Odd(), "<its repr raised RuntimeError>"),
        (b"\xff", "b'\\xff'"),
    ],
)
def test_what_extra_adds(value: Any, shown: Any) -> None:
    text = JsonFormatter().format(record(mine=value))
    found = json.loads(text)["mine"]
    assert len(text) < 40_000
    assert "\u202e" not in text
    if isinstance(value, list):
        assert found.endswith("(100,000 characters)")
    else:
        assert found == shown


def test_extra_cannot_pass_for_a_field_of_ours() -> None:
    found = json.loads(JsonFormatter().format(record(time="never", level="LOUD")))
    assert found["level"] == "INFO"
    assert found["time"] != "never"


# -- a line a run


def ended(**fields: Any) -> TaskRun[Any, Any]:
    run: TaskRun[Any, Any] = TaskRun(
        id="a\nb", task=send, queued=1_764_000_000.0, start=1_764_000_000.5, end=1_764_000_001.25,
        state=TaskState.success, **fields,
    )  # fmt: skip
    return run


def test_a_run_as_text() -> None:
    lines: list[str] = []
    log = RunLines(lines.append)
    log(ended(retry_attempt=1))
    (line,) = lines
    assert ",250 INFO    fluidfast.runs: success task=send run=a\\nb attempt=2 seconds=0.750000 waited=0.500000" in line
    stamp = logging.Formatter("%(asctime)s").format(record(created=1_764_000_001.25, msecs=250))
    assert line.startswith(stamp)


def test_a_run_as_json() -> None:
    lines: list[str] = []
    log = RunLines(lines.append, as_json=True)
    log(ended())
    log(ended())
    assert lines[0] == lines[1]
    assert json.loads(lines[0]) == {
        "time": "2025-11-24T16:00:01.250Z", "level": "INFO", "name": "fluidfast.runs", "message": "run ended: success",
        "task": "send", "run_id": "a\\nb", "attempt": 1, "worker": 1, "state": "success",
        "seconds": 0.75, "waited": 0.5,
    }  # fmt: skip


def test_the_filter_and_both_formats_agree() -> None:
    one = record()
    RunFilter().filter(one)
    assert "run" not in LineFormatter("%(message)s").format(one)
    assert "run_id" not in JsonFormatter().format(one)
