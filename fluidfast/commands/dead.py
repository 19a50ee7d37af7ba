"""``dead``: look at runs that gave up or failed, requeue them, or purge them."""

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import click
import msgspec

from ..brokers.contract import Kind
from ..manage.dead import KINDS, DeadLetter
from ..manage.manager import TaskManager
from .display import Progress, one_line, print_pairs, print_table
from .group import CommandGroup
from .loops import run_loop
from .target import HELP, CommandError, as_manager, at_least_one, takes_target, target_of

__all__ = ["dead"]

TASK_SHOWN = 60
REASON_SHOWN = 120
"""Characters of a task's name, and of a reason, in a list."""
PAYLOAD_SHOWN = 2000
"""Bytes of a payload that is not a run."""

EPILOG = """\
Entries have two kinds: `dead`, and `failed` for failed runs of tasks without a retry. Choose entries by id (as `list`
shows it, or the id of the run), by --task, --reason (a part of it) or --kind, or choose --all. `show` prints params as
they are, secrets included.

exit codes: 0 done, 1 an error, or an id that does not exist, 2 wrong usage

\b
examples:
  fluidfast dead app:manager list --task send_mail
  fluidfast dead app:manager requeue --task send_mail --rate 100
"""
DESCRIPTION = """\
Show, requeue or purge runs that gave up or failed: dead letters (payloads that are not a run, unknown tasks, bad
params, exhausted retries, runs that killed their workers), and failed runs of tasks without a retry.
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which entries an action is for."""

    ids: tuple[str, ...]
    task: str | None
    reason: str | None
    kind: Kind | None
    everything: bool

    def check(self, action: str) -> None:
        chosen = self.ids or self.task or self.reason or self.kind
        if not (chosen or self.everything):
            raise CommandError(f"{action} needs a selection: give ids, --task, --reason, --kind or --all")
        if self.everything and chosen:
            raise CommandError("--all cannot be combined with ids, --task, --reason or --kind")

    def arguments(self) -> dict[str, Any]:
        return {"ids": self.ids or None, "task": self.task, "reason": self.reason, "kind": self.kind}


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""
    return lambda function: reduce(lambda made, decorate: decorate(made), reversed(decorators), function)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
filters = options(
    click.option("--task", metavar="NAME", help="Only entries of this task."),
    click.option("--reason", metavar="TEXT", help="Only entries whose reason contains this."),
    click.option("--kind", type=click.Choice(KINDS), help="Only entries of this kind."),
)
selection = options(
    click.argument("ids", nargs=-1, metavar="[ID]..."),
    filters,
    click.option("--all", "everything", is_flag=True, help="All entries."),
)


@click.group(
    cls=CommandGroup,
    epilog=EPILOG,
    help=DESCRIPTION + HELP,
    short_help="Show, requeue or purge runs that gave up or failed.",
)
@takes_target
def dead() -> None:
    pass


@dead.command("list")
@filters
@click.option("--limit", type=at_least_one, default=50, show_default=True, metavar="N", help="At most N entries.")
@as_json
@click.pass_context
def list_command(
    ctx: click.Context, task: str | None, reason: str | None, kind: Kind | None, limit: int, as_json: bool
) -> None:
    """Print the newest entries, one per line. --json: an object per line, with the params."""
    on_manager(ctx, lambda manager: list_entries(manager, limit, task, reason, kind, as_json))


@dead.command("show")
@click.argument("id", metavar="ID")
@as_json
@click.pass_context
def show_command(ctx: click.Context, id: str, as_json: bool) -> None:
    """Print one entry, with its params. ID: of the entry or of its run, or the beginning of one."""
    on_manager(ctx, lambda manager: show_entry(manager, id, as_json))


@dead.command("requeue")
@selection
@click.option("--rate", type=float, metavar="N", help="At most N entries per second.")
@as_json
@click.pass_context
def requeue_command(ctx: click.Context, /, rate: float | None, as_json: bool, **chosen: Any) -> None:
    """Requeue entries, oldest first."""
    choice = Choice(**chosen)
    choice.check("requeue")
    if rate is not None and not rate > 0:
        raise CommandError(f"--rate is {rate:g}, it must be above 0")
    on_manager(ctx, lambda manager: requeue(manager, choice, rate, as_json))


