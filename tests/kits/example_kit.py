"""Readers in tests: they have a README or a page, copy its files, and run its command lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .command_kit import ROOT, Running, run

EXAMPLES = ROOT / "examples"
SHELL = ("/bin/sh", "-c")


class Reader:
    """Somebody who has a text with command lines. ``run`` and ``start`` take lines of that text, and no others."""

    def __init__(self, name: str, text: str, folder: Path, variables: dict[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.lines = shell_lines(text)
        self.python = sys.executable  # which is `python` in the text
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.variables = {"PATH": path, **variables}

    def run(self, line: str, *, replacing: dict[str, str] | None = None, **variables: str) -> str:
        """Run a line of the text to its end, and return its output. It must succeed.

        ``replacing``: what is different here, such as the port of a server, or the size of a file.
        """
        done = self.try_line(line, replacing=replacing, **variables)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def try_line(
        self, line: str, *, replacing: dict[str, str] | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """As ``run``, for a line that may fail."""
        line = self._known(line, replacing)
        return run(line, cwd=self.folder, program=SHELL, **self.variables, **variables)

    def start(
        self, line: str, *, under: str = "env", replacing: dict[str, str] | None = None, **variables: str
    ) -> Running:
        """Start a line of the text that goes on until a signal: ``with example.start(...) as worker``.

        ``under``: a command that starts it, such as ``unshare --pid --fork``.
        """
        line = self._known(line, replacing)
        return Running(f"exec {under} {line}", cwd=self.folder, program=SHELL, **self.variables, **variables)

    def _known(self, line: str, replacing: dict[str, str] | None) -> str:
        assert line in self.lines, f"{self.name} has no line {line!r}; it has {self.lines}"
        for old, new in (replacing or {}).items():
            assert old in line, (old, line)
            line = line.replace(old, new)
        return line


class Example(Reader):
    """A reader of an example's README, with a copy of its folder."""

    def __init__(self, name: str, directory: Path, **variables: str) -> None:
        folder = directory / name
        shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(f"{name}/README.md", (folder / "README.md").read_text(), folder, variables)


class PageReader(Reader):
    """A reader of a page of the documentation, who copies its files: the blocks of code that have a ``title``."""

    def __init__(self, page: str, directory: Path, **variables: str) -> None:
        text = (ROOT / page).read_text()
        for name, contents in titled_blocks(text).items():
            (directory / name).write_text(contents)
        super().__init__(page, text, directory, variables)


def started(*workers: Running) -> None:
    """Wait until these workers run: before that, a SIGTERM kills them."""
    for worker in workers:
        worker.wait_for(" at a time")


def titled_blocks(text: str) -> dict[str, str]:
    """The blocks of code of a document that are files, by name."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.M | re.S))


def shell_lines(text: str) -> list[str]:
    """The command lines in the ``sh`` blocks of a document, without comments. A backslash at an end goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    lines = re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines()
    return [line.partition("  # ")[0].strip() for line in lines if line.strip()]
