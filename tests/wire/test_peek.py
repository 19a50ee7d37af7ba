"""Reading a payload without a registry: when its run was due."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fluidfast import TaskRun, task
from fluidfast.wire._codec import Codec
from fluidfast.wire.peek import due_at

QUEUED = 1_764_000_000.25
RUN = {"id": "1", "task": "work", "priority": "medium", "params": {}}


@task
async def work(ctx: TaskRun) -> None: ...


@pytest.mark.parametrize("msgpack", [False, True])
@pytest.mark.parametrize("after", [None, QUEUED + 60, QUEUED - 60])
def test_what_we_write(msgpack: bool, after: float | None) -> None:
    run: TaskRun[Any, Any] = TaskRun(id="1", task=work, params={}, queued=QUEUED, execute_after=after, state="queued")
    payload = Codec({"work": work}, msgpack=msgpack).encode(run)
    assert due_at(payload) == pytest.approx(max(QUEUED, after or 0))


@pytest.mark.parametrize(
    ("fields", "due"),
    [
        ({"queued": "2025-11-24T16:00:00.25Z"}, QUEUED),
        ({"queued": "2025-11-24T16:00:00.25"}, QUEUED),
        ({"queued": "2025-11-24T17:00:00.25+01:00"}, QUEUED),
        ({"queued": QUEUED, "execute_after": "2025-11-24T16:01:00.25Z"}, QUEUED + 60),
        ({}, None),
        ({"queued": "soon"}, None),
        ({"queued": True}, None),
        ({"queued": [1]}, None),
    ],
)
def test_what_others_write(fields: dict[str, Any], due: float | None) -> None:
    assert due_at(json.dumps({**RUN, **fields}).encode()) == due


@pytest.mark.parametrize("payload", [b"", b"\x94", b"[]", b"no run", msgspec.msgpack.encode([1, 2, 3])])
def test_what_is_no_run(payload: bytes) -> None:
    assert due_at(payload) is None
