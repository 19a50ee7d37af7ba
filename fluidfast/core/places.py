"""Where connections belong: to one event loop of one process.

The child of a fork gets copies of its parent's connections, loops and ids. None of them is its own: it makes new ones,
and never writes to, closes or frees those of its parent.
"""

import asyncio
import os
from typing import Any, Protocol
from weakref import WeakSet

__all__ = ["HasPlace", "has_place", "refuse_second_loop"]


class HasPlace(Protocol):
    """An object that holds something which belongs to one process."""

    def _forked(self) -> None:
        """Called in the child of a fork, before anything else runs there. Must not make ids, nor free anything."""


_all: "WeakSet[Any]" = WeakSet()


def has_place(thing: HasPlace) -> None:
    """From here on, tell ``thing`` when it finds itself in the child of a fork."""
    _all.add(thing)


def _tell() -> None:
    for thing in list(_all):
        thing._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)


def refuse_second_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    """Refuse to leave an event loop that runs, in another thread, for the one that runs here.

    Raises:
        RuntimeError: it does.
    """
    if loop is not None and loop.is_running():
        raise RuntimeError(
            "this manager is in use in an event loop that runs in another thread, and its connections belong to that "
            "one: call manager.sync from here, which is for all threads, or make a manager for each event loop"
        )
