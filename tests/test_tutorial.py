"""The larger example of docs/learn: the standard library, indexed by two workers, against a plain loop."""

from __future__ import annotations

import ast
import json
import signal
import sys
import tokenize
from pathlib import Path

import pytest
import redis
from kits.command_kit import Running, run, until

TUTORIAL = Path(__file__).parents[1] / "examples" / "stdlib_index"


def plain_loop(paths: list[str]) -> dict[str, int]:
    total = {"files": 0, "functions": 0, "classes": 0, "lines": 0, "failed": 0}
    for path in paths:
        total["files"] += 1
        try:
            with tokenize.open(path) as file:
                text = file.read()
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            total["failed"] += 1
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                total["functions"] += 1
            elif isinstance(node, ast.ClassDef):
                total["classes"] += 1
        total["lines"] += text.count("\n")
    return total


# The files up to 8 KiB are a thousand, and a tenth of all bytes; all of them take half a minute.
@pytest.mark.parametrize("max_bytes", [1 << 13, pytest.param(1 << 30, marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_two_workers_count_what_a_plain_loop_counts(redis_url: str, tmp_path: Path, max_bytes: int) -> None:
    def script(name: str) -> str:
        done = run(name, cwd=TUTORIAL, program=(sys.executable,), FLUID_BROKER_URL=redis_url)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    listed = script("list_files.py").splitlines(keepends=True)
    listed = [line for line in listed if Path(json.loads(line)["path"]).stat().st_size <= max_bytes]
    paths = [json.loads(line)["path"] for line in listed]
    assert len(paths) > 300  # a thousand, unless a distribution has taken the library's tests away
    assert not [path for path in paths if "site-packages" in path]

    command = ("queue", "index:manager", "index_file", "--from", "-")
    # one of them twice, as if it had been delivered again
    queued = run(*command, input="".join([*listed, listed[0]]).encode(), cwd=TUTORIAL, FLUID_BROKER_URL=redis_url)
    assert queued.returncode == 0, queued
    assert queued.stdout.startswith(f"queued {len(paths) + 1:,} runs of 'index_file'")

    options = ("index:manager", "--log-level", "warning")
    # what they write goes to tmp_path, where Running runs them: the module is found by its path
    where = {"PYTHONPATH": str(TUTORIAL), "FLUID_BROKER_URL": redis_url}
    with (
        Running("worker", *options, cwd=tmp_path, **where) as first,
        Running("worker", *options, cwd=tmp_path, **where) as second,
    ):
        expected = plain_loop(paths)
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            results = f"{{{redis_url.partition('?name=')[2]}}}-stdlib-index"
            until(lambda: client.hlen(results) == len(paths), "all files indexed", seconds=60)
        first.signal(signal.SIGTERM)
        second.signal(signal.SIGTERM)
        assert (first.end(), second.end()) == (0, 0)
    report = json.loads(script("report.py"))
    print(report)
    assert report == expected
    assert first.stderr == second.stderr == ""
