"""Links of the README and the documentation lead somewhere, also on PyPI."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from kits.pages import DOCS, FENCE, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com") + "/main/"
FILES = [
    *DOCS.rglob("*.md"),
    *(ROOT / ".github").glob("*.md"),
    *(ROOT / "bench").glob("*.md"),
    ROOT / "CHANGELOG.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links_of(page: Path) -> list[str]:
    return LINK.findall(FENCE.sub("", page.read_text()))


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = FENCE.sub("", page.read_text())
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


def trouble_with(link: str, page: Path) -> str:
    """What is wrong with a relative link of a page; "" if nothing is."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"{page.relative_to(ROOT)}: {link} leads nowhere"
    if ROOT not in (target, *target.parents):
        return f"{page.relative_to(ROOT)}: {link} leads out of the repository"
    if anchor and anchor not in headings_of(target):
        return f"{page.relative_to(ROOT)}: {link}: no such heading"
    return ""


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    relative = [link for link in links_of(page) if not re.match(r"[a-z]+:", link)]
    assert [trouble for link in relative if (trouble := trouble_with(link, page))] == []


def test_a_wrong_link_is_seen() -> None:
    page = DOCS / "index.md"
    assert trouble_with("learn/1-first-program.md", page) == ""
    assert trouble_with("understand/delivery.md#a-task-that-may-run-twice", page) == ""
    assert "leads nowhere" in trouble_with("learn/0.md", page)
    assert "no such heading" in trouble_with("understand/delivery.md#none", page)


def test_links_of_the_readme_work_on_pypi() -> None:
    """PyPI shows the README alone: a link or picture has to be absolute, and a file of ours has to be there."""
    links = [*links_of(ROOT / "README.md"), *PROJECT["urls"].values()]
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://"), f"{link} is dead on PyPI"
        for prefix in (f"{REPOSITORY}/blob/main/", RAW):
            if link.startswith(prefix):
                assert trouble_with(link.removeprefix(prefix), ROOT / "README.md") == ""
                break
        else:
            assert link == REPOSITORY or REPOSITORY not in link, f"{link} is no file of the repository"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    first = next(
        match["text"] for match in FENCE.finditer((ROOT / "README.md").read_text()) if "python" in match[0][:10]
    )
    assert len([line for line in first.splitlines() if line.strip()]) <= 20
