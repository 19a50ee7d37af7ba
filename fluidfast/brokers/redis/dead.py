"""Going through the runs that gave up, on Redis: each step is one script that does a bounded amount of work."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from ...core._time import new_id
from ...core.states import LETTERS
from ...errors import BrokerError
from ..contract import PAGE_BYTES, PAGE_ENTRIES, DeadAction, Kind, Sifter
from .client import RedisClient

__all__ = ["RedisSifter", "parted"]

TAKE_ENTRIES = 200
TAKE_BYTES = 256 << 10
"""Entries that one step takes out, and bytes of them (one entry may be larger)."""


def parted(entry: bytes) -> tuple[str, bytes]:
    """Return an entry's header and payload."""
    header, _, payload = entry.partition(b"\n")
    return header.decode("utf-8", "surrogateescape"), payload


def slices(actions: Sequence[DeadAction], page: Mapping[tuple[str, bytes], bytes]) -> Iterator[list[Any]]:
    """Yield the arguments of one step after the other."""
    flat: list[Any] = []
    size = 0
    for header, payload, priority, again in actions:
        if (entry := page.get((header, payload))) is None:
            continue
        if flat and (len(flat) >= 3 * TAKE_ENTRIES or size + len(entry) > TAKE_BYTES):
            yield flat
            flat, size = [], 0
        flat += (entry, "x" if priority is None else LETTERS[priority], again)
        size += len(entry)
    if flat:
        yield flat


class RedisSifter(Sifter):
    """The place in the list is kept on the server, where every script that removes something corrects it."""

    def __init__(self, client: RedisClient, kind: Kind) -> None:
        self.client = client
        self.kind = kind
        self.cursor = new_id()
        self.pages = 0
        self.taken = 0
        self.page: dict[tuple[str, bytes], bytes] = {}

    async def __aenter__(self) -> Self:
        await self.client.script("sift", self.client.declare.sift(self.kind), self.kind, self.cursor, 0, 0, 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with suppress(BrokerError):  # then the cursor is forgotten after an hour
            if not isinstance(exc_info[1], BrokerError):
                await self.client.script("sift", self.client.declare.sift(self.kind), self.kind, self.cursor, -1, 0, 0)

    async def turn(self, limit: int = PAGE_ENTRIES) -> list[tuple[str, bytes]]:
        declared = self.client.declare.sift(self.kind)
        while True:
            self.pages += 1
            arguments = (self.kind, self.cursor, self.pages, limit, PAGE_BYTES)
            page = self.found(await self.client.script("sift", declared, *arguments))
            there = [entry for entry in page if entry]
            if there or not page:
                parts = [parted(entry) for entry in there]
                self.page = dict(zip(parts, there, strict=True))  # one without a newline is taken as it is, too
                return parts

    async def take(self, actions: Sequence[DeadAction]) -> int:
        count = 0
        declared = self.client.declare.take_dead(self.kind)
        for flat in slices(actions, self.page):
            self.taken += 1
            count += self.found(
                await self.client.script("take_dead", declared, self.kind, self.cursor, self.taken, *flat)
            )
        return count

    def found(self, reply: Any) -> Any:
        if reply is None:
            raise BrokerError(
                f"broker {self.client.url}: the place in the list of {self.kind} runs is lost (it was deleted, or "
                "an hour passed without a step); begin again"
            )
        return reply
