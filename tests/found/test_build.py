"""The compiled modules are hardened, as far as the platform can."""

from __future__ import annotations

import struct
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import fluidfast

PT_DYNAMIC, PT_GNU_RELRO = 2, 0x6474E552
DT_BIND_NOW, DT_FLAGS, DT_FLAGS_1 = 24, 30, 0x6FFFFFFB
WITH_BUFFERS = ("_lane", "_resp", "_codec")
"""Modules that keep buffers on the stack."""


def test_modules_are_hardened() -> None:
    # of this Python: a checkout may hold those of several
    modules = sorted(Path(fluidfast.__file__).parent.rglob(f"*{EXTENSION_SUFFIXES[0]}"))
    assert len(modules) == len(list(Path(fluidfast.__file__).parent.rglob("*.pyx")))
    if not sys.platform.startswith("linux"):  # the flags are for ELF
        return
    for path in modules:
        data = path.read_bytes()
        segments, bound = look_at(data)
        assert PT_GNU_RELRO in segments, path
        assert bound, path
        if path.name.startswith(WITH_BUFFERS):
            assert b"__stack_chk_fail" in data, path


def look_at(data: bytes) -> tuple[set[int], bool]:
    """The types of an ELF file's segments, and whether all its symbols are bound when it is loaded."""
    assert data[:5] == b"\x7fELF\x02"
    (offset,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    kinds, bound = set(), False
    for number in range(count):
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", data, offset + number * size)
        kinds.add(kind)
        if kind == PT_DYNAMIC:
            entries = struct.iter_unpack("<qQ", data[start : start + length // 16 * 16])
            bound = any(
                tag == DT_BIND_NOW or (tag == DT_FLAGS and value & 8) or (tag == DT_FLAGS_1 and value & 1)
                for tag, value in entries
            )
    return kinds, bound
