"""The compiled run-state machine: every transition against a model, and who is told of it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.machine_model import ENDS, STAGES, Forbidden, MachineModel

import fluidfast
from fluidfast import TaskRun, TaskState, task
from fluidfast.core._machine import Listeners, RunState
from fluidfast.core.events import TaskDispatcher
from fluidfast.core.states import FINISHED_STATES, STATES
from fluidfast.errors import TaskRunError

NAMES = STAGES + ENDS
NOW = 1_764_000_000_123_456
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EVERYTHING = (1 << len(STATES)) - 1

pairs = pytest.mark.parametrize(("source", "target"), [(source, target) for source in NAMES for target in NAMES])


@task
async def nothing(ctx: TaskRun) -> None: ...


def moment(micros: int | None) -> datetime | None:
    return None if micros is None else EPOCH + timedelta(microseconds=micros)


def in_state(name: str, number: Callable[[], RunState] = RunState) -> tuple[RunState, MachineModel]:
    """A machine and a model that went to a state on the shortest way, a second a step."""
    machine, model = number(), MachineModel()
    for step, state in enumerate((*STAGES[1:], name) if name in ENDS else STAGES[1 : STAGES.index(name) + 1]):
        machine.move(state, NOW + step * 1_000_000)
        model.move(state, NOW + step * 1_000_000)
    return machine, model


def same(machine: RunState, model: MachineModel) -> None:
    assert machine.state is TaskState(model.state)
    assert (machine.queued, machine.start, machine.end) == tuple(map(moment, (model.queued, model.start, model.end)))
    assert machine.is_done is (model.state in ENDS)
    assert machine.is_failure is (model.state == "failure")


# --- the table ------------------------------------------------------------------------------------


@pairs
def test_every_pair(source: str, target: str) -> None:
    machine, model = in_state(source)
    later = NOW + 10_000_000
    try:
        entered = model.move(target, later)
    except Forbidden:
        with pytest.raises(TaskRunError, match=f"^invalid state transition {source} -> {target}$"):
            machine.move(target, later)
    else:
        assert machine.move(target, later) == entered
    same(machine, model)


@pairs
def test_every_pair_of_a_run(source: str, target: str) -> None:
    """``set_state`` of a run is the same machine."""
    run, model = in_state(source, lambda: TaskRun(id="", task=nothing))
    assert isinstance(run, TaskRun)
    later = NOW + 10_000_000
    try:
        model.move(target, later)
    except Forbidden:
        with pytest.raises(TaskRunError, match=f"^invalid state transition {source} -> {target}$"):
            run.set_state(target, moment(later))
    else:
        run.set_state(target, moment(later))
    same(run, model)


def test_the_table_in_words() -> None:
    """The model is right: what the specification says, spelled out."""
    allowed = {source: {target for target in NAMES if is_allowed(source, target)} for source in NAMES}
    ends = set(ENDS) - {"interrupted"}
    assert allowed == {
        "init": {"init", "queued", "running"} | ends,
        "queued": {"queued", "running"} | ends,
        "running": {"running", "interrupted"} | ends,
        **{end: {end} for end in ENDS},
    }


def is_allowed(source: str, target: str) -> bool:
    machine, _ = in_state(source)
    try:
        machine.move(target, NOW)
    except TaskRunError:
        return False
    return True


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 2**53)), max_size=12))
def test_sequences(steps: list[tuple[str, int]]) -> None:
    machine, model = RunState(), MachineModel()
    for state, now_us in steps:
        try:
            expected: tuple[str, ...] | None = model.move(state, now_us)
        except Forbidden:
            expected = None
        if expected is None:
            with pytest.raises(TaskRunError):
                machine.move(state, now_us)
        else:
            assert machine.move(TaskState(state), now_us) == expected
        same(machine, model)


# --- numbers, names, times ------------------------------------------------------------------------


def test_numbers_are_those_of_the_compiled_enum() -> None:
    header = Path(fluidfast.__file__).with_name("core").joinpath("_machine.pxd").read_text()
    block = re.search(r"cdef enum State:\n((?: +\w+ = \d+\n)+)", header)
    assert block is not None
    numbers = {name.lower(): int(number) for name, number in re.findall(r"(\w+) = (\d+)", block[1])}
    assert numbers == {state.value: number for number, state in enumerate(STATES)}
    count = re.search(r"N_STATES = (\d+)", header)
    assert count is not None
    assert int(count[1]) == len(STATES) == 8


def test_numbers_at_run_time() -> None:
    for number, state in enumerate(STATES):
        run = TaskRun(id="", task=nothing, state="running" if number > 2 else "init")
        run._enter(number)
        assert run.state is state


def test_numbers_never_change() -> None:
    assert list(STATES) == [
        "init",
        "queued",
        "running",
        "success",
        "failure",
        "aborted",
        "rate_limited",
        "interrupted",
    ]
    assert set(ENDS) == FINISHED_STATES


@pytest.mark.parametrize("number", [-1, 8, 99, 2**31 - 1, -(2**31)])
def test_a_number_that_is_none(number: int) -> None:
    run = TaskRun(id="", task=nothing)
    with pytest.raises(TaskRunError, match=f"no task state has the number {number}"):
        run._enter(number)
    assert run.state is TaskState.init


@pytest.mark.parametrize("name", ["", "done", "Running", "INIT", "success ", None, 2, 2.0, b"queued", [], {}, object()])
def test_a_state_that_is_none(name: Any) -> None:
    machine = RunState()
    run = TaskRun(id="", task=nothing)
    for call in (
        lambda: machine.move(name, NOW),
        lambda: run.set_state(name),
        lambda: run.model_copy(update={"state": name}),
    ):
        with pytest.raises(TaskRunError, match=r"unknown task state .*, expected one of init, queued, running"):
            call()
    if name is not None:
        with pytest.raises(TaskRunError, match="unknown task state"):
            TaskRun(id="", task=nothing, state=name)
    assert machine.state is run.state is TaskState.init


class Text(str):
    """A string of another type."""


@pytest.mark.parametrize("kind", [TaskState, str, Text, lambda state: "".join(state)])
def test_states_are_found_by_name_too(kind: Callable[[str], str]) -> None:
    for name in NAMES[:4]:
        machine = RunState()
        machine.move(kind(name), NOW)
        assert machine.state is TaskState(name)


def test_now_is_a_64_bit_number() -> None:
    machine = RunState()
    with pytest.raises(OverflowError):
        machine.move("queued", 2**63)
    with pytest.raises(TypeError):
        machine.move("queued", "now")  # type: ignore[arg-type]
    assert machine.state is TaskState.init


def test_spans() -> None:
    machine = RunState()
    spans = ("in_queue", "duration", "duration_ms", "total")
    assert [getattr(machine, span) for span in spans] == [None] * 4
    machine.move("queued", NOW)
    assert [getattr(machine, span) for span in spans] == [None] * 4
    machine.move("running", NOW + 2_500_000)
    assert [getattr(machine, span) for span in spans] == [timedelta(seconds=2.5), None, None, None]
    machine.move("success", NOW + 2_512_345)
    assert [getattr(machine, span) for span in spans] == [
        timedelta(seconds=2.5),
        timedelta(microseconds=12345),
        12.35,
        timedelta(seconds=2, microseconds=512345),
    ]


def test_spans_of_a_clock_that_was_set_back() -> None:
    machine = RunState()
    machine.move("queued", NOW)
    machine.move("running", NOW - 1_000_000)
    machine.move("failure", NOW - 1_500_000)
    assert machine.in_queue == timedelta(seconds=-1)
    assert machine.duration == timedelta(seconds=-0.5)
    assert machine.duration_ms == -500.0
    assert machine.total == timedelta(seconds=-1.5)


def test_fields_are_read_only() -> None:
    machine = RunState()
    for name in ("state", "queued", "start", "end", "is_done", "duration"):
        with pytest.raises(AttributeError):
            setattr(machine, name, None)
    with pytest.raises(AttributeError):
        machine.other = 1  # type: ignore[attr-defined]


# --- events ---------------------------------------------------------------------------------------


class CountingDispatcher:
    """Keeps what it is given, whatever the mask of its listeners says."""

    def __init__(self, mask: int) -> None:
        self.listeners = Listeners(mask)
        self.seen: list[TaskRun[Any, Any]] = []

    def dispatch(self, run: TaskRun[Any, Any]) -> int:
        self.seen.append(run)
        return 1


def run_with(mask: int, **fields: Any) -> tuple[TaskRun[Any, Any], list[TaskRun[Any, Any]]]:
    dispatcher = CountingDispatcher(mask)
    run = TaskRun(id="", task=nothing, task_manager=SimpleNamespace(dispatcher=dispatcher), **fields)
    return run, dispatcher.seen


@pairs
def test_snapshots(source: str, target: str) -> None:
    """Somebody who listens to everything sees each state that is entered, with the times of that moment."""
    reached, model = in_state(source)
    run, seen = run_with(EVERYTHING, state=source, queued=reached.queued, start=reached.start, end=reached.end)
    later = NOW + 10_000_000
    steps = []
    try:
        path = model.path(target) if source != target else ()
    except Forbidden:
        with pytest.raises(TaskRunError):
            run.set_state(target, moment(later))
        assert seen == []
        return
    for state in path:
        model.move(state, later)
        steps.append((state, *map(moment, (model.queued, model.start, model.end))))
    run.set_state(target, moment(later))
    assert [(snapshot.state, snapshot.queued, snapshot.start, snapshot.end) for snapshot in seen] == steps
    assert all(run is not one for one in seen)
    assert len(set(map(id, seen))) == len(seen)


@given(st.integers(0, EVERYTHING), st.lists(st.sampled_from(NAMES), max_size=6))
def test_only_states_that_somebody_listens_to_make_a_snapshot(mask: int, states: list[str]) -> None:
    run, seen = run_with(mask)
    model = MachineModel()
    expected: list[str] = []
    for state in states:
        try:
            entered = model.move(state, NOW)
        except Forbidden:
            with pytest.raises(TaskRunError):
                run.set_state(state)
            continue
        run.set_state(state)
        expected += [name for name in entered if mask >> NAMES.index(name) & 1]
    assert [snapshot.state for snapshot in seen] == expected


def test_a_snapshot_does_not_follow_its_run() -> None:
    run, seen = run_with(EVERYTHING, params={"a": 1}, rate_limit_attempt=2, retry_attempt=3, from_run_id="f")
    run.set_state("queued")
    run.set_state("success")
    run.retry_attempt = 9
    run.params = None
    queued = seen[0]
    assert queued.state is TaskState.queued
    assert queued.start is queued.end is None
    assert (queued.id, queued.task, queued.params) == (run.id, nothing, {"a": 1})
    assert (queued.rate_limit_attempt, queued.retry_attempt, queued.from_run_id) == (2, 3, "f")
    assert queued.task_manager is run.task_manager


def test_nobody_listens() -> None:
    run, seen = run_with(0)
    for state in ("queued", "running", "success"):
        run.set_state(state)
    run._emit()
    assert seen == []


def test_a_manager_without_listeners() -> None:
    """Neither a dispatcher that does not say what it listens to, nor the lack of one, is asked."""
    for manager in (None, SimpleNamespace(), SimpleNamespace(dispatcher=SimpleNamespace())):
        run = TaskRun(id="", task=nothing, task_manager=manager)
        run.set_state("success")
        run._emit()
        assert run.is_done


def test_entering_quietly_and_telling_later() -> None:
    run, seen = run_with(EVERYTHING)
    run._enter(1)
    assert run.state is TaskState.queued
    assert run.queued is not None
    assert seen == []
    run._emit()
    assert [snapshot.state for snapshot in seen] == ["queued"]


@pytest.fixture
def told() -> tuple[TaskRun[Any, Any], TaskDispatcher, list[str]]:
    dispatcher = TaskDispatcher()
    run = TaskRun(id="", task=nothing, task_manager=SimpleNamespace(dispatcher=dispatcher))
    return run, dispatcher, []


def test_with_the_real_dispatcher(told: tuple[TaskRun[Any, Any], TaskDispatcher, list[str]]) -> None:
    run, dispatcher, states = told
    run.set_state("queued")
    dispatcher.register_handler("running", lambda snapshot: states.append(snapshot.state))
    dispatcher.register_handler("success.a", lambda snapshot: states.append(f"{snapshot.state} {snapshot.is_done}"))
    run.set_state("success")
    assert states == ["running", "success True"]


def test_listeners_that_come_and_go_while_they_are_told(
    told: tuple[TaskRun[Any, Any], TaskDispatcher, list[str]],
) -> None:
    run, dispatcher, states = told

    def once(snapshot: TaskRun[Any, Any]) -> None:
        states.append(snapshot.state)
        dispatcher.unregister_handler("queued")
        dispatcher.unregister_handler("success")
        dispatcher.register_handler("running", lambda snapshot: states.append(snapshot.state))

    dispatcher.register_handler("queued", once)
    dispatcher.register_handler("success", once)
    run.set_state("success")
    assert states == ["queued", "running"]
    assert run.state is TaskState.success


def test_a_dispatcher_that_raises_leaves_the_run_where_it_went() -> None:
    run, _ = run_with(EVERYTHING)

    def broken(snapshot: TaskRun[Any, Any]) -> int:
        raise ZeroDivisionError

    run.task_manager.dispatcher.dispatch = broken
    with pytest.raises(ZeroDivisionError):
        run.set_state("running")
    assert run.state is TaskState.running
    assert run.queued == run.start
