"""What every load driver shares: the payload, a count of what ran, and what the server says of itself.

The standard library only, because the peers' drivers import this in environments of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
MARKS_VARIABLE = "FLUIDFAST_BENCH_MARKS"
CHILD_VARIABLE = "FLUIDFAST_BENCH_CHILD"
PR_SET_PDEATHSIG = 1


class BenchError(Exception):
    """A measurement that could not be made; the text is the reason that the tables show."""


def params(i: int) -> dict[str, Any]:
    """The payload of every measurement of every library."""
    return {"user_id": i, "email": "someone@example.com", "amount": 12.5, "tags": ["new", "eu"]}


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(share * len(ordered) + 0.999999) - 1))]


# --- what ran -------------------------------------------------------------------------------------


class Marks:
    """How often each task ran and, if ``times``, when it was sent and when it first started (monotonic seconds).

    A file that the processes of one measurement map: a handler counts its run with one store and without a system
    call, whatever the library does with processes and threads, and nothing that ran is taken on trust.
    """

    def __init__(self, path: str, tasks: int, times: bool) -> None:
        self.path, self.tasks, self.times = path, tasks, times
        padded = (tasks + 7) // 8 * 8
        size = max(8, padded + (16 * tasks if times else 0))
        with open(path, "r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        view = memoryview(self._map)
        self.counts = view[:tasks]
        if times:
            self.sent = view[padded : padded + 8 * tasks].cast("d")
            self.started = view[padded + 8 * tasks : padded + 16 * tasks].cast("d")
        self._low = 0

    @classmethod
    @contextlib.contextmanager
    def create(cls, tasks: int, *, times: bool = False) -> Iterator[Marks]:
        descriptor, path = tempfile.mkstemp(prefix="fluidfast-bench-")
        os.close(descriptor)
        try:
            yield cls(path, tasks, times)
        finally:
            os.unlink(path)

    @classmethod
    def of_environment(cls) -> Marks | None:
        text = os.environ.get(MARKS_VARIABLE)
        if text is None:
            return None
        tasks, times, path = text.split(":", 2)
        return cls(path, int(tasks), times == "1")

    @property
    def environment(self) -> dict[str, str]:
        """What makes ``of_environment`` of another process find these marks."""
        return {MARKS_VARIABLE: f"{self.tasks}:{int(self.times)}:{self.path}"}

    def reached(self, end: int) -> bool:
        """Whether each of the first ``end`` tasks has run. Cheap to ask again and again."""
        return self.low(end) == end

    def low(self, end: int) -> int:
        """The first of the first ``end`` tasks that has not run, or ``end``."""
        found = self._map.find(b"\0", self._low, end)
        self._low = end if found < 0 else found
        return self._low

    def ran(self, start: int = 0, end: int | None = None) -> int:
        """How many of the tasks from ``start`` up to ``end`` have run at least once."""
        end = self.tasks if end is None else end
        return end - start - self._map[start:end].count(0)

    def duplicated(self, end: int | None = None) -> int:
        """Runs beyond the first, of the first ``end`` tasks."""
        end = self.tasks if end is None else end
        counts = self._map[:end]
        return 0 if max(counts, default=0) < 2 else sum(counts) - (end - counts.count(0))


def hitter() -> Callable[[int], None]:
    """What a handler calls with its task's ``user_id``; a negative one is not counted."""
    marks = Marks.of_environment()
    if marks is None:
        return lambda i: None
    counts = marks.counts
    if not marks.times:

        def hit(i: int) -> None:
            if i >= 0:
                counts[i] += 1

    else:
        started = marks.started

        def hit(i: int) -> None:
            if i >= 0:
                if not counts[i]:
                    started[i] = monotonic()
                counts[i] += 1

    return hit


# --- the server -----------------------------------------------------------------------------------


