"""The process of one CPU-bound run of a ``worker``: its command line with ``exec ...`` behind it.

See ``fluidfast.execute.cpubound``, which starts it, and ``fluidfast.cli``, which does the same for applications that
have a command line of their own.
"""

import sys
import traceback
from typing import Any

import click

from ..errors import TaskAbortedError, UnknownTaskError
from ..execute.cpubound import ABORTED_EXIT, die_with_parent, record_of_this_process
from ..execute.forkserver import Entry, Job, execute_in_child, serve_forks
from ..manage.manager import TaskManager
from .group import CommandError
from .logs import Log
from .loops import run_loop, run_new_loop
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
    found = target.find()
    if log:
        given = {} if ctx.parent is None else ctx.parent.params  # the worker's
        ctx.call_on_close(Log(given.get("log_level"), given.get("log_format"), direct=True).flush)
    ready = found if isinstance(found, TaskManager) else None
    if serve_forks(Entry(lambda: as_manager(found, target.text), run_new_loop, ready)):
        return
    die_with_parent()
    body = sys.stdin.buffer.read()
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
        record = record_of_this_process() or ({"id": run_id} if run_id else {})
        try:
            await execute_in_child(manager, Job(name, record, b"", params))
        except TaskAbortedError:
            return ABORTED_EXIT
    return 0
