"""The compiled priority queue: against a model, when things fail, and by the references it holds."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from models.pqueue_model import PriorityQueueModel

from fluidfast.brokers.memory._pqueue import PriorityQueue

# The tracer needs memory of its own, and makes a hundredfold of the time.
not_traced = pytest.mark.skipif(os.environ.get("FLUIDFAST_TRACE") == "1" or sys.gettrace() is not None, reason="traced")

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

priorities = st.integers(0, 2)
masks = st.integers(0, 7)
# Few distinct times, so that ties are common.
times = st.integers(0, 6) | st.sampled_from([INT64_MIN, INT64_MAX])
items = st.binary(max_size=12) | st.just(b"x" * 1000) | st.none() | st.lists(st.integers(), max_size=2)


class QueueAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue: PriorityQueue[object] = PriorityQueue()
        self.model = PriorityQueueModel()

    def both(self, verb: str, *args: object) -> None:
        assert getattr(self.queue, verb)(*args) == getattr(self.model, verb)(*args)

    @rule(priority=priorities, item=items)
    def push(self, priority: int, item: object) -> None:
        self.both("push", priority, item)

    @rule(priority=priorities, item=items)
    def push_front(self, priority: int, item: object) -> None:
        self.both("push_front", priority, item)

    @rule(priority=priorities, many=st.lists(items, max_size=10), kind=st.sampled_from([list, tuple, iter]))
    def push_many(self, priority: int, many: list[object], kind: Callable[[list[object]], Iterable[object]]) -> None:
        assert self.queue.push_many(priority, kind(many)) == self.model.push_many(priority, many)

    @rule(priority=priorities, n=st.integers(60, 600), front=st.booleans())
    def burst(self, priority: int, n: int, front: bool) -> None:
        for i in range(n):
            self.both("push_front" if front else "push", priority, b"%d" % i)

    @rule(due_us=times, priority=priorities, item=items)
    def push_later(self, due_us: int, priority: int, item: object) -> None:
        self.both("push_later", due_us, priority, item)

    @rule(dues=st.lists(times, min_size=10, max_size=80), priority=priorities)
    def later_burst(self, dues: list[int], priority: int) -> None:
        for i, due_us in enumerate(dues):
            self.both("push_later", due_us, (priority + i) % 3, b"%d" % i)

    @rule(n=st.integers(1, 400))
    def pop(self, n: int) -> None:
        for _ in range(n):
            self.both("pop")

    @rule(
        n=st.integers(0, 20) | st.integers(0, 1000) | st.just(sys.maxsize),
        max_bytes=st.just(0) | st.integers(0, 60) | st.integers(0, 3000) | st.just(sys.maxsize),
        mask=masks,
    )
    def pop_many(self, n: int, max_bytes: int, mask: int) -> None:
        self.both("pop_many", n, max_bytes, mask)

    @rule(now_us=times)
    def promote(self, now_us: int) -> None:
        self.both("promote", now_us)

    @rule(mask=masks)
    def clear(self, mask: int) -> None:
        self.both("clear", mask)

    @rule()
    def clear_delayed(self) -> None:
        self.both("clear_delayed")

    @invariant()
    def same_counts(self) -> None:
        self.queue.check_invariant()
        for verb in ("__len__", "lengths", "delayed_length", "next_due", "waiting", "delayed"):
            self.both(verb)
        assert tuple(map(self.queue.length, range(3))) == self.model.lengths()

    def teardown(self) -> None:
        self.both("pop_many", sys.maxsize)
        self.both("promote", INT64_MAX)
        self.both("pop_many", sys.maxsize)


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def content(queue: PriorityQueue[Any]) -> tuple[list[tuple[int, object]], list[tuple[int, object]]]:
    """Empty the queue: what was ready, what was delayed."""
    queue.check_invariant()
    ready = queue.pop_many(len(queue))
    queue.promote(INT64_MAX)
    return ready, queue.pop_many(len(queue))


# --- what it promises -----------------------------------------------------------------------------


def test_order() -> None:
    queue: PriorityQueue[str] = PriorityQueue()
    for priority, item in [(2, "e"), (1, "c"), (0, "a"), (1, "d"), (0, "b")]:
        queue.push(priority, item)
    queue.push_front(1, "front")
    assert len(queue) == 6
    assert queue.lengths() == (2, 3, 1)
    assert [queue.pop() for _ in range(7)] == ["a", "b", "front", "c", "d", "e", None]


def test_equal_times_keep_their_order_across_priorities() -> None:
    queue: PriorityQueue[int] = PriorityQueue()
    for i in range(1000):
        queue.push_later(i % 3, i % 2, i)
    assert queue.next_due() == 0
    assert len(queue) == 0
    assert queue.promote(-1) == 0
    assert queue.promote(2) == 1000
    assert queue.next_due() is None
    expected = sorted(range(1000), key=lambda i: i % 3)
    assert queue.pop_many(1000) == [(0, i) for i in expected if i % 2 == 0] + [(1, i) for i in expected if i % 2]


@pytest.mark.parametrize(
    ("n", "max_bytes", "mask", "expected"),
    [
        (0, 0, 7, []),
        (2, 0, 7, [(0, b"aaaa"), (0, None)]),
        (9, 0, 6, [(1, b"bb"), (1, b""), (2, b"cc")]),
        (9, 0, 0, []),
        (9, 1, 7, [(0, b"aaaa")]),
        (9, 4, 7, [(0, b"aaaa"), (0, None)]),
        (9, 5, 7, [(0, b"aaaa"), (0, None)]),
        (9, 6, 7, [(0, b"aaaa"), (0, None), (1, b"bb"), (1, b"")]),
        (3, 6, 7, [(0, b"aaaa"), (0, None), (1, b"bb")]),
        (9, 3, 2, [(1, b"bb"), (1, b"")]),
        (9, 1, 6, [(1, b"bb")]),
    ],
)
def test_pop_many(n: int, max_bytes: int, mask: int, expected: list[tuple[int, object]]) -> None:
    queue: PriorityQueue[object] = PriorityQueue()
    queue.push_many(0, [b"aaaa", None])
    queue.push_many(1, [b"bb", b""])
    queue.push_many(2, [b"cc"])
    assert queue.pop_many(n, max_bytes, mask) == expected
    assert len(queue) == 5 - len(expected)
    queue.check_invariant()


def test_promote_joins_the_end() -> None:
    queue: PriorityQueue[str] = PriorityQueue()
    queue.push_later(10, 0, "later")
    queue.push_later(20, 0, "much later")
    queue.push(0, "now")
    assert queue.promote(10) == 1
    assert queue.delayed_length() == 1
    assert queue.pop_many(3) == [(0, "now"), (0, "later")]


def test_clear_takes_ready_ones_only() -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    for priority in range(3):
        queue.push_many(priority, [b""] * (priority + 1))
        queue.push_later(0, priority, b"")
    assert queue.clear(0b101) == (1, 0, 3)
    assert queue.lengths() == (0, 2, 0)
    assert queue.clear() == (0, 2, 0)
    assert queue.delayed_length() == 3
    assert queue.clear_delayed() == 3
    assert queue.next_due() is None


def test_growth_and_cut_wherever_the_ring_starts() -> None:
    for head in range(256):
        for grows in (True, False):
            queue: PriorityQueue[int] = PriorityQueue()
            numbers = list(range(256))
            queue.push_many(0, numbers)
            for _, number in queue.pop_many(head):
                queue.push(0, number)
            numbers = numbers[head:] + numbers[:head]
            if grows:
                queue.push(0, 256)
                numbers.append(256)
            else:
                # The first pop that leaves a quarter cuts the ring to a half.
                assert [queue.pop() for _ in range(200)] == numbers[:200]
                del numbers[:200]
            queue.check_invariant()
            assert queue.pop_many(1000) == [(0, number) for number in numbers]


# --- errors ---------------------------------------------------------------------------------------

VERBS_WITH_PRIORITY: dict[str, Callable[..., object]] = {
    "push": lambda queue, priority: queue.push(priority, b""),
    "push_front": lambda queue, priority: queue.push_front(priority, b""),
    "push_many": lambda queue, priority: queue.push_many(priority, [b""]),
    "push_later": lambda queue, priority: queue.push_later(0, priority, b""),
    "length": lambda queue, priority: queue.length(priority),
}


@pytest.mark.parametrize("verb", VERBS_WITH_PRIORITY)
@pytest.mark.parametrize("priority", [-1, 3, 2**31, 2**32, -(2**63), 2**64])
def test_priority_out_of_range(verb: str, priority: int) -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    with pytest.raises(ValueError, match=rf"priority must be 0, 1 or 2, not {priority}$"):
        VERBS_WITH_PRIORITY[verb](queue, priority)
    assert content(queue) == ([], [])


@pytest.mark.parametrize("verb", VERBS_WITH_PRIORITY)
@pytest.mark.parametrize("priority", ["0", 1.0, None])
def test_priority_is_an_int(verb: str, priority: object) -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    with pytest.raises(TypeError):
        VERBS_WITH_PRIORITY[verb](queue, priority)
    assert content(queue) == ([], [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda queue: queue.pop_many(-1), "n must not be negative, got -1"),
        (lambda queue: queue.pop_many(1, -5), "max_bytes must not be negative, got -5"),
        (lambda queue: queue.pop_many(1, 0, 8), "mask must be from 0 to 7, one bit per priority, not 8"),
        (lambda queue: queue.clear(-1), "mask must be from 0 to 7, one bit per priority, not -1"),
    ],
)
def test_other_values_out_of_range(call: Callable[[PriorityQueue[bytes]], object], message: str) -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    queue.push(0, b"kept")
    with pytest.raises(ValueError, match=message):
        call(queue)
    assert queue.pop() == b"kept"


def test_due_time_beyond_64_bits() -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    for due_us in (INT64_MIN - 1, INT64_MAX + 1):
        with pytest.raises(OverflowError):
            queue.push_later(due_us, 0, b"")
    assert queue.delayed_length() == 0


def test_push_many_keeps_what_came_before_the_error() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        raise ZeroDivisionError

    queue: PriorityQueue[bytes] = PriorityQueue()
    with pytest.raises(ZeroDivisionError):
        queue.push_many(1, broken())
    with pytest.raises(TypeError):
        queue.push_many(1, 5)  # type: ignore[arg-type]
    assert content(queue) == ([(1, b"a"), (1, b"b")], [])


def test_no_copy_no_pickle() -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    with pytest.raises(TypeError):
        copy.copy(queue)
    with pytest.raises(TypeError):
        pickle.dumps(queue)


def test_final() -> None:
    # A subclass would have copied the collector's slots that Cython generated.
    with pytest.raises(TypeError):
        type("Sub", (PriorityQueue,), {})


# Each grows, cuts, or builds something, in a queue whose rings and heap are full to the last slot.
ALLOCATING_VERBS: dict[str, Callable[[PriorityQueue[object]], object]] = {
    "push": lambda queue: queue.push(0, b""),
    "push_front": lambda queue: queue.push_front(1, b""),
    "push_many list": lambda queue: queue.push_many(2, ITEMS),
    "push_later": lambda queue: queue.push_later(3, 2, b""),
    "pop_many": lambda queue: queue.pop_many(550),
    "promote": lambda queue: queue.promote(INT64_MAX),
    "clear": lambda queue: queue.clear(),
    "clear_delayed": lambda queue: queue.clear_delayed(),
}
ITEMS: list[object] = [b"item %d" % i for i in range(1000)]


def a_full_queue() -> PriorityQueue[object]:
    queue: PriorityQueue[object] = PriorityQueue()
    queue.push_many(0, ITEMS[:512])
    queue.push_many(1, ITEMS[:64])
    for i in range(1024):
        queue.push_later(i % 5, i % 3, ITEMS[i % 1000])
    return queue


@not_traced
@pytest.mark.parametrize("verb", ALLOCATING_VERBS)
def test_memory_failure_changes_nothing(verb: str) -> None:
    testcapi = pytest.importorskip("_testcapi")
    call = ALLOCATING_VERBS[verb]
    before = content(a_full_queue())
    changed = a_full_queue()
    call(changed)
    after = content(changed)
    assert before != after
    sentinel = ITEMS[5]
    count = sys.getrefcount(sentinel)
    failures = 0
    # The nth allocation fails. Freelists make the number of allocations vary, so the range goes well past it.
    for n in [*range(40), *range(40, 700, 11)]:
        queue = a_full_queue()
        try:
            testcapi.set_nomemory(n, n + 1)
            call(queue)
        except MemoryError:
            testcapi.remove_mem_hooks()
            failures += 1
            assert content(queue) == before
        else:
            testcapi.remove_mem_hooks()
            assert content(queue) == after
    assert failures
    del queue
    assert sys.getrefcount(sentinel) == count


@pytest.mark.skipif(sys.platform != "linux", reason="an address-space limit that the kernel keeps")
def test_memory_failure_for_real() -> None:
    script = """
        import resource
        from fluidfast.brokers.memory._pqueue import PriorityQueue

        def fill(push, length):
            # Ends when doubling the buffer does not fit the limit.
            try:
                while True:
                    push()
            except MemoryError:
                pass
            n = length()
            try:
                push()
            except MemoryError:
                assert length() == n
            else:
                raise SystemExit("no MemoryError")
            return n

        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
        ready, later = PriorityQueue(), PriorityQueue()
        block = (b"x",) * 4096
        n = fill(lambda: ready.push_many(0, block), lambda: len(ready))
        ready.check_invariant()
        assert ready.pop_many(5) == [(0, b"x")] * 5
        assert ready.clear() == (n - 5, 0, 0)
        n = fill(lambda: later.push_later(n, 1, b"x"), later.delayed_length)
        later.check_invariant()
        assert later.clear_delayed() == n
    """
    environment = os.environ | {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":allocator_may_return_null=1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60, env=environment)


# --- references -----------------------------------------------------------------------------------


def broken_iterable(item: object) -> Iterator[object]:
    yield item
    yield item
    raise ZeroDivisionError


def exercise(queue: PriorityQueue[object], item: object) -> None:
    """Every path once, errors included. Leaves five entries and two delayed ones."""
    queue.push(0, item)
    queue.push_front(0, item)
    assert queue.push_many(1, [item, item]) == 2
    assert queue.push_many(1, (item,)) == 1
    assert queue.push_many(2, iter([item] * 3)) == 3
    for due_us in range(8):
        queue.push_later(due_us, due_us % 3, item)
    for priority in (3, -1, 2**70):
        for call in VERBS_WITH_PRIORITY.values():
            with pytest.raises(ValueError, match="priority"):
                call(queue, priority)
        with pytest.raises(ValueError, match="priority"):
            queue.push(priority, item)
    with pytest.raises(OverflowError):
        queue.push_later(2**64, 0, item)
    with pytest.raises(ZeroDivisionError):
        queue.push_many(2, broken_iterable(item))
    with pytest.raises(TypeError):
        queue.push_many(0, item)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask"):
        queue.pop_many(3, 0, 9)
    assert queue.pop() is item
    assert queue.pop_many(3, 0, 6) == [(1, item), (1, item), (1, item)]
    assert queue.pop_many(2, 1) == [(0, item), (2, item)]
    assert queue.promote(5) == 6
    assert queue.clear(0b001) == (2, 0, 0)
    assert queue.pop_many(100, 0, 2) == [(1, item), (1, item)]
    assert queue.lengths() == (0, 0, 6)
    assert queue.pop() is item
    assert queue.delayed_length() == 2


@pytest.mark.parametrize("make", [object, list], ids=["opaque", "container"])
def test_reference_counts(make: Callable[[], object]) -> None:
    item = make()
    count = sys.getrefcount(item)
    queue: PriorityQueue[object] = PriorityQueue()
    if isinstance(item, list):
        item.append(0)
    with pytest.raises((TypeError, ZeroDivisionError)):
        queue.push_many(2, broken_iterable(item))
    assert queue.clear() == (0, 0, 2)
    assert sys.getrefcount(item) == count
    if make is object:
        exercise(queue, item)
        assert sys.getrefcount(item) == count + 7
        assert queue.clear() == (0, 0, 5)
        assert sys.getrefcount(item) == count + 2
        assert queue.clear_delayed() == 2
        assert sys.getrefcount(item) == count
        exercise(queue, item)
    else:
        queue.push_many(1, [item] * 100)
        for due_us in range(100):
            queue.push_later(due_us, 0, item)
        assert sys.getrefcount(item) == count + 200
        gc.collect()
        assert sys.getrefcount(item) == count + 200
    del queue  # not empty
    assert sys.getrefcount(item) == count


def test_reference_counts_over_10_000_rounds() -> None:
    item = object()
    count = sys.getrefcount(item)
    queue: PriorityQueue[object] = PriorityQueue()
    for i in range(10_000):
        queue.push(i % 3, item)
        queue.push_front(i % 2, item)
        queue.push_many(2, (item, item))
        queue.push_later(i % 7, 1, item)
        if i % 3 == 0:
            queue.promote(i % 7)
        queue.pop()
        queue.pop_many(3)
        if i % 1000 == 999:
            assert sys.getrefcount(item) == count + len(queue) + queue.delayed_length()
            queue.check_invariant()
            queue.clear(5)
    del queue
    assert sys.getrefcount(item) == count


# --- foreign code in the middle, and the garbage collector ----------------------------------------


class Meddler:
    """Uses the queue when it dies."""

    def __init__(self, queue: PriorityQueue[object], log: list[object]) -> None:
        self.queue, self.log = queue, log

    def __del__(self) -> None:
        self.queue.check_invariant()
        self.log.append((self.queue.lengths(), self.queue.delayed_length()))
        self.queue.push(1, b"reborn")
        self.queue.push_later(1, 1, b"reborn later")
        self.queue.pop()
        self.queue.check_invariant()


def test_items_that_use_the_queue_when_they_die() -> None:
    queue: PriorityQueue[object] = PriorityQueue()
    log: list[object] = []
    for _ in range(100):
        queue.push(0, Meddler(queue, log))
        queue.push_later(0, 0, Meddler(queue, log))
    assert queue.clear() == (100, 0, 0)
    assert log[0] == ((0, 0, 0), 100)
    assert len(log) == 100
    queue.check_invariant()
    assert queue.clear_delayed() == 200
    assert len(log) == 200
    queue.check_invariant()
    queue.push(0, Meddler(queue, log))
    assert isinstance(queue.pop(), Meddler)  # dies as soon as the comparison is done
    assert len(log) == 201
    queue.check_invariant()
    assert content(queue)[0] == []


class Clearer:
    """Empties the queue when it dies."""

    def __init__(self, queue: PriorityQueue[object]) -> None:
        self.queue = queue

    def __del__(self) -> None:
        self.queue.clear()


def test_no_collection_inside_pop_many() -> None:
    queue: PriorityQueue[object] = PriorityQueue()
    queue.push_many(0, range(10_000))
    pop_many = queue.pop_many
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    gc.disable()
    try:
        garbage: list[object] = [Clearer(queue)]
        garbage.append(garbage)
        del garbage
        gc.enable()
        popped = pop_many(9000)  # more tuples than the interpreter keeps for reuse, so it has to allocate
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    assert popped == [(0, number) for number in range(9000)]
    gc.collect()
    assert len(queue) == 0
    queue.check_invariant()


def test_the_collector_is_left_as_it_was() -> None:
    queue: PriorityQueue[object] = PriorityQueue()
    assert gc.isenabled()
    queue.pop_many(1)
    queue.clear()
    assert gc.isenabled()
    gc.disable()
    try:
        queue.pop_many(1)
        queue.clear()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("through", ["itself", "a list", "a list, later"])
def test_a_cycle_through_the_queue_is_collected(through: str) -> None:
    queue: PriorityQueue[object] = PriorityQueue()
    # Watched by an item: a weak reference to the queue dies when the collector finds it, before it is let go.
    item = object()
    count = sys.getrefcount(item)
    queue.push(0, item)
    queue.push_later(0, 0, item)
    holder = [queue]
    if through == "itself":
        queue.push_front(1, queue)
    elif through == "a list":
        queue.push_many(2, [holder] * 100)
    else:
        queue.push_later(0, 2, holder)
    alive = weakref.ref(queue)
    del queue, holder
    assert alive() is not None
    assert sys.getrefcount(item) == count + 2
    gc.collect()
    assert alive() is None
    assert sys.getrefcount(item) == count


def test_the_collector_does_not_look_at_bytes() -> None:
    queue: PriorityQueue[object] = PriorityQueue()
    payload, container = b"payload" * 3, [1]
    queue.push(0, payload)
    queue.push_later(0, 0, payload)
    assert gc.is_tracked(queue)
    assert payload not in gc.get_referents(queue)
    queue.push(1, container)
    assert gc.get_referents(queue).count(payload) == 2
    assert container in gc.get_referents(queue)
    queue.clear()
    assert payload in gc.get_referents(queue)
    queue.clear_delayed()
    queue.push(0, payload)
    assert payload not in gc.get_referents(queue)


def test_a_long_chain_of_queues_dies_without_a_deep_stack() -> None:
    head: PriorityQueue[object] = PriorityQueue()
    for _ in range(50_000):
        outer: PriorityQueue[object] = PriorityQueue()
        outer.push_later(0, 0, head)
        head = outer
    del outer, head


# --- memory ---------------------------------------------------------------------------------------

MANY = 300_000


def traced(work: Callable[[], object]) -> int:
    """Bytes that ``work`` left allocated."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    work()
    return tracemalloc.get_traced_memory()[0] - before


@pytest.fixture
def _tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@not_traced
@pytest.mark.usefixtures("_tracing")
def test_bytes_per_ready_entry() -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    item = b"payload"
    block = [item] * 1000

    def fill() -> None:
        for i in range(MANY // 1000):
            queue.push_many(i % 3, block)

    used = traced(fill)
    assert len(queue) == MANY
    assert used / MANY < 24
    assert sys.getsizeof(queue) == pytest.approx(used, abs=4096)
    assert used + traced(lambda: [queue.pop() for _ in range(MANY)].clear()) < 8192
    assert sys.getsizeof(queue) < 8192


@not_traced
@pytest.mark.usefixtures("_tracing")
def test_bytes_per_delayed_entry() -> None:
    queue: PriorityQueue[bytes] = PriorityQueue()
    item = b"payload"

    def fill() -> None:
        for i in range(MANY):
            queue.push_later(i ^ 0x55, 1, item)

    used = traced(fill)
    assert used / MANY < 64
    assert queue.promote(MANY * 2) == MANY
    assert sys.getsizeof(queue) < 24 * MANY
    queue.clear()
    assert sys.getsizeof(queue) < 4096
