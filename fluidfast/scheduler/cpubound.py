"""Processes of CPU-bound runs, under aio-fluid's name."""

from ..execute.cpubound import cpu_bound_command, exec_args, run_in_subprocess, strip_serve

__all__ = ["cpu_bound_command", "exec_args", "run_in_subprocess", "strip_serve"]
