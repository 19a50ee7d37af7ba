"""Whether this process is one that a CPU-bound task was given, and how it is told so."""

import os

__all__ = ["cpu_env", "is_in_cpu_process"]

VARIABLE = "TASK_MANAGER_SPAWN"


def is_in_cpu_process() -> bool:
    """True in a process that was started for one run of a CPU-bound task (``TASK_MANAGER_SPAWN=true``)."""
    return os.environ.get(VARIABLE) == "true"


def cpu_env() -> dict[str, str]:
    """The environment that tells a process so."""
    return {VARIABLE: "true"}
