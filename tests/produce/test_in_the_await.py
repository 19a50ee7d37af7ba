"""A loop that awaits one call after the other: the batch is sent and answered within the `await`."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic, sleep
from typing import Any

import pytest
import redis
from kits.broker_kit import HIGH, LOW, MEDIUM, take, take_all
from kits.lone_kit import Awaits, Withholding, admin, calls, submit
from kits.servers import RedisServer
from kits.waiting import within

from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Confirm, EnqueueBatch
from fluidfast.brokers.redis._lane import Direct, Lane
from fluidfast.brokers.redis._resp import pack
from fluidfast.brokers.redis.channel import RedisChannel
from fluidfast.errors import BrokerFullError
from fluidfast.produce.producer import MAX_BATCH_BYTES, Producer


@asynccontextmanager
async def others(busy_seconds: float) -> AsyncIterator[list[None]]:
    """A task beside, that is busy for so long in each turn of the event loop, and notes them."""
    turns: list[None] = []

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(None)
            until = monotonic() + busy_seconds
            while monotonic() < until:
                pass

    task = asyncio.create_task(other())
    yield turns
    task.cancel()


class Stopped(BaseException):
    """As a signal's handler may raise it, anywhere."""


class stopped:
    """Raises it at a line of ours that is run while a batch is taken over, and calls ``before`` there."""

    def __init__(self, at: int, before: Callable[[], object] = lambda: None) -> None:
        self.at = at
        self.before = before
        self.happened = False

    def __enter__(self) -> stopped:
        sys.settrace(self.trace)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> bool:
        sys.settrace(None)
        return kind is Stopped

    def trace(self, frame: Any, event: str, argument: object) -> Any:
        caller = frame
        while caller is not None and caller.f_code.co_name != "_take_over":
            caller = caller.f_back
        ours = "fluidfast" in frame.f_code.co_filename
        if event == "line" and ours and caller is not None and not self.happened:
            self.at -= 1
            if not self.at:
                self.happened = True
                sys.settrace(None)
                self.before()
                raise Stopped
        return self.trace


