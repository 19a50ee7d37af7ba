"""Make thumbnails. Scaling is CPU work, so each run has its own process."""

import os
from pathlib import Path

import msgspec
from PIL import Image

from fluidfast import TaskManager, TaskRun, task


class Picture(msgspec.Struct):
    path: str
    size: int = 128


@task(cpu_bound=True, timeout_seconds=60)
async def thumbnail(ctx: TaskRun[Picture]) -> None:
    """Write PATH.thumb.png beside a picture."""
    source = Path(ctx.params.path)
    target = source.with_suffix(".thumb.png")
    with Image.open(source) as image:
        image.thumbnail((ctx.params.size, ctx.params.size))
        partial = target.with_suffix(f".{ctx.id}")
        image.save(partial, "PNG")
    partial.replace(target)  # at once, so that nobody sees half a picture, also if the run is delivered twice


manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
manager.register_task(thumbnail)
