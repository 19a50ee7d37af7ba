"""``worker``: runs a consumer until SIGTERM or SIGINT."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from time import monotonic
from typing import Any

import click

from ..brokers.memory.broker import MemoryTaskBroker
from ..core.process import keep_writing
from ..errors import TaskError
from ..manage.consumer import TaskConsumer
from .burst import Burst, Counts
from .display import one_line
from .logs import FORMATS, LEVELS, Log
from .loops import STOP_SIGNALS, loop_name, on_signals, run_loop
from .reload import folders_of, reload_on_change
from .supervisor import DRAIN, NOT_STARTED, Orders, orders_of_a_supervisor, supervisor_of
from .target import HELP, CommandError, as_consumer, as_manager, at_least_one, takes_target, target_of

__all__ = ["worker"]

logger = logging.getLogger("fluidfast.worker")

LEFT_SECONDS = 0.1
"""How long the worker waits at its end for what has not ended: functions in threads, handlers that refuse to be
cancelled."""

DESCRIPTION = """\
Run the tasks of a consumer until SIGTERM or SIGINT; with --burst, until nothing is left to do.
"""
EPILOG = """\
The first SIGTERM or SIGINT drains: the worker claims no more runs and requeues those that have not started. Running
tasks may finish within the grace period (FLUID_STOPPING_GRACE_PERIOD, 10 seconds), then it requeues them too. A second
signal requeues them at once, a third one kills. With --processes, the supervisor passes signals on: a SIGTERM to the
whole group, or two within a second, count as one.

--burst ends the worker when no run is queued, delayed (retries are) or held by any worker, and prints how many it has
done. --reload drains and restarts the workers when a Python file in the current folder, or in that of the module,
has changed; after an error in such a file it waits for the next change.

exit codes: 0 after a drain, 1 after an error, such as hung plain functions in all threads, 2 wrong usage; of --burst: 0
if all runs were done, 1 if some failed for good or became dead letters, 130 if a signal stopped it before

\b
examples:
  fluidfast worker app:manager --concurrency 20
  fluidfast worker app:manager --burst --json
  fluidfast worker app:manager --reload
