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


def errors_of_mypy(folder: Path) -> Errors:
    command = (sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--no-error-summary")
    done = subprocess.run(
        (*command, *(path.name for path in folder.glob("*.py"))),
        cwd=folder, capture_output=True, text=True, env={"MYPYPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode in (0, 1), done
    found: Errors = {}
    for name, line, text in re.findall(r"^([\w/.]+):(\d+): error: (.*)$", done.stdout, re.M):
        found.setdefault(name, {})[int(line)] = text
    return found


def errors_of_pyright(folder: Path) -> Errors:
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
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


@pytest.fixture(scope="module", params=[errors_of_mypy, errors_of_pyright], ids=["mypy", "pyright"])
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """What a checker says, once for all programs: it reads the whole package each time."""
    folder = tmp_path_factory.mktemp("programs")
    for name in PROGRAMS:
        (folder / name).write_text((HERE / name).read_text())
    for page in PAGES:
        for name, text in blocks(page):
            (folder / name).write_text(f"# pyright: standard\n{text}")
    check: Callable[[Path], Errors] = request.param
    return check(folder)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_wrong_lines_are_errors_and_no_others(errors: Errors, name: str) -> None:
    lines = (HERE / name).read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = errors.get(name, {})
    assert wrong
    assert {line: text for line, text in found.items() if line not in wrong} == {}
    assert {number: lines[number - 1] for number in wrong - found.keys()} == {}


def test_the_documents_are_right(errors: Errors) -> None:
    # the package is checked as its oldest Python reads it, by mypy in .ci/run
    of_pages = {name: lines for name, lines in errors.items() if "/" not in name}
    assert {name: lines for name, lines in of_pages.items() if name not in PROGRAMS} == {}
