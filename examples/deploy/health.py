"""A health check for workers that asks nobody: is the event loop of this worker alive?

A worker whose consumer fails ends with exit code 1, and whatever started it starts it again. So one thing is left to
check: an event loop that a task blocks. ``Heartbeat`` touches a file while the loop runs. ``python health.py`` fails if
the file is old. The check does not ask Redis: if it did, an outage of Redis would restart all workers.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

FILE = Path(os.environ.get("HEARTBEAT_FILE", "/tmp/worker-alive"))
EVERY_SECONDS = 5
OLD_SECONDS = float(os.environ.get("HEARTBEAT_SECONDS", "30"))


class Heartbeat:
    """Touches the file every 5 seconds: ``manager.add_async_context_manager(Heartbeat())``."""

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._beat())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            touch()
            await asyncio.sleep(EVERY_SECONDS)


def touch() -> None:
    """Note that the worker is alive."""
    FILE.touch()


def main() -> int:
    """Return 0 if the worker of this container is alive."""
    try:
        age = time.time() - FILE.stat().st_mtime
    except FileNotFoundError:
        print(f"no worker has touched {FILE}")
        return 1
    print(f"the worker's event loop ran {age:.0f} s ago")
    return int(age > OLD_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
