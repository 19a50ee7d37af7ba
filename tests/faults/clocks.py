"""Wall clocks that are wrong, for real processes: a shim, built with the C compiler and preloaded, adds to what
``clock_gettime``, ``gettimeofday`` and ``time`` give as the time of day. The monotonic clock is left alone.

    with Clock(tmp_path) as clock:                       # skips the test where there is no compiler, or no LD_PRELOAD
        fleet.workers(1, env=clock.env)                  # its clock is right so far
        clock.set(3600)                                  # and now an hour ahead
        server = start_server(binary=clock.server(binary))   # a server under the same clock

The offset lives in a file that the process maps, so it can jump while the process runs.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import pytest
from kits.servers import ServerBinary

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_ns;
static int64_t none = 0;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULT_CLOCK");
    int fd = path ? open(path, O_RDONLY) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    offset_ns = page == MAP_FAILED ? &none : page;
    if (fd >= 0) close(fd);
}

static int64_t shift(void) { return offset_ns ? *offset_ns : 0; }

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t ns = at->tv_sec * 1000000000LL + at->tv_nsec + shift();
        at->tv_sec = ns / 1000000000LL;
        at->tv_nsec = ns % 1000000000LL;
    }
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def build() -> Path:
    """The shim, compiled once for its text."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("a shifted clock needs a C compiler and LD_PRELOAD")
    place = Path(tempfile.gettempdir()) / f"fluidfast-clock-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    library = place / f"{hashlib.sha256(SHIM.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        draft = place / f"{os.getpid()}.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(draft), "-ldl"]
        subprocess.run(command, input=SHIM.encode(), check=True, capture_output=True)
        draft.replace(library)
    return library


class Clock:
    """One wrong clock, for any number of processes."""

    def __init__(self, directory: Path, seconds: float = 0.0) -> None:
        self.library = build()
        handle, path = tempfile.mkstemp(prefix="clock-", dir=directory)
        os.ftruncate(handle, mmap.PAGESIZE)
        self._map = mmap.mmap(handle, mmap.PAGESIZE)
        os.close(handle)
        self.path = Path(path)
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """From now on its processes see this time of day: the true one and so many seconds."""
        self._map[:8] = struct.pack("q", int(seconds * 1e9))

    @property
    def env(self) -> dict[str, str]:
        """What to add to a process's environment."""
        return {"LD_PRELOAD": str(self.library), "FAULT_CLOCK": str(self.path)}

    def server(self, binary: ServerBinary) -> ServerBinary:
        """A server binary whose process lives under this clock."""
        script = self.path.with_suffix(".sh")
        settings = " ".join(f"{name}='{value}'" for name, value in self.env.items())
        script.write_text(f"#!/bin/sh\nexec env {settings} '{binary.path}' \"$@\"\n")
        script.chmod(0o700)
        return ServerBinary(binary.kind, str(script), binary.version)

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._map.close()
