from __future__ import annotations

from pathlib import Path

from kits.example_kit import Example


def test_only_the_import_changes(redis_url: str, tmp_path: Path) -> None:
    example = Example("migration", tmp_path, FLUID_BROKER_URL=redis_url)
    app = example.folder / "app.py"
    before = app.read_text().splitlines()
    example.run(r"sed -i.before 's/^from fluid\./from fluidfast./' app.py")
    after = app.read_text().splitlines()
    [changed] = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed[0].replace("fluid.", "fluidfast.") == changed[1]
    assert example.run("python app.py") == "add success\n"
