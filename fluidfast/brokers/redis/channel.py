"""The way of a producer's batches into Redis, on one connection."""

from typing import Any

from ...core._time import monotonic_seconds
from ...core.states import PRIORITIES
from ...errors import ConnectionLostError
from ..contract import Confirm, EnqueueBatch
from ._lane import Lane
from ._resp import pack
from .client import RedisClient, is_durable
from .link import Link, ServerReply, Transaction
from .scripts import command

__all__ = ["BEGIN", "COMMIT", "RedisChannel"]

BEGIN, COMMIT = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
PRODUCER_MS = 3_600_000
"""How long the mark of a producer's last batch is kept."""
MARK_SECONDS = 60.0
"""After that many seconds of batches that leave the mark's time to live as it is, one renews it."""


class RedisChannel(Lane):
    """Sends batches, each by a script that skips what it has seen before: a producer's mark is the number of its last.

    A batch that stands alone needs less: what the script looks for cannot be, since it was not pushed before, nor was
    anything before it refused. It goes as MULTI, SET of the mark, LPUSH, EXEC, while the server WATCHes the mark for
    this connection: should the bytes reach the server when the batch has been sent again on another one, the mark is
    not as it was, and EXEC does nothing. A user without the right to these commands goes by the script.

    ``durable``: a command that is sent behind each batch, and answered when that is safe; or None.
    """

    def __init__(self, client: RedisClient, link: Link, durable: bytes | None) -> None:
        self.client = client
        self.link = link
        self.durable = durable
        self.queues = [client.keys.queue(priority) for priority in PRIORITIES]
        self.may_watch = True

    def __call__(self, batch: EnqueueBatch, confirm: Confirm) -> None:
        self._send(batch, confirm, sent=False)

    def take_over(self, batch: EnqueueBatch, confirm: Confirm) -> None:
        """Go on with a batch that ``alone`` has sent, and with what came of its answer."""
        self._send(batch, confirm, sent=True)

    def _send(self, batch: EnqueueBatch, confirm: Confirm, *, sent: bool) -> None:
        client, durable, link = self.client, self.durable, self.link
        mark = client.keys.producer(batch.producer).encode()
        high, medium, low = batch.groups
        watches = sent or (self.may_watch and batch.fresh and not batch.behind)
        alone = sent or (watches and link.watched == batch.producer and bool(high) + bool(medium) + bool(low) == 1)
        link.watched = None
        link.turn = turn = link.turn + 1
        outcome: tuple[int, Exception | None] = (0, None)

        def answered(reply: Any, exc: Exception | None) -> None:
            nonlocal outcome
            if exc is not None:
                exc = client.error(exc, link)
            elif reply is None:  # of EXEC: the mark has expired, or was deleted by hand
                exc = ConnectionLostError(f"broker {client.url}: what a producer left is gone")
            outcome = (0 if exc is not None else -1 if alone else reply[1], exc)
            if durable is None and not watches:
                confirm(*outcome)

        def guarded(reply: Any, exc: Exception | None) -> None:
            if exc is None and link.turn == turn:
                link.watched = batch.producer
                if durable is None and not sent and outcome[1] is None:
                    self.good_until = monotonic_seconds() + MARK_SECONDS
                    if self.producer != batch.producer:
                        self.prepare_for(batch.producer, mark)
            elif isinstance(exc, ServerReply):
                self.may_watch = False
            if durable is None:
                confirm(*outcome)

        def safe(reply: Any, exc: Exception | None) -> None:
            waiting, refused = outcome
            if refused is None and exc is not None:
                refused = client.error(exc, link)
            if refused is None and not is_durable(reply):
                refused = client.not_durable(len(batch))
            confirm(0 if refused is not None else waiting, refused)

        watch = pack(("WATCH", mark)) if watches else b""
        if sent:
            link.sent(self.came, Transaction(answered, 4), guarded)
        elif alone:
            write = pack(("SET", mark, batch.sequence, "PX", PRODUCER_MS))
            push = pack(("LPUSH", self.queues[0 if high else 1 if medium else 2], *(high or medium or low)))
            link.send(b"".join((BEGIN, write, push, COMMIT, watch)), Transaction(answered, 4), guarded)
        else:
            packed = command(
                "enqueue", client.declare.enqueue(batch.producer), batch.sequence, PRODUCER_MS, batch.behind,
                len(high), len(medium), len(low), *high, *medium, *low,
            )  # fmt: skip
            if watches:  # EXEC forgets what was watched before; and whether we have the right to them is found out
                link.send(b"".join((packed, BEGIN, COMMIT, watch)), answered, Transaction(guarded, 3))
            else:
                link.send(packed, answered)
        if durable is not None:
            link.send(durable, safe)

    def prepare_for(self, producer: str, mark: bytes) -> None:
        """Lay out what the transactions of a producer have in common, for ``alone``."""
        begin = b"".join((BEGIN, b"*4\r\n", string(b"SET"), string(mark)))
        middle = b"".join((string(b"KEEPTTL"), b"*3\r\n", string(b"LPUSH")))
        pushes = tuple(middle + string(queue.encode()) for queue in self.queues)
        self.prepare(producer, begin, pushes, COMMIT + pack(("WATCH", mark)))


def string(text: bytes) -> bytes:
    """A bulk string (RESP)."""
    return b"$%d\r\n%b\r\n" % (len(text), text)
