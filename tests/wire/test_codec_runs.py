"""The codec makes runs, reads finished ones, and shows secrets to nobody but the payload."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kits.codec_kit import (
    EPOCH,
    ID,
    JSON_CODEC,
    PACKER,
    TASKS,
    Login,
    Mail,
    login,
    mail,
    micros,
    neighbour,
    record_of,
    records,
    run_of,
    same,
    the_record,
    work,
)
from models.codec_model import pack

from fluidfast import TaskState
from fluidfast.core._machine import Listeners
from fluidfast.errors import (
    ParamsError,
    PayloadError,
    PayloadTooLargeError,
    TaskParamsError,
    TaskRunError,
    UnknownTaskError,
)
from fluidfast.wire._codec import Codec, TaskPlan

SECRET = "canary-secret-value"


def test_create(codec: Codec) -> None:
    listeners = Listeners(0)
    parent = run_of(the_record(id="parent", root_run_id="root"))
    run = codec.create("mail", None, "", {"to": "x"}, "the manager", listeners)
    assert (run.task, run.params, run.task_manager, run.state) == (mail, Mail("x"), "the manager", "init")
    assert (run.from_run_id, run.root_run_id, run.queued) == ("", "", None)
    assert len(run.id) == 32
    run = codec.create(neighbour, "high", "mine", {"a": 1}, None, None, parent)
    assert (run.id, run.priority, run.from_run_id, run.root_run_id) == ("mine", "high", "parent", "root")
    assert codec.create(neighbour, None, "", {}, None, None).priority == "low"
    run = codec.create(work, None, "", {}, None, None, run_of(the_record(id="first")))
    assert (run.from_run_id, run.root_run_id) == ("first", "first")


def test_create_does_not_share_its_params(codec: Codec) -> None:
    given = {"a": [1]}
    run = codec.create(work, None, "", given, None, None)
    given["b"] = [2]
    assert run.params == {"a": [1]}


def test_create_with(codec: Codec) -> None:
    class Keys(dict):  # type: ignore[type-arg]
        pass

    for value in ({"to": "x"}, Mail("x"), Keys(to="x")):
        run = codec.create_with("mail", None, "", value, None, None, run_of(the_record(id="p")))
        assert run.params == Mail("x")
        assert (run.from_run_id, run.root_run_id) == ("p", "p")
    for value in (None, 7, [], "x", Login(user="u", password=pydantic.SecretStr("p"))):
        with pytest.raises(ParamsError, match="invalid params for task 'mail'"):
            codec.create_with("mail", None, "", value, None, None)


@pytest.mark.parametrize("call", ["create", "create_with"])
def test_create_what_cannot_be(codec: Codec, call: str) -> None:
    create = getattr(codec, call)
    with pytest.raises(UnknownTaskError, match=r"unknown task 'maik'.*did you mean 'mail'"):
        create("maik", None, "", {}, None, None)
    with pytest.raises(ParamsError, match="invalid params for task 'mail', field 'copies'") as caught:
        create("mail", None, "", {"to": "x", "copies": "two"}, None, None)
    assert (caught.value.task_name, caught.value.field) == ("mail", "copies")
    with pytest.raises(ValueError, match="unknown priority 'urgent'"):
        create("mail", "urgent", "", {"to": "x"}, None, None)
    with pytest.raises(TypeError):
        create("mail", None, 7, {"to": "x"}, None, None)


def test_a_new_task_is_registered() -> None:
    codec = Codec({})
    with pytest.raises(UnknownTaskError):
        codec.create("work", None, "", {}, None, None)
    codec.create(work, None, "", {}, None, None)
    assert codec.registry == {"work": work}
    assert codec.create("work", None, "", {}, None, None).task is work


def test_a_run_of_a_task_that_is_not_registered_can_be_written() -> None:
    codec = Codec({})
    payload = codec.encode(run_of(the_record(task="mail", params=Mail("x"))))
    assert json.loads(payload)["params"] == {"to": "x", "copies": 1, "tags": []}
    assert codec.registry == {}
    with pytest.raises(UnknownTaskError):
        codec.decode(payload, None)


def test_submit(codec: Codec) -> None:
    run = codec.create(work, None, "", {"a": 1}, None, None)
    before = time.time_ns() // 1000
    payload = codec.submit(run)
    assert run.state is TaskState.queued
    queued = micros(run.queued)
    assert queued is not None
    assert before <= queued <= time.time_ns() // 1000
    same(record_of(codec.decode(payload, None)), record_of(run))
    with pytest.raises(TaskRunError, match="success -> queued"):
        codec.submit(run_of(the_record(), "success"))


def test_submit_tells_nobody(codec: Codec) -> None:
    class Manager:
        dispatcher = None

    run = codec.create(work, None, "", {}, Manager(), Listeners(255))
    codec.submit(run)
    assert run.state is TaskState.queued


def test_has_field(codec: Codec) -> None:
    assert codec.has_field("mail", "to")
    assert codec.has_field(login, "password")
    assert not codec.has_field("mail", "params")
    assert not codec.has_field("work", "to")
    with pytest.raises(UnknownTaskError):
        codec.has_field("none", "to")


def test_plan() -> None:
    plan = TaskPlan(mail)
    assert (plan.task, plan.name, plan.adapter.model) == (mail, "mail", Mail)


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_take(codec: Codec) -> None:
    ids: list[str] = []
    items = iter([{"to": "a"}, Mail("b"), {"to": "c"}, {"to": "d"}])
    payloads, size, count, ended = codec.take(mail, "high", items, 3, 1 << 20, None, ids, 0)
    assert (len(payloads), count, ended) == (3, 3, False)
    assert size == sum(map(len, payloads))
    runs = [codec.decode(payload, None) for payload in payloads]
    assert [run.params.to for run in runs] == ["a", "b", "c"]
    assert [run.id for run in runs] == ids
    assert len(set(ids)) == 3
    assert {run.priority for run in runs} == {"high"}
    payloads, _, count, ended = codec.take(mail, None, items, 3, 1 << 20, None, None, 3)
    assert (len(payloads), count, ended) == (1, 1, True)
    assert codec.take(mail, None, iter(()), 3, 1, None, None, 0) == ([], 0, 0, True)


def test_take_by_bytes(codec: Codec) -> None:
    one = len(codec.take(work, None, iter([{}]), 9, 1, None, None, 0)[0][0])
    payloads, size, count, ended = codec.take(work, None, iter([{}] * 9), 9, 2 * one + 1, None, None, 0)
    assert (len(payloads), size, count, ended) == (3, 3 * one, 3, False)


def test_take_what_does_not_fit(codec: Codec) -> None:
    items = [{"to": "a"}, {"to": 7}, {"to": "b"}, {}, {"to": "x" * (1 << 20)}]
    errors: list[tuple[int, Exception]] = []
    ids: list[str] = []
    payloads, _, count, ended = codec.take(mail, None, iter(items), 99, 1 << 30, errors, ids, 100)
    assert (len(payloads), len(ids), count, ended) == (2, 2, 5, True)
    assert [(index, type(error)) for index, error in errors] == [
        (101, ParamsError),
        (103, ParamsError),
        (104, PayloadTooLargeError),
    ]
    with pytest.raises(ParamsError, match="field 'to'") as caught:
        codec.take(mail, None, iter(items), 99, 1 << 30, None, None, 100)
    assert caught.value.index == 101
    assert [codec.decode(payload, None).params.to for payload in caught.value.taken] == ["a"]  # type: ignore[attr-defined]


def test_take_from_what_breaks(codec: Codec) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"to": "a"}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        codec.take(mail, None, broken(), 9, 1 << 20, None, None, 0)
    with pytest.raises(ValueError, match="unknown priority"):
        codec.take(mail, "urgent", iter([]), 9, 1 << 20, None, None, 0)
    with pytest.raises(UnknownTaskError):
        codec.take("none", None, iter([]), 9, 1 << 20, None, None, 0)


@settings(max_examples=50)
@given(records, st.sampled_from(["success", "failure", "aborted", "rate_limited", "interrupted"]))
def test_finished(record: dict[str, Any], state: str) -> None:
    run = run_of(record, state).model_copy(
        update={"start": EPOCH + timedelta(seconds=5), "end": EPOCH + timedelta(seconds=7)}
    )
    found = JSON_CODEC.decode_finished(run.queue_dump_json(), "the manager")
    same(record_of(found), record)
    assert found.state == state
    assert found.duration == timedelta(seconds=2)
    assert found.task_manager == "the manager"


@pytest.mark.parametrize("reply", ['"abc"', '""', r'"\u0041"', "7", "null", '["a"]', '"\u00e9"'])
def test_a_run_that_is_waited_for(codec: Codec, reply: str) -> None:
    """Its keys stay as they came, whichever way they are read, and its answer is JSON."""
    payload = b'{"id":"x","task":"work","priority":"medium","state":"queued","reply":%b,"reply_token":"t","params":{}}'
    run = codec.decode(payload % reply.encode(), None)
    assert run.extra == {"reply": reply.encode(), "reply_token": b'"t"'}
    answer = PACKER.encode_finished(run)
    assert answer == run.queue_dump_json()
    assert codec.decode_finished(answer, None).extra == run.extra


def test_finished_with_params_that_do_not_fit(codec: Codec) -> None:
    run = codec.decode_finished(b'{"task":"mail","id":"x","state":"failure","end":7,"params":{"to":7}}', None)
    assert (run.id, run.state, run.params, micros(run.end)) == ("x", "failure", {"to": 7}, 7_000_000)
    assert run.start is None


@pytest.mark.parametrize(
    "rest",
    [b'"start":"soon"', b'"end":[]', b'"end":1e300', b'"state":"done"', b'"state":[1]', b'"state":7', b'"id":7', b"x"],
)
def test_finished_payloads_that_are_none(codec: Codec, rest: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode_finished(b'{"task":"work",%s}' % rest, None)
    with pytest.raises(UnknownTaskError):
        codec.decode_finished(b'{"task":"none"}', None)
    assert codec.decode_finished(b'{"task":"work","state":null}', None).state is TaskState.queued


def everything_said(error: BaseException) -> str:
    """The text of an error and of what is shown with it in a traceback."""
    said = [str(error), repr(error), str(vars(error))]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(said) + (everything_said(cause) if cause is not None else "")


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
def test_secrets_are_in_the_payload_and_nowhere_else(codec: Codec) -> None:
    run = codec.create("login", None, "", {"user": "u", "password": SECRET}, None, None)
    assert SECRET.encode() in codec.submit(run)
    read = codec.decode(codec.encode(run), None)
    assert read.params.password.get_secret_value() == SECRET
    assert SECRET not in f"{run!r} {read!r} {run.params!r} {run.model_dump()} {run.model_dump_json()}"


@pytest.mark.parametrize("codec", [JSON_CODEC, PACKER], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "params",
    [
        {"password": SECRET},
        {"user": "u", "password": [SECRET]},
        {"user": "u", "password": SECRET, "tries": SECRET},
        {"user": [SECRET], "password": SECRET},
    ],
)
def test_secrets_are_not_in_errors(codec: Codec, params: dict[str, Any]) -> None:
    for create in (codec.create, codec.create_with):
        with pytest.raises(ParamsError) as refused:
            create("login", None, "", params, None, None)
        assert SECRET not in everything_said(refused.value)
    payload = (
        pack([ID, "login", 1, params]) if codec.msgpack else json.dumps({"task": "login", "params": params}).encode()
    )
    with pytest.raises(TaskParamsError) as unread:
        codec.decode(payload, None)
    assert SECRET not in everything_said(unread.value)
    assert unread.value.task_run.params == params  # as they were read: for the dead list
    errors: list[tuple[int, Exception]] = []
    codec.take("login", None, iter([params]), 1, 1, errors, None, 0)
    assert SECRET not in everything_said(errors[0][1])


def test_secrets_are_not_in_errors_of_writing(codec: Codec) -> None:
    run = codec.create("login", None, "", {"user": "u", "password": SECRET}, None, None)
    run.params.tries = object()
    run.params.user = [SECRET, object()]
    with pytest.raises(ParamsError) as refused:
        codec.encode(run)
    assert SECRET not in everything_said(refused.value)
    small = Codec(dict(TASKS), max_bytes=9)
    with pytest.raises(PayloadTooLargeError) as refused_size:
        small.encode(codec.create("login", None, "", {"user": "u", "password": SECRET}, None, None))
    assert SECRET not in everything_said(refused_size.value)