@dead.command("purge")
@selection
@as_json
@click.pass_context
def purge_command(ctx: click.Context, /, as_json: bool, **chosen: Any) -> None:
    """Delete entries for good."""
    choice = Choice(**chosen)
    choice.check("purge")
    on_manager(ctx, lambda manager: purge(manager, choice, as_json))


def on_manager(ctx: click.Context, action: Callable[[TaskManager], Awaitable[int]]) -> None:
    target = target_of(ctx)
    ctx.exit(run_loop(work(target.find(), target.text, action)))


async def work(found: Any, text: str, action: Callable[[TaskManager], Awaitable[int]]) -> int:
    manager = as_manager(found, text)
    try:
        return await action(manager)
    finally:
        await manager.on_shutdown()


async def list_entries(
    manager: TaskManager, limit: int, task: str | None, reason: str | None, kind: Kind | None, as_json: bool
) -> int:
    letters = await manager.dead.list(limit, task=task, reason=reason, kind=kind)
    if as_json:
        for letter in letters:
            print(json.dumps({**summary(letter), "params": plain(letter.params)}, ensure_ascii=True))
        return 0
    if letters:
        print_table(("id", "age", "kind", "task", "reason"), [row(letter) for letter in letters])
    kinds = KINDS if kind is None else (kind,)
    counts = [f"{count:,} {kind}" for kind in kinds if (count := await manager.dead.count(kind)) or kind == kinds[0]]
    print(f"{', '.join(counts)} on {manager.broker.url}" + (f"; the newest {len(letters)} shown" if letters else ""))
    if trimmed := await manager.dead.trimmed(kind):
        print(f"the broker dropped {trimmed:,} older entries to stay within its limits (max_dead, max_failed)")
    return 0


def row(letter: DeadLetter) -> tuple[str, ...]:
    task = one_line(letter.task, TASK_SHOWN) if letter.task else "-"
    reason = one_line(letter.reason, REASON_SHOWN) if letter.reason else "-"
    return letter.id, age(letter.at), letter.kind, task, reason


def age(at: datetime | None) -> str:
    """How long ago that was, in the largest unit of which it is at least two."""
    if at is None:
        return "-"
    seconds = max(0, round((datetime.now(UTC) - at).total_seconds()))
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:,} {name}"
    return f"{seconds} s"


async def show_entry(manager: TaskManager, id: str, as_json: bool) -> int:
    letter = await manager.dead.get(id)
    if letter is None:
        raise CommandError(f"there is no entry {id!r}; `list` shows the ids")
    if as_json:
        payload = {} if letter.fields else {"payload": repr(letter.payload[:PAYLOAD_SHOWN])}
        print(json.dumps({**summary(letter), "params": plain(letter.params), **payload}, ensure_ascii=True, indent=2))
        return 0
    rows = [(name, one_line(str(value)) if value != "" else "-") for name, value in summary(letter).items()]
    if letter.fields:
        rows.append(("params", json.dumps(plain(letter.params), ensure_ascii=True)))
    else:
        rows.append(("payload", repr(letter.payload[:PAYLOAD_SHOWN])))
    print_pairs(rows)
    return 0


async def requeue(manager: TaskManager, choice: Choice, rate: float | None, as_json: bool) -> int:
    with Progress("requeued") as progress:
        count = await manager.dead.requeue(**choice.arguments(), rate=rate, progress=progress.show)
    return said(count, "requeued", manager, choice, as_json)


async def purge(manager: TaskManager, choice: Choice, as_json: bool) -> int:
    with Progress("removed") as progress:
        count = await manager.dead.purge(**choice.arguments(), progress=progress.show)
    return said(count, "removed", manager, choice, as_json)


def said(count: int, what: str, manager: TaskManager, choice: Choice, as_json: bool) -> int:
    print(json.dumps({what: count}) if as_json else f"{count:,} {what} on {manager.broker.url}")
    if choice.ids and count < len(set(choice.ids)):
        print("fluidfast: error: some of these ids do not exist; give whole ids, as `list` shows them", file=sys.stderr)
        return 1
    return 0


def summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "kind": letter.kind,
        "run_id": letter.run_id,
        "task": letter.task,
        "priority": str(letter.priority),
        "at": when(letter),
        "attempts": letter.attempts,
        "reason": letter.reason,
    }


def when(letter: DeadLetter) -> str:
    return letter.at.isoformat(timespec="seconds") if letter.at else "-"


def plain(params: Any) -> Any:
    return msgspec.to_builtins(params, enc_hook=str)
