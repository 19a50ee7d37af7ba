"""Whether this is a CPU-bound run's process, under aio-fluid's name."""

from ..core.process import cpu_env, is_in_cpu_process

__all__ = ["cpu_env", "is_in_cpu_process"]
