"""Programs written for aio-fluid run here when the first word of their imports changes, and print the same.

``expected/`` is what aio-fluid 2.12 printed. The long form runs each program on both libraries:

    FLUIDFAST_AIO_PYTHON=/path/to/python pytest -m soak -n 0 tests/dropin

With ``FLUIDFAST_RECORD=1`` it writes ``expected/`` anew.
"""

from __future__ import annotations

import os
import random
import re
import runpy
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kits.aio_fluid import make_aio_python
from pydantic import BaseModel, SecretStr

from fluidfast import TaskManager, TaskRun, task
from fluidfast.core.states import PRIORITIES
from fluidfast.settings import get_settings
from fluidfast.wire._codec import Codec

HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in (HERE / "programs").glob("*.py"))
ENVIRONMENT = {"FLUID_HTTP_INSECURE": "true", "COLUMNS": "200"}


def moved(name: str) -> str:
    """Return the text of a program with ``fluid`` in its imports changed to ``fluidfast``."""
    return re.sub(r"^from fluid\.", "from fluidfast.", (HERE / "programs" / f"{name}.py").read_text(), flags=re.M)


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[None]:
    for variable, value in {**ENVIRONMENT, "FLUID_BROKER_URL": url}.items():
        monkeypatch.setenv(variable, value)
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(
    name: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / f"{name}.py"
    program.write_text(moved(name))
    with environment(monkeypatch, redis_url):
        runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == (HERE / "expected" / f"{name}.txt").read_text()


# -- the long form, with aio-fluid


@pytest.fixture(scope="session")
def aio_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_aio_python(tmp_path_factory, "aio-fluid[cli,http]==2.12.*", "httpx")


@pytest.mark.soak
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_on_both(name: str, redis_url: str, tmp_path: Path, aio_python: str) -> None:
    def run(python: str, program: Path) -> str:
        env = {**os.environ, **ENVIRONMENT, "FLUID_BROKER_URL": f"{redis_url}-{Path(python).parts[1]}{len(python)}"}
        done = subprocess.run([python, program], env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    theirs = run(aio_python, HERE / "programs" / f"{name}.py")
    if os.environ.get("FLUIDFAST_RECORD"):
        (HERE / "expected" / f"{name}.txt").write_text(theirs)
    program = tmp_path / f"{name}.py"
    program.write_text(moved(name))
    assert run(sys.executable, program) == theirs == (HERE / "expected" / f"{name}.txt").read_text()


class Everything(BaseModel):
    """``aio_wire.py`` has the same."""

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


def some_text(rng: random.Random) -> str:
    alphabets: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(string.printable),
        lambda: chr(rng.randrange(0x20)),
        lambda: chr(rng.randrange(0x80, 0xD800)),
        lambda: chr(rng.randrange(0xE000, 0x110000)),
        lambda: rng.choice('\\"/\x7f\u2028'),
    )
    return "".join(rng.choice(alphabets)() for _ in range(rng.randrange(12)))


def some_time(rng: random.Random) -> datetime | None:
    if rng.random() < 0.3:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(4_000_000_000_000_000))


def some_run(rng: random.Random, manager: TaskManager) -> TaskRun[Any, Any]:
    params = Everything(
        text=some_text(rng),
        number=rng.choice((0, -1, rng.randrange(-(1 << 63), 1 << 63), rng.randrange(100))),
        ratio=rng.choice((0.0, -0.0, 1e-300, rng.uniform(-1e9, 1e9), rng.random())),
        flag=rng.choice((None, True, False)),
        names=[some_text(rng) for _ in range(rng.randrange(4))],
        counts={some_text(rng): rng.randrange(1 << 40) for _ in range(rng.randrange(4))},
        when=some_time(rng),
        secret=SecretStr(some_text(rng)),
    )
    run: TaskRun[Any, Any] = TaskRun(
        id=some_text(rng) or "x",
        task=everything,
        priority=rng.choice(PRIORITIES),
        params=params,
        task_manager=manager,
        execute_after=some_time(rng),
        rate_limit_attempt=rng.randrange(3),
        retry_attempt=rng.randrange(3),
        from_run_id=some_text(rng),
        root_run_id=some_text(rng),
    )
    run.set_state("queued", datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(10**15)))
    return run


@pytest.mark.soak
def test_wire_both_ways(aio_python: str) -> None:
    """aio-fluid reads 200,000 runs of ours and writes them again; we read them as they were."""
    rng, batch = random.Random(20), 10_000
    manager = TaskManager(broker_url="memory://")
    manager.register_task(everything)
    codec: Codec = manager.broker.codec
    with subprocess.Popen(
        [aio_python, str(HERE / "aio_wire.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(int(os.environ.get("FLUIDFAST_WIRE_RUNS", "200000")) // batch):
            runs = [some_run(rng, manager) for _ in range(batch)]
            for run in runs:  # it answers when it has all of them: neither waits for the other's pipe
                child.stdin.write(codec.encode(run) + b"\n")
            child.stdin.write(b"\n")
            child.stdin.flush()
            for run in runs:
                line = child.stdout.readline()
                assert codec.decode(line[:-1], manager, manager.dispatcher.listeners) == run, line
        child.stdin.close()
        assert child.wait(30) == 0
