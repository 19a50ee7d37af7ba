"""The compiled state machine beside a class with a dict of transitions, and beside aio-fluid's ``set_state``.

pytest bench/micro/test_bench_machine.py --benchmark-only -o addopts=

A round takes OPS fresh runs through queued, running, success, so divide its time by that (and by 3 for one step).
The dict of transitions is written as one would for speed: slots, enum members as keys, integers for times.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from fluidfast import TaskRun, TaskState, task
from fluidfast.core._machine import RunState
from fluidfast.core._time import now_micros
from fluidfast.core.events import TaskDispatcher

OPS = 5_000
NOW = 1_764_000_000_123_456
QUEUED, RUNNING, SUCCESS = TaskState.queued, TaskState.running, TaskState.success
ENDS = ("success", "failure", "aborted", "rate_limited")


@task
async def nothing(ctx: TaskRun) -> None: ...


def transitions() -> dict[tuple[TaskState, TaskState], tuple[TaskState, ...]]:
    found: dict[tuple[TaskState, TaskState], tuple[TaskState, ...]] = {
        (TaskState.init, QUEUED): (QUEUED,),
        (TaskState.init, RUNNING): (QUEUED, RUNNING),
        (QUEUED, RUNNING): (RUNNING,),
        (RUNNING, TaskState.interrupted): (TaskState.interrupted,),
    }
    for end in map(TaskState, ENDS):
        found[TaskState.init, end] = (QUEUED, RUNNING, end)
        found[QUEUED, end] = (RUNNING, end)
        found[RUNNING, end] = (end,)
    return found


TRANSITIONS = transitions()


class DictMachine:
    __slots__ = ("end", "queued", "start", "state")

    def __init__(self) -> None:
        self.state = TaskState.init
        self.queued = self.start = self.end = 0

    def move(self, state: TaskState, now_us: int) -> tuple[TaskState, ...]:
        if state is self.state:
            return ()
        try:
            entered = TRANSITIONS[self.state, state]
        except KeyError:
            raise RuntimeError(f"invalid state transition {self.state} -> {state}") from None
        for passed in entered:
            if passed is QUEUED:
                self.queued = now_us
            elif passed is RUNNING:
                self.start = now_us
            else:
                self.end = now_us
        self.state = state
        return entered


class DictRun(DictMachine):
    """With a clock of its own, and ``datetime`` for times, as a record in Python would have."""

    __slots__ = ()

    def set_state(self, state: TaskState) -> None:
        self.move(state, datetime.now(UTC))  # type: ignore[arg-type]


class DictRunInMicros(DictMachine):
    __slots__ = ()

    def set_state(self, state: TaskState) -> None:
        self.move(state, now_micros())


class Manager:
    def __init__(self) -> None:
        self.dispatcher = TaskDispatcher()


MANAGER = Manager()


def aio_fluid_run() -> Callable[[], Any]:
    """Makes runs of aio-fluid's own, as its manager would."""
    scheduler = pytest.importorskip("fluid.scheduler", reason="aio-fluid is not installed beside fluidfast")

    @scheduler.task
    async def nothing(ctx) -> None: ...

    manager = scheduler.TaskManager()
    model = nothing.params_model
    return lambda: scheduler.TaskRun(
        id="", task=nothing, priority=nothing.priority, params=model(), task_manager=manager
    )


# --- times that are given -------------------------------------------------------------------------


def through(machines: list[Any]) -> None:
    for machine in machines:
        move = machine.move
        move(QUEUED, NOW)
        move(RUNNING, NOW)
        move(SUCCESS, NOW)


@pytest.mark.parametrize("make", [RunState, DictMachine], ids=["fluidfast RunState", "dict of transitions"])
def test_move(benchmark, make):
    benchmark.group = f"queued, running, success at given times, {OPS:,} runs"
    benchmark.pedantic(through, setup=lambda: (([make() for _ in range(OPS)],), {}), rounds=40, warmup_rounds=2)


@pytest.mark.parametrize("make", [RunState, DictMachine], ids=["fluidfast RunState", "dict of transitions"])
def test_move_at_once(benchmark, make):
    def at_once(machines: list[Any]) -> None:
        for machine in machines:
            machine.move(SUCCESS, NOW)

    benchmark.group = f"init to success at once, {OPS:,} runs"
    benchmark.pedantic(at_once, setup=lambda: (([make() for _ in range(OPS)],), {}), rounds=40, warmup_rounds=2)


# --- as a run does it: now ------------------------------------------------------------------------


def set_states(runs: list[Any]) -> None:
    for run in runs:
        set_state = run.set_state
        set_state(QUEUED)
        set_state(RUNNING)
        set_state(SUCCESS)


def enter_states(runs: list[Any]) -> None:
    for run in runs:
        enter = run._enter
        enter(1)
        enter(2)
        enter(3)


def our_run() -> TaskRun[Any, Any]:
    return TaskRun(id="x", task=nothing, task_manager=MANAGER)


RUNS: dict[str, tuple[Callable[[], Callable[[], Any]], Callable[[list[Any]], None]]] = {
    "fluidfast TaskRun, by number": (lambda: our_run, enter_states),
    "fluidfast TaskRun": (lambda: our_run, set_states),
    "dict of transitions, datetime": (lambda: DictRun, set_states),
    "dict of transitions, microseconds": (lambda: DictRunInMicros, set_states),
    "aio-fluid TaskRun": (aio_fluid_run, set_states),
}


@pytest.mark.parametrize("name", RUNS)
def test_set_state(benchmark, name):
    factory, call = RUNS[name]
    make = factory()
    ops = OPS if "aio" not in name else OPS // 10
    benchmark.group = "queued, running, success now, nobody listens; a run"
    benchmark.extra_info["ops"] = ops
    benchmark.pedantic(call, setup=lambda: (([make() for _ in range(ops)],), {}), rounds=40, warmup_rounds=2)
