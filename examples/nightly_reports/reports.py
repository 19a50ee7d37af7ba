"""A report for each night, at 04:30 in Berlin, in summer and in winter."""

import csv
import os
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from fluidfast import RetryPolicy, TaskRun, TaskScheduler, crontab, task

BERLIN = ZoneInfo("Europe/Berlin")
REPORTS = Path(os.environ.get("REPORTS", "reports"))


class Night(msgspec.Struct):
    """``day``: the day to report on; None: yesterday in Berlin."""

    day: date | None = None


@task(
    schedule=crontab(minute=30, hour=4, tz="Europe/Berlin"),
    retry=RetryPolicy(max_attempts=5, wait=60, backoff=2, max_wait=1800),
    timeout_seconds=3600,
)
def nightly_report(ctx: TaskRun[Night]) -> None:  # a plain function runs in a thread
    """Write the report of a day."""
    day = ctx.params.day or datetime.now(BERLIN).date() - timedelta(days=1)
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / f"{day}.csv"
    # Delivery is at least once. A second run replaces the file of the first; readers see the old or the new one.
    partial = path.with_suffix(f".{ctx.id}")
    with partial.open("w", newline="") as file:
        csv.writer(file).writerows([("day", "orders"), (day, orders_of(day))])
    partial.replace(path)
    ctx.logger.info("wrote %s", path)


def orders_of(day: date) -> int:
    """Count the orders of a day: ask your database here."""
    return day.toordinal() % 100


# A TaskScheduler also fires schedules. Several of them fire once.
manager = TaskScheduler(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
manager.register_task(nightly_report)
