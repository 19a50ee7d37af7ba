"""The Lua scripts by name, with the SHA-1 that the server knows them by."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["NAMES", "Script", "load"]

NAMES = (
    "enqueue", "delay", "promote", "claim", "peek", "adopt", "settle", "release", "renew", "reap", "acquire", "free",
    "farewell", "sift", "exhume", "fire",
)  # fmt: skip
KEPT_HERE = b"-- kept.lua stands here\n"
"""The line that ``lua/kept.lua`` replaces, in scripts that write the lists of what gave up."""


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its file name, its text and the SHA-1 of it, in hex, that EVALSHA takes."""

    name: str
    text: bytes
    sha: bytes


@cache
def load(name: str) -> Script:
    """The script in ``lua/NAME.lua``."""
    folder = resources.files("fluidfast.brokers.redis.lua")
    text = folder.joinpath(f"{name}.lua").read_bytes().replace(KEPT_HERE, folder.joinpath("kept.lua").read_bytes())
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
