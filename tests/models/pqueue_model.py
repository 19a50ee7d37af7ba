"""``fluidfast.brokers.memory._pqueue.PriorityQueue`` as it would be written if nothing had to be fast."""

from collections.abc import Iterable

__all__ = ["PriorityQueueModel"]


class PriorityQueueModel:
    def __init__(self) -> None:
        self.ready: list[list[object]] = [[], [], []]
        self.later: list[tuple[int, int, object]] = []  # (due_us, priority, item) in the order of the pushes

    def __len__(self) -> int:
        return sum(self.lengths())

    def push(self, priority: int, item: object) -> None:
        self.ready[priority].append(item)

    def push_front(self, priority: int, item: object) -> None:
        self.ready[priority].insert(0, item)

    def push_many(self, priority: int, items: Iterable[object]) -> int:
        before = len(self.ready[priority])
        self.ready[priority].extend(items)
        return len(self.ready[priority]) - before

    def push_later(self, due_us: int, priority: int, item: object) -> None:
        self.later.append((due_us, priority, item))

    def pop(self) -> object:
        for items in self.ready:
            if items:
                return items.pop(0)
        return None

    def pop_many(self, n: int, max_bytes: int = 0, mask: int = 7) -> list[tuple[int, object]]:
        popped: list[tuple[int, object]] = []
        size = 0
        for priority, items in enumerate(self.ready):
            while items and mask >> priority & 1 and len(popped) < n:
                size += len(items[0]) if isinstance(items[0], bytes) else 0
                if max_bytes and popped and size > max_bytes:
                    return popped
                popped.append((priority, items.pop(0)))
        return popped

    def promote(self, now_us: int) -> int:
        due = sorted((entry for entry in self.later if entry[0] <= now_us), key=lambda entry: entry[0])
        self.later = [entry for entry in self.later if entry[0] > now_us]
        for _, priority, item in due:
            self.ready[priority].append(item)
        return len(due)

    def next_due(self) -> int | None:
        return min((due_us for due_us, _, _ in self.later), default=None)

    def first(self, priority: int) -> object:
        return self.ready[priority][0] if self.ready[priority] else None

    def lengths(self) -> tuple[int, int, int]:
        return len(self.ready[0]), len(self.ready[1]), len(self.ready[2])

    def delayed_length(self) -> int:
        return len(self.later)

    def waiting(self) -> list[tuple[int, object]]:
        return [(priority, item) for priority, items in enumerate(self.ready) for item in items]

    def delayed(self) -> list[tuple[int, int, object]]:
        return sorted(self.later, key=lambda entry: entry[0])

    def clear(self, mask: int = 7) -> tuple[int, int, int]:
        counts = [len(items) if mask >> priority & 1 else 0 for priority, items in enumerate(self.ready)]
        self.ready = [[] if mask >> priority & 1 else items for priority, items in enumerate(self.ready)]
        return counts[0], counts[1], counts[2]

    def clear_delayed(self) -> int:
        count = len(self.later)
        self.later = []
        return count
