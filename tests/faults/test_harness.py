"""The campaign's own tools: the oracle sees what it is for, the proxy cuts where it was told to."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from harness import Fleet
from proxy import BACK, THERE, FaultProxy
from servers import RedisServer

from fluidfast.commands.ledger import Oracle


def test_the_oracle_tells_the_classes_apart(oracle: Oracle) -> None:
    producer, one, two = oracle.ledger("producer"), oracle.ledger("one"), oracle.ledger("two")
    producer.attempted("good", "lost", "again", "twice", "open", "dead", "no")
    producer.acknowledged("good", "lost", "again", "twice", "dead")
    producer.refused("no")
    for book, id in ((one, "good"), (one, "twice"), (two, "twice"), (two, "again"), (two, "foreign"), (two, "no")):
        if id == "again":
            one.started(id)
        book.started(id)
        book.finished(id)
    verdict = oracle.verdict(["dead"])
    assert verdict.counts() == {
        "attempted": 7, "acknowledged": 5, "refused": 1, "ok": 1, "open": 1,
        "lost": 1, "dead": 1, "unexpected": 2, "duplicated": 1, "recovered": 1,
    }  # fmt: skip
    assert verdict.lost == ["lost"]
    assert verdict.unexplained({"one"}) == []
    assert sorted(verdict.unexplained({"two"})) == ["again", "twice"]
    assert verdict.again_per_process() == {"one": 2}
    with pytest.raises(AssertionError, match="lost 1"):
        verdict.check()
    for book in (producer, one, two):
        book.close()


@pytest.mark.parametrize(("direction", "after"), [(THERE, 0), (THERE, 5), (BACK, 0), (BACK, 3)])
def test_a_cut_is_where_it_was_ordered(redis_server: RedisServer, direction: str, after: int) -> None:
    with FaultProxy(redis_server.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        cut = proxy.cut(direction, after)
        client.sendall(b"PING\r\n")
        received = b""
        while data := client.recv(100):
            received += data
        assert cut.happened
        assert received == (b"+PONG\r\n"[:after] if direction == BACK else b"")
        assert proxy.passed[direction] == (6 if direction == THERE else 7) + after


def test_a_fleet_works_drains_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.workers(2)
    producer = fleet.producer(count=300, priorities=["high", "medium", "low"])
    producer.done()
    fleet.drain()
    fleet.stop()
    verdict = fleet.verdict().check(killed=())
    assert verdict.ok == 300
    fleet.assert_clean()
