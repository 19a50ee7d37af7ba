"""An engineer who wants to know how fast a task of their own is, and has one page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from kits.example_kit import ROOT, PageReader, titled_blocks

PAGE = "docs/how-to/measuring-a-task.md"


def test_it_prints_a_rate(tmp_path: Path) -> None:
    assert re.fullmatch(r"[\d,]+ runs/s\n", PageReader(PAGE, tmp_path).run("python measure.py"))


def test_it_is_five_lines() -> None:
    [source] = titled_blocks((ROOT / PAGE).read_text()).values()
    [main] = [node for node in ast.parse(source).body if getattr(node, "name", "") == "main"]
    statements = [node for node in ast.walk(main) if isinstance(node, ast.stmt) and node is not main]
    assert len(statements) <= 6, "five, and the block that they are in"
