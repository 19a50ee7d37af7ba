"""Workers of a FastAPI application: they start after its own lifespan, and stop before it."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Request

from ..core.workers import Worker, Workers

__all__ = ["AppWorkers", "WorkersDep", "app_workers", "end_with", "get_workers_from_app", "get_workers_from_request"]

logger = logging.getLogger("fluidfast.http")


class AppWorkers(Workers):
    """The workers of an application. A consumer of ``task_manager_fastapi`` is one of them while it runs."""

    def drop(self, worker: Worker) -> None:
        """Go on without a worker, whom somebody else stops."""
        if worker in self._workers:
            self._workers.remove(worker)

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """Start the workers, also for a second time, and stop them at the end."""
        if self.has_started():
            self._renew()
        await self.startup()
        watch = asyncio.create_task(end_with(self), name="fluidfast-watch-workers")
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait([watch])
            await self.shutdown()


async def end_with(worker: Worker) -> None:
    """End the process when the worker ends by itself."""
    try:
        await worker.wait_for_shutdown()
    except Exception as exc:
        logger.critical("%s stopped: %s", worker.worker_name, exc)
    else:
        logger.critical("%s stopped; this process no longer consumes", worker.worker_name)
    if callable(signal.getsignal(signal.SIGTERM)):
        os.kill(os.getpid(), signal.SIGTERM)


def app_workers(app: FastAPI) -> Workers:
    """Return the workers of an application; make them at the first call, before the application starts.

        app_workers(app).add_workers(WorkerFunction(refresh, heartbeat=60))

    They start with the application. If one of them ends by itself, all stop, and the process gets SIGTERM.
    """
    if (workers := get_workers_from_app(app)) is not None:
        return workers
    made = AppWorkers(name="app-workers")
    own: Callable[[Any], AbstractAsyncContextManager[Any]] = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with own(app) as state, made.life():
            yield state

    app.router.lifespan_context = cast(Any, lifespan)
    app.state.workers = made
    return made


def get_workers_from_app(app: FastAPI) -> Workers | None:
    """Return the workers of an application, or None if it has none."""
    return getattr(app.state, "workers", None)


def get_workers_from_request(request: Request) -> Workers | None:
    """Return the workers of the application that serves a request."""
    return get_workers_from_app(request.app)


WorkersDep = Annotated[Workers | None, Depends(get_workers_from_request)]
"""The workers, as a parameter of a route: ``async def route(workers: WorkersDep)``."""
