"""Row 8: malformed payloads among good ones, aio-fluid's own form among them: each runs, or is in the dead list with
its bytes intact and a reason; no consumer ends, and the good ones do not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis
from harness import Fleet, until
from results import Figures

from fluidfast.commands.trials.ledger import FINISHED, in_a_line

GOOD = (
    '{{"id":"{id}","task":"work","priority":"medium","state":"queued","queued":1764000000.123456,"params":{{"ms":0}}}}'
)
AIO = (
    '{{"id":"{id}","task":"work","priority":"medium","state":"queued","queued":"2025-11-24T16:00:00.123456Z",'
    '"start":null,"end":null,"execute_after":null,"rate_limit_attempt":0,"retry_attempt":0,"from_run_id":"",'
    '"root_run_id":"","params":{{"ms":0.0,"spin_ms":0.0,"pad":""}}}}'
)
Maker = Callable[[random.Random, str], bytes]


def good(id: str) -> bytes:
    return GOOD.format(id=id).encode()


def changed(**fields: Any) -> Maker:
    """A good run with some fields changed; a value of None takes the field away."""

    def make(draw: random.Random, id: str) -> bytes:
        run = json.loads(good(id))
        run.update(fields)
        return json.dumps({name: value for name, value in run.items() if value is not None}).encode()

    return make


def text(template: str) -> Maker:
    return lambda draw, id: template.replace("ID", id).encode("utf-8", "surrogatepass")


def truncated(draw: random.Random, id: str) -> bytes:
    whole = draw.choice((good(id), AIO.format(id=id).encode(), packed(id)))
    return whole[: draw.randrange(len(whole))]


def packed(id: str) -> bytes:
    return msgspec.msgpack.encode([id, "work", 1, {"ms": 0}, 1, 1764000000.1])


def mutated(draw: random.Random, id: str) -> bytes:
    whole = bytearray(draw.choice((good(id), packed(id))))
    for _ in range(draw.randint(1, 4)):
        whole[draw.randrange(len(whole))] = draw.randrange(256)
    return bytes(whole)


def noise(draw: random.Random, id: str) -> bytes:
    return draw.randbytes(draw.choice((1, 2, 7, 40, 300)))


def printable(draw: random.Random, id: str) -> bytes:
    return "".join(draw.choices(string.printable, k=draw.randint(0, 80))).encode()


PAD = "x" * 300_000
BAD: list[Maker] = [
    truncated, noise, printable,
    text(""), text("null"), text("0"), text('"ID"'), text("[]"), text("{}"), text("\n"), text("\ufeff{}"),
    text('["ID","work","medium"]'),
    text('{"id":"ID"}'), text('{"task":"work"'), text('{"id":"ID","task":"work","params":}'),
    changed(task="no such task"), changed(task="bad\nname\x1b[31m"), changed(task=7), changed(task={"a": 1}),
    changed(task=None),
    changed(id=7), changed(id=["ID"]), changed(priority="urgent"), changed(priority=3),
    changed(state="lost"), changed(params=[1]), changed(params="x"), changed(params={"ms": "soon"}),
    changed(params={"ms": {}}), changed(params={"pad": 7}), changed(params={"pad": None, "ms": [None]}),
    changed(execute_after="tomorrow"), changed(execute_after={}), changed(queued="yesterday"),
    changed(retry_attempt=-1), changed(retry_attempt="three"), changed(retry_attempt=2.5),
    text('{"id":"ID","task":"work","params":{"ms":nan}}'), text('{"id":"ID","task":"work","queued":NaN}'),
    text('{"id":"ID","task":"work","params":{"pad":"\\ud800"}}'),
    text('{"id":"ID","task":"work","params":{"pad":"\ud800"}}'),
    text('{"id":"ID","task":"work","params":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}"),
    text("[" * 100_000), text('{"id":"ID","task":"work","x":' + "[" * 2000 + "]" * 2000 + ',"params":{}}'),
    lambda draw, id: zlib.compress(good(id)),
    lambda draw, id: good(id).decode().encode("utf-16"),
    lambda draw, id: b"\x00" * draw.randint(1, 50),
    lambda draw, id: msgspec.msgpack.encode([id, "no such task", 1, {}]),
    lambda draw, id: msgspec.msgpack.encode([id, "work", 9, {}]),
    lambda draw, id: msgspec.msgpack.encode([id, "work"]),
    lambda draw, id: msgspec.msgpack.encode([id, "work", 1, {"ms": float("nan")}]),
    lambda draw, id: msgspec.msgpack.encode([id, "work", 1, {"ms": "soon"}]),
    lambda draw, id: b"\xdd\xff\xff\xff\xff" + draw.randbytes(20),
    lambda draw, id: b"\x9d" * 3000,
    lambda draw, id: b"\x96\xc1" + packed(id)[2:],
    lambda draw, id: f'{{"id":"{id}","task":"no such task","params":{{"pad":"{PAD}"}}}}'.encode(),
]  # fmt: skip
"""None of these is a run of ``work``."""

EITHER: list[Maker] = [
    mutated,
    lambda draw, id: good(id) + b" " * draw.randint(1, 5),
    changed(id="\u0000\u001b[31m\n"),
    changed(execute_after=-1e300),
    changed(queued=-1),
    changed(queued=1e300),
    changed(retry_attempt=10**30),
    text('{"id":"ID","task":"work","task":"no such task","params":{}}'),
    text('{"id":"ID","id":"ID","task":"work","params":{"ms":0},"params":{"ms":0}}'),
    text('{"id":"ID","task":"work","params":{"ms":1e999}}'),
    text('{"id":"ID","task":"work","params":{"ms":-1}}'),
    text('{"id":"ID","task":"work","params":{"ms":' + "0" * 1 + "." + "0" * 5000 + "}}"),
    text('{"id":"ID","task":"work","params":null}'),
    text('{"id":"ID","task":"work","new in a later version":{"a":[1]},"params":{}}'),
]
"""These may be read, or not: what counts is that they end somewhere."""


def digest(payload: bytes) -> bytes:
    return hashlib.sha1(payload, usedforsecurity=False).digest()


def readable_id(payload: bytes) -> str | None:
    """The id that a task would see, if this is a run; by a reader that is not ours."""
    try:
        if payload[:1] and payload[0] >> 4 == 9:
            found = msgspec.msgpack.decode(payload)[0]
            return found.hex() if isinstance(found, bytes) else found
        return json.loads(payload)["id"]
    except Exception:
        return None


def malformed(fleet: Fleet, figures: Figures, seed: int, bad: int, *, plant: str = "") -> None:
    draw = random.Random(seed)
    fleet.workers(2, plant=plant)
    producer = fleet.oracle.ledger("pusher")
    sent: Counter[bytes] = Counter()  # what must be in the dead list
    either: dict[bytes, str | None] = {}
    n_good = n_bad = n_either = 0
    with redis.Redis.from_url(fleet.server.url) as client:
        while n_bad < bad:
            chunk = []
            for _ in range(500):
                number = n_good + n_bad + n_either
                kind = draw.random()
                if kind < 0.3:
                    id = f"good-{number}"
                    chunk.append(draw.choice((good(id), AIO.format(id=id).encode(), packed(id))))
                    producer.attempted(id)
                    producer.acknowledged(id)
                    n_good += 1
                elif kind < 0.4:
                    payload = draw.choice(EITHER)(draw, f"{number:016x}")
                    if (digest(payload)) in either or sent[digest(payload)]:
                        continue
                    id_read = readable_id(payload)
                    either[digest(payload)] = id_read
                    if isinstance(id_read, str):
                        producer.attempted(id_read)
                    chunk.append(payload)
                    n_either += 1
                else:
                    payload = draw.choice(BAD)(draw, f"{number:016x}")
                    if len(payload) > 100_000 and draw.random() < 0.9:
                        continue
                    sent[digest(payload)] += 1
                    chunk.append(payload)
                    n_bad += 1
            pipe = client.pipeline(transaction=False)
            for priority in ("high", "medium", "low"):
                part = chunk[("high", "medium", "low").index(priority) :: 3]
                pipe.lpush(f"{fleet.prefix}-queue-{priority}", *part)
            pipe.execute()
            until(lambda: sum(n for place, n in fleet.places().items() if place != "dead") < 20_000, 60, "they keep up")
        fleet.drain(120)
        dead: Counter[bytes] = Counter()
        without_reason = 0
        for start in range(0, client.llen(f"{fleet.prefix}-ff:dead"), 1000):  # type: ignore[arg-type]
            for entry in client.lrange(f"{fleet.prefix}-ff:dead", start, start + 999):  # type: ignore[union-attr]
                head, _, payload = entry.partition(b"\n")
                dead[digest(payload)] += 1
                stamp, _, reason = head.partition(b" ")
                without_reason += not (stamp.isdigit() and reason and head.decode().isprintable())
        client.delete(f"{fleet.prefix}-ff:dead")
    fleet.stop()
    producer.close()
    finished = Counter(line.id for line in fleet.oracle.lines(FINISHED))
    missing = sum((sent - dead).values())
    undecided = [
        id for mark, id in either.items() if not dead[mark] and not (isinstance(id, str) and finished[in_a_line(id)])
    ]
    verdict = fleet.oracle.verdict()
    # One whose id that reader cannot tell may have run under its own or one that its worker made: as many as ran though
    # nobody is known to have queued them.
    nameless = [id for id in undecided if not isinstance(id, str)]
    if len(nameless) <= len(verdict.unexpected):
        undecided = [id for id in undecided if isinstance(id, str)]
    good_dead = sum((dead - sent).values()) - sum(dead[mark] for mark in either)
    figures.add(
        8, "malformed payloads among good ones", malformed=n_bad, doubtful=n_either, good=n_good,
        dead=sum(dead.values()), missing_from_the_dead=missing, neither_run_nor_dead=len(undecided),
        without_reason=without_reason, good_in_the_dead=good_dead, lost=len(verdict.lost),
        worker_exits=len(fleet.exits()),
    )  # fmt: skip
    assert not missing
    assert not undecided, undecided[:5]
    assert not without_reason
    assert good_dead == 0
    assert not verdict.lost
    assert n_good == sum(1 for id in finished if id.startswith("good-"))
    assert not [id for id in verdict.duplicated if id.startswith("good-")]  # of the others, two may have come to one id
    fleet.assert_clean()


def test_malformed_among_good(fleet: Fleet, fault_seed: int, figures: Figures) -> None:
    malformed(fleet, figures, fault_seed, 2_000)


@pytest.mark.soak
def test_a_million_malformed(make_fleet: Callable[..., Fleet], fault_seed: int, figures: Figures) -> None:
    malformed(make_fleet(lease_seconds=5.0), figures, fault_seed, 1_000_000)
