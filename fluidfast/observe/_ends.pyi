from collections.abc import Callable
from typing import Any, final

from ..core._run import TaskRun

__all__ = ["Ends"]

@final
class Ends:
    """Called with each run that has ended: passes it to ``record``, or leaves it out.

    It leaves out the runs of tasks with ``skip_tag``, and with ``samples`` all but 1 in ``every`` successes that took
    less than ``slow_us`` microseconds and needed no retry: 1,000 of these in a second, and 10,000 at once after a quiet
    time. ``every`` follows from how many ended in the last window of 250 ms, and doubles within one that has more.

    Attributes: ``every``; ``left_out``: how many successes sampling has left out.
    """

    every: int
    left_out: int
    def __init__(
        self, record: Callable[[TaskRun[Any, Any]], None], *, slow_us: int, samples: bool, skip_tag: str
    ) -> None: ...
    def __call__(self, run: TaskRun[Any, Any]) -> None: ...
