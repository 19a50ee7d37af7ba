"""mypy and pyright, both strict, read programs: what is right is right, and each line with ``# wrong`` is an error.

The documents' blocks are read too, as a user's editor reads them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROGRAMS = ("bound_tasks.py",)
PAGES = ("README.md", "docs/how-to/tasks.md")

Errors = dict[str, dict[int, str]]
"""By file: the line, and what is wrong with it."""


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Name and text of each program of a page."""
    for number, text in enumerate(re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)):
        yield f"{re.sub(r'[^a-z]', '_', page.lower())}_{number}.py", text


def errors_of_mypy(folder: Path, *options: str) -> Errors:
    command = (sys.executable, "-m", "mypy", f"--cache-dir={folder.parent}", "--no-error-summary", *options)
    done = subprocess.run(
        (*command, *(path.name for path in folder.glob("*.py"))),
        cwd=folder, capture_output=True, text=True, env={"MYPYPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode in (0, 1), done
    found: Errors = {}
    for name, line, text in re.findall(r"^([\w/.]+):(\d+): error: (.*)$", done.stdout, re.M):
        found.setdefault(name, {})[int(line)] = text
    return found


def errors_of_pyright(folder: Path, mode: str = "strict") -> Errors:
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "typeCheckingMode": mode}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = (sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done
    found: Errors = {}
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        if each["severity"] == "error":
            line = each["range"]["start"]["line"] + 1
            found.setdefault(Path(each["file"]).name, {})[line] = each["message"]
    return found


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name in PROGRAMS:
        (tmp_path / name).write_text((HERE / name).read_text())
    return tmp_path


@pytest.mark.parametrize("check", [lambda folder: errors_of_mypy(folder, "--strict"), errors_of_pyright])
def test_the_wrong_lines_are_errors_and_no_others(programs: Path, check: Callable[[Path], Errors]) -> None:
    found = check(programs)
    for name in PROGRAMS:
        lines = (programs / name).read_text().splitlines()
        wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
        assert wrong
        errors = found.get(name, {})
        assert {line: text for line, text in errors.items() if line not in wrong} == {}
        assert {number: lines[number - 1] for number in wrong - errors.keys()} == {}


@pytest.mark.parametrize("check", [errors_of_mypy, lambda folder: errors_of_pyright(folder, "standard")])
def test_the_documents_are_right(tmp_path: Path, check: Callable[[Path], Errors]) -> None:
    for page in PAGES:
        for name, text in blocks(page):
            (tmp_path / name).write_text(text)
    assert check(tmp_path) == {}
