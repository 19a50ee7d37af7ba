"""The process of one CPU-bound run of a ``worker``: its command line with ``exec ...`` behind it.

See ``fluidfast.execute.cpubound``, which starts it, and ``fluidfast.cli``, which does the same for applications that
have a command line of their own.
"""

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ..core.params import adapter_for, read_params
from ..errors import TaskAbortedError, UnknownTaskError
from ..execute.cpubound import ABORTED_EXIT, die_with_parent, record_of_this_process
from ..execute.executor import execute
from ..settings import get_settings
from ..texts import error_text
from .loops import run_loop
from .target import as_manager, load

__all__ = ["run"]


def run(manager: str, arguments: Sequence[str]) -> int:
    """Execute the run that ``arguments``, those behind ``exec``, name; its params are on stdin."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="exec")
    parser.add_argument("task")
    parser.add_argument("--log", action="store_true")
    parser.add_argument("--run-id", default="")
    parser.add_argument("--params", choices=["-"], required=True)
    options = parser.parse_args(arguments)
    params = sys.stdin.buffer.read()
    found = load(manager)
    if options.log and not logging.getLogger().handlers:
        logging.basicConfig(level=get_settings().log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    try:
        return run_loop(execute_one(found, manager, options.task, options.run_id, params))
    except UnknownTaskError:
        raise
    except Exception:
        traceback.print_exc()
        return 1


async def execute_one(found: Any, text: str, name: str, run_id: str, params: bytes) -> int:
    async with as_manager(found, text)._without_consuming() as manager:
        task = manager.broker.task_from_registry(name)
        value = read_params(adapter_for(task.params_model), params)
        made = manager.broker.codec.create_with(task, None, run_id, value, manager, manager.dispatcher.listeners)
        task_run = made.model_copy(update=record_of_this_process())
        try:
            await execute(task_run, in_process=True)
        except TaskAbortedError as exc:
            await manager.broker.set_task_aborted(task_run.id, error_text(exc))
            return ABORTED_EXIT
    return 0
