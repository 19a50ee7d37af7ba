"""``history``: make, adopt and prune the tables of the run history."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import click

from .display import Progress
from .group import CommandError, CommandGroup

__all__ = ["history"]

EPILOG = """\
URL is that of the database: postgresql://USER:PASSWORD@HOST/NAME, or sqlite:///PATH. To keep a password out of the
process list, set it as FLUID_HISTORY_URL and leave URL out.

exit codes: 0 done, 1 an error, 2 wrong usage

\b
examples:
  fluidfast history upgrade postgresql://localhost/app
  fluidfast history prune postgresql://localhost/app --keep 30d
"""

EXIT_CODES = "exit codes: 0 done, 1 an error, 2 wrong usage"

url_argument = click.argument("url", metavar="URL", envvar="FLUID_HISTORY_URL")
table_option = click.option(
    "--table", default="fluid_tasks", show_default=True, metavar="NAME", help="The table of runs."
)


@click.group(cls=CommandGroup, epilog=EPILOG, short_help="Make, adopt and prune the tables of the run history.")
def history() -> None:
    """Make, adopt and prune the tables of the run history. Needs the extra db."""


@history.command("upgrade", epilog=EXIT_CODES)
@url_argument
@table_option
def upgrade_command(url: str, table: str) -> None:
    """Create the tables, or adopt a table that exists, such as that of aio-fluid's TaskDbPlugin.

    Run it before the workers of a new release.
    """
    with needs_extra():
        from ..observe.history.upgrade import upgrade

        done = upgrade(url, table)
    print("\n".join(done) if done else f"{table} is up to date")


@history.command("prune", epilog=EXIT_CODES)
@url_argument
@click.option("--keep", default="14d", show_default=True, metavar="TIME", help="Keep this long: 14d, 12h, 30m.")
@table_option
def prune_command(url: str, keep: str, table: str) -> None:
    """Delete runs that were queued, and ended, longer ago than --keep, 5,000 at a time."""
    with needs_extra():
        from ..observe.history import read_keep
        from ..observe.history.store import Store

        store = Store(url, table)
    before, deleted = datetime.now(UTC) - timedelta(seconds=read_keep(keep) or 0), 0
    with closing(store), Progress("deleted") as progress:
        while count := store.prune(before):
            deleted += count
            progress.show(deleted)
    print(f"deleted {deleted:,} rows")


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn the import error of a missing extra, which says what to install, into that of a command."""
    try:
        yield
    except ImportError as exc:
        raise CommandError(str(exc)) from exc
