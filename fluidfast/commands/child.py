"""The process of one CPU-bound run of a ``worker``: its command line with ``exec ...`` behind it.

See ``fluidfast.execute.cpubound``, which starts it, and ``fluidfast.cli``, which does the same for applications that
have a command line of their own.
"""

import sys
import traceback
from typing import Any

import click

from ..core.params import adapter_for, read_params
from ..errors import TaskAbortedError, UnknownTaskError
from ..execute.cpubound import ABORTED_EXIT, die_with_parent, record_of_this_process
from ..execute.executor import execute as execute_run
from ..texts import error_text
from .group import CommandError
from .logs import Log
from .loops import run_loop
from .target import Target, as_manager

__all__ = ["execute"]


@click.command("exec")
@click.argument("task")
@click.option("--log", is_flag=True)
@click.option("--run-id", default="")
@click.option("--params", type=click.Choice(["-"]), required=True)
@click.pass_context
def execute(ctx: click.Context, task: str, log: bool, run_id: str, params: str) -> None:
    """Execute a run; its params are on stdin."""
    target: Target = ctx.obj
    die_with_parent()
    body = sys.stdin.buffer.read()
    found = target.find()
    if log:
        given = {} if ctx.parent is None else ctx.parent.params  # the worker's
        ctx.call_on_close(Log(given.get("log_level"), given.get("log_format")).flush)
    try:
        ctx.exit(run_loop(execute_one(found, target.text, task, run_id, body)))
    except (click.exceptions.Exit, click.ClickException):
        raise
    except UnknownTaskError as exc:
        raise CommandError(str(exc)) from exc
    except Exception:
        traceback.print_exc()
        ctx.exit(1)


async def execute_one(found: Any, text: str, name: str, run_id: str, params: bytes) -> int:
    async with as_manager(found, text)._without_consuming() as manager:
        task = manager.broker.task_from_registry(name)
        value = read_params(adapter_for(task.params_model), params)
        made = manager.broker.codec.create_with(task, None, run_id, value, manager, manager.dispatcher.listeners)
        task_run = made.model_copy(update=record_of_this_process())
        try:
            await execute_run(task_run, in_process=True)
        except TaskAbortedError as exc:
            await manager.broker.set_task_aborted(task_run.id, error_text(exc))
            return ABORTED_EXIT
    return 0
