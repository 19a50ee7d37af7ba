from collections.abc import Callable
from typing import Any, final

from ..core._run import TaskRun

__all__ = ["RunLines"]

@final
class RunLines:
    def __init__(self, put: Callable[[str], None], *, as_json: bool = False) -> None: ...
    def __call__(self, run: TaskRun[Any, Any]) -> None: ...
