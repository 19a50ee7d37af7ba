"""Every way into the compiled modules, and every way out by an error, thousands of times: nothing may be left behind.

    python tests/test_leaks.py [CALLS] [NAME...]        in this process, without pytest; names are parts of cases' names

A case is called CALLS times. Before and after it, the reference counts of everything that it was given, the blocks that
the allocator has handed out and the objects that the garbage collector knows must be the same, but for a handful.
"""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pydantic
import pytest

from fluidfast import TaskManager, TaskRun, TaskState, task
from fluidfast.brokers._leases import Claimed, Lease, numbered, paired
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Confirm, EnqueueBatch, Settlement
from fluidfast.brokers.redis._lane import Direct, Lane
from fluidfast.brokers.redis._resp import pack
from fluidfast.consume._ledger import Ledger
from fluidfast.core._machine import Listeners, RunState
from fluidfast.core._time import monotonic_seconds, new_id, now_micros
from fluidfast.core.params import Params
from fluidfast.errors import BrokerConnectionError
from fluidfast.produce._outbox import Confirmation, Outbox, settle_all
from fluidfast.produce.producer import Producer
from fluidfast.wire._codec import Codec, TaskPlan, encode_json

CALLS = 10_000
WARM_UP = 300
SLACK = 60
"""Blocks or objects that may come and go; a leak of one a call is a hundred times that."""

MOMENT = datetime(2025, 11, 24, 16, tzinfo=UTC)


class Mail(msgspec.Struct):
    to: str
    copies: int = 1


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr | None = None


@task
async def work(ctx: TaskRun) -> None: ...


@task
async def mail(ctx: TaskRun[Mail]) -> None: ...


@task
async def login(ctx: TaskRun[Login]) -> None: ...


@task
async def aborts(ctx: TaskRun) -> None:
    ctx.abort("enough")


