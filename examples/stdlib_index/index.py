"""Index the Python standard library: one task a file, run by as many workers as are started.

    python list_files.py | fluidfast queue index:manager index_file --from -
    fluidfast worker index:manager        (in two terminals)
    python report.py

The broker is FLUID_BROKER_URL, else redis://localhost:6379.
"""

import ast
import asyncio
import os
import tokenize
import warnings
from collections import Counter

import msgspec
from msgspec.structs import astuple

from fluidfast import TaskConsumer, TaskRun, task

# the library has tests whose code Python warns of, and that is not our concern
warnings.simplefilter("ignore")


class File(msgspec.Struct):
    """Params of a run: the file to index."""

    path: str


class Counts(msgspec.Struct):
    """What is in one file, or in many. ``failed``: files that cannot be parsed."""

    files: int = 0
    functions: int = 0
    classes: int = 0
    lines: int = 0
    failed: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def count(path: str) -> Counts:
    """Parse a file and count."""
    try:
        with tokenize.open(path) as file:  # in the encoding that the file declares
            source = file.read()
        kinds = Counter(map(type, ast.walk(ast.parse(source, path))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Counts(files=1, failed=1)
    return Counts(
        files=1,
        functions=kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        classes=kinds[ast.ClassDef],
        lines=source.count("\n"),
    )


@task(timeout_seconds=120)
async def index_file(ctx: TaskRun[File]) -> None:
    """Count what is in a file, and write it down under the file's name."""
    path = ctx.params.path
    counts = await asyncio.to_thread(count, path)  # so that the event loop is free meanwhile
    # HSET and not HINCRBY: a run that is delivered twice writes the same field twice, and the sums stay right
    await ctx.deps.redis.hset(ctx.deps.results, path, msgspec.json.encode(counts))


manager = TaskConsumer(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
manager.register_task(index_file)
manager.deps.redis = manager.broker.redis_cli
manager.deps.results = f"{manager.broker.prefix}-stdlib-index"