"""


@click.command(
    epilog=EPILOG, help=DESCRIPTION + HELP, short_help="Run the tasks of a consumer until a signal stops it."
)
@takes_target
@click.option(
    "--concurrency",
    type=at_least_one,
    metavar="N",
    help="Runs at the same time.  [default: max_concurrent_tasks of the manager or of the environment, else 32]",
)
@click.option(
    "--processes",
    type=at_least_one,
    default=1,
    metavar="N",
    help="Number of worker processes; a supervisor replaces any that dies.  [default: 1, this process]",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    help="Failures are errors; INFO adds a summary every 10 s.  [default: LOG_LEVEL, else INFO]",
)
@click.option("--log-format", type=click.Choice(FORMATS), help="[default: console]")
@click.option("--log-runs", is_flag=True, help="Log a line for each run, too.")
@click.option("--burst", is_flag=True, help="End when nothing is left to do, and print what was done.")
@click.option("--json", "as_json", is_flag=True, help="With --burst: print that as JSON.")
@click.option("--reload", is_flag=True, help="Restart when a file of the application changes (extra `reload`).")
@click.pass_context
def worker(
    ctx: click.Context,
    concurrency: int | None,
    processes: int,
    log_level: str | None,
    log_format: str | None,
    log_runs: bool,
    burst: bool,
    as_json: bool,
    reload: bool,
) -> None:
    if burst and reload:
        raise click.UsageError("--burst and --reload exclude each other")
    if as_json and not burst:
        raise click.UsageError("--json needs --burst")
    keep_writing()
    orders = orders_of_a_supervisor()
    target = target_of(ctx)
    if reload and orders is None:
        ctx.call_on_close(Log(log_level, log_format).flush)
        ctx.exit(run_loop(reloading(processes, target.text)))
    found = target.find()
    log = Log(log_level, log_format)
    ctx.call_on_close(log.flush)
    if processes > 1 and orders is None:
        if isinstance(as_manager(found, target.text).broker, MemoryTaskBroker):
            raise CommandError("processes cannot share memory://: --processes needs a manager with a Redis broker_url")
        ctx.exit(run_loop(supervising(processes, partial(say, as_json=as_json) if burst else None)))
    started: list[bool] = []
    try:
        log_run = log.of_runs() if log_runs else None
        told = partial(say, as_json=as_json) if burst else None
        ctx.exit(run_loop(work(found, target.text, concurrency, started, orders, log_run, told)))
    except (CommandError, TaskError) as exc:
        if started or orders is None:
            raise
        print(f"fluidfast: error: {one_line(exc)}", file=sys.stderr)
        ctx.exit(NOT_STARTED)


async def supervising(processes: int, told: Callable[[Counts], None] | None) -> int:
    """Run worker processes until a signal, or until nothing is left to do. Gives the exit code."""
    began = monotonic()
    supervisor = supervisor_of(processes)
    code = await supervisor.run()
    if told is None:
        return code
    counts = Counts.sum(
        [Counts(**json.loads(report)) for report in supervisor.reports],
        seconds=monotonic() - began,
        workers_lost=supervisor.replaced,
    )
    counts.emptied &= not supervisor.order
    told(counts)
    return code or counts.exit_code


async def reloading(processes: int, text: str) -> int:
    """Run worker processes until a signal, and restart them when files change. Gives the exit code."""
    supervisor = supervisor_of(processes, reloads=True)
    watching = asyncio.create_task(reload_on_change(supervisor, folders_of(text)))
    running = asyncio.create_task(supervisor.run())
    await asyncio.wait((watching, running), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        supervisor.tell(DRAIN, "draining")
    code = await running
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return code


def say(counts: Counts, *, as_json: bool) -> None:
    # in one write, since the log may be on the same terminal
    click.echo(json.dumps(counts.as_dict()) if as_json else str(counts))


async def work(
    found: Any,
    text: str,
    concurrency: int | None,
    started: list[bool],
    orders: Orders | None,
    log_run: Callable[[Any], None] | None,
    told: Callable[[Counts], None] | None,
) -> int:
    consumer = as_consumer(as_manager(found, text), concurrency)
    consumer.engine.slots.log_run = log_run
    consumer.engine.summary.option = "--concurrency "
    broker = consumer.broker
    if isinstance(broker, MemoryTaskBroker):
        logger.warning("%s exists in this process only: this worker gets no runs of other processes", broker.url)
    pool = HandlersPool(consumer.engine.concurrency + 4, thread_name_prefix="handler-thread")
    asyncio.get_running_loop().set_default_executor(pool)

    def drain() -> None:
        logger.info(
            "shutting down: running tasks have %g s to finish; signal again to requeue them now",
            consumer.engine.grace_seconds,
        )
        consumer.gracefully_stop()

    def hurry() -> None:
        logger.warning("stopping now: requeueing running tasks")
        consumer.engine.hurry()

    signals = on_signals(drain, hurry, to_groups=STOP_SIGNALS if orders is not None else ())
    if orders is not None:
        orders.obeyed_by(signals, consumer.engine.grace_seconds)
    await consumer.startup()
    started.append(True)
    logger.info(
        "worker %s: %d tasks, %d at a time, on %s, %s",
        consumer.manager_id, len(consumer.registry), consumer.engine.concurrency, broker.url, loop_name(),
    )  # fmt: skip
    watch = Burst(consumer)
    watching = None if told is None else asyncio.create_task(watch.watch())
    try:
        await consumer.wait_for_shutdown()
    except Exception as exc:
        failure = CommandError(f"the worker failed: {type(exc).__name__}: {exc}")
        await leave(consumer, pool, 1, failure)
        raise failure from exc
    finally:
        if watching is not None:
            watching.cancel()
    logger.info("stopped after %d runs", consumer.engine.finished)
    code = 0
    if told is not None:
        counts = watch.counts()
        if orders is not None:
            orders.report(json.dumps(asdict(counts)).encode())
        else:
            told(counts)
            code = counts.exit_code
    await leave(consumer, pool, code)
    return code


class HandlersPool(ThreadPoolExecutor):
    """The event loop's default pool, for handlers that use ``asyncio.to_thread``. Knows which calls have not ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        call = super().submit(function, *args, **kwargs)
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        return call


async def leave(consumer: TaskConsumer, pool: HandlersPool, code: int, failure: CommandError | None = None) -> None:
    """End the pool, and the process if something does not end: its run was given back or has timed out, so that nothing
    of it counts any more, and Python would wait for it. Threads that are idle are no such thing."""
    pool.shutdown(wait=False, cancel_futures=True)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    end = monotonic() + LEFT_SECONDS
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=LEFT_SECONDS)
    left = len(tasks) + await consumer.engine.join_threads(max(0.0, end - monotonic()))
    left += len(wait(list(pool.calls), max(0.0, end - monotonic())).not_done)
    if left:
        logger.warning("%d handlers do not end; this process exits without them", left)
        if failure is not None:
            print(f"fluidfast: error: {one_line(failure)}", file=sys.stderr)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed by what the tasks do, or none
                stream.flush()
        os._exit(code)
