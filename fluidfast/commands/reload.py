"""``worker --reload``: starts the workers again when a file of the application has changed."""

import asyncio
import importlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..texts import printable
from .group import CommandError
from .supervisor import Supervisor

__all__ = ["folders_of", "reload_on_change"]

logger = logging.getLogger("fluidfast.supervisor")

SHOWN = 3
"""Names of files in a line of the log."""


def folders_of(text: str) -> list[str]:
    """The folders that are watched: the current one, and that of the module if it is elsewhere."""
    here = Path.cwd()
    folders = [here]
    top = text.partition(":")[0].partition(".")[0]
    try:
        spec = find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if spec is not None and not places and spec.origin is not None:
        places = [str(Path(spec.origin).parent)]
    folders += [Path(place) for place in places if not Path(place).resolve().is_relative_to(here.resolve())]
    return [str(folder) for folder in folders]


async def reload_on_change(supervisor: Supervisor, folders: list[str]) -> None:
    """Have the supervisor start its workers again whenever a Python file in these folders has changed.

    Raises:
        CommandError: watchfiles is not installed, or a folder cannot be watched.
    """
    try:
        watchfiles: Any = importlib.import_module("watchfiles")
    except ImportError as exc:
        raise CommandError("--reload needs watchfiles: pip install 'fluidfast[reload]'") from exc
    logger.info("watching the Python files in %s", ", ".join(map(printable, folders)))
    changes = watchfiles.awatch(*folders, watch_filter=watchfiles.PythonFilter(), raise_interrupt=False, debounce=400)
    try:
        async for found in changes:
            supervisor.restart(f"{names_of({path for _, path in found})} changed")
    except asyncio.CancelledError:
        raise
    except Exception as exc:  # watchfiles' own: too many files, a folder that is gone
        raise CommandError(f"--reload cannot watch {', '.join(folders)}: {exc}") from exc


def names_of(paths: set[str]) -> str:
    names = sorted(map(os.path.relpath, paths))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more
