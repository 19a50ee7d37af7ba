"""The Lua scripts by name, with the SHA-1 that the server knows them by."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeVar

from ...errors import BrokerError
from ._resp import pack
from .keys import Declared

__all__ = ["MAX_ARGUMENTS", "NAMES", "ROOM", "Script", "command", "cut", "load"]

T = TypeVar("T")

MAX_ARGUMENTS = 3999
"""KEYS and ARGV of one call, at most: Lua passes on just under 8000 values, and some servers fewer. Callers cut."""
ROOM = MAX_ARGUMENTS - 99
"""Arguments left for lists of any length."""

NAMES = (
    "enqueue", "delay", "promote", "claim", "peek", "adopt", "settle", "release", "renew", "reap", "acquire", "free",
    "deregister", "sift", "take_dead", "fire",
)  # fmt: skip
KEPT_HERE = b"-- kept.lua stands here\n"
"""The line that ``lua/kept.lua`` replaces, in scripts that write the lists of what gave up."""


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its file name, its text and the SHA-1 of it, in hex, that EVALSHA takes."""

    name: str
    text: bytes
    sha: bytes


def read(name: str) -> bytes:
    """The text of ``lua/NAME.lua``, with that of ``lua/kept.lua`` where it belongs."""
    folder = resources.files("fluidfast.brokers.redis.lua")
    return folder.joinpath(f"{name}.lua").read_bytes().replace(KEPT_HERE, folder.joinpath("kept.lua").read_bytes())


@cache
def load(name: str) -> Script:
    """The script in ``lua/NAME.lua``."""
    text = read(name)
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def command(name: str, keys: Declared, *arguments: str | bytes | float) -> bytes:
    """Pack a call of a script. ``keys``: every key that it touches, from ``ScriptKeys``.

    Raises:
        BrokerError: it has more than MAX_ARGUMENTS. A script would find that half-way through, and could not undo.
    """
    if (count := len(keys) + len(arguments)) > MAX_ARGUMENTS:
        raise BrokerError(f"script {name}: {count} keys and arguments are more than the {MAX_ARGUMENTS} of one call")
    return pack(("EVALSHA", load(name).sha, len(keys), *keys, *arguments))


def cut(items: Sequence[T], each: int) -> Iterator[Sequence[T]]:
    """Cut items, each of so many arguments, so that a call has room for every part."""
    most = ROOM // each
    for at in range(0, len(items), most):
        yield items[at : at + most]
