"""Waiting for runs that are executed elsewhere: a future per run id, and one reader for all of a manager's."""

import asyncio
import logging
from typing import Any

from ._run import TaskRun
from .broker import TaskBroker
from .errors import BrokerError, TaskError

__all__ = ["Replies"]

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0


class Replies:
    """Finished runs that one manager waits for."""

    def __init__(self, broker: TaskBroker, manager: Any) -> None:
        self.broker = broker
        self.manager = manager
        self.expected: dict[str, asyncio.Future[TaskRun[Any, Any]]] = {}
        self.reader: asyncio.Task[None] | None = None

    def expect(self, run_id: str) -> "asyncio.Future[TaskRun[Any, Any]]":
        """A future that gets the run with this id when it is finished."""
        future: asyncio.Future[TaskRun[Any, Any]] = asyncio.get_running_loop().create_future()
        self.expected[run_id] = future
        if self.reader is None or self.reader.done() or self.reader.get_loop() is not future.get_loop():
            self.reader = asyncio.create_task(self._read(), name="fluidfast-replies")
        return future

    def forget(self, run_id: str) -> None:
        """Nobody waits for this run any more."""
        self.expected.pop(run_id, None)

    async def _read(self) -> None:
        while self.expected:
            try:
                payloads = await self.broker.replies(self.manager.manager_id, READ_SECONDS)
            except BrokerError as exc:
                logger.warning("waiting for finished runs: %s", exc)
                await asyncio.sleep(0.5)
                continue
            for payload in payloads:
                self._deliver(payload)

    def _deliver(self, payload: bytes) -> None:
        try:
            run = self.broker.codec.decode_finished(payload, self.manager, self.manager.dispatcher.listeners)
        except TaskError as exc:
            logger.warning("a finished run cannot be read: %s", exc)
            return
        future = self.expected.pop(run.id, None)
        if future is not None and not future.done():
            future.set_result(run)

    async def close(self) -> None:
        """Stop reading; who still waits gets CancelledError."""
        reader, self.reader = self.reader, None
        for future in self.expected.values():
            if not future.done():
                future.cancel()
        self.expected.clear()
        if reader is not None and not reader.done() and reader.get_loop() is asyncio.get_running_loop():
            reader.cancel()
            await asyncio.wait([reader])
