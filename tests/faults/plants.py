"""Bugs to plant, so that a row can be seen to go red. Test code only: the product has no switch.

``plant(*names)`` for good, in a worker process (``fleet.workers(1, plant="one-sweep")``);
``with planted(*names):`` in the process of the tests.

    ack-before-run      a claim settles what it claimed before anything of it has run
    pop-without-lease   a claim takes runs off the queue and writes no lease
    no-fence            a settlement counts although its lease is gone, and renewing does not tell
    no-sequence         a batch that is sent again is pushed again
    no-order            a batch is pushed although the one before it, not confirmed yet, was refused
    one-sweep           what one sweep sees expired is taken back
    settled-again       a settlement that is sent again has its retries queued again
    delayed-again       runs that are delayed, and sent again, are delayed again
    dead-forgotten      what cannot be read is settled and not kept
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fluidfast.brokers.contract import Settlement
from fluidfast.brokers.redis import scripts
from fluidfast.brokers.redis.broker import RedisTaskBroker
from fluidfast.consume.settler import Settler

Undo = Callable[[], None]


def patch(target: Any, name: str, value: Any) -> Undo:
    before = getattr(target, name)
    setattr(target, name, value)
    return lambda: setattr(target, name, before)


def edited(script: str, old: str, new: str) -> Undo:
    """A Lua script with one passage replaced."""
    before = scripts.read
    text = before(script)
    assert text.count(old.encode()) == 1, f"{script}.lua has not once: {old}"
    changed = text.replace(old.encode(), new.encode())
    unread = patch(scripts, "read", lambda name: changed if name == script else before(name))
    scripts.load.cache_clear()

    def undo() -> None:
        unread()
        scripts.load.cache_clear()

    return undo


def settle_always() -> Undo:
    async def settle(self: RedisTaskBroker, settlement: Settlement) -> bool:
        return True

    return patch(RedisTaskBroker, "settle", settle)


def ack_before_run() -> list[Undo]:
    claim, settle = RedisTaskBroker.claim, RedisTaskBroker.settle

    async def claim_and_settle(self: RedisTaskBroker, *args: Any, **kwargs: Any) -> Any:
        claimed = await claim(self, *args, **kwargs)
        if claimed.items:
            await settle(self, Settlement(claimed.batch, whole=True))
        return claimed

    return [patch(RedisTaskBroker, "claim", claim_and_settle), settle_always(), renew_nothing()]


def renew_nothing() -> Undo:
    return patch(RedisTaskBroker, "renewer", lambda self, consumer: lambda batches, slots: [])


def pop_without_lease() -> list[Undo]:
    undo = edited("claim", "  if #given > 0 then\n    now = ", "  if false then\n    now = ")
    return [undo, settle_always(), renew_nothing()]


def no_fence() -> list[Undo]:
    renew, renewer = RedisTaskBroker.renew, RedisTaskBroker.renewer

    async def renew_silently(self: RedisTaskBroker, *args: Any) -> list[str]:
        await renew(self, *args)
        return []

    def renewer_silent(self: RedisTaskBroker, consumer: str) -> Any:
        call = renewer(self, consumer)

        def renew_now(batches: Any, slots: Any) -> list[str]:
            call(batches, slots)
            return []

        return renew_now

    return [
        edited("settle", "if not redis.call('ZSCORE', leases, batch) then", "if false then"),
        patch(RedisTaskBroker, "renew", renew_silently),
        patch(RedisTaskBroker, "renewer", renewer_silent),
    ]


def no_sequence() -> list[Undo]:
    return [edited("enqueue", "if last and tonumber(last) >= tonumber(ARGV[1]) then", "if false then")]


def no_order() -> list[Undo]:
    return [edited("enqueue", "elseif tonumber(last or 0) < tonumber(ARGV[3]) then", "elseif false then")]


def settled_again() -> list[Undo]:
    return [
        edited("settle", "if not held then return 1 end", "if false then return 1 end"),
        edited("settle", "if settled == 0 then", "if false then"),
    ]


def delayed_again() -> list[Undo]:
    return [edited("delay", "if not redis.call('SET',", "if false and not redis.call('SET',")]


def dead_forgotten() -> list[Undo]:
    def discard(self: Settler, held: Any, reason: str) -> None:
        self._settle(held)

    return [patch(Settler, "discard", discard)]


def one_sweep() -> list[Undo]:
    reap = RedisTaskBroker.reap

    async def reap_at_once(self: RedisTaskBroker) -> int:
        await reap(self)
        self._seen_expired = {batch: seen._replace(confirmed_at=-1e9) for batch, seen in self._seen_expired.items()}
        return await reap(self)

    return [patch(RedisTaskBroker, "reap", reap_at_once)]


BUGS: dict[str, Callable[[], list[Undo]]] = {
    "ack-before-run": ack_before_run,
    "pop-without-lease": pop_without_lease,
    "no-fence": no_fence,
    "no-sequence": no_sequence,
    "no-order": no_order,
    "one-sweep": one_sweep,
    "settled-again": settled_again,
    "delayed-again": delayed_again,
    "dead-forgotten": dead_forgotten,
}


def plant(*names: str) -> list[Undo]:
    """Plant bugs; gives what takes them out again, to be called backwards."""
    return [undo for name in names for undo in BUGS[name]()]


@contextmanager
def planted(*names: str) -> Iterator[None]:
    undos = plant(*names)
    try:
        yield
    finally:
        for undo in reversed(undos):
            undo()
