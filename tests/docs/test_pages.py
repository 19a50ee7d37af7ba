"""Every block of code in the README and in docs/ is run; tests/kits/pages.py says how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kits import pages

ALL = pages.pages()


def name_of(page: Path) -> str:
    return str(page.relative_to(pages.ROOT))


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_page(page: Path, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.Runner(page, tmp_path, redis_url, monkeypatch).run(pages.blocks_of(page))


def test_most_blocks_are_run(record_property: Callable[[str, object], None]) -> None:
    blocks = [block for page in ALL for block in pages.blocks_of(page)]
    known = {*pages.RUN, *pages.READ, *pages.SHOWN}
    assert [f"{block}: {block.language!r}" for block in blocks if block.language not in known] == []
    ran = [block for block in blocks if block.language in pages.RUN and not block.reason]
    left = [block for block in blocks if block.reason]
    assert [str(block) for block in left if len(block.reason.split()) < 3] == [], "a reason is a sentence"
    record_property("blocks run", len(ran))
    record_property("blocks not run", len(left))
    assert len(ran) >= 5 * len(left), pages.report()