def taken_over(awaits: Awaits, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What came of the answer of each run that was sent in the await and not confirmed there."""
    came: list[bytes] = []
    take_over = RedisChannel.take_over

    def noted(self: RedisChannel, *args: Any) -> None:
        came.append(self.came)
        take_over(self, *args)

    monkeypatch.setattr(RedisChannel, "take_over", noted)
    return came


async def test_closed_while_somebody_goes_on_queueing(producer: Producer) -> None:
    """What is on its way stays known to the server under the id that it was sent with."""
    await submit(producer, b"first")
    before = producer.id
    loop = asyncio.get_running_loop()
    more: list[asyncio.Future[None]] = []
    second = producer.submit(loop, MEDIUM, b"second", None)
    second.add_done_callback(lambda _: more.append(producer.submit(loop, MEDIUM, b"third", None)))
    await within(producer.close())
    assert producer.id == before
    await within(asyncio.gather(*more))
    await within(producer.close())
    assert producer.id != before
    assert await take(producer.broker, 10) == [b"first", b"second", b"third"]


class TestInTheAwait:
    """``for ...: await queue()``: sent and confirmed without a turn of the event loop."""

    async def test_from_the_fourth_on(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            assert await awaits.in_the_await()
            assert awaits.producer.pending == awaits.producer.pending_bytes == 0
            assert awaits.producer.confirmed == awaits.producer._sequence == len(awaits.sent)
            assert await take(awaits.broker, 100) == awaits.sent

    @pytest.mark.parametrize("priority", [HIGH, MEDIUM, LOW])
    async def test_each_priority(self, server: RedisServer, priority: int) -> None:
        async with Awaits(server.url) as awaits:
            await take(awaits.broker, 100)
            for _ in range(3):
                await awaits.queue(priority=priority)
            with redis.Redis(port=server.port) as client:
                key = f"{awaits.broker.keys.queue(('high', 'medium', 'low')[priority])}"  # type: ignore[attr-defined]
                assert client.lrange(key, 0, -1) == awaits.sent[:-4:-1]
            await take(awaits.broker, 100)

    async def test_others_have_their_turn(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits, others(0.0) as turns:
            until = monotonic() + 0.1
            while monotonic() < until:
                await awaits.queue()
            assert len(turns) >= 30  # of 150; a machine may be busy
            await take(awaits.broker, 1_000_000)

    async def test_others_that_have_something_to_do_have_it_after_each_answer(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            await awaits.row(100)
            async with others(20e-6) as turns:
                await awaits.row(200)  # 2 ms until it is found out
                turns.clear()
                await awaits.row(100)
                assert len(turns) >= 90
                assert awaits.producer._hold == 0
            await take(awaits.broker, 1_000_000)

    async def test_what_comes_is_read_handled_and_woken_in_one_go(self, server: RedisServer) -> None:
        """The task that waits for it goes on within one await."""
        near, far = socket.socketpair()
        with near, far:
            far.setblocking(False)
            async with Awaits(server.url) as awaits:
                received = asyncio.create_task(asyncio.get_running_loop().sock_recv(far, 1))
                await awaits.row(5)
                near.send(b"x")
                awaits.producer._hold = 0.0  # it is time
                awaits.producer._awaited = monotonic()
                await awaits.queue()
                assert received.done()
                await take(awaits.broker, 100)

    async def test_the_event_loop_is_not_kept_by_a_slow_answer(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            awaits.link.busy_poll(10.0)  # of which it is looked for a part in the await
            await awaits.row(2)
            turns: list[None] = []
            admin(server, "CLIENT", "PAUSE", 30)
            awaits.producer._awaited = awaits.producer._turned = monotonic()
            awaits.producer._hold = 1.0
            asyncio.get_running_loop().call_soon(turns.append, None)
            await awaits.queue()
            assert turns
            await take(awaits.broker, 100)

    async def test_an_exception_in_the_middle(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """As of a signal's handler, at each point from which it can come when it was sent and is not confirmed."""
        async with Awaits(server.url, look_us=0) as awaits:
            stops = 0
            for stop_at in range(1, 50):
                await awaits.row(5)
                with stopped(at=stop_at) as stop:
                    await awaits.queue()
                stops += stop.happened
                await asyncio.wait_for(awaits.row(1), 10)
            assert stops > 30
            await within(awaits.producer.flush())
            assert awaits.producer.pending == 0
            assert sorted(await take(awaits.broker, 1000)) == sorted(awaits.sent)

    @pytest.mark.parametrize("size", [10, MAX_BATCH_BYTES])
    async def test_a_handler_that_queues_in_the_middle(self, server: RedisServer, size: int) -> None:
        """Before it raises: one that waits for its turn, or one that is so large that it is sent at once."""
        async with Awaits(server.url, look_us=0) as awaits:
            futures: list[asyncio.Future[None]] = []

            def queue() -> None:
                payload = b"%d" % len(futures) + b"x" * size
                awaits.sent.append(payload)
                futures.append(awaits.producer.submit(asyncio.get_running_loop(), MEDIUM, payload, None))

            stops = 0
            for stop_at in range(1, 50):
                await awaits.row(5)
                with stopped(at=stop_at, before=queue) as stop:
                    await awaits.queue()
                stops += stop.happened
                await asyncio.wait_for(awaits.row(1), 10)
            assert stops == len(futures) > 30
            await within(asyncio.gather(*futures))
            await within(awaits.producer.flush())
            assert awaits.producer.pending == awaits.producer.pending_bytes == 0
            assert sorted(await take_all(awaits.broker)) == sorted(awaits.sent)

    @pytest.mark.parametrize("size", [10, MAX_BATCH_BYTES])
    async def test_a_handler_that_queues_just_before(self, server: RedisServer, size: int) -> None:
        """While asyncio's transport is asked whether it is open."""
        async with Awaits(server.url) as awaits:
            loop, link, second = asyncio.get_running_loop(), awaits.link, b"second" + b"x" * size

            class Asked:
                def __init__(self) -> None:
                    self.transport = link._transport
                    self.futures: list[asyncio.Future[None]] = []
                    self.asked = False

                def is_closing(self) -> bool:
                    if not self.asked:
                        self.asked = True
                        self.futures.append(awaits.producer.submit(loop, MEDIUM, second, None))
                    return False

                def __getattr__(self, name: str) -> Any:
                    return getattr(self.transport, name)

            asked = link._transport = Asked()
            await awaits.queue(b"first")
            await within(asyncio.gather(*asked.futures))
            link._transport = asked.transport
            assert len(asked.futures) == 1
            awaits.sent.append(second)
            await awaits.row(5)
            assert awaits.producer.pending == awaits.producer.pending_bytes == 0
            assert await take(awaits.broker, 100) == awaits.sent

    async def test_an_exception_in_the_middle_of_a_refusal(self, server: RedisServer) -> None:
        stops = 0
        async with Awaits(server.url) as awaits:
            for stop_at in range(40, 140):  # after what the test above goes through
                await awaits.row(5)
                awaits.link = await awaits.broker.client.link()  # type: ignore[attr-defined]
                awaits.link._look_seconds = 10.0
                awaits.producer._awaited = monotonic()
                admin(server, "CONFIG", "SET", "maxmemory", "1")
                awaits.producer._awaited = monotonic()
                with stopped(at=stop_at) as stop, suppress(BrokerFullError):
                    await awaits.queue(b"refused")
                stops += stop.happened
                admin(server, "CONFIG", "SET", "maxmemory", "0")
                await asyncio.wait_for(awaits.row(1), 10)
            assert stops > 10
            await within(awaits.producer.flush())
            assert awaits.producer.pending == awaits.producer.pending_bytes == 0
            await take(awaits.broker, 1000)

    async def test_what_can_be_heard_of_is_heard_in_time(self, server: RedisServer) -> None:
        """Cancellation, timers and signals come by the event loop: a loop of nothing but queueing ends by them."""
        async with Awaits(server.url) as awaits:

            async def forever() -> None:
                while True:
                    await awaits.queue()

            with pytest.raises(TimeoutError):
                await within(asyncio.wait_for(forever(), 0.05))
            await take(awaits.broker, 1_000_000)

    async def test_who_queues_many_at_once_is_not_made_to_wait_one_by_one(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            for queue_many in (
                lambda: asyncio.gather(*(awaits.queue(b"%d" % n) for n in range(100))),  # each in a task of its own
                lambda: submit(awaits.producer, *(b"%d" % n for n in range(100))),
            ):
                await awaits.row(5)
                batches = awaits.producer.confirmed
                awaits.producer._awaited = monotonic()  # no time has passed
                await within(queue_many())
                assert awaits.producer.confirmed - batches <= 2
            await take(awaits.broker, 1000)

    async def test_not_from_another_task(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            turns: list[None] = []

            async def once() -> bool:
                asyncio.get_running_loop().call_soon(turns.append, None)
                awaits.producer._awaited = awaits.producer._turned = monotonic()  # no time has passed
                await awaits.queue()
                return bool(turns)

            await awaits.row(5)
            assert await within(asyncio.create_task(once()))
            await take(awaits.broker, 100)

    async def test_not_into_what_is_still_being_written(self, server: RedisServer) -> None:
        """The transport holds the rest of a large command, while the socket has room again."""
        async with Awaits(server.url) as awaits:
            link = await awaits.broker.client.link()  # type: ignore[attr-defined]
            await awaits.row(2)
            large = b"x" * 30_000_000
            echo = link.call(pack(("ECHO", large)))
            assert link._transport.get_write_buffer_size()
            sleep(0.05)  # noqa: ASYNC251  # without a turn of the loop; the server takes what the socket holds
            awaits.producer._awaited = monotonic()
            await awaits.queue()
            assert await within(echo) == large
            assert await take(awaits.broker, 100) == awaits.sent

    async def test_in_the_order_of_the_calls(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            first = awaits.producer.submit(asyncio.get_running_loop(), MEDIUM, b"a", None)
            second = awaits.producer.submit(asyncio.get_running_loop(), MEDIUM, b"b", None)
            await first
            await second
            await awaits.row(5)
            third = awaits.producer.submit(asyncio.get_running_loop(), MEDIUM, b"c", None)
            await asyncio.sleep(0)
            await third
            assert await take(awaits.broker, 100) == [*awaits.sent[:5], b"a", b"b", *awaits.sent[5:], b"c"]

    async def test_an_answer_that_takes_longer(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Awaits(server.url, look_us=1) as awaits:
            came = taken_over(awaits, monkeypatch)
            monkeypatch.setattr("fluidfast.brokers.redis.link.POLL_PAUSE", 0.0)
            await awaits.row(50)
            assert came
            assert len(await take(awaits.broker, 100)) == 55
            assert awaits.producer.confirmed == 55

    async def test_an_answer_in_pieces(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        with Pieces(server.port) as pieces:
            async with Awaits(f"redis://127.0.0.1:{pieces.port}") as awaits:
                came = taken_over(awaits, monkeypatch)
                for size in range(1, 45):
                    for _ in range(30):  # beside other load an answer may be too late for the await
                        await awaits.row(3)
                        before = sum(map(bool, came))
                        pieces.first = size
                        await awaits.queue()
                        if sum(map(bool, came)) > before:
                            break
                assert sum(map(bool, came)) > 30
                assert await take(awaits.broker, 1000) == awaits.sent

    async def test_a_server_without_memory(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            await awaits.row(2)
            admin(server, "CONFIG", "SET", "maxmemory", "1")
            for _ in range(3):
                with pytest.raises(BrokerFullError):
                    await awaits.queue(b"too much")
            admin(server, "CONFIG", "SET", "maxmemory", "0")
            await awaits.queue(b"fits")
            taken = await take(awaits.broker, 100)
            assert b"too much" not in taken
            assert taken[-1] == b"fits"

    async def test_after_a_server_without_memory_the_mark_has_an_end(self, server: RedisServer) -> None:
        """None of what was refused has set it, so there is no time to live to keep."""
        async with Awaits(server.url) as awaits:
            await awaits.producer.close()  # from here on as another producer
            admin(server, "CONFIG", "SET", "maxmemory", "1")
            for _ in range(6):
                with pytest.raises(BrokerFullError):
                    await awaits.queue(b"too much")
            admin(server, "CONFIG", "SET", "maxmemory", "0")
            await awaits.row(1)
            assert 0 < awaits.mark_ms(server) <= 3_600_000
            await take(awaits.broker, 100)

    async def test_a_mark_that_is_gone(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Awaits(server.url) as awaits:
            came = taken_over(awaits, monkeypatch)
            await awaits.row(2)
            assert admin(server, "DEL", awaits.broker.keys.producer(awaits.producer.id)) == 1  # type: ignore[attr-defined]
            awaits.producer._awaited = monotonic()  # that took a while
            await awaits.row(2)
            assert [answer for answer in came if b"*-1" in answer], came
            assert await take(awaits.broker, 100) == awaits.sent

    async def test_what_arrives_after_it_was_sent_again(self, server: RedisServer) -> None:
        """As above, with the transaction that is sent in the await; not looked for, as the network is this loop."""
        async with (
            Withholding(server.port, b"the late one") as network,
            Awaits(f"redis://127.0.0.1:{network.port}", look_us=0) as awaits,
        ):
            before = calls(server, "evalsha")
            await awaits.row(3)
            await awaits.queue(b"the late one")
            assert network.held
            network.release.set()
            await within(network.passed.wait())
            await awaits.queue(b"last")
            assert calls(server, "evalsha") > before, "it was sent again by the script"
            assert await take(awaits.broker, 100) == awaits.sent

    async def test_two_producers_of_one_connection(self, server: RedisServer) -> None:
        """The EXEC of one ends what the server watches for the other, which goes by the script then."""
        async with Awaits(server.url) as awaits:
            other = Producer(awaits.broker)
            await submit(other, b"other")
            scripts = calls(server, "evalsha")
            await awaits.queue()
            assert calls(server, "evalsha") == scripts + 1
            await submit(other, b"other")
            assert calls(server, "evalsha") == scripts + 2
            await submit(other, b"other")
            assert calls(server, "evalsha") == scripts + 2
            await within(other.close())
            await take(awaits.broker, 100)

    @pytest.mark.parametrize("size", [3_000, 3_700, *range(3_760, 3_800, 7), 4_096, 100_000])
    async def test_payloads_of_any_size(self, server: RedisServer, size: int) -> None:
        async with Awaits(server.url) as awaits:
            for n in range(3):
                await awaits.queue(b"%d" % n * size)
            assert await take(awaits.broker, 100) == awaits.sent

    @pytest.mark.parametrize("number", [9, 10, 4_321, 10**9 - 1, 10**9, 123_456_789_012_345_678])
    async def test_batches_of_any_number(self, server: RedisServer, number: int) -> None:
        async with Awaits(server.url) as awaits:
            assert await awaits.in_the_await()
            awaits.producer._sequence = number - 1
            await awaits.queue()
            assert await awaits.in_the_await()
            assert awaits.marked(server) == number + 3
            assert await take(awaits.broker, 100) == awaits.sent

    async def test_the_mark_is_kept_for_longer_now_and_then(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            before = awaits.mark_ms(server)
            await asyncio.sleep(0.05)
            assert await awaits.in_the_await()
            assert 0 < awaits.mark_ms(server) <= before - 50
            lane = awaits.producer._lane
            assert lane is not None
            assert monotonic() + 50 < lane.good_until <= monotonic() + 60
            lane.good_until = monotonic()
            await awaits.queue()
            assert awaits.mark_ms(server) > before - 50
            assert awaits.marked(server) == len(awaits.sent)
            assert lane.good_until > monotonic() + 50
            assert await awaits.in_the_await()
            assert await take(awaits.broker, 100) == awaits.sent

    async def test_a_connection_that_is_closed(self, server: RedisServer) -> None:
        async with Awaits(server.url) as awaits:
            await awaits.row(2)
            admin(server, "CLIENT", "KILL", "TYPE", "normal")
            await awaits.row(5)
            admin(server, "CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.01)
            await awaits.row(5)
            assert await take(awaits.broker, 100) == awaits.sent

    @pytest.mark.parametrize("begun", [False, True])
    async def test_a_socket_that_takes_a_part(self, begun: bool) -> None:
        """What the socket does not take goes by the transport."""
        rest = bytearray()
        taken: list[EnqueueBatch] = []

        class Transport:
            def is_closing(self) -> bool:
                return False

            def write(self, data: bytes) -> None:
                rest.extend(data)

        class Short(Lane):
            def take_over(self, batch: EnqueueBatch, confirm: Confirm) -> None:
                taken.append(batch)

        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as small as it goes
            ours.setblocking(False)
            filled = 0
            with suppress(BlockingIOError):
                while True:
                    filled += ours.send(b"." * 700)
            filled -= len(theirs.recv(700))  # room for a part of what is sent next
            lane = Short()
            lane.link = Direct()
            lane.link._fd, lane.link._transport, lane.link.watched = ours.fileno(), Transport(), "p"
            lane.prepare("p", b"head ", (b"", b"push ", b""), b"tail")
            lane.good_until = monotonic() + 600
            lane.link.begun = begun
            producer = Producer(TaskBroker.from_url("redis://127.0.0.1:1"))
            producer._enter_loop()
            producer.id, producer._lane, producer._lone, producer._task = "p", lane, 3, id(asyncio.current_task())
            producer.submit(asyncio.get_running_loop(), MEDIUM, b"x" * 3000, None).send(None)
            assert [batch.groups for batch in taken] == [([], [b"x" * 3000], [])]
            assert 0 < len(rest) < 3000
            wanted = b"head $1\r\n1\r\npush $3000\r\n" + b"x" * 3000 + b"\r\ntail"
            assert theirs.recv(1 << 20) + rest == b"." * filled + wanted[begun:]
            assert not lane.link.begun


class Pieces:
    """In front of a server, in a thread: gives the next answer to a transaction in two pieces. ``first``: bytes."""

    def __init__(self, port: int) -> None:
        self.first = 0
        self._target = port
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Pieces:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._target))
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += (near, far)
                self._start(self._pass_on, near, far, False)
                self._start(self._pass_on, far, near, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self.first and b"QUEUED" in data:
                    target.sendall(data[: self.first])
                    data, self.first = data[self.first :], 0
                    sleep(0.003)
                if data:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)
