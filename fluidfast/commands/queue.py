"""``queue``: queues one run for each line of a file."""

import asyncio
import json
import sys
from collections.abc import AsyncIterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import click

from ..brokers.memory.broker import MemoryTaskBroker
from ..core._run import TaskRun
from ..core.states import PRIORITIES, TaskPriority
from ..core.task import Task
from ..errors import BrokerConnectionError, NotDurableError, ParamsError, PayloadTooLargeError, TaskError
from ..manage.manager import TaskManager
from .display import Progress, one_line, ranges
from .group import CommandError, did_you_mean
from .loops import on_signals, run_loop
from .sources import FORMATS, BadLine, Entry, Rejects, Source, json_params, open_source
from .target import HELP, as_manager, at_least_one, takes_target, target_of

__all__ = ["queue"]

WINDOW = 1000
"""Runs that are sent and not confirmed, at most."""
CANCELLED = asyncio.CancelledError()
REPORTED = 20
"""Bad lines that are reported one by one."""

EPILOG = """\
The name of FILE says what it is: .csv and .tsv are tables whose first line names the fields, .parquet is a Parquet file
(extra `parquet`), anything else has one JSON object with the params of one run per line; .gz behind one of them is
unpacked. Values of a CSV file are texts, which the params model reads; an empty one is left out, so that the default
applies, and a field with a structure is JSON. Empty lines are ignored.

A bad line is one that cannot be read, or whose params do not fit the task. --rejects writes each to a file, behind a
line that says what is wrong: mend it, and queue that file. The command queues lines in order. When it stops early, it
prints how many lines it queued, the first line that it did not queue, and the --start-line to go on with.

exit codes: 0 if it queued every line, 1 if not, 2 wrong usage, 130 after Ctrl-C

\b
examples:
  fluidfast queue app:manager send_mail --params '{"to": "grace@example.com"}'
  fluidfast queue app:manager send_mail --from mails.csv.gz --rejects bad.csv
  ls *.png | jq -cR '{path: .}' | fluidfast queue app:manager resize --from -
"""
DESCRIPTION = """\
Queue runs of a task: one per line of a file or of stdin, or a single run.
"""


