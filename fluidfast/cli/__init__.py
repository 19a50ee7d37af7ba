"""The command line of an application: ``ls``, ``exec``, ``serve``, ``enable``, ``worker``, ``queue`` and ``dead``.

    TaskManagerCLI("myapp.tasks:task_app")()

is all that an application's ``__main__`` needs.
"""

import asyncio
import os
import sys
import traceback
from collections.abc import Coroutine, Sequence
from importlib import import_module
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..brokers.base import TaskBroker
from ..commands.dead import dead
from ..commands.fields import JSON, RESERVED, FieldOptions, field_name
from ..commands.group import CommandError, CommandGroup
from ..commands.queue import queue
from ..commands.target import FOUND, Target, described, of_application
from ..commands.worker import worker
from ..core.params import adapter_for, params_error, read_params
from ..core.process import is_in_cpu_process, open_standard_streams
from ..core.states import TaskState
from ..core.task import Task
from ..errors import OpenRoutesError, TaskAbortedError, TaskError, UnknownTaskError
from ..execute.cpubound import ABORTED_EXIT, die_with_parent, record_of_this_process
from ..execute.executor import execute as execute_run
from ..execute.forkserver import Entry, serve_forks
from ..manage.manager import TaskManager
from ..run import TaskRun
from ..texts import error_text, printable
from .logs import configure_logging

__all__ = ["DEFAULT_COMMANDS", "TaskManagerCLI"]

SERVED = "FLUIDFAST_SERVED"
"""Environment variable: what a server with ``--reload`` serves, for its children."""
APP = "fluidfast.cli.app"
MANAGER = "fluidfast.cli.manager"


