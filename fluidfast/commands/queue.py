"""``queue``: queues one run for each line of a file."""

import asyncio
import os
import sys
from collections.abc import AsyncIterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import msgspec

from ..brokers.memory.broker import MemoryTaskBroker
from ..core._run import TaskRun
from ..core.states import PRIORITIES, TaskPriority
from ..core.task import Task
from ..errors import BrokerConnectionError, NotDurableError, ParamsError, PayloadTooLargeError, TaskError
from ..manage.manager import TaskManager
from .display import Progress, one_line, ranges
from .group import CommandError, did_you_mean
from .lines import LineReader
from .loops import on_signals, run_loop
from .target import HELP, as_manager, takes_target, target_of

__all__ = ["queue"]

WINDOW = 1000
"""Runs that are sent and not confirmed, at most."""
CANCELLED = asyncio.CancelledError()
REPORTED = 20
"""Bad lines that are reported one by one."""

EPILOG = """\
Each line is a JSON object with the params of one run; empty lines are ignored. A bad line is one that is not a JSON
object, or whose params do not fit the task. The command queues lines in order. When it stops early, it prints how many
lines it queued, and the first line that it did not queue.

exit codes: 0 if it queued every line, 1 if not, 2 wrong usage, 130 after Ctrl-C

\b
examples:
  fluidfast queue app:manager send_mail --params '{"to": "grace@example.com"}'
  fluidfast queue app:manager send_mail --from mails.ndjson --on-error skip
  ls *.png | jq -cR '{path: .}' | fluidfast queue app:manager resize --from - \\
      --priority low
"""
DESCRIPTION = """\
Queue runs of a task: one per line of a file or of stdin, or a single run.
"""


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
@click.option(
    "--from", "source", metavar="FILE", type=click.Path(), help="File with one JSON object per line; -: stdin."
)
@click.option("--params", metavar="JSON", help="Params of a single run.  [default: none]")
@click.option(
    "--priority", type=click.Choice([str(p) for p in PRIORITIES]), help="Priority of the runs.  [default: the task's]"
)
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="What to do at a bad line.",
)
@click.pass_context
def queue(
    ctx: click.Context, task: str, source: str | None, params: str | None, priority: str | None, on_error: str
) -> None:
    if source is not None and params is not None:
        raise click.UsageError("--from and --params exclude each other")
    target = target_of(ctx)
    found = target.find()
    wanted = Wanted(task, source, params or "{}", TaskPriority(priority) if priority else None, on_error == "skip")
    ctx.exit(run_loop(queue_runs(found, target.text, wanted)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The command line."""

    task: str
    source: str | None
    params: str
    priority: TaskPriority | None
    skip: bool


class BadLine(Exception):
    """A line that cannot be queued; its text says why."""


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

    def make(self, line: bytes | None) -> tuple[TaskRun[Any, Any], bytes]:
        """The run of a line, and its payload; nothing is sent yet. Raises BadLine."""
        intake = self.manager.intake
        if line is None:
            raise BadLine("it is longer than the largest allowed run (max_payload_bytes)")
        try:
            params = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadLine(f"it is not JSON: {exc}") from exc
        if not isinstance(params, dict):
            raise BadLine(f"it must be a JSON object, not {json_kind(params)}")
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


def json_kind(value: Any) -> str:
    kinds = {str: "a string", list: "an array", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


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
        source = None if wanted.source is None else open_source(wanted.source, stack)
        await broker.connect()
        started = perf_counter()
        what = f"{wanted.task!r} on {broker.url}"
        try:
            if source is None:
                await queue_one(sender, wanted.params.encode())
            else:
                await queue_lines(sender, *source, skip=wanted.skip)
        except asyncio.CancelledError:  # the second Ctrl-C: what is known is said all the same
            account.interrupted = True
            return report(account, what, perf_counter() - started)
        finally:
            await close(manager)
    return report(account, what, perf_counter() - started)


def open_source(name: str, stack: ExitStack) -> tuple[int, int]:
    """Descriptor and size (0: unknown) of what is to be read."""
    if name == "-":
        return sys.stdin.fileno(), 0
    try:
        file = stack.enter_context(Path(name).open("rb", buffering=0))  # noqa: SIM115
        file.read(0)
    except OSError as exc:
        raise CommandError(f"--from {name}: {exc.strerror}") from exc
    return file.fileno(), os.fstat(file.fileno()).st_size


async def close(manager: TaskManager) -> None:
    try:
        await manager.on_shutdown()
    except TaskError as exc:  # what was queued is queued
        print(f"fluidfast: {one_line(exc)}", file=sys.stderr)


async def queue_one(sender: Sender, params: bytes) -> None:
    try:
        run, payload = sender.make(params)
    except BadLine as exc:
        raise CommandError(f"--params: {exc}") from exc
    await sender.send([(1, run, payload)])
    if sender.account.error is not None:
        raise sender.account.error


async def queue_lines(sender: Sender, descriptor: int, size: int, *, skip: bool) -> None:
    account = sender.account
    lines = LineReader(descriptor, max_bytes=2 * sender.manager.broker.codec.max_bytes)
    progress = Progress("queue ", size)

    def stop() -> None:
        account.interrupted = True
        lines.stop()
        progress.clear()
        print("fluidfast: stopping after pending confirmations; press Ctrl-C again to end at once", file=sys.stderr)

    sending = asyncio.current_task()
    assert sending is not None
    on_signals(stop, sending.cancel)
    try:
        async for window in windows(lines, min(WINDOW, sender.manager.intake.backpressure.batch_runs)):
            made: list[tuple[int, TaskRun[Any, Any], bytes]] = []
            stopped = False
            account.next_window()
            for number, line in window:
                if line is not None and not line.strip():
                    continue
                try:
                    made.append((number, *sender.make(line)))
                except BadLine as exc:
                    account.bad += 1
                    account.not_queued(number)
                    progress.clear()
                    if account.bad <= REPORTED:
                        print(f"fluidfast: line {number:,}: {one_line(exc)}", file=sys.stderr)
                    if not skip:
                        stopped = True
                        break
            if made:
                await sender.send(made)
            progress.show(lines.bytes_read if size else account.queued, f"{account.queued:,} queued")
            if stopped or account.error is not None:
                return
    except OSError as exc:
        last = f", the last is line {account.last_queued:,}" if account.queued else ""
        raise CommandError(f"cannot read further: {exc.strerror}; {account.queued:,} runs were queued{last}") from exc
    finally:
        progress.clear()


async def windows(lines: LineReader, size: int) -> AsyncIterable[list[tuple[int, bytes | None]]]:
    async for chunk in lines:
        for first in range(0, len(chunk), size):
            yield chunk[first : first + size]


def report(account: Account, what: str, seconds: float) -> int:
    """Say what became of the lines; gives the exit code."""

    def say(text: str) -> None:
        print(f"fluidfast: {text}", file=sys.stderr)

    if account.error is not None:
        say(f"error: {one_line(account.error)}")
    if account.bad > REPORTED:
        say(f"{account.bad - REPORTED:,} more lines are bad")
    print(f"queued {account.queued:,} {'run' if account.queued == 1 else 'runs'} of {what} in {seconds:.2f} s")
    if account.bad:
        say(f"{account.bad:,} bad line{'s' * (account.bad > 1)} not queued")
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
        return 130
    return 0 if account.first_not_queued is None and account.error is None else 1
