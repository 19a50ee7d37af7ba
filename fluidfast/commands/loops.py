"""The event loop of the commands: uvloop where it can be imported, else asyncio's own."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeVar

__all__ = ["loop_name", "on_signals", "run_loop"]

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def loop_name() -> str:
    """Which loop ``run_loop`` uses, with its version."""
    return f"uvloop {version('uvloop')}" if find_spec("uvloop") else "asyncio"


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on that loop."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


def on_signals(*actions: Callable[[], object]) -> None:
    """At the first SIGINT or SIGTERM call the first action, at the second the second; after the last the default."""
    loop = asyncio.get_running_loop()
    left = list(actions)

    def received() -> None:
        left.pop(0)()
        if not left:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, received)
