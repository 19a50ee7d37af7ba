"""The event loop of the commands: uvloop where it can be imported, else asyncio's own."""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeVar

__all__ = ["ease_collector", "loop_name", "on_signals", "run_loop"]

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


def ease_collector() -> None:
    """Let Python's collector of cycles look less often, and never again at what was imported.

    It would look after each 700 objects that were made and are alive, which is once a batch of runs or more often, and
    takes a tenth of a busy worker's time. For processes of ours only: in others' it is theirs to say.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on that loop, for a process that does nothing else."""
    ease_collector()
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
