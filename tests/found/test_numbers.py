"""A number that an option cannot mean is refused where it is given, by an error that names the option and its range."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click
import pytest

from fluidfast import RetryPolicy, TaskConsumer, TaskManager, TaskManagerConfig, TaskRun, every, task
from fluidfast.brokers.url import BrokerOptions, BrokerURL
from fluidfast.checks import check_number, read_number
from fluidfast.commands.target import at_least_one
from fluidfast.core.task import K8sConfig
from fluidfast.errors import BrokerURLError, ConfigError, TaskDecoratorError, TaskError
from fluidfast.manage.firing import ScheduleTasks
from fluidfast.settings import get_settings

NOT_SECONDS = (math.nan, -math.inf, -1, 1e17, 10**400, True, "60", [])
NOT_FINITE = (math.inf, *NOT_SECONDS)
NOT_WHOLE = (1.5, 10**15, *NOT_FINITE)


async def function(ctx: TaskRun) -> None:
    """Does nothing."""


def option_of_task(name: str) -> Callable[[Any], object]:
    more = {"batch": 5} if name == "batch_wait" else {}
    return lambda value: task(**{name: value, **more})(function)


def option_of_config(name: str) -> Callable[[Any], object]:
    return lambda value: TaskManagerConfig.of(broker_url="memory://numbers", **{name: value})


def option_of_policy(name: str) -> Callable[[Any], object]:
    return lambda value: RetryPolicy(**{name: value})


TAKERS: list[tuple[str, Callable[[Any], object], tuple[Any, ...], type[TaskError]]] = [
    ("timeout_seconds", option_of_task("timeout_seconds"), (0, *NOT_SECONDS), TaskDecoratorError),
    ("max_concurrency", option_of_task("max_concurrency"), NOT_WHOLE, TaskDecoratorError),
    ("batch", option_of_task("batch"), NOT_WHOLE, TaskDecoratorError),
    ("batch_wait", option_of_task("batch_wait"), NOT_FINITE, TaskDecoratorError),
    ("max_attempts", option_of_policy("max_attempts"), NOT_WHOLE, ConfigError),
    ("wait", option_of_policy("wait"), NOT_SECONDS, ConfigError),
    ("max_wait", option_of_policy("max_wait"), NOT_SECONDS, ConfigError),
    ("backoff", option_of_policy("backoff"), (math.nan, -1, True, "2"), ConfigError),
    ("jitter", option_of_policy("jitter"), (1.1, *NOT_FINITE), ConfigError),
    ("max_concurrent_tasks", option_of_config("max_concurrent_tasks"), NOT_WHOLE, ConfigError),
    ("sleep_millis", option_of_config("sleep_millis"), NOT_FINITE, ConfigError),
    ("sleep", option_of_config("sleep"), NOT_FINITE, ConfigError),
    ("lease_seconds", option_of_config("lease_seconds"), (0, 1e-9, *NOT_FINITE), ConfigError),
    ("max_payload_bytes", option_of_config("max_payload_bytes"), (0, *NOT_WHOLE), ConfigError),
    ("buffer_runs", option_of_config("buffer_runs"), (0, *NOT_WHOLE), ConfigError),
    ("buffer_bytes", option_of_config("buffer_bytes"), (0, *NOT_FINITE), ConfigError),
    ("max_queue_length", option_of_config("max_queue_length"), (0, *NOT_WHOLE), ConfigError),
    ("max_queue_bytes", option_of_config("max_queue_bytes"), (0, *NOT_FINITE), ConfigError),
    ("full_timeout", option_of_config("full_timeout"), NOT_SECONDS, ConfigError),
    ("job_ttl", lambda value: K8sConfig(job_ttl=value), NOT_FINITE, ConfigError),
    ("sleep", lambda value: K8sConfig(sleep=value), NOT_FINITE, ConfigError),
    ("delta", lambda value: every(value), (5, -timedelta(1), timedelta.max, math.nan), ConfigError),
    ("jitter", lambda value: every(timedelta(1), jitter=value), (5, -timedelta(1), timedelta.max), ConfigError),
]


@pytest.mark.parametrize(("name", "take", "bad", "error"), TAKERS, ids=[taker[0] for taker in TAKERS])
def test_options(name: str, take: Callable[[Any], object], bad: tuple[Any, ...], error: type[TaskError]) -> None:
    for value in bad:
        with pytest.raises(error, match=rf"\b{name} is .*, it (must be|cannot) ") as caught:
            TaskManager(config=take(value)) if isinstance(value, TaskManagerConfig) else take(value)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 250


URL_OPTIONS = {
    "lease_seconds": "0 -1 inf nan 1e17 soon",
    "max_payload_bytes": "0 -1 inf nan 1.5 100000000000",
    "durability_seconds": "0 -1 inf nan 1e17",
    "busy_poll_us": "-1 inf nan 1.5 100000000",
    "shards": "0 -1 inf nan 1.5 100000",
}


@pytest.mark.parametrize("name", URL_OPTIONS)
def test_url_options(name: str) -> None:
    for text in URL_OPTIONS[name].split():
        with pytest.raises(BrokerURLError, match=rf"option {name}='{text}' must be "):
            TaskManager(broker_url=f"redis://127.0.0.1:1?{name}={text}")


SETTINGS = {
    "FLUID_MAX_CONCURRENT_TASKS": "-1 1.5 inf nan 10000000 many",
    "FLUID_SLEEP_MILLIS": "-1 1.5 inf nan 100000000000000000",
    "FLUID_SCHEDULER_HEARTBEAT_MILLIS": "0 -1 1.5 inf nan 100000000000000000",
    "FLUID_STOPPING_GRACE_PERIOD": "-1 inf nan 1e17 soon",
    "MAX_REDIS_CONNECTIONS": "0 -1 1.5 inf nan 100000000",
}


@pytest.mark.parametrize("variable", SETTINGS)
def test_settings(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for text in SETTINGS[variable].split():
            monkeypatch.setenv(variable, text)
            get_settings.cache_clear()
            with pytest.raises(ConfigError, match=rf"{variable}='{text}' must be "):
                get_settings()
    finally:
        monkeypatch.delenv(variable)
        get_settings.cache_clear()


def test_what_is_in_range_is_taken() -> None:
    made = task(timeout_seconds=math.inf, batch=2, batch_wait=0.5)(function)
    assert (made.timeout_seconds, made.batch, made.batch_wait) == (math.inf, 2, 0.5)
    policy = RetryPolicy(max_attempts=0, wait=math.inf, max_wait=math.inf, backoff=math.inf, jitter=1)
    assert 0 <= policy.delay(3) <= 100 * 365 * 86400
    assert RetryPolicy(wait=0, backoff=math.inf).delay(2) == 0  # and not NaN
    assert TaskManagerConfig.of(full_timeout=math.inf, max_queue_length=1).full_timeout == math.inf
    options = BrokerOptions.from_url(BrokerURL("memory://x?lease_seconds=0.5&busy_poll_us=0"), "x")
    assert (options.lease_seconds, options.busy_poll_us) == (0.5, 0)


@pytest.mark.parametrize("bad", [math.nan, -1, 1e17, True, "5"], ids=repr)
async def test_a_timeout_of_queue_and_wait(bad: Any) -> None:
    manager = TaskManager(broker_url="memory://numbers")
    manager.register_task(task(function))
    with pytest.raises(ConfigError, match=r"^timeout is "):
        await manager.queue_and_wait("function", timeout=bad)
    assert sum((await manager.broker.queue_length()).values()) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, 1e17, True, "5", {"to": "x"}], ids=repr)
def test_a_delay_of_sync_queue(bad: Any) -> None:
    consumer = TaskConsumer(broker_url="memory://numbers")
    with pytest.raises(ConfigError, match=r"^delay is "):
        consumer.sync_queue(task(function), bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, 1e17, True, "5"], ids=repr)
async def test_seconds_of_workers_and_locks(bad: Any) -> None:
    manager = TaskManager(broker_url="memory://numbers")
    with pytest.raises(ConfigError, match=r"^stopping_grace_period is "):
        TaskConsumer(broker_url="memory://numbers", stopping_grace_period=bad)
    with pytest.raises(ConfigError, match=r"^heartbeat is "):
        ScheduleTasks(manager, bad)
    for url in ("memory://numbers", "redis://127.0.0.1:1"):
        with pytest.raises(ConfigError, match=r"^timeout is "):
            TaskManager(broker_url=url).broker.lock("name", bad)


def test_a_count_on_the_command_line() -> None:
    assert at_least_one("1_000") == 1000
    for text in ("0", "-1", "1" + "0" * 12, "1" + "0" * 5000, "nan", "inf", "1.5"):
        with pytest.raises(click.BadParameter):
            at_least_one(text)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 1e17, True, 10**400], ids=lambda bad: type(bad).__name__
)
@pytest.mark.parametrize("field", ["execute_after", "queued", "start", "end"])
def test_a_time_of_a_run(field: str, bad: Any) -> None:
    made = task(function)
    with pytest.raises(ConfigError, match=f"^{field} is .*, it must be a time between"):
        TaskRun(id="x", task=made, **{field: bad})
    run = TaskRun(id="x", task=made)
    with pytest.raises(ConfigError, match=f"^{field} is "):
        run.model_copy(update={field: bad})


def test_the_check_itself() -> None:
    assert check_number("x", 5, ValueError, whole=True) == 5
    assert read_number("x", "5", ValueError, whole=True) == 5
    assert read_number("x", "0.5", ValueError) == 0.5
    with pytest.raises(ValueError, match=r"^x is nan, it must be above 2 and at most 30$"):
        check_number("x", math.nan, ValueError, least=2, most=30, above=True)
    with pytest.raises(ValueError, match=r"^x is '1\\x1b', it must be a number, at least 0 and at most"):
        check_number("x", "1\x1b", ValueError)
    with pytest.raises(ValueError, match=r"x is int that cannot be shown|^x is 1000"):
        check_number("x", 10**5000, ValueError)
