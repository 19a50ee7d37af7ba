"""What a claim gives, and the ledger that notes what became of it: against the plain way to say the same."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluidfast import TaskRun, task
from fluidfast.brokers._leases import Claimed, Lease, numbered, paired
from fluidfast.brokers.contract import Settlement
from fluidfast.consume._ledger import Ledger
from fluidfast.core.states import LETTERS, PRIORITIES


@task
async def work(ctx: TaskRun) -> None: ...


def test_a_letter_for_each_priority():
    assert len(LETTERS) == len(PRIORITIES)
    assert list(LETTERS) == [str(priority)[0] for priority in PRIORITIES]


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=8)), max_size=40))
def test_fields_are_numbered(taken):
    plain = [(f"{LETTERS[priority]}{index}", payload) for index, (priority, payload) in enumerate(taken, 1)]
    assert [(item.field, item.payload) for item in numbered(taken)] == plain


@given(st.lists(st.tuples(st.from_regex(r"[hml][0-9]{1,9}", fullmatch=True), st.binary(max_size=8)), max_size=40))
def test_fields_and_payloads_come_in_pairs(items):
    flat = [part for field, payload in items for part in (field.encode(), payload)]
    assert [(item.field, item.payload) for item in paired(flat)] == items


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: numbered(None), TypeError),
        (lambda: numbered([None]), TypeError),
        (lambda: numbered([(0, "text")]), TypeError),
        (lambda: numbered([(0,)]), ValueError),
        (lambda: numbered([("h", b"")]), TypeError),
        (lambda: numbered([(3, b"")]), IndexError),
        (lambda: paired(None), TypeError),
        (lambda: paired([b"h1"]), ValueError),
        (lambda: paired(["h1", b""]), TypeError),
        (lambda: paired([b"h1", None]), TypeError),
        (lambda: paired([b"\xff1", b""]), UnicodeDecodeError),
        (lambda: Claimed(None, b""), TypeError),
        (lambda: Claimed("h1", None), TypeError),
        (lambda: Lease(None, 1), TypeError),
        (lambda: Ledger().finished(None), TypeError),
        (lambda: Ledger().finished(Claimed("h1", b"")), AttributeError),
        (lambda: Ledger()._settle(Claimed("h1", b"")), AttributeError),
        (lambda: Ledger()._settled(None), TypeError),
    ],
)
def test_what_is_wrong_raises(make, error):
    with pytest.raises(error):
        make()


def test_a_claimed_payload_is_a_value():
    one = Claimed("h1", b"a", 1)
    assert one == Claimed("h1", b"a", 1)
    assert one != Claimed("h2", b"a", 1)
    assert one != Claimed("h1", b"b", 1)
    assert one != Claimed("h1", b"a")
    assert one != ("h1", b"a", 1)
    assert repr(one) == "Claimed(field='h1', payload=b'a', strikes=1)"
    with pytest.raises(TypeError):
        hash(one)


class Notes(Ledger):
    """A ledger that keeps what it would have said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    def _start_send(self, lease: Lease) -> None:
        self.said.append(("send", lease.batch))

    def _free(self, held: Claimed) -> None:
        self.said.append(("free", held.field))

    def _reply(self, settlement: Settlement, run: TaskRun) -> None:
        self.said.append(("reply", run.id))

    def flush(self) -> None:
        self._timer = None
        self.said.append("flush")


def held_under(lease: Lease, field: str, strikes: int = 0) -> Claimed:
    held = Claimed(field, b"", strikes)
    held.lease = lease
    held.run = TaskRun(id=field, task=work)
    return held


async def test_a_ledger_notes_what_became_of_runs_and_sends_when_all_is_said():
    notes = Notes()
    settlement = Settlement("batch")
    lease = Lease("batch", 3, settlement)
    assert (lease.left, lease.unstarted, lease.lost, lease.partial, lease.sending) == (3, 3, False, False, False)
    first, second, third = (held_under(lease, field, strikes) for field, strikes in (("h1", 0), ("h2", 2), ("m3", 0)))
    third.run.extra = {"reply": b'"manager"'}
    notes.finished(first)
    notes.finished(second)
    assert settlement.done == ["h1", "h2"]
    assert settlement.survived == ["h2"]
    assert settlement.info == {"work": second.run}  # the last one counts
    assert notes._dirty == {lease}
    assert notes.said == []  # what is done waits for the rest of its batch
    timer = notes._timer
    assert timer is not None
    notes.limited["h9"] = "work"
    notes.finished(third)
    assert notes.said == [("reply", "m3"), ("free", "m3"), ("send", "batch")]
    assert lease.left == 0
    assert notes._timer is timer
    timer.cancel()


async def test_a_ledger_does_not_wait_for_the_rest_of_a_batch_for_long():
    notes = Notes()
    notes.finished(held_under(Lease("batch", 2, Settlement("batch")), "h1"))
    async with asyncio.timeout(5):
        while not notes.said:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert notes.said == ["flush"]
