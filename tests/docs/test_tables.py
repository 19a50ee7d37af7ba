"""Tables of the documentation against what the code knows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from kits.pages import DOCS, ROOT, blocks_of

from fluidfast import RetryPolicy, TaskManagerConfig, errors
from fluidfast.brokers.base import BUILT_IN
from fluidfast.brokers.url import BrokerOptions


def table_behind(page: str, text: str) -> dict[str, list[str]]:
    """The rows of the table that follows a text: each name in the first column -> the other cells."""
    _, found, rest = (DOCS / page).read_text().partition(text)
    assert found, f"{page} has no {text!r}"
    rows = re.search(r"(?:^\|.*\n)+", rest, re.M)
    assert rows is not None, text
    lines = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in rows[0].splitlines()[2:]]
    return {name: cells for first, *cells in lines for name in re.findall(r"`([^`]+)`", first)}


def test_options_of_the_url() -> None:
    assert set(BrokerOptions.NAMES) <= set(table_behind("reference/url-options.md", "Behind `?`"))
    schemes = (DOCS / "reference/url-options.md").read_text()
    for scheme in BUILT_IN:
        assert f"`{scheme}://" in schemes or f"{scheme.split('+')[0]}://" in schemes


def test_keywords() -> None:
    table = table_behind("reference/settings.md", "fields of `TaskManagerConfig`")
    assert {field.name for field in fields(TaskManagerConfig)} == set(table)


def test_variables_of_the_environment() -> None:
    settings = (ROOT / "fluidfast" / "settings.py").read_text()
    documented = set(re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)+\b", settings.split('"""')[1]))
    assert documented - {"FLUID_"} <= set(table_behind("reference/settings.md", "The environment, read at first use"))


def test_fields_of_a_retry_policy() -> None:
    table = table_behind("how-to/retries.md", "attempt %d")
    assert {name: cells[0].strip("`") for name, cells in table.items()} == {
        field.name: repr(field.default) for field in fields(RetryPolicy)
    }


def test_errors() -> None:
    named = set(re.findall(r"`(\w+(?:Error|Taken|Lost))`", (DOCS / "reference/errors.md").read_text()))
    assert named - {"TimeoutError"} <= set(errors.__all__)


def test_routes() -> None:
    http = (ROOT / "fluidfast" / "http" / "__init__.py").read_text().split('"""')[1]
    routes = set(re.findall(r"(?:GET|PATCH|POST|DELETE) /tasks[\w/-]*", http))
    table = table_behind("reference/http.md", "The prefix is `/tasks`")
    assert len(routes) >= 7
    assert routes <= set(table)


def test_keys_in_redis() -> None:
    text = (DOCS / "understand/redis-keys.md").read_text()
    source = (ROOT / "fluidfast/brokers/redis/keys.py").read_text().split("class ScriptKeys")[0]
    for key in set(re.findall(r"-ff:([a-z-]+)", source)) - {"nothing"}:
        assert f"-ff:{key}" in text, key


def test_scripts() -> None:
    table = table_behind("understand/redis-keys.md", "## Scripts")
    files = {path.stem for path in (ROOT / "fluidfast/brokers/redis/lua").glob("*.lua")}
    assert files - {"kept"} == set(table)  # kept.lua is a part of others


def test_every_page_is_in_the_nav() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    for page in DOCS.rglob("*.md"):
        assert re.search(rf"(?<!\S){re.escape(str(page.relative_to(DOCS)))}$", nav, re.M), page


def test_the_task_of_the_larger_example() -> None:
    shown = next(block for block in blocks_of(DOCS / "learn/stdlib-index.md") if block.language == "python")
    source = Path(ROOT / "examples/stdlib_index/index.py").read_text()
    code = "\n".join(re.sub(r"  # .*", "", line) for line in source.splitlines())
    for line in shown.text.splitlines():
        assert line.strip() in code