class Breaks:
    """Raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError


def broken(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError


def broken_items() -> Iterator[Any]:
    yield {"to": "x"}
    raise ZeroDivisionError


def take(codec: Codec, *given: Any, items: Callable[[], Iterator[Any]] | None = None, collect: bool = False) -> object:
    errors: list[tuple[int, Exception]] = []
    return codec.take(mail, "low", items() if items else iter(given), 9, 999, errors if collect else None, [], 0)


Case = tuple[str, Callable[[], object], type[BaseException] | None]


def cases(given: dict[str, Any]) -> Iterator[Case]:
    """Name, call, and the error that it ends in. ``given``: objects whose references are counted."""
    registry = {a_task.name: a_task for a_task in (work, mail, login)}
    text = f"id {id(given)}"
    value = object()
    params = Params(to=text, inner=[{"a": text}])
    message = Mail(text)
    person = Login(user=text, password=pydantic.SecretStr(text))
    dispatcher = SimpleNamespace(listeners=Listeners(255), dispatch=lambda run: None)
    manager = SimpleNamespace(dispatcher=dispatcher, broker=SimpleNamespace(lock=lambda *args, **kwargs: value))
    manager.queue = lambda *args, **kwargs: value
    manager.deps = value
    breaking = SimpleNamespace(dispatcher=SimpleNamespace(listeners=dispatcher.listeners, dispatch=broken))
    listeners = dispatcher.listeners
    extra = {"trace": json.dumps(text).encode()}
    given.update(
        text=text,
        value=value,
        params=params,
        message=message,
        person=person,
        manager=manager,
        breaking=breaking,
        listeners=listeners,
        extra=extra,
        registry=registry,
        none=None,
        moment=MOMENT,
        tasks=[work, mail, login],
        states=list(TaskState),
        types=[TaskRun, Mail, Login, Params, RunState],
    )

    # the machine
    def through() -> None:
        machine = RunState()
        machine.move("queued", 10**15)
        machine.move(TaskState.running, 10**15 + 1)
        machine.move("running", 10**15 + 1)
        machine.move("success", 10**15 + 2)
        for name in ("state", "queued", "start", "end", "in_queue", "duration", "duration_ms", "total", "is_done"):
            getattr(machine, name)

    ended = RunState()
    ended.move("success", 10**15)
    yield "machine, all states", through, None
    yield "machine, same state", lambda: ended.move("success", 1), None
    yield "machine, forbidden", lambda: ended.move("running", 1), RuntimeError
    yield "machine, no state", lambda: ended.move(text, 1), RuntimeError
    yield "machine, no text", lambda: ended.move(value, 1), RuntimeError  # type: ignore[arg-type]
    yield "machine, no time", lambda: ended.move("success", value), TypeError  # type: ignore[arg-type]
    yield "listeners", lambda: Listeners(7).mask, None

    # clocks and ids
    yield "clock", lambda: (new_id(), now_micros(), monotonic_seconds()), None

    # commands
    given.update(argument=b"a" * 300, word="é" * 300)
    yield "command", lambda: pack(("SET", given["argument"], given["word"], 10**30, 0.25)), None
    yield "command, no argument", lambda: pack(("SET", given["argument"], 10**30, value)), TypeError
    yield "command, no text", lambda: pack(("SET", 0.25, "\ud800")), UnicodeEncodeError

    # runs
    fields: dict[str, Any] = {
        "id": text,
        "task": work,
        "priority": "high",
        "params": params,
        "task_manager": manager,
        "state": "queued",
        "queued": MOMENT,
        "start": "2025-11-24T16:00:00Z",
        "end": 1764000000.5,
        "execute_after": MOMENT,
        "rate_limit_attempt": 1,
        "retry_attempt": 2,
        "from_run_id": text,
        "root_run_id": text,
    }
    run = TaskRun(**fields)
    run.extra = extra
    given["run"] = run
    yield "run, made", lambda: TaskRun(**fields), None
    yield "run, made with little", lambda: TaskRun(id="", task=work), None
    for name, wrong, error in (
        ("id", value, TypeError),
        ("task", value, AttributeError),
        ("priority", value, ValueError),
        ("priority", text, ValueError),
        ("state", value, RuntimeError),
        ("queued", value, ValueError),
        ("start", text, ValueError),
        ("end", 1e300, ValueError),
        ("execute_after", float("nan"), ValueError),
        ("retry_attempt", value, TypeError),
        ("rate_limit_attempt", 2**40, OverflowError),
        ("from_run_id", value, TypeError),
        ("nothing", value, TypeError),
    ):
        changed: dict[str, Any] = {**fields, "priority": None, name: wrong}
        yield f"run, made with wrong {name} {wrong!r:.9}", partial(TaskRun, **changed), error
        if name != "task":
            update = {name: wrong}
            yield (
                f"run, copied with wrong {name} {wrong!r:.9}",
                partial(run.model_copy, update=update),
                error,
            )
    yield "run, wrong manager", lambda: TaskRun(id="", task=work, task_manager=Breaks()), ZeroDivisionError
    yield (
        "run, wrong listeners",
        lambda: TaskRun(id="", task=work, task_manager=SimpleNamespace(dispatcher=SimpleNamespace(listeners=value))),
        TypeError,
    )
    yield "run, copied", lambda: run.model_copy(), None
    yield "run, copied with all", lambda: run.model_copy(update=fields), None
    yield "run, copied deep", lambda: run.model_copy(deep=True), None
    yield "run, again", lambda: (run._again(1, True), run._again(1, False)), None
    yield "run, dumped", lambda: (run.model_dump(), run.model_dump(mode="json"), run.model_dump_json()), None
    yield "run, shown", lambda: (repr(run), run.name, run.name_id, run.priority, run.logger, run.execute_after), None
    yield "run, handle", lambda: (run.deps, run.lock(), run.lock(1, text), run.queue(text, a=value)), None
    yield "run, aborted", lambda: run.abort(text), RuntimeError
    yield "run, subscribed", lambda: TaskRun[Mail], None
    yield "run, its time set", lambda: setattr(run, "execute_after", MOMENT), None
    yield "run, its time set wrong", lambda: setattr(run, "execute_after", value), ValueError

    def told() -> None:
        fresh = TaskRun(id=text, task=work, params=params, task_manager=manager)
        fresh.set_state("success", MOMENT)
        fresh._emit()

    yield "run, told", told, None
    yield (
        "run, told in vain",
        lambda: TaskRun(id=text, task=work, task_manager=breaking).set_state("success"),
        (ZeroDivisionError),
    )
    yield "run, no such state", lambda: run.set_state(value), RuntimeError  # type: ignore[arg-type]
    yield "run, no such time", lambda: run.set_state("running", value), ValueError  # type: ignore[arg-type]
    yield "run, forbidden", lambda: run.set_state("init"), RuntimeError
    yield "run, no such number", lambda: run._enter(99), RuntimeError

    def executed(a_task: Any) -> None:
        coroutine = TaskRun(id=text, task=a_task, params=params).execute()
        with contextlib.suppress(StopIteration):
            coroutine.send(None)

    loop = asyncio.new_event_loop()

    def in_loop(a_task: Any) -> Callable[[], None]:
        async def one() -> None:
            await TaskRun(id=text, task=a_task, params=params, task_manager=manager).execute()

        return lambda: loop.run_until_complete(one())

    yield "run, executed", in_loop(work), None
    yield "run, executed and aborted", in_loop(aborts), RuntimeError
    yield "run, executed by nobody", lambda: executed(work), RuntimeError

    # the codec
    json_codec, packer = Codec(registry), Codec(registry, msgpack=True)
    small = Codec(registry, max_bytes=9)
    deep: Any = text
    for _ in range(70):
        deep = [deep]
    yield "plan", lambda: TaskPlan(mail), None
    yield "codec", lambda: Codec(registry, msgpack=True), None
    yield "codec, a field", lambda: (json_codec.has_field("mail", "to"), json_codec.has_field(login, "to")), None
    yield "codec, a field of none", lambda: json_codec.has_field(text, "to"), RuntimeError

    yield "create", lambda: json_codec.create("work", "high", text, {"to": text}, manager, listeners, run), None
    yield (
        "create with an object",
        lambda: json_codec.create_with(mail, None, "", message, manager, listeners, run),
        None,
    )
    yield "create with a mapping", lambda: json_codec.create_with(login, None, "", {"user": text}, manager, None), None
    for name, codec in (("json", json_codec), ("msgpack", packer)):
        runs = {
            "a mapping": codec.create_with(work, None, text, params, manager, listeners),
            "a struct": codec.create_with(mail, None, "", message, manager, listeners),
            "a model": codec.create_with(login, None, "", person, manager, listeners),
            "everything": run,
        }
        for kind, one in runs.items():
            yield f"encode {kind}, {name}", partial(codec.encode, one), None
            payload = codec.submit(one.model_copy())
            given[f"{name} {kind}"] = payload
            yield f"decode {kind}, {name}", partial(codec.decode, payload, manager), None
            general = b" " + payload if name == "json" else payload
            yield (
                f"decode many of {kind}, {name}",
                partial(codec.decode_many, [general], manager, listeners),
                None,
            )
        for kind, wrong_params in (
            ("a value", {"to": value}),
            ("a NaN", {"to": [float("nan")]}),
            ("depth", {"to": deep}),
            ("a surrogate", {"to": "\ud800"}),
            ("an array", [text]),
        ):
            bad = run.model_copy(update={"params": wrong_params})
            error = None if kind == "a NaN" else RuntimeError  # one that arrived is retried as it came
            yield f"encode {kind}, {name}", partial(codec.encode, bad), error
        bad = run.model_copy(update={"id": "\ud800"})
        yield f"encode a wrong id, {name}", partial(codec.encode, bad), RuntimeError
        yield f"encode none, {name}", partial(codec.encode, None), TypeError  # type: ignore[arg-type]
        yield f"take, {name}", partial(take, codec, message, {"to": text}), None
        yield f"take what does not fit, {name}", partial(take, codec, {}, message, {"to": value}, collect=True), None
        yield f"take, ended by an error, {name}", partial(take, codec, message, {"to": value}), RuntimeError
        yield f"take from what breaks, {name}", partial(take, codec, items=broken_items), ZeroDivisionError
    yield (
        "encode a bigint, msgpack",
        lambda: packer.encode(run.model_copy(update={"params": {"a": 2**70}})),
        RuntimeError,
    )
    yield "encode json", lambda: (encode_json(run), run.queue_dump_json()), None
    yield "submit what has ended", lambda: json_codec.submit(run.model_copy(update={"state": "success"})), RuntimeError
    yield "encode what is too large", lambda: small.encode(run), RuntimeError
    yield "decode what is too large", lambda: small.decode(b" " * 10, manager), RuntimeError

    yield "create for no task", lambda: json_codec.create(text, None, "", {}, manager, listeners), RuntimeError
    yield "create at no priority", lambda: json_codec.create("work", text, "", {}, manager, listeners), ValueError
    yield (
        "create what does not fit",
        lambda: json_codec.create("mail", None, "", {"to": value}, manager, None),
        RuntimeError,
    )
    yield (
        "create a wrong model",
        lambda: json_codec.create("login", None, "", {"user": value}, manager, None),
        RuntimeError,
    )
    yield "create with another", lambda: json_codec.create_with("mail", None, "", person, manager, None), RuntimeError
    yield "create with a wrong id", lambda: json_codec.create("work", None, value, {}, None, None), TypeError  # type: ignore[arg-type]
    yield "create with wrong listeners", lambda: json_codec.create("work", None, "", {}, None, value), TypeError  # type: ignore[arg-type]

    finished = run.model_copy(update={"state": "failure"}).queue_dump_json()
    yield "decode finished", lambda: json_codec.decode_finished(finished, manager, listeners), None
    yield "decode finished, other params", lambda: json_codec.decode_finished(b'{"task":"mail"}', manager), None
    yield (
        "decode finished, wrong",
        lambda: json_codec.decode_finished(b'{"task":"work","end":[]}', manager),
        RuntimeError,
    )

    head = b'{"id":"x","task":"mail","priority":"low","state":"queued","queued":1764000000.123456,"params":'
    refused = {
        "nothing": b"",
        "no json": b'{"task":"work","params":{}',
        "an array": b"[1]",
        "no task": b'{"id":"x"}',
        "an unknown task": b'{"task":"worl"}',
        "no priority": b'{"task":"work","priority":"x"}',
        "no state": b'{"task":"work","state":[1]}',
        "no time": b'{"task":"work","queued":"x"}',
        "no attempts": b'{"task":"work","retry_attempt":-1}',
        "wrong params": b'{"task":"mail","params":{"to":7}}',
        "wrong model": b'{"task":"login","params":{"user":7}}',
        "wrong canonical params": head + b'{"to":7}}',
        "broken canonical params": head + b'{"to":"x}}',
        "depth": b'{"task":"work","params":%s}' % (b"[" * 99),
        "an escape": b'{"task":"\\ud800"}',
        "no utf-8": b'{"task":"work","x":"\xff"}',
        "packed, cut": b"\x94\xa1x\xa4work\x01",
        "packed, wrong": msgspec.msgpack.encode(["x", "work", 7, {}]),
        "packed, wrong id": msgspec.msgpack.encode([["x"], "work", 1, {}]),
        "packed, wrong params": msgspec.msgpack.encode(["x", "mail", 1, {"to": 7}]),
        "packed, no params": msgspec.msgpack.encode(["x", "work", 1, [1]]),
        "packed, depth": msgspec.msgpack.encode(["x", "work", 1, {"a": json.loads("[" * 80 + "]" * 80)}]),
        "packed, NaN": msgspec.msgpack.encode(["x", "work", 1, {"a": float("nan")}]),
        "packed, wrong extra": msgspec.msgpack.encode(
            ["x", "work", 1, {}, 1, None, None, None, None, 0, 0, "", "", {"x": b"y"}]
        ),
    }
    given["refused"] = list(refused.values())
    for kind, payload in refused.items():
        yield f"decode {kind}", partial(json_codec.decode, payload, manager, listeners), RuntimeError
    many = list(refused.values())[-12:]
    yield "decode many that are refused", lambda: json_codec.decode_many(many, manager, listeners), None
    yield "decode no bytes", lambda: json_codec.decode(text, manager), TypeError  # type: ignore[arg-type]

    yield from waiting_cases(given, loop, value)
    yield from queue_cases(given, loop, text)
    yield from lane_cases(given, loop, value)
    yield from claim_cases(given, value)
    loop.close()


def waiting_cases(given: dict[str, Any], loop: asyncio.AbstractEventLoop, value: object) -> Iterator[Case]:
    """Who waits for what is queued."""
    context = contextvars.copy_context()
    ready: list[tuple[Any, ...]] = []
    hand = SimpleNamespace(
        call_soon=lambda call, *args, context=None: ready.append((call, args)),
        call_exception_handler=lambda about: None,
    )
    given.update(context=context, hand=hand)

    def failure() -> LookupError:
        """A new one each time, since raising it adds to its traceback."""
        return LookupError(value)

    def turn() -> None:
        """What an event loop would do: it takes its time, and keeps things of its own."""
        while ready:
            call, args = ready.pop(0)
            call(*args)

    def made(callbacks: int = 1, callback: Callable[[Any], object] = bool) -> Any:
        future: Any = Confirmation(value, loop=hand)  # type: ignore[arg-type]
        for _ in range(callbacks):
            future.add_done_callback(callback, context=context)
        return future

    def settled(refused: bool, *kinds: int) -> None:
        reason = failure() if refused else None
        futures = [made(n) for n in kinds]
        settle_all(futures, reason)
        turn()
        for future in futures:
            assert future.exception() is reason

    def ending(future: object) -> None:
        if ready.append((bool, ())) is None and len(ready) == 1:
            raise KeyboardInterrupt

    def ended() -> None:
        futures = [made(2, ending), made(1)]
        settle_all(futures, None)
        try:
            turn()
        finally:
            turn()

    def refused(ask: str) -> None:
        future = made()
        future.set_exception(failure())
        turn()
        if ask:
            getattr(future, ask)()

    def cancelled(ask: str) -> None:
        future = made(2)
        future.cancel(value)
        turn()
        getattr(future, ask)()

    def handed(verb: str, *args: Any) -> Any:
        return getattr(made(), verb)(*args)

    def driven(refused: bool) -> None:
        future = made()
        future.send(None)
        settle_all([future], failure() if refused else None)
        turn()
        with contextlib.suppress(StopIteration):
            future.send(None)

    async def gathered(refused: bool) -> None:
        reason = failure() if refused else None
        futures: list[Any] = [Confirmation(value, loop=loop) for _ in range(3)]
        loop.call_soon(settle_all, futures, reason)
        found = await asyncio.gather(*futures, futures[0], return_exceptions=True)
        assert found == [reason or value] * 4

    yield "confirmation", made, None
    yield "confirmation, in the loop that runs", lambda: Confirmation(value), RuntimeError
    yield "confirmations, settled", lambda: settled(False, 0, 1, 2, 3), None
    yield "confirmations, refused", lambda: settled(True, 0, 1, 2, 3), None
    yield "confirmations, settled twice", lambda: settle_all([future := made(), future], None) or turn(), None
    yield "confirmations, a callback raises", lambda: settle_all([made(2, broken)], None) or turn(), None
    yield "confirmations, a callback ends it", ended, KeyboardInterrupt
    yield "confirmations, no context", lambda: handed("add_done_callback", bool), None
    yield "confirmations, none", lambda: settle_all([value], None), TypeError  # type: ignore[list-item]
    yield "confirmations, nothing", lambda: settle_all([None], None), AttributeError  # type: ignore[list-item]
    yield "confirmation, refused and not heard", lambda: refused(""), None
    yield "confirmation, refused and cancelled", lambda: refused("cancel"), None
    yield "confirmation, refused and shown", lambda: refused("__repr__"), None
    yield "confirmation, refused and raised", lambda: refused("result"), LookupError
    yield "confirmation, refused and awaited", lambda: refused("__next__"), LookupError
    yield "confirmation, cancelled", lambda: cancelled("done"), None
    yield "confirmation, cancelled and raised", lambda: cancelled("result"), asyncio.CancelledError
    yield "confirmation, cancelled and asked", lambda: cancelled("exception"), asyncio.CancelledError
    yield "confirmation, cancelled and set", lambda: cancelled("__next__"), asyncio.CancelledError
    yield "confirmation, set", lambda: handed("set_result", given["value"]) or turn(), None
    yield "confirmation, taken back", lambda: handed("remove_done_callback", bool), None
    yield "confirmation, not done", lambda: handed("result"), asyncio.InvalidStateError
    yield "confirmation, stopped", lambda: handed("set_exception", StopIteration(value)) or turn(), None
    yield "confirmation, no exception", lambda: handed("set_exception", value), TypeError
    yield "confirmation, no failure", lambda: settle_all([made()], value), AttributeError  # type: ignore[arg-type]
    yield "confirmation, thrown", lambda: handed("throw", failure(), None, None), LookupError
    yield "confirmation, thrown a type", lambda: handed("throw", LookupError, value), LookupError
    yield "confirmation, copied", lambda: handed("__reduce_ex__", 4), TypeError
    yield "confirmation, driven", lambda: driven(False), None
    yield "confirmation, driven and refused", lambda: driven(True), LookupError
    yield "confirmations, gathered, executed", lambda: loop.run_until_complete(gathered(False)), None
    yield "confirmations, gathered and refused, executed", lambda: loop.run_until_complete(gathered(True)), None
    yield "outbox, no loop", lambda: Outbox(1, 1).running_loop(), RuntimeError
    yield "outbox, not used", lambda: Outbox(1, 1).submit(hand, 0, b"", None), AttributeError  # type: ignore[arg-type]


def queue_cases(given: dict[str, Any], loop: asyncio.AbstractEventLoop, text: str) -> Iterator[Case]:
    """``queue()``, on the broker that takes runs at once, on one that confirms them, and on one that refuses."""

    def manager(push: bool = False, refuses: bool = False, **options: Any) -> TaskManager:
        made = TaskManager(broker_url="memory://", **options)
        made.register_task(work)
        made.register_task(mail)

        async def channel() -> Callable[[EnqueueBatch, Callable[[int, Exception | None], None]], None]:
            def send(batch: EnqueueBatch, confirm: Callable[[int, Exception | None], None]) -> None:
                loop.call_soon(confirm, 0, BrokerConnectionError("not there") if refuses else None)

            return send

        made.broker.push = lambda priority, payload: push  # type: ignore[method-assign]
        made.broker.channel = channel  # type: ignore[method-assign]
        return made

    atonce, confirms, refuses = manager(push=True), manager(), manager(refuses=True)
    buffers, loses = manager(delivery="buffered"), manager(delivery="buffered", refuses=True, buffer_runs=1)
    given.update(atonce=atonce, confirms=confirms, refuses=refuses)

    def queued(by: TaskManager, *args: Any, **kwargs: Any) -> Callable[[], object]:
        async def some() -> None:
            waiting = [by.queue(*args, **kwargs) for _ in range(3)]
            for found in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(found, Exception):
                    raise found

        return lambda: loop.run_until_complete(some())

    def not_awaited() -> None:
        async def some() -> None:
            confirms.queue("work", to=text)

        loop.run_until_complete(some())

    async def lost() -> None:
        await loses.queue("work", to=text)
        await loses.flush()

    def raised(*args: Any, **kwargs: Any) -> None:
        atonce.queue(*args, **kwargs).send(None)

    yield "queue, at once", lambda: atonce.queue("work", "low", to=text).close(), None
    yield "queue, nothing", lambda: atonce.queue(), TypeError  # type: ignore[call-arg]
    yield "queue, no such task", lambda: raised(text), RuntimeError
    yield "queue, no such priority", lambda: raised("work", text), ValueError
    yield "queue, wrong params", lambda: raised("mail", to=7), RuntimeError
    yield "queue, params twice", lambda: raised("mail", params=7, a=7), TypeError
    yield "queue, what cannot be sent", lambda: raised("work", to=given["value"]), RuntimeError
    yield "queue, without a loop", lambda: confirms.queue("work", to=text).close(), None
    yield "queue, confirmed, executed", queued(confirms, "work", "low", run_id=text, to=text), None
    yield "queue, params in one, executed", queued(confirms, "mail", params={"to": text}), None
    yield "queue, refused, executed", queued(refuses, "work", to=text), RuntimeError
    yield "queue, not awaited, executed", not_awaited, None
    yield "queue, buffered, executed", queued(buffers, "work", to=text), None
    yield "queue, buffered and lost, executed", lambda: loop.run_until_complete(lost()), RuntimeError


def lane_cases(given: dict[str, Any], loop: asyncio.AbstractEventLoop, value: object) -> Iterator[Case]:
    """A run that is sent in its await, with the answer that it finds there."""

    class Transport:
        def is_closing(self) -> bool:
            return False

        def write(self, data: bytes) -> None: ...

    class OfOne(Lane):
        def take_over(self, batch: EnqueueBatch, confirm: Confirm) -> None:
            confirm(0, BrokerConnectionError("what came is no answer") if self.came else None)

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    lane = OfOne()
    link = lane.link = Direct()
    link._fd, link._transport, link.watched = ours.fileno(), Transport(), "p"
    lane.prepare("p", b"*head", (b"high", b"medium", b"low"), b"tail")
    lane.good_until = float("inf")
    producer = Producer(TaskBroker.from_url("redis://127.0.0.1:1"))
    payload = b"a payload"
    given.update(lane=lane, link=link, payload=payload)

    async def one(answer: bytes, seconds: float = 10.0) -> None:
        producer._enter_loop()
        producer.id, producer._channel, producer._lane = "p", lane, lane
        producer._lone, producer._task = 3, id(asyncio.current_task())
        # the run before was just now, however long this machine takes: after a pause no answer is looked for
        producer._awaited, link._look_seconds, link.watched = float("inf"), seconds, "p"
        theirs.send(answer)
        try:
            assert await producer.submit(loop, 1, payload, value) is value
        finally:
            assert theirs.recv(1000).removeprefix(b"*").startswith(b"head")  # that one may have come ahead

    def closed() -> None:
        link.closed = True
        future = producer.submit(loop, 1, payload, value)
        future.send(None)
        link.closed = False
        producer._fail(BrokerConnectionError("closed"))
        future.result()

    confirms = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n+OK\r\n"
    yield "lane, prepared", lambda: lane.prepare("p", b"*head", (b"high", b"medium", b"low"), b"tail"), None
    yield "lane, prepared wrong", lambda: lane.prepare("p", b"", value, b""), TypeError  # type: ignore[arg-type]
    yield "lane, confirmed, executed", lambda: loop.run_until_complete(one(confirms)), None
    yield "lane, refused, executed", lambda: loop.run_until_complete(one(b"-no")), RuntimeError
    yield "lane, no answer, executed", lambda: loop.run_until_complete(one(b"", 0.0)), None
    yield "lane, closed", closed, RuntimeError
    ours.close()
    theirs.close()


def claim_cases(given: dict[str, Any], value: object) -> Iterator[Case]:
    """What a claim gives, and the notes of what became of it."""

    class Notes(Ledger):
        def _start_send(self, lease: Lease) -> None:
            self._dirty.clear()

    ledger = Notes()
    ledger._timer = value  # type: ignore[assignment]  # it is running
    run = TaskRun(id="x", task=work)
    taken, flat = [(1, b"payload")] * 3, [b"m1", b"payload"] * 3
    given.update(taken=taken, flat=flat, ledger=ledger, claimed_run=run)

    def ended() -> None:
        lease = Lease("batch", 3, Settlement("batch"))
        for item in numbered(taken):
            item.lease, item.run = lease, run
            ledger.finished(item)

    yield "claimed, numbered", lambda: numbered(taken), None
    yield "claimed, paired", lambda: paired(flat), None
    yield "claimed, one alone", lambda: paired(flat[:3]), ValueError
    yield "claimed, no pairs", lambda: numbered([(1, value)]), TypeError  # type: ignore[list-item]
    yield "claimed, no name", lambda: paired([b"\xff", b""]), ValueError
    yield "claimed, ended", ended, None
    yield "claimed, ended without a lease", lambda: ledger.finished(Claimed("m1", b"")), AttributeError


def references(given: dict[str, Any]) -> dict[str, int]:
    counts = {}
    for name, item in given.items():
        for i, one in enumerate(item if name in ("tasks", "states", "types", "refused") else [item]):
            # None is everybody's
            if one is not None:
                counts[f"{name} {i}"] = sys.getrefcount(one)
    return counts


def check(case: Case, given: dict[str, Any], calls: int) -> str:
    """What a case leaves behind; nothing if it is clean."""
    name, call, error = case

    def repeat(times: int) -> None:
        if error is None:
            for _ in itertools.repeat(None, times):
                call()
        else:
            for _ in itertools.repeat(None, times):
                try:
                    call()
                except error:
                    pass
                else:
                    raise AssertionError(f"{name}: no {error.__name__}")

    repeat(WARM_UP)
    found = ""
    for _ in range(3):  # a cache fills once, a leak leaks again
        counts = None  # those of the round before are blocks too
        gc.collect()
        counts, known, blocks = references(given), len(gc.get_objects()), sys.getallocatedblocks()
        repeat(calls)
        gc.collect()
        more = sys.getallocatedblocks() - blocks, len(gc.get_objects()) - known
        changed = {
            what: now - counts[what] for what, now in references(given).items() if abs(now - counts[what]) > SLACK // 10
        }
        if not changed and max(map(abs, more)) <= SLACK:
            return ""
        found = f"{name}: {more[0]} blocks, {more[1]} objects, references {changed} after {calls} calls"
    return found


def main(calls: int, names: list[str]) -> int:
    given: dict[str, Any] = {}
    checked, leaks = 0, []
    gc.collect()
    gc.freeze()  # what was imported is nobody's leak, and need not be looked at again and again
    for case in cases(given):
        if not names or any(part in case[0] for part in names):
            checked += 1
            leaks.append(check(case, given, calls if "executed" not in case[0] else calls // 10))
    leaks = [leak for leak in leaks if leak]
    print(f"{checked} cases, {calls} calls each", *leaks, sep="\n")
    return len(leaks)


@pytest.mark.parametrize(("allocator", "calls"), [("default", 4_000), ("debug", 1_000)])
def test_nothing_is_left_behind(allocator: str, calls: int) -> None:
    environment = {**os.environ, "PYTHONMALLOC": allocator, "PYTHONPATH": os.pathsep.join([".", *sys.path[:1]])}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(calls)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"cases, {calls} calls each" in done.stdout


def test_a_leak_is_found() -> None:
    """The checker itself: one reference, one block, one object a call."""
    kept: list[Any] = []
    sentinel = object()
    given = {"sentinel": sentinel}
    gc.collect()
    gc.freeze()  # what other tests have left need not be looked at again and again
    try:
        for leak in (lambda: kept.append(sentinel), lambda: kept.append(bytes(60)), lambda: kept.append([])):
            assert "after 1000 calls" in check(("leak", leak, None), given, 1000)
        assert check(("clean", lambda: [sentinel, bytes(60)], None), given, 1000) == ""
    finally:
        gc.unfreeze()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else CALLS, sys.argv[2:]))
