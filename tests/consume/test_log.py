"""The log of a consumer: a line a failure, a traceback an error and place, and a summary."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kits.consumer_kit import Notes, Start
from kits.waiting import until

from fluidfast import RetryPolicy, TaskRun, task
from fluidfast.consume import summary as summaries
from fluidfast.consume.failures import MAX_PLACES, Failures
from fluidfast.consume.summary import Summary, shown_rate, spoken
from fluidfast.core._machine import Listeners
from fluidfast.core.hooks import Hooks
from fluidfast.errors import BrokerConnectionError


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO):
        yield caplog


def failures_in(logged: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in logged.records if record.getMessage().startswith("run failed")]


@task(retry=RetryPolicy(max_attempts=1, wait=0))
async def breaks(ctx: TaskRun[Any, Notes]) -> None:
    raise ValueError("no such customer")


@task
async def hurts(ctx: TaskRun[Any, Notes]) -> None:
    raise ValueError("no such customer")


# -- failures


async def test_a_failure_is_one_line(start: Start, keeps: list[str], logged: pytest.LogCaptureFixture) -> None:
    keeps += ["ff:dead", "kept"]
    consumer = await start(breaks)
    run = await consumer.queue("breaks", secret="s3cr3t")
    await until(lambda: consumer.engine.finished == 1)
    first, last = failures_in(logged)
    begins = f"run failed: task=breaks run={run.id} attempt="
    assert first.getMessage().startswith(f"{begins}1/2 after=")
    assert first.getMessage().endswith("again_in=0s: no such customer")
    assert last.getMessage().startswith(f"{begins}2/2 after=")
    assert last.getMessage().endswith(": no such customer")
    assert " error=ValueError at=test_log.py:" in last.getMessage()
    assert [first.levelname, last.levelname] == ["WARNING", "ERROR"]
    assert first.name == last.name == breaks.logger.name
    assert (vars(last)["run_id"], vars(last)["attempt"], vars(last)["error"]) == (run.id, 2, "ValueError")
    assert "s3cr3t" not in logged.text


async def test_a_traceback_for_each_error_and_place(
    start: Start, keeps: list[str], logged: pytest.LogCaptureFixture
) -> None:
    keeps += ["ff:failed", "kept"]
    consumer = await start(hurts)
    for _ in range(5):
        await consumer.queue("hurts")
    await consumer.queue("failing")  # another place
    await until(lambda: consumer.engine.finished == 6)
    found = failures_in(logged)
    assert len(found) == 6
    assert sum(record.exc_info is not None for record in found) == 2
    (line,) = consumer.engine.summary._failures.left_out()
    assert line.startswith("runs failed: error=ValueError at=test_log.py:")
    assert line.endswith(": and 4 more")
    await consumer.queue("hurts")
    await until(lambda: consumer.engine.finished == 7)
    assert failures_in(logged)[-1].exc_info is not None


def test_places_are_bounded() -> None:
    failures = Failures(Hooks(Listeners()))
    assert all(failures._is_first("E", f"a.py:{n}") for n in range(MAX_PLACES))
    assert not failures._is_first("E", "b.py:1")
    assert failures.left_out() == []
    assert failures._is_first("E", "b.py:1")


async def test_records_of_one_error_have_one_message(
    start: Start, keeps: list[str], logged: pytest.LogCaptureFixture
) -> None:
    """Sentry groups by it. Names with a % are no format."""

    @task(name="100 %s")
    async def odd(ctx: TaskRun[Any, Notes]) -> None:
        raise ValueError("%d")

    keeps += ["ff:failed", "kept"]
    consumer = await start(odd)
    for _ in range(2):
        await consumer.queue("100 %s")
    await until(lambda: consumer.engine.finished == 2)
    one, other = failures_in(logged)
    assert one.msg == other.msg
    assert one.getMessage().startswith("run failed: task=100 %s run=")
    assert one.getMessage().endswith(": %d")


async def test_params_that_do_not_fit(start: Start, keeps: list[str], logged: pytest.LogCaptureFixture) -> None:
    from kits.broker_kit import put

    keeps += ["ff:dead", "kept"]
    consumer = await start()
    await put(consumer.broker, b'{"id":"r1","task":"strict","priority":"medium","params":{"n":"s3cr3t"}}')
    await until(lambda: failures_in(logged))
    (record,) = failures_in(logged)
    assert record.getMessage().startswith("run failed: task=strict run=r1 attempt=1 after=0s error=TaskParamsError: ")
    assert "s3cr3t" not in logged.text


# -- a run says nothing at INFO


async def test_runs_log_nothing(start: Start, notes: Notes, logged: pytest.LogCaptureFixture) -> None:
    consumer = await start()
    for n in range(20):
        await consumer.queue("note", n=n)
    await until(lambda: consumer.engine.finished == 20)
    assert {record.name for record in logged.records} == {"fluidfast.core.workers"}


# -- the summary


class Clock:
    """What the summary sees: the time and the processor, which the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.cpu = 0.0
        monkeypatch.setattr(summaries, "monotonic", lambda: self.now)
        monkeypatch.setattr(summaries, "process_time", lambda: self.cpu)

    def pass_time(self, seconds: float, cpu: float = 0.0) -> None:
        self.now += seconds
        self.cpu += cpu * seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def of(consumer: Any) -> Summary:
    engine = consumer.engine
    return Summary(engine.slots, engine.broker, engine.upkeep, Failures(Hooks(Listeners())))


