"""The lease protocol in a small world, every interleaving of it: two workers, two runs, three strikes.

A worker claims one run or both, renews, settles, gives back, stands still and goes on, or is killed and replaced. A
sweeper looks, and takes back what it saw expired before, under the same deadline, at least a tick ago. A tick is the
time in which a punctual worker renews; a lease that is not renewed in a tick has expired; and the server's clock may
jump, after which every lease looks expired. Breadth first over all states. What must hold, in each:

    nothing is lost          a run is in exactly one of: queue, suspects, a lease, the dead, done
    the fence                a settlement counts only while the very batch that was claimed is under lease
    the living keep          nothing is taken from a worker that was punctual, clock jumps included: this is what the
                             second look is for
    three strikes            a run is dead only after three workers lost it; who has lost it twice gets it alone
    it can always end        from every state there is a way to one in which each run is done or dead

Each rule has its bug (``Rules``), and each bug is found. Left out: bytes, priorities, order, and the connection.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import pytest

SUSPECT_AFTER, DEAD_AFTER = 2, 3
BELIEFS = 2
"""Batches that one worker may believe to hold at a time."""


class Lease(NamedTuple):
    batch: int
    runs: str
    expired: bool


class Worker(NamedTuple):
    """``holds``: what it believes to hold and has not settled, as (batch, runs)."""

    holds: tuple[tuple[int, str], ...] = ()
    paused: bool = False
    punctual: bool = True


class Look(NamedTuple):
    """What the sweeper saw expired. ``same``: it has the deadline that was seen. ``spaced``: a tick ago or more."""

    batch: int
    same: bool
    spaced: bool


class World(NamedTuple):
    queue: str = "xy"  # the next one first
    suspects: str = ""
    leases: tuple[Lease, ...] = ()
    dead: str = ""
    done: str = ""
    strikes: tuple[int, int] = (0, 0)
    workers: tuple[Worker, Worker] = (Worker(), Worker())
    looks: tuple[Look, ...] = ()


class Violation(AssertionError):
    pass


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    """Worlds are tuples, a million of them, and in no cycle."""
    gc.disable()
    yield
    gc.enable()


@dataclass(frozen=True)
class Rules:
    """The protocol. Each can be broken."""

    fence: bool = True
    lease: bool = True
    two_looks: bool = True
    same_deadline: bool = True
    spaced_looks: bool = True
    alone: bool = True
    patience: bool = True
    release_takes_the_lease: bool = True


def strikes_of(world: World, run: str) -> int:
    return world.strikes["xy".index(run)]


def put_worker(world: World, i: int, worker: Worker) -> World:
    one, two = world.workers
    return world._replace(workers=(worker, two) if i == 0 else (one, worker))


def claims(world: World, i: int, rules: Rules) -> Iterator[tuple[str, World]]:
    worker = world.workers[i]
    if worker.paused or len(worker.holds) >= BELIEFS:
        return
    choices: list[tuple[str, World]] = []
    if world.suspects and (not worker.holds or not rules.alone):
        taken = world.suspects[:1] if rules.alone else world.suspects + world.queue
        rest = world._replace(suspects=world.suspects[len(taken) :] if rules.alone else "")
        choices.append((taken, rest if rules.alone else rest._replace(queue="")))
    elif world.queue:
        choices += [(world.queue[:n], world._replace(queue=world.queue[n:])) for n in range(1, len(world.queue) + 1)]
    known = [lease.batch for lease in world.leases] + [batch for w in world.workers for batch, _ in w.holds]
    batch = max(known, default=-1) + 1
    for runs, rest in choices:
        leases = (*rest.leases, Lease(batch, runs, False)) if rules.lease else rest.leases
        holder = worker._replace(
            holds=(*worker.holds, (batch, runs)), punctual=worker.punctual if worker.holds else True
        )
        yield f"{i} claims {runs}", put_worker(rest._replace(leases=leases), i, holder)


def settles(world: World, i: int, rules: Rules) -> Iterator[tuple[str, World]]:
    """It has run one of what it holds, and says so. Refused if the lease is gone; then it forgets the batch."""
    worker = world.workers[i]
    if worker.paused:
        return
    for batch, runs in worker.holds:
        lease = lease_of(world, batch)
        if lease is None and rules.fence:
            yield f"{i} is refused", put_worker(world, i, forget(worker, {batch}))
            continue
        for run in runs:
            left = runs.replace(run, "")
            holds = tuple(
                hold if hold[0] != batch else (batch, left) for hold in worker.holds if hold[0] != batch or left
            )
            after = put_worker(world, i, worker._replace(holds=holds))
            if lease is None:
                if rules.lease:
                    raise Violation(f"a settlement of {run} counted without a lease")
            else:
                kept = lease.runs.replace(run, "")
                after = after._replace(
                    leases=tuple(
                        each._replace(runs=kept) if each is lease else each
                        for each in world.leases
                        if each is not lease or kept
                    )
                )
            yield f"{i} settles {run}", after._replace(done="".join(sorted(after.done + run)))


def releases(world: World, i: int, rules: Rules) -> Iterator[tuple[str, World]]:
    """It gives back what it has not settled of its youngest batch, as at shutdown."""
    worker = world.workers[i]
    if worker.paused or not worker.holds:
        return
    batch = worker.holds[-1][0]
    lease = lease_of(world, batch)
    after = put_worker(world, i, forget(worker, {batch}))
    if lease is not None:
        queue, suspects = world.queue, world.suspects
        for run in reversed(lease.runs):
            if strikes_of(world, run) >= SUSPECT_AFTER:
                suspects = run + suspects
            else:
                queue = run + queue
        after = after._replace(queue=queue, suspects=suspects)
        if rules.release_takes_the_lease:
            after = after._replace(leases=tuple(each for each in world.leases if each is not lease))
    yield f"{i} releases", after


def failures(world: World, i: int) -> Iterator[tuple[str, World]]:
    worker = world.workers[i]
    if worker.paused:
        yield f"{i} goes on", put_worker(world, i, worker._replace(paused=False))
    elif worker.holds:
        yield f"{i} stands still", put_worker(world, i, worker._replace(paused=True))
    if worker.holds:
        yield f"{i} is killed", put_worker(world, i, Worker())


def lease_of(world: World, batch: int) -> Lease | None:
    for lease in world.leases:
        if lease.batch == batch:
            return lease
    return None


def forget(worker: Worker, batches: set[int]) -> Worker:
    return worker._replace(holds=tuple(hold for hold in worker.holds if hold[0] not in batches))


def tick(world: World, renewing: tuple[bool, bool]) -> World:
    """Time passes: each worker renews in it, or does not."""
    renewed: set[int] = set()
    workers = []
    alive = {lease.batch for lease in world.leases}
    for worker, renews in zip(world.workers, renewing, strict=True):
        if worker.paused or not renews:
            workers.append(worker._replace(punctual=worker.punctual and not worker.holds))
            continue
        renewed |= {batch for batch, _ in worker.holds} & alive
        workers.append(forget(worker, {batch for batch, _ in worker.holds} - alive))  # it is told what it lost
    leases = tuple(
        Lease(batch, runs, False) if batch in renewed else Lease(batch, runs, True) for batch, runs, _ in world.leases
    )
    looks = tuple(Look(batch, same and batch not in renewed, True) for batch, same, _ in world.looks)
    return world._replace(leases=leases, looks=looks, workers=(workers[0], workers[1]))


def jump(world: World) -> World:
    """The server's clock is an hour ahead of a moment ago."""
    return world._replace(leases=tuple(lease._replace(expired=True) for lease in world.leases))