def one_character(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or not character.isascii() or character in '"\r\n':
        raise click.BadParameter(f"{text!r} is not one character")
    return character


def complete_tasks(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of tasks that begin so."""
    try:
        target = target_of(ctx)
        registry = as_manager(target.find(), target.text).registry
    except Exception:  # a line that is being written
        return []
    return sorted(name for name in registry if name.startswith(incomplete))


@click.command(epilog=EPILOG, help=DESCRIPTION + HELP, short_help="Queue runs, one per line of a file.")
@takes_target
@click.argument("task", metavar="TASK", shell_complete=complete_tasks)
@click.option("--from", "source", metavar="FILE", type=click.Path(), help="One run per line or row; -: stdin.")
@click.option("--params", metavar="JSON", help="Params of a single run.  [default: none]")
@click.option(
    "--priority", type=click.Choice([str(p) for p in PRIORITIES]), help="Priority of the runs.  [default: the task's]"
)
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Of FILE.  [default: as its name ends, else ndjson]")
@click.option("--delimiter", type=one_character, metavar="C", help="Between fields of CSV.  [default: , or a tab]")
@click.option("--start-line", type=at_least_one, default=1, metavar="N", help="Leave out the lines before this one.")
@click.option("--on-error", type=click.Choice(("stop", "skip")), help="At a bad line.  [default: stop]")
@click.option(
    "--rejects",
    metavar="FILE",
    type=click.Path(),
    help="Append bad lines to this file and go on, as if by --on-error skip.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON, for machines.")
@click.pass_context
def queue(ctx: click.Context, /, priority: str | None, **given: Any) -> None:
    wanted = Wanted(priority=TaskPriority(priority) if priority else None, **given)
    if wanted.source is not None and wanted.params is not None:
        raise click.UsageError("--from and --params exclude each other")
    if wanted.source is None and (wanted.rejects or wanted.kind or wanted.delimiter or wanted.start_line > 1):
        raise click.UsageError("--rejects, --format, --delimiter and --start-line need --from")
    target = target_of(ctx)
    ctx.exit(run_loop(queue_runs(target.find(), target.text, wanted)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The command line."""

    task: str
    source: str | None
    params: str | None
    priority: TaskPriority | None
    kind: str | None
    delimiter: str | None
    start_line: int
    on_error: str | None
    rejects: str | None
    as_json: bool

    @property
    def skips(self) -> bool:
        """Whether it goes on behind a bad line."""
        return self.on_error == "skip" if self.on_error else self.rejects is not None


@dataclass
class Account:
    """Counts the lines by their outcome."""

    queued: int = 0
    last_queued: int = 0
    """The last line that was queued."""
    bad: int = 0
    first_not_queued: int | None = None
    refused: list[int] = field(default_factory=list)
    """Lines of the last window that the broker did not take."""
    unknown: list[int] = field(default_factory=list)
    """Lines of the last window that the broker may have taken."""
    window: list[int] = field(default_factory=list)
    """Lines of the last window that were queued."""
    late: int = 0
    """Lines of the windows before that were queued behind the first that was not."""
    error: BaseException | None = None
    interrupted: bool = False

    def next_window(self) -> None:
        """Lines of this window are not before the first that was not queued any more."""
        self.late = self.behind
        self.window.clear()

    def queued_line(self, number: int) -> None:
        self.queued += 1
        self.last_queued = number
        self.window.append(number)

    @property
    def behind(self) -> int:
        """Lines that were queued behind the first that was not."""
        first = self.first_not_queued
        return 0 if first is None else self.late + sum(number > first for number in self.window)

    def resume_at(self, wanted: Wanted) -> int | None:
        """The line to go on with; None: it came to the end."""
        if open_lines := self.refused + self.unknown:
            return min(open_lines)
        if self.interrupted or self.error is not None:
            return max(self.last_queued + 1, wanted.start_line)
        return self.first_not_queued if self.bad and not wanted.skips else None

    def as_dict(self, seconds: float) -> dict[str, Any]:
        names = ("queued", "last_queued", "bad", "first_not_queued", "interrupted")
        counts = {name: getattr(self, name) for name in names}
        lists = {"refused": self.refused, "unknown": self.unknown, "queued_behind": self.behind}
        error = None if self.error is None else one_line(self.error)
        return {**counts, **lists, "seconds": round(seconds, 3), "error": error}

    def not_queued(self, number: int) -> None:
        if self.first_not_queued is None or number < self.first_not_queued:
            self.first_not_queued = number


@dataclass
class Sender:
    """Makes runs of lines, and queues them, a window at a time."""

    manager: TaskManager
    task: Task[Any]
    priority: TaskPriority | None
    account: Account

    def make(self, params: Any) -> tuple[TaskRun[Any, Any], bytes]:
        """Return the run of these params, and its payload; nothing is sent yet. Raises BadLine."""
        intake = self.manager.intake
        try:
            run = intake.make_with(self.task, params, self.priority)
            return run, intake.write(run)
        except (ParamsError, PayloadTooLargeError) as exc:
            raise BadLine(str(exc)) from exc

    async def send(self, window: list[tuple[int, TaskRun[Any, Any], bytes]]) -> None:
        """Queue a window and account for each of it. An error is left in ``account.error``."""
        account = self.account
        try:
            await self.manager.intake.admit(len(window), sum(len(payload) for _, _, payload in window))
        except TaskError as exc:  # the queue is full
            account.error = exc
            account.refused += [number for number, _, _ in window]
            account.not_queued(account.refused[0])
            return
        answers = [self.manager.intake.post(run, payload) for _, run, payload in window]
        try:
            found = await asyncio.gather(*answers, return_exceptions=True)
            errors = [one if isinstance(one, BaseException) else None for one in found]
        except asyncio.CancelledError:  # the second Ctrl-C
            for (number, run, _), answer in zip(window, answers, strict=True):
                self._account(number, run, CANCELLED if answer.cancelled() else answer.exception())
            raise
        for (number, run, _), error in zip(window, errors, strict=True):
            account.error = account.error or error
            self._account(number, run, error)

    def _account(self, number: int, run: TaskRun[Any, Any], error: BaseException | None) -> None:
        account = self.account
        if error is None or isinstance(error, NotDurableError):
            account.queued_line(number)
            run._emit()
            return
        account.not_queued(number)
        unknown = isinstance(error, BrokerConnectionError | asyncio.CancelledError)
        (account.unknown if unknown else account.refused).append(number)


async def queue_runs(found: Any, text: str, wanted: Wanted) -> int:
    manager = as_manager(found, text)
    broker = manager.broker
    task = manager.registry.get(wanted.task)
    if task is None:
        hint = did_you_mean(wanted.task, manager.registry) or f"; it has {', '.join(sorted(manager.registry))}"
        raise CommandError(f"{text} has no task {wanted.task!r}{hint}")
    if isinstance(broker, MemoryTaskBroker):
        raise CommandError(
            f"the broker of {text} is {broker.url}, which exists in this process only: its runs would be "
            "lost when this command ends. Give the manager a broker_url, or set FLUID_BROKER_URL"
        )
    account = Account()
    sender = Sender(manager, task, wanted.priority, account)
    with ExitStack() as stack:
        source = None if wanted.source is None else open_wanted(wanted, wanted.source, manager, task, stack)
        rejects = None
        if wanted.rejects is not None and wanted.source is not None:
            rejects = Rejects(wanted.rejects, wanted.source)
            stack.callback(rejects.close)
        await broker.connect()
        started = perf_counter()
        try:
            if source is None:
                await queue_one(sender, (wanted.params or "{}").encode())
            else:
                await queue_lines(sender, source, rejects, wanted)
        except asyncio.CancelledError:  # the second Ctrl-C: what is known is said all the same
            account.interrupted = True
        finally:
            await close(manager)
    return report(account, f"{wanted.task!r} on {broker.url}", perf_counter() - started, wanted)


def open_wanted(wanted: Wanted, name: str, manager: TaskManager, task: Task[Any], stack: ExitStack) -> Source:
    most = 2 * manager.broker.codec.max_bytes
    return open_source(name, task, stack, kind=wanted.kind, delimiter=wanted.delimiter, max_bytes=most)


async def close(manager: TaskManager) -> None:
    try:
        await manager.on_shutdown()
    except TaskError as exc:  # what was queued is queued
        print(f"fluidfast: {one_line(exc)}", file=sys.stderr)


async def queue_one(sender: Sender, params: bytes) -> None:
    try:
        run, payload = sender.make(json_params(params))
    except BadLine as exc:
        raise CommandError(f"--params: {exc}") from exc
    await sender.send([(1, run, payload)])
    if sender.account.error is not None:
        raise sender.account.error


async def queue_lines(sender: Sender, source: Source, rejects: Rejects | None, wanted: Wanted) -> None:
    account = sender.account
    progress = Progress("queue ", source.size)

    def stop() -> None:
        account.interrupted = True
        source.stop()
        print("fluidfast: stopping after pending confirmations; press Ctrl-C again to end at once", file=sys.stderr)

    sending = asyncio.current_task()
    assert sending is not None
    on_signals(stop, sending.cancel)
    try:
        async for window in windows(source, min(WINDOW, sender.manager.intake.backpressure.batch_runs)):
            made: list[tuple[int, TaskRun[Any, Any], bytes]] = []
            stopped = False
            account.next_window()
            for number, content in window:
                if number < wanted.start_line:
                    continue
                try:
                    made.append((number, *sender.make(source.params(content))))
                except BadLine as exc:
                    account.bad += 1
                    account.not_queued(number)
                    why = one_line(exc)
                    if account.bad <= REPORTED:
                        print(f"fluidfast: line {number:,}: {why}", file=sys.stderr)
                    if rejects is not None:
                        rejects.add(number, why, source.text(content), source.header)
                    if not wanted.skips:
                        stopped = True
                        break
            if made:
                await sender.send(made)
            progress.show(source.position, f"{account.queued:,} queued" + f", {account.bad:,} bad" * (account.bad > 0))
            if stopped or account.error is not None:
                return
    except OSError as exc:
        last = f", the last is line {account.last_queued:,}" if account.queued else ""
        reason = exc.strerror or exc
        raise CommandError(
            f"cannot read further: {reason}; {account.queued:,} runs were queued{last}; to go on: "
            f"--start-line {max(account.last_queued + 1, wanted.start_line)}"
        ) from exc
    finally:
        progress.clear()


async def windows(source: Source, size: int) -> AsyncIterable[list[Entry]]:
    async for chunk in source.entries():
        for first in range(0, len(chunk), size):
            yield chunk[first : first + size]


def report(account: Account, what: str, seconds: float, wanted: Wanted) -> int:
    """Say what became of the lines; gives the exit code."""

    def say(text: str) -> None:
        print(f"fluidfast: {text}", file=sys.stderr)

    if account.error is not None:
        say(f"error: {one_line(account.error)}")
    if account.bad > REPORTED:
        say(f"{account.bad - REPORTED:,} more lines are bad")
    if wanted.as_json:
        print(json.dumps(account.as_dict(seconds)))
    else:
        print(f"queued {account.queued:,} {'run' if account.queued == 1 else 'runs'} of {what} in {seconds:.2f} s")
    if account.bad:
        where = f"; they are in {wanted.rejects}" if wanted.rejects else ""
        say(f"{account.bad:,} bad line{'s' * (account.bad > 1)} not queued{where}")
    if account.refused:
        say(f"not queued, the broker refused them: lines {ranges(account.refused)}")
    if account.unknown:
        say(f"the server did not answer, so these lines may or may not be queued: {ranges(account.unknown)}")
    if account.first_not_queued is not None:
        say(f"the first line that was not queued: {account.first_not_queued:,}")
    elif account.error is not None:
        say(f"no line after {account.last_queued:,} was queued")
    if behind := account.behind:
        were = "line behind that one was" if behind == 1 else "lines behind that one were"
        say(f"{behind:,} {were} queued, the last is line {account.last_queued:,}")
    if account.interrupted:
        known = max([account.last_queued, *account.unknown[-1:]])
        say(f"interrupted: no line after {known:,} was queued" if known else "interrupted: nothing was queued")
    if wanted.source is not None and (line := account.resume_at(wanted)) is not None:
        say(f"to go on: --start-line {line}")
    if account.interrupted:
        return 130
    return 0 if account.first_not_queued is None and account.error is None else 1