async def test_what_happened(start: Start, notes: Notes, keeps: list[str], clock: Clock) -> None:
    keeps += ["ff:dead", "failed", "kept"]
    consumer = await start(breaks, hurts)
    summary = of(consumer)
    assert await summary.line() == ""
    for n in range(30):
        await consumer.queue("note", n=n)
    await consumer.queue("breaks")
    await consumer.queue("hurts")
    await until(lambda: consumer.engine.finished == 32)
    clock.pass_time(10)
    await until(lambda: not consumer.engine.slots.running)
    assert await summary.line() == "3.2/s, 30 done, 2 failed, 1 retried; 0 of 5 running; nothing waiting"
    clock.pass_time(10)
    assert await summary.line() == ""


async def test_what_waits(start: Start, notes: Notes, clock: Clock) -> None:
    consumer = await start()
    for n in range(25):
        await consumer.queue("gated", n=n)
    await until(lambda: consumer.engine.slots.running == 5)
    await consumer.engine.claiming.release_ready()
    waiting = sum((await consumer.broker.queue_length()).values())
    assert waiting
    summary = of(consumer)
    clock.pass_time(10, cpu=0.1)
    line = await summary.line()
    assert line.startswith(f"0.0/s, 0 done; 5 of 5 running; {waiting} waiting, oldest ")
    assert line.endswith("; all 5 slots busy, CPU 10 %: try max_concurrent_tasks=" + str(min(5 + waiting, 40)))
    clock.pass_time(10, cpu=0.1)
    assert await summary.line() == "", "the same runs go on, nothing happened"
    notes.gate.set()
    await until(lambda: consumer.engine.finished == 25)


class Waiting:
    """A broker that tells of so many runs that wait."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = list(lengths)

    async def queue_length(self) -> dict[str, int]:
        if not self.lengths:
            raise BrokerConnectionError("it is away")
        return {"medium": self.lengths.pop(0)}

    async def fronts(self) -> list[bytes]:
        return [b"no run"]


class Counting:
    """Slots that have ended so many runs."""

    def __init__(self, **options: Any) -> None:
        self.tally = SimpleNamespace(count=lambda state: self.ended if state == "success" else 0, retried=0)
        self.running, self.concurrency, self.ended = 2, 8, 0
        self.held: list[Any] = []
        vars(self).update(options)

    def __iter__(self) -> Iterator[Any]:
        return iter([SimpleNamespace(held=held) for held in self.held])


def summary_of(slots: Counting, *lengths: int) -> Summary:
    parts: Any = (slots, Waiting(*lengths), None, Failures(Hooks(Listeners())))
    return Summary(*parts)


async def test_when_it_is_empty(clock: Clock) -> None:
    slots = Counting()
    summary = summary_of(slots, 1000, 900, 1400, 1400)
    found = []
    for _ in range(5):
        slots.ended += 200
        clock.pass_time(10)
        found.append((await summary.line()).partition("running")[2])
    assert found == [
        "; 1,000 waiting, empty in 50 s",  # by its own rate
        "; 900 waiting, empty in 90 s",  # 100 less in 10 s
        "; 1,400 waiting, growing by 50/s",
        "; 1,400 waiting",
        "",  # the broker is away
    ]


@pytest.mark.parametrize(
    ("cpu", "running", "waiting", "hint"),
    [
        (0.12, 8, 9999, "; all 8 slots busy, CPU 12 %: try --concurrency 53"),
        (0.01, 8, 9999, "; all 8 slots busy, CPU 1 %: try --concurrency 80"),
        (0.12, 8, 3, "; all 8 slots busy, CPU 12 %: try --concurrency 11"),
        (0.9, 8, 9999, ""),
        (0.12, 7, 9999, ""),
        (0.12, 8, 0, ""),
    ],
)
async def test_when_the_slots_are_the_limit(clock: Clock, cpu: float, running: int, waiting: int, hint: str) -> None:
    slots = Counting(running=running, ended=0)
    summary = summary_of(slots, waiting)
    summary.option = "--concurrency "
    slots.ended = 100
    clock.pass_time(10, cpu=cpu)
    line = await summary.line()
    assert line.endswith(hint)
    assert ("busy" in line) is bool(hint)


def test_spoken() -> None:
    assert [spoken(s) for s in (0, 8.44, 59, 600, 10_000, 400_000)] == [
        "0.0 s",
        "8.4 s",
        "59 s",
        "10 min",
        "3 h",
        "5 days",
    ]
    assert [shown_rate(r) for r in (0.04, 9.96, 1132.6)] == ["0.0/s", "10.0/s", "1,133/s"]


async def test_it_is_logged(
    start: Start, notes: Notes, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SECONDS", 0.05)
    consumer = await start()
    await consumer.queue("note", n=1)
    await until(lambda: any(" 1 done; " in record.getMessage() for record in logged.records))
    (record,) = [record for record in logged.records if " 1 done; " in record.getMessage()]
    assert (record.name, record.levelname) == ("fluidfast.worker", "INFO")


async def test_a_broker_that_does_not_answer_is_not_waited_for(
    start: Start, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = await start()
    summary = of(consumer)
    await consumer.queue("note", n=1)
    await until(lambda: consumer.engine.finished == 1)
    monkeypatch.setattr(summaries, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(consumer.broker, "queue_length", asyncio.Event().wait)
    assert (await summary.line()).endswith("1 done; 0 of 5 running")
