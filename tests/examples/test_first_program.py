from __future__ import annotations

import signal
from pathlib import Path

from kits.example_kit import Example


def test_it_runs_in_one_process(tmp_path: Path) -> None:
    example = Example("first_program", tmp_path)
    assert example.run("python hello.py").splitlines() == ["hello Grace", "success"]


def test_it_runs_with_a_server(redis_url: str, tmp_path: Path) -> None:
    example = Example("first_program", tmp_path, FLUID_BROKER_URL=redis_url)
    with example.start("fluidfast worker hello:manager") as worker:
        example.run("""fluidfast queue hello:manager greet --params '{"name": "Ada"}'""")
        worker.wait_for("hello Ada")
        worker.signal(signal.SIGINT)
        assert worker.end() == 0
