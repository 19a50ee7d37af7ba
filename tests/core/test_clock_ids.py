"""Clocks and run ids: an id never comes twice, whoever makes it, and the clocks are the system's."""

import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

from fluidfast.core._time import monotonic_seconds, new_id, now_micros

HEX = set("0123456789abcdef")


def test_format() -> None:
    for _ in range(1000):
        run_id = new_id()
        assert type(run_id) is str
        assert len(run_id) == 32
        assert run_id.isascii()
        assert set(run_id) <= HEX
        assert bytes.fromhex(run_id).hex() == run_id
        assert hash(run_id) == hash(run_id.encode().decode())
        assert {run_id: 1}[run_id.encode().decode()] == 1


def test_unique() -> None:
    assert len({new_id() for _ in range(100_000)}) == 100_000


def test_ids_have_nothing_in_common() -> None:
    """No byte of the pool is used twice: an id begins as the one before it ends once in 256 times."""
    ids = [new_id() for _ in range(20_000)]
    for length, most in ((2, 160), (4, 5), (8, 0)):
        assert sum(a[-length:] == b[:length] for a, b in itertools.pairwise(ids)) <= most
        assert len({run_id[:length] for run_id in ids}) > (200 if length == 2 else 15_000)


def test_every_digit_everywhere() -> None:
    """128 bits at random: in 20,000 ids each digit stands at each place about 1250 times (six sigmas are 205)."""
    counts = [Counter(column) for column in zip(*(new_id() for _ in range(20_000)), strict=True)]
    assert len(counts) == 32
    for count in counts:
        assert set(count) == HEX
        assert all(1000 < number < 1500 for number in count.values())


def test_unique_over_threads() -> None:
    found: list[list[str]] = [[] for _ in range(4)]

    def make(ids: list[str]) -> None:
        ids += [new_id() for _ in range(20_000)]

    threads = [threading.Thread(target=make, args=(ids,)) for ids in found]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(set().union(*found)) == 80_000


FORKS = """
    import os, sys
    from fluidfast.core._time import new_id

    # a pool that is not used, half used, and all but used up; and a child's child
    ids = []
    for used in (0, 1, 128, 255):
        for _ in range(used):
            ids.append(new_id())
        for _ in range(2):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                mine = [new_id() for _ in range(300)]
                grandchild = os.fork()
                mine += [new_id() for _ in range(300)]
                with os.fdopen(writing, "w") as out:
                    out.write("".join(mine))
                if grandchild:
                    os.waitpid(grandchild, 0)
                os._exit(0)
            os.close(writing)
            mine = [new_id() for _ in range(300)]
            with os.fdopen(reading) as pipe:
                text = pipe.read()
            assert os.waitpid(child, 0)[1] == 0
            theirs = [text[i : i + 32] for i in range(0, len(text), 32)]
            assert len(theirs) == 1200
            # the child and its child share what was made before they parted
            assert len(set(theirs)) == 900, len(set(theirs))
            assert not set(theirs) & set(ids)
            assert not set(theirs) & set(mine)
            ids += mine + sorted(set(theirs))
    assert len(set(ids)) == len(ids) == 384 + 8 * 1200
    print("ok")
"""


def test_unique_over_forks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKS)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def test_wall_clock() -> None:
    within = 0
    for _ in range(100):
        before, now, after = time.time_ns() // 1000, now_micros(), time.time_ns() // 1000
        assert type(now) is int
        within += before <= now <= after
    assert within > 90  # but for a clock that is set back just now
    assert abs(now_micros() - time.time_ns() / 1000) < 1_000_000


def test_wall_clock_has_microseconds() -> None:
    readings = {now_micros() for _ in range(100_000)}
    assert len(readings) > 1000
    assert len({reading % 1000 for reading in readings}) > 900


def test_monotonic_clock() -> None:
    readings = [monotonic_seconds() for _ in range(10_000)]
    assert readings == sorted(readings)
    assert isinstance(readings[0], float)
    assert abs(monotonic_seconds() - time.monotonic()) < 1
    assert len(set(readings)) > 100
