"""Row 21, a program: a manager (or a consumer) that was made, and used, before the process forks ``children`` times.
Each child asks for answers, by ``await`` and by ``manager.sync``, and queues. Options: ``children``, ``each``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback

import worker_app
from worker_app import OPTIONS, end_with_parent

from fluidfast import TaskManager
from fluidfast.commands.trials.ledger import Ledger

manager = TaskManager(broker_url=OPTIONS["url"])
worker_app.register(manager)


async def ask(book: Ledger, who: str, count: int) -> None:
    async def one(number: int) -> None:
        id = f"{who}-{number}"
        book.attempted(id)
        run = await manager.queue_and_wait("work", run_id=id, ms=1, timeout=20)
        book.acknowledged(id)
        if run.id != id or str(run.state) != "success":
            raise AssertionError(f"asked for {id}, was answered {run.id} {run.state}")

    await asyncio.gather(*map(one, range(count)))
    await manager.on_shutdown()


def child(number: int) -> int:
    who = f"child{number}"
    book = Ledger(OPTIONS["ledgers"], who)
    try:
        for call in range(OPTIONS["each"]):
            id = f"{who}-sync-{call}"
            book.attempted(id)
            if manager.sync.queue_and_wait("work", run_id=id, timeout=20).id != id:
                raise AssertionError("another one's answer")
            book.acknowledged(id)
        manager.sync.close()
        asyncio.run(ask(book, who, OPTIONS["each"]))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> int:
    book = Ledger(OPTIONS["ledgers"], OPTIONS["who"])
    book.attempted("before")
    manager.sync.queue_and_wait("work", run_id="before", timeout=20)  # its threads and sockets are there by now
    book.acknowledged("before")
    pids = []
    for number in range(OPTIONS["children"]):
        if (pid := os.fork()) == 0:
            os._exit(child(number))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    book.attempted("after")
    manager.sync.queue_and_wait("work", run_id="after", timeout=20)
    book.acknowledged("after")
    manager.sync.close()
    return sum(map(bool, codes))


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
