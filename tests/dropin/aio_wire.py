"""For a Python that has aio-fluid: read payloads as its worker does, a line each, and write them as its producer does.

An empty line asks for the answers.
"""

import json
import sys
from datetime import datetime

from fluid.scheduler import TaskManager, TaskRun, task
from pydantic import BaseModel, SecretStr


class Everything(BaseModel):
    text: str
    number: int
    ratio: float
    flag: bool | None
    names: list[str]
    counts: dict[str, int]
    when: datetime | None
    secret: SecretStr


@task
async def everything(ctx: TaskRun[Everything]) -> None: ...


manager = TaskManager()
answers: list[bytes] = []
for line in sys.stdin.buffer:
    if line == b"\n":
        sys.stdout.buffer.write(b"".join(answers))
        sys.stdout.buffer.flush()
        answers = []
        continue
    data = json.loads(line)
    assert data.pop("task") == everything.name
    params = Everything(**data.pop("params"))
    run = TaskRun(**data, task=everything, params=params, task_manager=manager)
    answers.append(run.queue_dump_json() + b"\n")
