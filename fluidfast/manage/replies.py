"""Wait for runs that other processes execute: a future per call, a reader per event loop."""

import asyncio
import logging
import math
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
CHECK_SECONDS = 0.005
"""Deadlines that lie closer together than this are looked at in one."""
CLOCK_SECONDS = 0.001
"""A timer may be early by the event loop's clock."""
ASK_SECONDS = 1.0
"""How long a caller that has timed out waits for the broker to say which consumers are alive."""


class Call:
    """A call that waits for a finished run: the future gets the run, or None when ``deadline`` (by the event loop's
    clock) has passed."""

    __slots__ = ("deadline", "future", "token")

    def __init__(self, token: str, future: "asyncio.Future[TaskRun[Any, Any] | None]") -> None:
        self.token = token
        self.future = future
        self.deadline = math.inf


class Inbox:
    """Finished runs that one event loop waits for. Its address names this loop of this process on the broker.

    A call costs neither a task nor a timer: one task reads for all of them, and one timer is set to the next deadline.
    """

    def __init__(self, broker: TaskBroker, manager: Any) -> None:
        self.broker = broker
        self.manager = manager
        self.loop = asyncio.get_running_loop()
        self.address = new_id()
        self.reply = msgspec.json.encode(self.address)
        self.expected: dict[str, Call] = {}
        self.reader: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def expect(self, run: TaskRun[Any, Any]) -> Call:
        """Direct this run's reply to this inbox. Return the call that waits for it.

        Its token distinguishes two calls with the same run id.
        """
        token = new_id()
        run.extra = {"reply": self.reply, "reply_token": b'"%b"' % token.encode()}
        call = self.expected[token] = Call(token, self.loop.create_future())
        if self.reader is None or self.reader.done():
            self.reader = asyncio.create_task(self._read(), name="fluidfast-replies")
        return call

    def limit(self, call: Call, seconds: float) -> None:
        """Have a call wait no longer than for so many seconds from now."""
        call.deadline = self.loop.time() + seconds
        if call.deadline != math.inf and (self.timer is None or call.deadline < self.timer.when()):
            self._wake_at(call.deadline)

    def forget(self, call: Call) -> None:
        """Drop a call whose caller no longer waits."""
        self.expected.pop(call.token, None)

    def _wake_at(self, when: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(when, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self.timer = None
        now = self.loop.time() + CLOCK_SECONDS
        soonest = math.inf
        for call in self.expected.values():
            if call.deadline > now:
                soonest = min(soonest, call.deadline)
            elif not call.future.done():
                call.future.set_result(None)
        if soonest != math.inf:
            self._wake_at(max(soonest, now + CHECK_SECONDS))

    async def _read(self) -> None:
        payloads: list[bytes] = []
        while self.expected or payloads:  # having read, it waits once more: the next call finds it waiting
            try:
                payloads = await self.broker.replies(self.address, READ_SECONDS)
            except BrokerError as exc:
                payloads = []
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
        for call in expected.values():
            if not call.future.done():
                call.future.set_exception(exc)
                call.future.exception()  # its caller may have been cancelled

    def _deliver(self, payload: bytes) -> None:
        try:
            run = self.broker.codec.decode_finished(payload, self.manager, self.manager.dispatcher.listeners)
            token = msgspec.json.decode((run.extra or {}).get("reply_token", b'""'), type=str)
        except (TaskError, msgspec.DecodeError) as exc:
            logger.warning("a finished run cannot be read: %s", describe(exc))
            return
        call = self.expected.pop(token, None)
        if call is not None and not call.future.done():  # else its caller has gone, or the answer was read twice
            call.future.set_result(run)

    async def close(self) -> None:
        """Stop reading; every caller that still waits gets CancelledError."""
        reader, self.reader = self.reader, None
        for call in self.expected.values():
            if not call.future.done():
                call.future.cancel()
        self.expected.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
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
        if self.broker.options.fleet == "mixed":
            text += "; a worker of aio-fluid sends no result, if one took it (fleet=mixed)"
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
