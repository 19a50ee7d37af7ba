from __future__ import annotations

import signal
from pathlib import Path

from kits.command_kit import until
from kits.example_kit import Example
from PIL import Image


def test_pictures_are_scaled_and_a_broken_one_fails_alone(redis_url: str, tmp_path: Path) -> None:
    example = Example("thumbnails", tmp_path, FLUID_BROKER_URL=redis_url)
    pictures = example.folder / "pictures"
    pictures.mkdir()
    for name, size in (("wide.jpg", (640, 480)), ("small.png", (60, 40))):
        Image.new("RGB", size, "teal").save(pictures / name)
    (pictures / "broken.png").write_bytes(b"no picture")
    queued = example.run("python list_pictures.py pictures | fluidfast queue thumbnails:manager thumbnail --from -")
    assert "queued 3 runs" in queued
    with example.start("fluidfast worker thumbnails:manager --concurrency 4") as worker:
        made = [pictures / "wide.thumb.png", pictures / "small.thumb.png"]
        until(lambda: all(path.exists() for path in made), "thumbnails")
        worker.wait_for("UnidentifiedImageError")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    for path, size in zip(made, [(128, 96), (60, 40)], strict=True):
        with Image.open(path) as image:
            assert image.size == size
    assert sorted(path.name for path in pictures.iterdir()) == [
        "broken.png", "small.png", "small.thumb.png", "wide.jpg", "wide.thumb.png",
    ]  # fmt: skip
