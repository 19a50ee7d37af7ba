"""The compiled priority queue beside what it has to beat: heapq of ``(priority, n, item)``, three deques.

    pytest bench/micro/test_bench_pqueue.py --benchmark-only -o addopts=

Every case is one group; a round of it handles OPS entries, so divide its time by that. The queues hold WAITING
entries (distinct bytes, so that memory is as cold as in a broker) before the first round, and as many after each.
The baselines are written inline, without a method call of their own: the best they can be in Python.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fluidfast.brokers.memory._pqueue import PriorityQueue

OPS = 10_000
PAYLOADS = [b"payload %08d" % i for i in range(1_000_000)]
FEW, MANY = 100_000, 1_000_000
PRIORITIES = [(i * 7) % 3 for i in range(OPS)]


def ours(waiting: int) -> PriorityQueue[bytes]:
    queue: PriorityQueue[bytes] = PriorityQueue()
    for i, payload in enumerate(PAYLOADS[:waiting]):
        queue.push(i % 3, payload)
    return queue


def deques(waiting: int) -> tuple[deque[bytes], ...]:
    return tuple(deque(PAYLOADS[priority:waiting:3]) for priority in range(3))


def heap(waiting: int) -> tuple[list[tuple[int, int, bytes]], "itertools.count[int]"]:
    numbers = itertools.count()
    entries = [(i % 3, next(numbers), payload) for i, payload in enumerate(PAYLOADS[:waiting])]
    heapq.heapify(entries)
    return entries, numbers


# --- one in, one out ------------------------------------------------------------------------------


def one_pqueue(waiting: int) -> Callable[[], None]:
    queue = ours(waiting)

    def run() -> None:
        push, pop = queue.push, queue.pop
        for priority, payload in zip(PRIORITIES, PAYLOADS, strict=False):
            push(priority, payload)
            pop()

    return run


def one_deques(waiting: int) -> Callable[[], None]:
    queues = deques(waiting)

    def run() -> None:
        for priority, payload in zip(PRIORITIES, PAYLOADS, strict=False):
            queues[priority].append(payload)
            for queue in queues:
                if queue:
                    queue.popleft()
                    break

    return run


def one_heapq(waiting: int) -> Callable[[], None]:
    entries, numbers = heap(waiting)

    def run() -> None:
        push, pop = heapq.heappush, heapq.heappop
        for priority, payload in zip(PRIORITIES, PAYLOADS, strict=False):
            push(entries, (priority, next(numbers), payload))
            pop(entries)

    return run


@pytest.mark.parametrize("make", [one_pqueue, one_deques, one_heapq])
@pytest.mark.parametrize("waiting", [FEW, MANY])
def test_one_in_one_out(benchmark: BenchmarkFixture, make: Callable[..., Callable[[], None]], waiting: int) -> None:
    benchmark.group = f"push + pop, {waiting:,} waiting, {OPS:,} of each"
    benchmark.pedantic(make(waiting), rounds=20, warmup_rounds=2)


# --- batches --------------------------------------------------------------------------------------


def batch_pqueue(waiting: int, size: int) -> Callable[[], None]:
    queue = ours(waiting)
    batches = [PAYLOADS[i : i + size] for i in range(0, OPS, size)]

    def run() -> None:
        for i, batch in enumerate(batches):
            queue.push_many(i % 3, batch)
            queue.pop_many(size)

    return run


def batch_deques(waiting: int, size: int) -> Callable[[], None]:
    queues = deques(waiting)
    batches = [PAYLOADS[i : i + size] for i in range(0, OPS, size)]

    def run() -> None:
        for i, batch in enumerate(batches):
            queues[i % 3].extend(batch)
            popped = []
            left = size
            for priority, queue in enumerate(queues):
                take = min(left, len(queue))
                if take:
                    pop = queue.popleft
                    popped += [(priority, pop()) for _ in range(take)]
                    left -= take

    return run


def batch_heapq(waiting: int, size: int) -> Callable[[], None]:
    entries, numbers = heap(waiting)
    batches = [PAYLOADS[i : i + size] for i in range(0, OPS, size)]

    def run() -> None:
        push, pop = heapq.heappush, heapq.heappop
        for i, batch in enumerate(batches):
            priority = i % 3
            for payload in batch:
                push(entries, (priority, next(numbers), payload))
            [(entry[0], entry[2]) for entry in [pop(entries) for _ in range(size)]]

    return run


@pytest.mark.parametrize("make", [batch_pqueue, batch_deques, batch_heapq])
@pytest.mark.parametrize("size", [100, 1000])
def test_batches(benchmark: BenchmarkFixture, make: Callable[..., Callable[[], None]], size: int) -> None:
    benchmark.group = f"push_many + pop_many by {size}, {MANY:,} waiting, {OPS:,} of each"
    benchmark.pedantic(make(MANY, size), rounds=20, warmup_rounds=2)


# --- later ----------------------------------------------------------------------------------------

# Delays between 1 and 1,000,000 microseconds, scattered. A round pushes OPS entries and lets time go on until as many
# are due.
DELAYS = [(i * 7919) % 1_000_000 + 1 for i in range(MANY)]


def later_pqueue(waiting: int) -> Callable[[], None]:
    queue: PriorityQueue[bytes] = PriorityQueue()
    for i in range(waiting):
        queue.push_later(DELAYS[i], i % 3, PAYLOADS[i])
    now = 0

    def run() -> None:
        nonlocal now
        push = queue.push_later
        for i in range(0, OPS, 100):
            for k in range(i, i + 100):
                push(now + DELAYS[k], PRIORITIES[k], PAYLOADS[k])
            while queue.delayed_length() > waiting:
                now = queue.next_due() or 0
                queue.promote(now)
            queue.pop_many(1000)

    return run


def later_heapq(waiting: int) -> Callable[[], None]:
    numbers = itertools.count()
    entries = [(DELAYS[i], next(numbers), i % 3, PAYLOADS[i]) for i in range(waiting)]
    heapq.heapify(entries)
    queues: tuple[deque[bytes], ...] = (deque(), deque(), deque())
    now = 0

    def run() -> None:
        nonlocal now
        push, pop = heapq.heappush, heapq.heappop
        for i in range(0, OPS, 100):
            for k in range(i, i + 100):
                push(entries, (now + DELAYS[k], next(numbers), PRIORITIES[k], PAYLOADS[k]))
            while len(entries) > waiting:
                now = entries[0][0]
                while entries and entries[0][0] <= now:
                    _, _, priority, payload = pop(entries)
                    queues[priority].append(payload)
            [(priority, payload) for priority, queue in enumerate(queues) for payload in queue]
            for queue in queues:
                queue.clear()

    return run


@pytest.mark.parametrize("make", [later_pqueue, later_heapq])
@pytest.mark.parametrize("waiting", [FEW, MANY])
def test_later(benchmark: BenchmarkFixture, make: Callable[..., Callable[[], None]], waiting: int) -> None:
    benchmark.group = f"push_later + promote, {waiting:,} delayed, {OPS:,} of each"
    benchmark.pedantic(make(waiting), rounds=10, warmup_rounds=1)


def all_due_pqueue() -> Callable[[], None]:
    def run() -> None:
        queue: PriorityQueue[bytes] = PriorityQueue()
        push = queue.push_later
        for k in range(FEW):
            push(DELAYS[k], 1, PAYLOADS[k])
        queue.promote(2_000_000)

    return run


def all_due_heapq() -> Callable[[], None]:
    def run() -> None:
        numbers = itertools.count()
        entries: list[tuple[int, int, int, bytes]] = []
        ready: deque[bytes] = deque()
        push, pop = heapq.heappush, heapq.heappop
        for k in range(FEW):
            push(entries, (DELAYS[k], next(numbers), 1, PAYLOADS[k]))
        while entries and entries[0][0] <= 2_000_000:
            ready.append(pop(entries)[3])

    return run


@pytest.mark.parametrize("make", [all_due_pqueue, all_due_heapq])
def test_all_due(benchmark: BenchmarkFixture, make: Callable[..., Callable[[], None]]) -> None:
    benchmark.group = f"push_later of {FEW:,}, one promote"
    benchmark.pedantic(make(), rounds=5, warmup_rounds=1)
