"""The commands of ``python -m fluidfast``: ``bench``, ``chaos``, ``worker``, ``queue``, ``dead``.

They need the core dependencies only.

Each command is a module with ``add(subparsers)``, which describes its options, and ``run(options)``, which gives the
exit code. A mistake of the user's is a ``CommandError`` or a ``TaskError`` and ends as one line on stderr.
"""

import argparse
import errno
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress

from .._version import __version__
from ..core.process import is_in_cpu_process, open_standard_streams
from ..errors import TaskError
from . import child, dead, queue, worker
from .display import HelpFormatter, one_line
from .loops import loop_name
from .target import CommandError
from .trials import bench, chaos

__all__ = ["CommandError", "main"]

READER_IS_GONE = 128 + 13
"""Exit code, as of a process that SIGPIPE ended."""

DESCRIPTION = "A task scheduler: a broker stores runs, workers execute them."

EPILOG = """\
`python -m fluidfast COMMAND --help` shows the options and examples of a command. A manager without a broker_url uses
FLUID_BROKER_URL, else memory://, which ends with its process.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="python -m fluidfast",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    versions = (
        f"fluidfast {__version__} ({platform.python_implementation()} {platform.python_version()}, {loop_name()})"
    )
    top.add_argument("--version", action="version", version=versions)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (bench, chaos, worker, queue, dead):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Gives the exit code: 0, 1 after an error, 2 for bad usage, 130 after Ctrl-C.

    If the reader of its output goes away (``| head``) it ends quietly, with 141, as a shell says of other commands.
    """
    open_standard_streams()
    try:
        try:
            return command(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where it can be said that it failed
    except BrokenPipeError:
        discard_output()
        return READER_IS_GONE
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        discard_output()
        print(f"fluidfast: error: cannot write the output: {exc.strerror}", file=sys.stderr)
        return 1


def command(given: Sequence[str]) -> int:
    """Run one command, and say on stderr what is wrong with it."""
    top = parser()
    if not given:
        top.print_help()
        return 2
    in_child = is_in_cpu_process() and "exec" in given
    at = given.index("exec") if in_child else len(given)
    options = top.parse_args(given[:at])
    try:
        code: int = child.run(options.manager, given[at + 1 :]) if in_child else options.run(options)
        return code
    except (CommandError, TaskError) as exc:
        print(f"fluidfast: error: {one_line(exc)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fluidfast: interrupted", file=sys.stderr)
        return 130


def discard_output() -> None:
    """Let what is still to be written to stdout go nowhere: Python would try it, and fail, when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
