"""The pages of the documentation, and how their blocks of code are run.

A block's language says what happens to it:

python          runs in this process; the blocks of one page share a namespace. With title="app.py" it becomes a file
                instead, which a later block has to use
sh              each line runs in a shell, in a folder of the page. A line that goes on until it is stopped (a worker, a
                web server, a line that ends with &) runs beside the lines after it, is stopped at the end of the page,
                and has to exit with 0
console         as sh, for lines that begin with "$ "; the lines behind it have to be in its output, in this order
                ("..." is any text)
json, toml      are read
text, yaml ...  are shown only (``SHOWN``)

``<!-- not run: REASON -->`` in the line before a block leaves it out. ``localhost:6379`` is replaced by a server of the
tests, ``memory://`` by a broker of the page, and ``bench`` without a number of tasks has few.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from fluidfast.settings import get_settings

from .command_kit import environment, until

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUN = ("python", "sh", "console")
READ = {"json": json.loads, "toml": tomllib.loads}
SHOWN = ("text", "yaml", "ini", "dockerfile", "sql", "html")
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"^```(?P<language>[^\s`]*)(?: +(?P<info>[^\n]*))?\n(?P<text>.*?)^```$",
    re.M | re.S,
)
STAYS = re.compile(r"&$|fluidfast worker\b(?!.*(?:--burst|--help))|\buvicorn \w|\bserve\b(?!.*--help)")
ASSIGNED = re.compile(r"^((?:\w+=\S+ +)*)")
READY = re.compile(r"tasks?, \d+ at a time|Uvicorn running|started")
INSTALLS = re.compile(r"pip install (?P<what>[^&]+?)(?: && (?P<rest>.*))?$")
SECONDS = 60.0


@dataclass(frozen=True)
class Block:
    """A fenced block. ``reason``: why it is not run; "" if it is."""

    page: Path
    line: int
    language: str
    title: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{os.path.relpath(self.page, ROOT)}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"] or "")
        line = text.count("\n", 0, match.start("text"))
        name = title[1] if title else ""
        found.append(Block(page, line, match["language"], name, match["reason"] or "", match["text"]))
    fences = len(re.findall(r"^\s*```", text, re.M))
    assert fences == 2 * len(found), f"{page}: a fence is not closed, or not at the beginning of its line"
    return found


class Runner:
    """Runs the blocks of one page in a folder."""

    def __init__(self, page: Path, folder: Path, redis_url: str, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.memory_url = f"memory://{page.stem}-{os.getpid()}"
        self.ports: dict[str, str] = defaultdict(free_port)
        self.beside: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self.files: dict[str, bool] = {}  # name -> whether something used it
        self.module = ModuleType("__main__")
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setitem(sys.modules, "__main__", self.module)
        patch.setenv("FLUID_BROKER_URL", self.memory_url)
        # the commands of this environment, also if it is not activated
        self.path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(self, blocks: Iterable[Block]) -> None:
        modules = set(sys.modules)
        get_settings.cache_clear()
        try:
            with logging_restored():
                for block in blocks:
                    self.run_block(block)
            for name, used in self.files.items():
                assert used, f"no later block of the page uses {name}"
        finally:
            self.stop()
            get_settings.cache_clear()
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self.folder)):
                    del sys.modules[name]

    def run_block(self, block: Block) -> None:
        text = self.here(block.text)
        if block.reason:
            return
        for name in self.files:
            if re.search(rf"\b{re.escape(Path(name).stem)}\b", text):
                self.files[name] = True
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            self.files[block.title] = False
        elif block.language == "python":
            self.run_python(block, text)
        elif block.language == "sh":
            for line in commands(text):
                self.run_line(block, line)
        elif block.language == "console":
            self.run_console(block, text)
        elif block.language in READ:
            READ[block.language](text)

    def here(self, text: str) -> str:
        """Text with the addresses of this machine."""
        server, _, query = self.redis_url.partition("?")
        text = re.sub(
            r"redis://localhost:6379(?:/\d+)?(\?)?", lambda m: f"{server}?{query}" + ("&" if m[1] else ""), text
        )
        text = re.sub(r"memory://(?!\w)", self.memory_url, text)
        text = re.sub(r"(fluidfast bench)(?!.*--tasks)", r"\1 --tasks 2000", text)
        return re.sub(r"(\blocalhost:|--port )(80\d\d)\b", lambda m: m[1] + self.ports[m[2]], text)

    def run_python(self, block: Block, text: str) -> None:
        # as many empty lines before it as make a traceback name the line of the page
        code = compile("\n" * block.line + text, str(block.page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()), within_seconds(block):
            exec(code, vars(self.module))

    def variables(self) -> dict[str, str]:
        return environment(FLUID_BROKER_URL=self.redis_url, PATH=self.path, COLUMNS="80", NO_COLOR="1")

    def run_line(self, block: Block, line: str) -> str:
        if installs := INSTALLS.match(line):
            check_extras(block, installs["what"])
            if not (line := installs["rest"] or ""):
                return ""
        if STAYS.search(line):
            self.start(block, line)
            return ""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )
        output = done.stdout.decode()
        assert done.returncode == 0, f"{block}: {line}\nexit code {done.returncode}\n{output}"
        return output

    def run_console(self, block: Block, text: str) -> None:
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, wanted = part.partition("\n")
            output = self.run_line(block, command)
            pieces = [
                r"[^\n]*".join(re.escape(piece).replace(r"\ ", r"\s+") for piece in line.strip().split("..."))
                for line in wanted.strip().splitlines()
            ]
            found = re.search(r"^\s*" + r"\s*$.*?^\s*".join(pieces) + r"\s*$", output, re.M | re.S)
            assert found, f"{block}: {command}\nwanted, in this order:\n{wanted}\ngot:\n{output}"

    def start(self, block: Block, line: str) -> None:
        log = self.folder / f"beside-{len(self.beside)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", ASSIGNED.sub(r"\1exec ", line.rstrip("& "))],
                cwd=self.folder,
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.beside.append((f"{block}: {line}", process, log))
        until(lambda: process.poll() is not None or READY.search(log.read_text()), f"{block}: {line} has started")

    def stop(self) -> None:
        """End what still runs."""
        for _, process, _ in self.beside:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        troubles = []
        for line, process, log in self.beside:
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code not in (0, -signal.SIGTERM):  # a web server ends itself by the signal that it got
                troubles.append(f"{line}\nexit code {code}\n{log.read_text()}")
        self.beside.clear()
        assert not troubles, "\n".join(troubles)


def commands(text: str) -> Iterator[str]:
    """The commands of a block, without comments. A backslash at its end joins a line to the next."""
    for line in text.replace("\\\n", " ").splitlines():
        if line := re.sub(r"(^|\s)#\s.*$", "", line).strip():
            yield line


def check_extras(block: Block, what: str) -> None:
    """That what ``pip install`` is to install is this project with extras that it has, or something installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in what.replace("'", "").replace('"', "").split():
        found = re.fullmatch(r"(?P<name>\.|[\w-]+)(?:\[(?P<extras>[\w,]+)\])?", word)
        if found is None:
            continue
        if found["name"] in (".", project["name"]):
            for extra in filter(None, (found["extras"] or "").split(",")):
                assert extra in project["optional-dependencies"], f"{block}: no extra {extra}"
        elif not word.startswith("-"):
            assert importlib.util.find_spec(found["name"]), f"{block}: {word}"


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@contextlib.contextmanager
def within_seconds(block: Block) -> Iterator[None]:
    """End a block that hangs: it runs in this thread."""

    def end(*_: object) -> None:
        raise AssertionError(f"{block}: not at its end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(int(SECONDS))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level


def report() -> str:
    """How many blocks of each language are run, and which are not."""
    blocks = [block for page in pages() for block in blocks_of(page)]
    ran = [block for block in blocks if block.language in RUN and not block.reason]
    left = [block for block in blocks if block.reason]
    lines = [f"{len(blocks)} blocks: {len(ran)} run, {len(left)} not run, {len(blocks) - len(ran) - len(left)} shown"]
    return "\n".join(lines + [f"  {block}: {block.reason}" for block in left])


if __name__ == "__main__":
    print(report())