class TaskManagerCLI(CommandGroup):
    """The command line of a task manager.

    ``task_manager_app``: a FastAPI application made by ``task_manager_fastapi``, a ``TaskManager``, a callable that
    returns one of these, or an import string (``"package.module:name"``) of any of these.
    ``log_config``: keywords of ``fluidfast.cli.logs.logging_config`` for ``serve`` and ``exec --log``. ``app_names``
    defaults to the packages of the registered tasks.
    ``commands``: replace DEFAULT_COMMANDS. ``lazy_subcommands``: more commands, name -> import string, imported when
    called. Other keywords: as ``click.Group``.
    """

    def __init__(
        self,
        task_manager_app: Any,
        log_config: dict[str, Any] | None = None,
        *,
        commands: Any = None,
        lazy_subcommands: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = DEFAULT_COMMANDS if commands is None else commands
        super().__init__(commands=chosen, lazy_subcommands=lazy_subcommands, **kwargs)
        self.task_manager_app = task_manager_app
        self.log_config = log_config or {}

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        if is_in_cpu_process() and "exec" in args:  # of a run of ``worker``, whose command line stands before it
            at = args.index("exec")
            args = args[: args.index("worker") if "worker" in args[:at] else at] + args[at:]
        return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta[FOUND] = Target("this application", lambda: application_of(ctx))
        return super().invoke(ctx)

    def get_task_manager_app(self) -> Any:
        """Return the FastAPI application. For a bare manager it makes one, which needs the extra ``http``.

        Raises:
            click.ClickException: the import string names nothing, or the routes of a bare manager would be open.
        """
        app = resolved(self.task_manager_app)
        if isinstance(app, TaskManager):
            from ..http import task_manager_fastapi

            try:
                return task_manager_fastapi(app)
            except OpenRoutesError as exc:
                raise click.ClickException(
                    "a bare TaskManager has no auth: give TaskManagerCLI an application made with "
                    "task_manager_fastapi(manager, auth=...), or set FLUID_HTTP_INSECURE=true"
                ) from exc
        return app

    def get_task_manager(self) -> TaskManager:
        """Return the manager.

        Raises:
            RuntimeError: the application has none.
            click.ClickException: the import string names nothing.
        """
        return manager_of(resolved(self.task_manager_app))


# -- what the command line is of


def imported(path: str) -> Any:
    """Return the object that an import string names: ``package.module:attribute``, dots in the attribute too."""
    module_name, colon, attributes = path.partition(":")
    if not module_name or not colon or not attributes:
        raise click.ClickException(f"{path!r} is not an import string, it must be 'package.module:name'")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        raise click.ClickException(f"{path!r}: there is no module {exc.name!r}") from exc
    for name in attributes.split("."):
        if not hasattr(found, name):
            raise click.ClickException(f"{path!r}: module {module_name!r} has no {attributes!r}")
        found = getattr(found, name)
    return found


def is_app(value: Any) -> bool:
    # FastAPI is not imported for this: the application imported it, or there is none
    return isinstance(value, TaskManager) or (hasattr(value, "router") and hasattr(value, "state"))


def resolved(target: Any) -> Any:
    """Return the application or manager for an import string, a callable, or the object itself."""
    if isinstance(target, str):
        target = imported(target)
    return target if is_app(target) or not callable(target) else target()


def manager_of(app: Any) -> TaskManager:
    if isinstance(app, TaskManager):
        return app
    manager = getattr(getattr(app, "state", None), "task_manager", None)
    if manager is None:
        raise RuntimeError(f"{app!r} has no task manager in its state; make it with task_manager_fastapi")
    return manager  # type: ignore[no-any-return]


def cli_of(ctx: click.Context) -> TaskManagerCLI:
    parent: click.Context | None = ctx
    while parent is not None:
        if isinstance(parent.command, TaskManagerCLI):
            return parent.command
        parent = parent.parent
    raise click.ClickException("this command is part of a TaskManagerCLI")


def task_manager_of(ctx: click.Context) -> TaskManager:
    """Return the manager of this invocation. It is made once, since a callable makes a new one each time."""
    meta = ctx.find_root().meta
    if MANAGER not in meta:
        meta[MANAGER] = cli_of(ctx).get_task_manager()
    manager: TaskManager = meta[MANAGER]
    return manager


def application_of(ctx: click.Context) -> TaskManager:
    """The manager, for the commands that ``fluidfast`` has too."""
    try:
        return task_manager_of(ctx)
    except click.ClickException:
        raise
    except Exception as exc:
        raise CommandError(f"the application cannot be loaded: {described(exc)}") from exc


def log_options(cli: TaskManagerCLI, manager: TaskManager) -> dict[str, Any]:
    """Return the log config. ``app_names`` defaults to the packages of the registered tasks."""
    names = sorted({task.logger.name.partition(".")[0] for task in manager.registry.values()})
    return {"app_names": names, **cli.log_config}


def not_found(name: str, registry: dict[str, Task[Any]]) -> click.ClickException:
    from difflib import get_close_matches

    close = get_close_matches(name, registry, 1)
    return click.ClickException(f"Task {name} not found" + (f", did you mean {close[0]}?" if close else ""))


# -- ls


@click.command()
@click.option("--tags", "-t", multiple=True, help="Only tasks with at least one of these tags; repeatable.")
@click.pass_context
def ls(ctx: click.Context, tags: tuple[str, ...]) -> None:
    """List the registered tasks."""
    manager = task_manager_of(ctx)
    infos = on_broker(manager.broker, manager.broker.get_tasks_info())
    table = Table(title="Tasks")
    for heading in ("Name", "Enabled", "Schedule", "CPU bound", "Timeout secs", "Priority", "Tags", "Description"):
        table.add_column(heading, no_wrap=heading == "Name", style="cyan" if heading == "Name" else None)
    for info in sorted(infos, key=lambda info: info.name):
        if tags and not info.tags.intersection(tags):
            continue
        cells = (
            info.name,
            mark(info.enabled),
            info.schedule or "",
            mark(info.cpu_bound),
            str(info.timeout_seconds),
            str(info.priority),
            ", ".join(sorted(info.tags)),
            info.short_description,
        )
        # texts: what a task says of itself is no markup
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    Console().print(table)


def mark(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="red")


def on_broker(broker: TaskBroker, wanted: Coroutine[Any, Any, Any]) -> Any:
    """Run one coroutine on a broker in a new event loop. Turn a broker's error into the command's."""

    async def main() -> Any:
        try:
            return await wanted
        finally:
            await broker.close()

    try:
        return asyncio.run(main())
    except UnknownTaskError:
        raise
    except TaskError as exc:
        raise click.ClickException(str(exc)) from exc


# -- exec


class ExecuteTasks(click.Group):
    """``exec``: a command for each registered task, with an option for each field of its params."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(task_manager_of(ctx).registry)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        registry = task_manager_of(ctx).registry
        task = registry.get(cmd_name)
        if task is None:
            raise not_found(cmd_name, registry)
        return exec_command(task)


def exec_command(task: Task[Any]) -> click.Command:
    fields = FieldOptions(task)

    @click.command(task.name, help=task.description, short_help=task.short_description)
    @click.option("--log", is_flag=True, help="Show logs.")
    @click.option("--run-id", default="", help="Id of the run (default: a new one).")
    @click.option("--params", default=None, help="Params as a JSON object; '-' reads it from stdin." + fields.hint)
    @click.pass_context
    def command(ctx: click.Context, /, log: bool, run_id: str, params: str | None, **_: Any) -> None:
        manager = task_manager_of(ctx)
        if log:
            configure_logging(**log_options(cli_of(ctx), manager))
        if serve_forks(Entry(lambda: manager, asyncio.run, manager)):
            return
        raw = sys.stdin.buffer.read() if params == "-" else (params or "{}").encode()
        try:
            value = decoded(task, raw, fields.given(ctx))
        except click.BadParameter as exc:
            exc.ctx = ctx
            raise
        try:
            run = asyncio.run(execute_once(manager, task, value, run_id))
        except Exception:
            traceback.print_exc()
            ctx.exit(1)
        if is_in_cpu_process():
            ctx.exit(ABORTED_EXIT if run.state is TaskState.aborted else 0)
        Console().print(run_table(run))

    command.params.extend(fields.options)
    return command


def decoded(task: Task[Any], raw: bytes, options: dict[str, Any]) -> Any:
    """Return the params, validated as if they came from a queue. JSON params override options."""
    adapter = adapter_for(task.params_model)
    try:
        if options:
            given = JSON.convert(raw, None, None)
            if not isinstance(given, dict):
                raise click.BadParameter("the params must be a JSON object", param_hint="--params")
            raw = msgspec.json.encode({**options, **given})
        return read_params(adapter, raw)
    except click.ClickException:
        raise
    except Exception as exc:
        error = params_error(task.name, exc)
        if (name := field_name(task, error.field)) in RESERVED:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{error}. {option} is an option of the command itself, so give the field {name!r} in --params: "
                f"--params '{{\"{error.field}\": ...}}'"
            ) from None
        option = "--" + error.field.replace("_", "-") if error.field.isidentifier() else "--params"
        raise click.BadParameter(str(error), param_hint=option) from None  # its text may repeat a secret


async def execute_once(manager: TaskManager, task: Task[Any], params: Any, run_id: str) -> TaskRun[Any, Any]:
    """Execute a run in this process, also of a CPU-bound task. Raises the task's exception."""
    record: dict[str, Any] = {}
    if is_in_cpu_process():
        die_with_parent()
        record = record_of_this_process()
    async with manager._without_consuming():
        codec, listeners = manager.broker.codec, manager.dispatcher.listeners
        run: TaskRun[Any, Any] = codec.create_with(task, None, run_id, params, manager, listeners)
        run = run.model_copy(update=record)
        try:
            await execute_run(run, in_process=True)
        except TaskAbortedError as exc:
            await manager.broker.set_task_aborted(run.id, error_text(exc))
        return run


def run_table(run: TaskRun[Any, Any]) -> Table:
    table = Table(title="Task Run", show_header=False)
    table.add_column(style="cyan")
    table.add_column(style="green" if run.state is TaskState.success else "red")
    rows = {
        "name": run.name,
        "description": run.task.description,
        "run_id": printable(run.id),
        "state": str(run.state),
        "started": run.start.isoformat() if run.start else "",
        "completed": run.end.isoformat() if run.end else "",
        "duration ms": str(run.duration_ms),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


# -- serve


@click.command()
@click.option("--host", "-h", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--port", "-p", default=8080, show_default=True, help="Port to listen on.")
@click.option("--reload", is_flag=True, help="Restart when the code changes; needs an import string.")
@click.pass_context
def serve(ctx: click.Context, host: str, port: int, reload: bool) -> None:
    """Serve the application by HTTP, and consume if its manager is a consumer."""
    try:
        import uvicorn
    except ModuleNotFoundError as exc:
        if exc.name != "uvicorn":
            raise
        raise click.ClickException("serve needs uvicorn: pip install 'fluidfast[http]'") from exc
    open_standard_streams()
    cli = cli_of(ctx)
    app: Any
    options = cli.log_config
    if reload:
        if not isinstance(cli.task_manager_app, str):
            raise click.UsageError("--reload needs an import string: give TaskManagerCLI 'package.module:name'")
        os.environ[SERVED] = cli.task_manager_app
        app = "fluidfast.cli:served_app"
    else:
        app = cli.get_task_manager_app()
        options = log_options(cli, manager_of(app))
    uvicorn.run(
        app,
        host=host,
        port=port,
        reload=reload,
        factory=reload,
        log_level="info",
        log_config=configure_logging(**options),
    )


def served_app() -> Any:
    """Return the application of a server with ``--reload``. Called in its child processes."""
    return TaskManagerCLI(os.environ[SERVED]).get_task_manager_app()


# -- enable


@click.command()
@click.argument("task")
@click.option("--disable", is_flag=True, help="Disable the task instead.")
@click.pass_context
def enable(ctx: click.Context, task: str, disable: bool) -> None:
    """Enable a task. Runs of a disabled task end as aborted, and schedulers skip it."""
    manager = task_manager_of(ctx)
    try:
        on_broker(manager.broker, manager.broker.enable_task(task, enable=not disable))
    except UnknownTaskError as exc:
        raise not_found(task, manager.registry) from exc
    if manager.broker.url.scheme == "memory":
        click.echo("the broker is memory://: this does not change the task in other processes", err=True)
    click.echo(f"Task {task} {'disabled' if disable else 'enabled'}")


execute = ExecuteTasks(name="exec", help="Execute a task here and now, and wait for it.")

DEFAULT_COMMANDS: Sequence[click.Command] = (
    ls, execute, serve, enable, *map(of_application, (worker, queue, dead)),
)  # fmt: skip
"""The commands of a TaskManagerCLI; give it ``commands=[*DEFAULT_COMMANDS, mine]`` to add some."""
