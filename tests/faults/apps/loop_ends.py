"""Row 17, a program: a consumer in ``asyncio.run`` whose event loop ends while runs are under way. Options: ``how``
(raise, return, interrupt, cancel), ``seconds`` until then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import worker_app
from worker_app import OPTIONS, end_with_parent, ledger

from fluidfast import TaskConsumer, TaskRun
from fluidfast.core.states import TaskState


class AsItWasTold(Exception):
    pass


def note_ends(run: TaskRun) -> None:
    ledger().note(f"{run.state} {run.id}")


async def main() -> None:
    consumer = TaskConsumer(broker_url=OPTIONS["url"], max_concurrent_tasks=20)
    worker_app.register(consumer)
    for state in (TaskState.failure, TaskState.aborted):
        consumer.dispatcher.register_handler(state, note_ends)
    await consumer.startup()
    ledger().note(f"ready {consumer.engine.id}")
    how, seconds = OPTIONS["how"], OPTIONS["seconds"]
    if how == "interrupt":
        asyncio.get_running_loop().call_later(seconds, os.kill, os.getpid(), signal.SIGINT)
        await asyncio.sleep(3600)
    await asyncio.sleep(seconds)
    if how == "raise":
        raise AsItWasTold
    if how == "cancel":  # as a server does that is forced to exit: everything is cancelled, main is not
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)


if __name__ == "__main__":
    end_with_parent()
    try:
        asyncio.run(main())
    except (AsItWasTold, KeyboardInterrupt):
        pass
    sys.exit(0)
