"""The README is run: its programs, its command lines, and its tables against what the code knows."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from kits.command_kit import run

from fluidfast import TaskManagerConfig
from fluidfast.brokers.base import BUILT_IN
from fluidfast.brokers.url import BrokerOptions
from fluidfast.commands import parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Heading and text of each block of code in a language."""
    heading = ""
    for match in re.finditer(
        r"^(?:#+ (?P<heading>[^\n]+)|```(?P<language>\w*)\n(?P<text>.*?)^```)$", README, re.M | re.S
    ):
        heading = match["heading"] or heading
        if match["language"] == language:
            yield heading, match["text"]


PROGRAMS = list(blocks("python"))
LINES = [line for _, text in blocks("sh") for line in text.splitlines()]


def test_there_are_blocks_of_each_kind_and_no_other() -> None:
    assert len(PROGRAMS) >= 4
    assert len(LINES) >= 8
    assert README.count("\n```") == 2 * (len(PROGRAMS) + len(list(blocks("sh"))))


@pytest.mark.parametrize(("heading", "program"), PROGRAMS, ids=[heading for heading, _ in PROGRAMS])
def test_program(heading: str, program: str, tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "program.py").write_text(program.replace("redis://localhost:6379", redis_url))
    command = (sys.executable, "-W", "error", "program.py")
    done = run(cwd=tmp_path, program=command)
    assert (done.returncode, done.stderr) == (0, ""), done
    if heading == "A first program":
        greeting, outcome = done.stdout.splitlines()
        assert greeting == "hello Grace"
        assert outcome.startswith("success 0:00:00.")
        assert len([line for line in program.splitlines() if line.strip()]) <= 20


def test_command_lines_are_ones() -> None:
    commands = [line for line in LINES if "-m fluidfast " in line]
    assert {word for line in commands for word in line.split() if word in ("bench", "worker", "queue")} == {
        "bench",
        "worker",
        "queue",
    }
    for line in commands:
        arguments = shlex.split(line.partition("-m fluidfast ")[2], comments=True)
        with contextlib.suppress(SystemExit):
            parser().parse_args(arguments)
            continue
        pytest.fail(f"not a command line: {line}")


def table_behind(text: str) -> set[str]:
    """The names in the first column of the table that follows a text."""
    _, _, rest = README.partition(text)
    rows = re.search(r"(?:^\|.*\n)+", rest, re.M)
    assert rows is not None, text
    cells = [row.split("|")[1] for row in rows[0].splitlines()[2:]]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_tables_have_every_option() -> None:
    options = table_behind("Behind `?`")
    assert set(BrokerOptions.NAMES) <= options
    assert {field.name for field in fields(TaskManagerConfig)} == table_behind("fields of `TaskManagerConfig`")
    settings = (ROOT / "fluidfast" / "settings.py").read_text()
    documented = set(re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)+\b", settings.split('"""')[1]))
    assert documented - {"FLUID_"} <= table_behind("The environment, read at first use")
    for scheme in BUILT_IN:
        assert scheme.split("+")[0] in README


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_the_tutorials_task_is_that_of_the_example() -> None:
    shown = re.search(r"^    @task.*?\n\n", README, re.M | re.S)
    assert shown is not None
    source = (ROOT / "examples" / "stdlib_index" / "index.py").read_text()
    code = "\n".join(re.sub(r"  # .*", "", line) for line in source.splitlines())
    for line in shown[0].splitlines():
        assert line.strip() in code
