"""``LineWriter``: a slow reader costs lines, which are counted, and never the one who writes."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fluidfast.observe.writer import PIPE_BYTES, LineHandler, LineWriter, pieces


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for end in (read_end, write_end):
        try:
            os.close(end)
        except OSError:
            pass


def read_all(read_end: int) -> str:
    os.set_blocking(read_end, False)
    found = b""
    try:
        while data := os.read(read_end, 1 << 20):
            found += data
    except BlockingIOError:
        pass
    return found.decode()


def test_lines_in_their_order(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    for n in range(300):
        writer.put(f"line {n}", now=n % 7 == 0)
    assert writer.flush(10)
    assert read_all(pipe[0]) == "".join(f"line {n}\n" for n in range(300))
    assert writer.flush(0)


def test_a_line_is_written_soon(pipe: tuple[int, int]) -> None:
    """Also if nobody asks for it, and nothing follows."""
    LineWriter(pipe[1]).put("alone", now=False)
    assert os.read(pipe[0], 100) == b"alone\n"


def test_a_stuck_pipe(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], most_lines=5_000, most_bytes=1 << 30)
    for n in range(20_000):
        writer.put(f"{n:099}", now=False)
    assert not writer.flush(0.05)
    assert writer.dropped > 10_000
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(iter(lambda: os.read(pipe[0], 1 << 16), b"")))
    reader.start()
    assert writer.flush(10)
    writer.put("it goes on")
    assert writer.flush(10)
    os.close(pipe[1])
    reader.join(10)
    lines = b"".join(found).decode().splitlines()
    assert lines[-1] == "it goes on"
    assert f"{writer.dropped} lines of the log were dropped, its reader is too slow" in lines
    written = [int(line) for line in lines if line.isdecimal()]
    assert len(written) + writer.dropped == 20_000
    assert written == sorted(written)


def test_bytes_are_bounded(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], most_bytes=1 << 20)
    for _ in range(100):
        writer.put("x" * 100_000, now=False)
    assert 80 <= writer.dropped < 100
    reader = threading.Thread(target=lambda: list(iter(lambda: os.read(pipe[0], 1 << 16), b"")))
    reader.start()
    assert writer.flush(10)
    os.close(pipe[1])
    reader.join(10)


def test_a_slow_reader_is_waited_for(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    for n in range(5_000):
        writer.put(f"{n:099}")
    found: list[bytes] = []

    def read_slowly() -> None:
        while data := os.read(pipe[0], 4_000):
            found.append(data)
            time.sleep(0.015)  # 1.9 s in all

    reader = threading.Thread(target=read_slowly)
    reader.start()
    assert writer.flush(20, stuck_seconds=1)
    os.close(pipe[1])
    reader.join(10)
    assert len(b"".join(found)) == 500_000


def test_a_reader_that_is_gone(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    os.close(pipe[0])
    writer.put("to nobody")
    assert writer.flush(10)


def test_a_descriptor_that_does_not_block(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1])
    for _ in range(3_000):
        writer.put("y" * 99)
    size = 0
    while size < 300_000:
        size += len(os.read(pipe[0], 1 << 16))
    assert writer.flush(10)
    assert size == 300_000


def test_whole_lines_in_what_a_pipe_takes_as_one() -> None:
    lines = ["z" * 1000] * 10 + ["w" * 10_000] + ["short", "surrogate \udce9"]
    found = pieces(lines, PIPE_BYTES)
    assert b"".join(found).decode() == "\n".join(lines[:-1]) + "\nsurrogate \\udce9\n"
    assert all(len(piece) <= PIPE_BYTES or piece.count(b"\n") == 1 for piece in found)
    assert all(piece.endswith(b"\n") for piece in found)
    assert len(found) == 5


def test_the_handler(pipe: tuple[int, int]) -> None:
    handler = LineHandler(LineWriter(pipe[1]))
    logger = logging.Logger("mine")
    logger.addHandler(handler)
    logger.warning("%d of them", 3)
    logger.warning("%d", "no number")  # logging shows this on stderr
    handler.flush()
    assert read_all(pipe[0]) == "3 of them\n"


PROGRAM = """
import logging, os, signal, sys
from fluidfast.observe.writer import LineHandler, LineWriter
logging.basicConfig(handlers=[LineHandler(LineWriter(2))], level="INFO", format="%(message)s")
"""


def run_program(text: str, **options: object) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM + text], stderr=subprocess.PIPE, timeout=30, check=True)
    return done.stderr.decode()


def test_all_is_written_at_the_end() -> None:
    assert run_program("for n in range(1000): logging.info(n)") == "".join(f"{n}\n" for n in range(1000))


def test_a_forked_child_writes_too() -> None:
    text = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread, which is the point
for n in range(200): logging.info(n)
if not (pid := os.fork()):
    logging.info("child")
    os._exit(0)
os.waitpid(pid, 0)
logging.info("parent")
"""
    lines = run_program(text).splitlines()
    assert sorted(lines, key=lambda line: (not line.isdecimal(), line)) == [
        *sorted(map(str, range(200))), "child", "parent"
    ]  # fmt: skip


def test_a_signal_handler_may_log() -> None:
    text = """
signal.signal(signal.SIGALRM, lambda *_: logging.info("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for n in range(20_000): logging.info("line")
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    lines = run_program(text).splitlines()
    assert lines.count("line") == 20_000
    assert "alarm" in lines


def test_the_end_does_not_wait_for_a_stuck_pipe() -> None:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, 1031, 4096)  # F_SETPIPE_SZ
    text = "from fluidfast.observe import writer; writer.LineHandler.flush = lambda self: self.writer.flush(0.1, 0.1)\n"
    text += "for n in range(1000): logging.info('x' * 100)"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM + text], stderr=write_end)
    try:
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(read_end)
        os.close(write_end)