class Server:
    """A synchronous connection for the few commands that the measurements need."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(unquote(parts.path))
        elif parts.scheme == "redis":
            self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), timeout=60)
        else:
            raise BenchError(f"cannot connect to a server of {parts.scheme}://")
        self._file = self._socket.makefile("rb")
        if parts.password:
            user = (unquote(parts.username),) if parts.username else ()
            self.command("AUTH", *user, unquote(parts.password))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
        self._socket.close()

    def command(self, *words: str | int) -> Any:
        encoded = [str(word).encode() for word in words]
        self._socket.sendall(resp(*encoded))
        return self._read()

    def _read(self) -> Any:
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise BenchError(f"the server says {rest.decode(errors='replace')}")
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._read() for _ in range(int(rest))]
        if kind == b"+":
            return rest
        raise BenchError("the server closed the connection")

    def info(self, section: str) -> dict[str, str]:
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def watch(self, seconds: float) -> tuple[int, int]:
        """Look at what others do for so long: commands that the server is sent, and those that it does within scripts.

        The connection can be used for nothing else afterwards.
        """
        self.command("MONITOR")
        sent = within = 0
        rest = b""
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            # +1700000000.123456 [0 127.0.0.1:50000] "GET" "key"; of a script: [0 lua]
            *lines, rest = (rest + self._socket.recv(1 << 16)).split(b"\r\n")
            for line in lines:
                source, _, words = line.partition(b"] ")
                name = words.partition(b" ")[0].strip(b'"').decode(errors="replace").lower()
                if name in NOT_WATCHED:
                    continue
                if source.endswith(b" lua"):
                    within += 1
                else:
                    sent += 1
        return sent, within

    def snapshot(self) -> Snapshot:
        return Snapshot(self)


@contextlib.contextmanager
def counters(url: str) -> Iterator[Server | None]:
    """A connection to the server of a URL; None where there is no single one, or not one that this can talk to."""
    if urlsplit(url).scheme not in ("redis", "unix"):
        yield None
        return
    with Server(url) as server:
        yield server


# What a measurement itself does to the server, or what says nothing about a library.
NOT_COUNTED = ("info", "ping", "auth", "hello", "client|setinfo", "client|setname", "select", "flushall", "config|get")
NOT_WATCHED = ("", "info", "ping", "auth", "hello", "client", "select", "monitor")


class Snapshot:
    """Commands so far by name, bytes in use, and seconds of CPU of the server."""

    def __init__(self, server: Server) -> None:
        stats = server.info("commandstats")
        self.commands = {
            name.removeprefix("cmdstat_"): int(text.split(",", 1)[0].removeprefix("calls="))
            for name, text in stats.items()
        }
        cpu = server.info("cpu")
        self.cpu = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        self.memory = int(server.info("memory")["used_memory"])
        self.at = monotonic()

    def commands_since(self, before: Snapshot) -> dict[str, int]:
        """Commands that were executed since, those inside scripts included, most frequent first."""
        found = {
            name: calls - before.commands.get(name, 0)
            for name, calls in self.commands.items()
            if name not in NOT_COUNTED and calls > before.commands.get(name, 0)
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def cost_in(before: Snapshot, after: Snapshot, tasks: int) -> dict[str, Any]:
    """What queueing cost the server, a task."""
    commands = after.commands_since(before)
    return {
        "bytes_per_task": (after.memory - before.memory) / tasks,
        "commands_per_task_in": sum(commands.values()) / tasks,
        "commands_in": commands,
        "server_cpu_us_per_task_in": (after.cpu - before.cpu) / tasks * 1e6,
    }


def cost_out(before: Snapshot, after: Snapshot, tasks: int) -> dict[str, Any]:
    """What running cost the server, a task."""
    commands = after.commands_since(before)
    return {
        "commands_per_task_out": sum(commands.values()) / tasks,
        "commands_out": commands,
        "server_cpu_us_per_task_out": (after.cpu - before.cpu) / tasks * 1e6,
    }


def resp(*words: bytes) -> bytes:
    """A command as it goes over the wire."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


# --- processes ------------------------------------------------------------------------------------


class Child:
    """A process of a measurement, in a group of its own, its output kept for the error message."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name = " ".join(command[2:4])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, CHILD_VARIABLE: "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def why(self) -> str:
        """The end of what it said: the reason of a failure."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        if not lines:
            return "no output"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(lines[-1])["failed"])
        is_exception = re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", lines[-1])
        return (lines[-1] if is_exception else " | ".join(lines[-2:]))[-300:]

    def check(self) -> None:
        """Raises BenchError if it has ended."""
        if self.process.poll() is not None:
            raise BenchError(f"{self.name} ended with {self.process.returncode}: {self.why()}")

    def result(self, timeout: float) -> dict[str, Any]:
        """Wait for its end; the JSON on its last line."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} did not end within {timeout:.0f} s: {self.why()}") from None
        lines = self.output().splitlines()
        with contextlib.suppress(ValueError, IndexError):
            found = json.loads(lines[-1])
            if isinstance(found, dict):
                if "failed" in found:
                    raise BenchError(found["failed"])
                return found
        raise BenchError(f"{self.name} ended with {code}: {self.why()}")

    def stop(self, timeout: float = 5.0) -> None:
        """SIGTERM to it, then SIGKILL to its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def resident(pid: int) -> int:
    """Resident bytes of a process and all that it has started; 0 where the system does not tell.

    Without what is shared with others, such as code, and the marks, which grow with the number of tasks.
    """
    total = 0
    try:
        _, pages, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        total += (int(pages) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    except OSError:
        pass
    return total


class Memory:
    """Resident memory of a process over time: (seconds, MiB), at most ``KEPT`` samples, evenly spread."""

    KEPT = 240

    def __init__(self, pid: int, every: float = 0.25) -> None:
        self.pid = pid
        self.samples: list[tuple[float, float]] = []
        self._started = monotonic()
        self._every = every
        self._next = 0.0

    def tick(self) -> None:
        elapsed = monotonic() - self._started
        if elapsed < self._next:
            return
        self._next = elapsed + self._every
        if size := resident(self.pid):
            self.samples.append((round(elapsed, 2), round(size / 2**20, 1)))
        if len(self.samples) > self.KEPT:
            self.samples = self.samples[::2]
            self._every *= 2

    def report(self) -> dict[str, Any]:
        """The peak, the growth, and the samples. The growth is from when it has started (after a second, and a fifth of
        the time) to the end; None if that is too short to say."""
        if not self.samples:
            return {"peak_mb": None, "growth_mb": None, "samples": []}
        end, last = self.samples[-1]
        settled = [size for at, size in self.samples if at >= max(1.0, end / 5)]
        growth = round(last - settled[0], 1) if len(settled) >= 4 else None
        return {"peak_mb": max(size for _, size in self.samples), "growth_mb": growth, "samples": self.samples}


def begin() -> None:
    """At the start of a program: SIGTERM ends it as Ctrl-C does, so that what it started is stopped on the way out;
    and if a ``Child`` started it, the end of that one's process does so too (Linux)."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if CHILD_VARIABLE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