def sweep(world: World, rules: Rules) -> World:
    """One look: takes back what was seen before, and notes what is expired now."""
    seen = {look.batch: look.spaced for look in world.looks if look.same or not rules.same_deadline}
    noted = []
    for lease in world.leases:
        if not lease.expired:
            continue
        spaced = seen.get(lease.batch)
        if spaced or (spaced is not None and not rules.spaced_looks) or not rules.two_looks:
            world = take_back(world, lease, rules)
        else:
            noted.append(Look(lease.batch, True, False))
    return world._replace(looks=tuple(noted))


def take_back(world: World, lease: Lease, rules: Rules) -> World:
    for worker in world.workers:
        if worker.punctual and not worker.paused and any(batch == lease.batch for batch, _ in worker.holds):
            raise Violation(f"{lease.runs} was taken from a worker that was punctual")
    queue, suspects, dead = world.queue, world.suspects, world.dead
    counts = list(world.strikes)
    for run in reversed(lease.runs):
        counts["xy".index(run)] += 1
        struck = counts["xy".index(run)]
        if struck >= DEAD_AFTER or (not rules.patience and struck >= SUSPECT_AFTER):
            dead = "".join(sorted(dead + run))
        elif struck >= SUSPECT_AFTER and rules.alone:
            suspects += run
        else:
            queue = run + queue
    leases = tuple(each for each in world.leases if each is not lease)
    return world._replace(leases=leases, queue=queue, suspects=suspects, dead=dead, strikes=(counts[0], counts[1]))


