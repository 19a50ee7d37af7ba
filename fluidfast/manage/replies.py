"""Wait for runs that other processes execute: a future per call, a reader per event loop."""

import asyncio
import logging
from typing import Any

import msgspec

from ..brokers.base import TaskBroker
from ..core._run import TaskRun
from ..core._time import keep_for_good, new_id
from ..errors import BrokerAuthError, BrokerError, TaskError
from ..texts import describe, printable

__all__ = ["Replies"]

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0
ASK_SECONDS = 1.0
"""How long a caller that has timed out waits for the broker to say which consumers are alive."""


class Inbox:
    """Finished runs that one event loop waits for. Its address names this loop of this process on the broker."""

    def __init__(self, broker: TaskBroker, manager: Any) -> None:
        self.broker = broker
        self.manager = manager
        self.address = new_id()
        self.expected: dict[str, asyncio.Future[TaskRun[Any, Any]]] = {}
        self.reader: asyncio.Task[None] | None = None

    def expect(self, run: TaskRun[Any, Any]) -> "tuple[str, asyncio.Future[TaskRun[Any, Any]]]":
        """Direct this run's reply to this inbox. Return the call's token, and a future for the finished run.

        The token distinguishes two calls with the same run id.
        """
        token = new_id()
        run.extra = {"reply": msgspec.json.encode(self.address), "reply_token": msgspec.json.encode(token)}
        future: asyncio.Future[TaskRun[Any, Any]] = asyncio.get_running_loop().create_future()
        self.expected[token] = future
        if self.reader is None or self.reader.done():
            self.reader = asyncio.create_task(self._read(), name="fluidfast-replies")
        return token, future

    def forget(self, token: str) -> None:
        """Drop a call whose caller no longer waits."""
        self.expected.pop(token, None)

    async def _read(self) -> None:
        while self.expected:
            try:
                payloads = await self.broker.replies(self.address, READ_SECONDS)
            except BrokerError as exc:
                if isinstance(exc, BrokerAuthError):  # waiting does not give the user the right
                    self._fail(exc)
                    return
                logger.warning("waiting for finished runs: %s", exc)
                await asyncio.sleep(0.5)
                continue
            except Exception as exc:
                self._fail(exc)
                return
            for payload in payloads:
                self._deliver(payload)

    def _fail(self, exc: Exception) -> None:
        """Raise ``exc`` in every waiting call: nothing reads replies any more."""
        expected, self.expected = self.expected, {}
        for future in expected.values():
            if not future.done():
                future.set_exception(exc)
                future.exception()  # its caller may have been cancelled

    def _deliver(self, payload: bytes) -> None:
        try:
            run = self.broker.codec.decode_finished(payload, self.manager, self.manager.dispatcher.listeners)
            token = msgspec.json.decode((run.extra or {}).get("reply_token", b'""'), type=str)
        except (TaskError, msgspec.DecodeError) as exc:
            logger.warning("a finished run cannot be read: %s", describe(exc))
            return
        future = self.expected.pop(token, None)
        if future is not None and not future.done():  # else its caller has gone, or the answer was read twice
            future.set_result(run)

    async def close(self) -> None:
        """Stop reading; every caller that still waits gets CancelledError."""
        reader, self.reader = self.reader, None
        for future in self.expected.values():
            if not future.done():
                future.cancel()
        self.expected.clear()
        if reader is not None and not reader.done():
            reader.cancel()
            await asyncio.wait([reader])


class Replies:
    """Finished runs that one manager waits for: an inbox for each event loop that it is used in."""

    def __init__(self, broker: TaskBroker, manager: Any) -> None:
        self.broker = broker
        self.manager = manager
        self.inboxes: dict[asyncio.AbstractEventLoop, Inbox] = {}

    def forked(self) -> None:
        """Drop the inboxes in the child of a fork: they belong to the parent."""
        keep_for_good(self.inboxes)
        self.inboxes = {}

    def here(self) -> Inbox:
        """Return the inbox of the running event loop."""
        loop = asyncio.get_running_loop()
        inbox = self.inboxes.get(loop)
        if inbox is None:
            for closed in [known for known in list(self.inboxes) if known.is_closed()]:
                self.inboxes.pop(closed, None)
            inbox = self.inboxes[loop] = Inbox(self.broker, self.manager)
        return inbox

    async def timed_out(self, run: TaskRun[Any, Any], seconds: float) -> TimeoutError:
        """Return the error for a call that has waited for ``seconds``."""
        text = f"task {printable(run.name)}, run {printable(run.id)}: not finished within {seconds:g} s"
        try:
            async with asyncio.timeout(ASK_SECONDS):
                alive = await self.broker.consumers_of(run.name)
        except (BrokerError, TimeoutError):
            alive = None
        return TimeoutError(text if alive is None else f"{text}; {of_consumers(*alive)}")

    async def close(self) -> None:
        """Stop reading in this event loop; every caller in it that still waits gets CancelledError."""
        inbox = self.inboxes.pop(asyncio.get_running_loop(), None)
        if inbox is not None:
            await inbox.close()


def of_consumers(alive: int, knowing: int) -> str:
    """Return a text about the consumers that could run a task."""
    if not alive:
        return "no consumer has reported to this broker lately: start one"
    if not knowing:
        one = "the consumer that is running does" if alive == 1 else f"the {alive} consumers that are running do"
        return f"{one} not know this task: register it there"
    if knowing == 1:
        return "a consumer that knows this task is running: the run waits or takes longer"
    return f"{knowing} consumers that know this task are running: the run waits or takes longer"
