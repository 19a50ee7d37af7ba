"""The event loop of the commands: uvloop where it can be imported, else asyncio's own."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from time import monotonic
from types import FrameType
from typing import Any, TypeVar

__all__ = ["STOP_SIGNALS", "StopSignals", "ease_collector", "loop_name", "on_signals", "run_loop", "run_new_loop"]

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_STOP_SECONDS = 1.0
"""A signal that a whole group of processes may get belongs to the last step if it comes so soon after that."""


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
    return run_new_loop(main)


def run_new_loop(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on that loop."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


class StopSignals:
    """Steps towards the end of a process, one for each signal; see ``on_signals``."""

    def __init__(
        self, actions: Sequence[Callable[[], object]], to_groups: Sequence[int], before_kill: Callable[[], object]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.actions = actions
        self.to_groups = to_groups
        self.before_kill = before_kill
        self.step = 0
        self.stepped_at = 0.0
        for number in STOP_SIGNALS:
            # not by the loop's add_signal_handler: Python calls this also while a handler blocks the loop
            signal.signal(number, self.received)

    def received(self, number: int, _: FrameType | None) -> None:
        """Take the next step, unless the signal belongs to the last one."""
        if self.step and number in self.to_groups and monotonic() - self.stepped_at < SAME_STOP_SECONDS:
            return
        self.go_to(self.step + 1, number)

    def go_to(self, step: int, number: int = signal.SIGTERM) -> None:
        """Take all steps up to this one that have not been taken."""
        while self.step < step:
            self.step += 1
            self.stepped_at = monotonic()
            if self.step > len(self.actions):
                self.before_kill()
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            with suppress(RuntimeError):  # the loop is closed, and the process about to end
                self.loop.call_soon_threadsafe(self.actions[self.step - 1])


def on_signals(
    *actions: Callable[[], object], to_groups: Sequence[int] = (), before_kill: Callable[[], object] = lambda: None
) -> StopSignals:
    """Have each SIGINT or SIGTERM call the next action in the event loop; one more kills this process.

    ``to_groups``: signals that this process may get together with its supervisor or its workers, by one stop of a
    service manager: within a second of the last step they belong to it. ``before_kill``: called in the signal handler.
    """
    return StopSignals(actions, to_groups, before_kill)