def steps(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    for i in (0, 1):
        yield from claims(world, i, rules)
        yield from settles(world, i, rules)
        yield from releases(world, i, rules)
        yield from failures(world, i)
    if world.leases or any(worker.holds for worker in world.workers):
        one, two = ((True, False) if worker.holds and not worker.paused else (False,) for worker in world.workers)
        for renewing in [(a, b) for a in one for b in two]:
            yield f"a tick, renewing {renewing}", tick(world, renewing)
        yield "the clock jumps", jump(world)
        yield "a sweep", sweep(world, rules)


def check(world: World) -> None:
    places = world.queue + world.suspects + world.dead + world.done
    for lease in world.leases:
        places += lease.runs
        if len(lease.runs) > 1 and any(strikes_of(world, run) >= SUSPECT_AFTER for run in lease.runs):
            raise Violation(f"a suspect is not alone under its lease: {lease.runs}")
    if len(places) != 2 or set(places) != {"x", "y"}:
        raise Violation(f"the runs are not in one place each: {world}")
    for run in world.dead:
        if strikes_of(world, run) < DEAD_AFTER:
            raise Violation(f"{run} is dead after {strikes_of(world, run)} strikes")


SWAP = str.maketrans("xy", "yx")


def swapped(world: World) -> World:
    """The same world with the runs' names exchanged."""
    one, two = (w._replace(holds=tuple((b, runs.translate(SWAP)) for b, runs in w.holds)) for w in world.workers)
    return World(
        world.queue.translate(SWAP),
        world.suspects.translate(SWAP),
        tuple(lease._replace(runs=lease.runs.translate(SWAP)) for lease in world.leases),
        world.dead.translate(SWAP) if len(world.dead) == 1 else world.dead,
        world.done.translate(SWAP) if len(world.done) == 1 else world.done,
        (world.strikes[1], world.strikes[0]),
        (one, two),
        world.looks,
    )


def canonical(world: World) -> World:
    """One of the worlds that differ in numbers and names only: batches counted from nought, the workers in order, and
    as far as that is quick to tell, the runs."""
    x, y = (
        (world.strikes[i], run in world.done, run in world.dead, run in world.queue, world.queue[:1] == run)
        for i, run in enumerate("xy")
    )
    if x < y:
        world = swapped(world)
    one, two = world.workers
    if two < one:
        one, two = two, one
    live = sorted({lease.batch for lease in world.leases} | {batch for w in (one, two) for batch, _ in w.holds})
    if live == list(range(len(live))):
        return world._replace(workers=(one, two), looks=tuple(look for look in world.looks if look.batch in live))
    number = {batch: n for n, batch in enumerate(live)}
    one, two = (w._replace(holds=tuple((number[batch], runs) for batch, runs in w.holds)) for w in (one, two))
    return world._replace(
        leases=tuple(lease._replace(batch=number[lease.batch]) for lease in world.leases),
        workers=(min(one, two), max(one, two)),
        looks=tuple(look._replace(batch=number[look.batch]) for look in world.looks if look.batch in number),
    )


Came = dict[World, tuple[World | None, str]]


def explore(rules: Rules) -> tuple[Came, dict[World, list[World]]]:
    """Every state that can be reached, with the step that led to it first, and the states that lead to each.

    Raises Violation, with the way there.
    """
    start = World()
    came: Came = {start: (None, "")}
    before: dict[World, list[World]] = {start: []}
    todo = deque([start])
    while todo:
        world = todo.popleft()
        try:
            for what, made in steps(world, rules):
                after = canonical(made)
                if after not in came:
                    check(after)
                    came[after] = (world, what)
                    before[after] = []
                    todo.append(after)
                before[after].append(world)
        except Violation as exc:
            raise Violation(f"{exc}\n  after: {way_to(world, came)}") from None
    return came, before


def way_to(world: World, came: Came) -> str:
    words: list[str] = []
    at: World | None = world
    while at is not None:
        at, what = came[at]
        words.append(what)
    return "; ".join(reversed(words[:-1]))


def test_every_interleaving() -> None:
    came, before = explore(Rules())
    print(f"{len(came)} states, {sum(map(len, before.values()))} steps")
    assert len(came) > 10_000
    # it can always end: backwards from the states in which all is done or dead, every state is met
    ended = [world for world in came if len(world.done) + len(world.dead) == 2 and not world.leases]
    met = set(ended)
    todo = deque(ended)
    while todo:
        for world in before[todo.popleft()]:
            if world not in met:
                met.add(world)
                todo.append(world)
    stuck = came.keys() - met
    assert not stuck, way_to(next(iter(stuck)), came)
    # and what the world is for does happen in it
    assert any(world.dead == "xy" for world in came)
    assert any(world.suspects for world in came)
    assert any(len(world.leases) == 2 for world in came)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("fence", "counted without a lease"),
        ("lease", "not in one place each"),
        ("two_looks", "punctual"),
        ("same_deadline", "punctual"),
        ("spaced_looks", "punctual"),
        ("alone", "not alone"),
        ("patience", "dead after 2 strikes"),
        ("release_takes_the_lease", "not in one place each"),
    ],
)
def test_each_bug_is_found(rule: str, found: str) -> None:
    assert rule in {field.name for field in fields(Rules)}
    with pytest.raises(Violation, match=found) as caught:
        explore(Rules(**{rule: False}))
    print(caught.value)
