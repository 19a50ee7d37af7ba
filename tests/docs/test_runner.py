"""The runner of the pages sees what is wrong with a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from kits.pages import Runner, blocks_of, check_extras

GOOD = """
# A page

```python title="app.py"
NAME = "Grace"
```

```python
from app import NAME

greeting = f"hello {NAME}"
```

```python
assert greeting == "hello Grace"
assert __name__ == "__main__"
```

```console
$ python -c 'import app; print("begin"); print(app.NAME, 12, "ms")'
begin
Grace ... ms
```

<!-- not run: this line would fail -->
```sh
false
```

```sh
# a comment
pip install 'fluidfast[http]' && test -f \\
    app.py  # and another
```

```json
{"a": 1}
```
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(text: str) -> None:
        page = tmp_path / "page.md"
        page.write_text(text)
        folder = tmp_path / "folder"
        folder.mkdir()
        Runner(page, folder, "redis://127.0.0.1:1/0?name=none", monkeypatch).run(blocks_of(page))

    return run


def test_a_good_page(run) -> None:
    run(GOOD)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("```python\nassert 1 == 2, 3\n```\n", "3"),
        ("```sh\nfalse\n```\n", "exit code 1"),
        ("```console\n$ echo a\nb\n```\n", "wanted"),
        ("```console\n$ printf 'a\\nb'\nb\na\n```\n", "wanted"),
        ('```python title="lone.py"\n1\n```\n', "no later block of the page uses lone.py"),
        ("```sh\npip install 'fluidfast[nope]'\n```\n", "no extra nope"),
        ("```sh\nfalse &\n```\n", "exit code 1"),
        ("```sh\nls\n", "is not closed"),
        ("- a list\n\n  ```sh\n  ls\n  ```\n", "not at the beginning of its line"),
    ],
)
def test_a_page_with_a_mistake(run, block: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        run(f"# A page\n\n{block}")


def test_json_is_read(run) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        run("```json\n{\n```\n")


def test_addresses_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(tmp_path / "page.md", tmp_path, "redis://127.0.0.1:7777/0?name=of-the-test", monkeypatch)
    assert runner.here("redis://localhost:6379") == "redis://127.0.0.1:7777/0?name=of-the-test"
    assert (
        runner.here("'redis://localhost:6379/9?wire=json'") == "'redis://127.0.0.1:7777/0?name=of-the-test&wire=json'"
    )
    assert runner.here("memory://").startswith("memory://page-")
    assert runner.here("memory://?wire=msgpack").startswith("memory://page-")
    assert runner.here("memory://mine") == "memory://mine"
    port = runner.here("--port 8000").split()[1]
    assert (
        runner.here("http://localhost:8000/tasks") == f"http://localhost:{port}/tasks" != "http://localhost:8000/tasks"
    )


def test_an_unknown_package_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\npip install nothing_of_that_name\n```\n")
    with pytest.raises(AssertionError, match="nothing_of_that_name"):
        check_extras(blocks_of(page)[0], "nothing_of_that_name")
