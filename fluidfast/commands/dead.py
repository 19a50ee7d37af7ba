"""``dead``: look at runs that gave up or failed, requeue them, or purge them."""

import argparse
import json
import sys
from typing import Any

import msgspec

from ..manage.dead import KINDS, DeadLetter
from ..manage.manager import TaskManager
from .display import HelpFormatter, Progress, one_line, table
from .loops import run_loop
from .target import HELP, CommandError, as_manager, at_least_one, load

__all__ = ["add", "run"]

TASK_SHOWN = 60
REASON_SHOWN = 120
"""Characters of a task's name, and of a reason, in a list."""

EPILOG = """\
Entries have two kinds: `dead`, and `failed` for failed runs of tasks without a retry. Choose entries by id (as `list`
shows it, or the id of the run), by --task, --reason (a part of it) or --kind, or choose --all.
`show` prints params as they are, secrets included.

examples: python -m fluidfast dead app:manager list
          python -m fluidfast dead app:manager requeue --task send_mail --rate 100
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "dead",
        help="show, requeue or purge runs that gave up or failed",
        description="Show, requeue or purge dead letters (payloads that are not a run, unknown tasks, bad params, "
        "exhausted retries, runs that killed their workers) and failed runs of tasks without a retry.",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("manager", metavar="MODULE:MANAGER", help=HELP)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    listing = actions.add_parser("list", help="print the newest entries, one per line")
    listing.add_argument("--limit", type=at_least_one, default=50, metavar="N", help="at most N entries (default: 50)")
    listing.add_argument("--kind", choices=KINDS, help="only entries of this kind")
    listing.add_argument("--json", action="store_true", help="print one JSON object per line, with the params")
    show = actions.add_parser("show", help="print one entry, with its params")
    show.add_argument("id", metavar="ID", help="id of the entry or of its run, or the beginning of one")
    for name, text in (("requeue", "requeue entries, oldest first"), ("purge", "delete entries for good")):
        action = actions.add_parser(name, help=text)
        action.add_argument("ids", nargs="*", metavar="ID", help="ids of entries or of runs")
        action.add_argument("--task", metavar="NAME", help="entries of this task")
        action.add_argument("--reason", metavar="TEXT", help="entries whose reason contains this")
        action.add_argument("--kind", choices=KINDS, help="entries of this kind")
        action.add_argument("--all", action="store_true", help="all entries")
        if name == "requeue":
            action.add_argument("--rate", type=float, metavar="N", help="requeue at most N entries per second")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action in ("requeue", "purge"):
        chosen = options.ids or options.task or options.reason or options.kind
        if not (chosen or options.all):
            raise CommandError(f"{options.action} needs a selection: give ids, --task, --reason, --kind or --all")
        if options.all and chosen:
            raise CommandError("--all cannot be combined with ids, --task, --reason or --kind")
        if getattr(options, "rate", None) is not None and options.rate <= 0:
            raise CommandError(f"--rate is {options.rate}, it must be above 0")
    return run_loop(work(load(options.manager), options))


async def work(found: Any, options: argparse.Namespace) -> int:
    manager = as_manager(found, options.manager)
    try:
        return await ACTIONS[options.action](manager, options)
    finally:
        await manager.on_shutdown()


async def list_entries(manager: TaskManager, options: argparse.Namespace) -> int:
    letters = await manager.dead.list(options.limit, kind=options.kind)
    if options.json:
        for letter in letters:
            print(json.dumps({**summary(letter), "params": plain(letter.params)}, ensure_ascii=True))
        return 0
    for letter in letters:
        task = one_line(letter.task, TASK_SHOWN) if letter.task else "-"
        reason = one_line(letter.reason, REASON_SHOWN) if letter.reason else "-"
        print(f"{letter.id}  {when(letter)}  {letter.kind:<6}  {task:<20}  {reason}")
    kinds = KINDS if options.kind is None else (options.kind,)
    counts = [f"{count:,} {kind}" for kind in kinds if (count := await manager.dead.count(kind)) or kind == kinds[0]]
    print(f"{', '.join(counts)} on {manager.broker.url}" + (f"; the newest {len(letters)} shown" if letters else ""))
    if trimmed := await manager.dead.trimmed(options.kind):
        print(f"the broker dropped {trimmed:,} older entries to stay within its limits (max_dead, max_failed)")
    return 0


async def show_entry(manager: TaskManager, options: argparse.Namespace) -> int:
    letter = await manager.dead.get(options.id)
    if letter is None:
        raise CommandError(f"there is no entry {options.id!r}; `list` shows the ids")
    rows = [(name, one_line(str(value)) if value != "" else "-") for name, value in summary(letter).items()]
    if letter.fields:
        rows.append(("params", json.dumps(plain(letter.params), ensure_ascii=True)))
    else:
        rows.append(("payload", repr(letter.payload[:2000])))
    print(table(rows))
    return 0


async def requeue(manager: TaskManager, options: argparse.Namespace) -> int:
    with Progress("requeued") as progress:
        count = await manager.dead.requeue(
            options.ids or None,
            task=options.task,
            reason=options.reason,
            kind=options.kind,
            rate=options.rate,
            progress=progress.show,
        )
    return said(count, "requeued", manager, options)


async def purge(manager: TaskManager, options: argparse.Namespace) -> int:
    with Progress("removed") as progress:
        count = await manager.dead.purge(
            options.ids or None, task=options.task, reason=options.reason, kind=options.kind, progress=progress.show
        )
    return said(count, "removed", manager, options)


def said(count: int, what: str, manager: TaskManager, options: argparse.Namespace) -> int:
    print(f"{count:,} {what} on {manager.broker.url}")
    if options.ids and count < len(set(options.ids)):
        print("fluidfast: error: some of these ids do not exist; give whole ids, as `list` shows them", file=sys.stderr)
        return 1
    return 0


ACTIONS = {"list": list_entries, "show": show_entry, "requeue": requeue, "purge": purge}


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
