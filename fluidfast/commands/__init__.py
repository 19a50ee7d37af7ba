"""The command line: ``fluidfast``, and ``python -m fluidfast``, which is the same.

Each command is a click command in a module of its own, imported when it is called. A mistake of the user's is a
``CommandError`` or a ``TaskError`` and ends as one line on stderr.
"""

import os
import platform
import sys
from collections.abc import Sequence

import click

from .._version import __version__
from ..core.process import is_in_cpu_process, open_standard_streams
from .group import CommandError, CommandGroup
from .loops import loop_name
from .target import target_of

__all__ = ["CommandError", "cli", "main"]

EPILOG = """\
`fluidfast COMMAND --help` shows the options and examples of a command. A manager without a broker_url uses
FLUID_BROKER_URL, else memory://, which ends with its process.

exit codes: 0 done, 1 an error or something that failed (one line on stderr), 2 wrong usage, 130 after Ctrl-C, 141 if
the reader of the output went away
"""


def show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        click.echo(f"fluidfast {__version__} ({python}, {loop_name()})")
        ctx.exit()


@click.group(
    cls=CommandGroup,
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    lazy_subcommands={
        "bench": f"{__name__}.trials.bench:bench",
        "chaos": f"{__name__}.trials.chaos:chaos",
        "completion": f"{__name__}.completion:completion",
        "dead": f"{__name__}.dead:dead",
        "history": f"{__name__}.history:history",
        "queue": f"{__name__}.queue:queue",
        "worker": f"{__name__}.worker:worker",
    },
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Show the version."
)
def cli() -> None:
    """A task scheduler: a broker stores runs, workers execute them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its code: 0, 1 after an error, 2 for bad usage, 130 after Ctrl-C.

    If the reader of its output goes away (``| head``) it ends quietly, with 141, as a shell says of other commands.
    """
    open_standard_streams()
    if "_FLUIDFAST_COMPLETE" in os.environ:
        from .completion import know_bash

        know_bash()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if is_in_cpu_process() and "exec" in given:
        run_in_child(given)
    else:
        cli.main(given, prog_name="fluidfast")


def run_in_child(given: list[str]) -> None:
    """Execute one CPU-bound run of a worker: its command line with ``exec ...`` behind it."""
    from .child import execute
    from .worker import worker

    at = given.index("exec")
    try:
        with worker.make_context("worker", given[1:at]) as ctx:
            execute.main(given[at + 1 :], "exec", obj=target_of(ctx), parent=ctx)
    except CommandError as exc:
        exc.show()
        sys.exit(exc.exit_code)
