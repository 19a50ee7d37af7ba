"""The contract: what is known of tasks and managers, locks, and the broker's own life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from kits.broker_kit import HIGH, MEDIUM, places, put, take, with_options
from kits.waiting import until, within

from fluidfast import TaskManager, every, task
from fluidfast.brokers.base import TaskBroker
from fluidfast.brokers.contract import Settlement
from fluidfast.core._time import new_id
from fluidfast.core.states import TaskPriority, TaskState
from fluidfast.errors import PayloadError, UnknownTaskError

Open = Callable[..., TaskBroker]


@task
async def plain(ctx: Any) -> None: ...


@task(schedule=every(timedelta(hours=1)), priority="high")
async def scheduled(ctx: Any) -> None: ...


class TestTasks:
    async def test_only_registered_tasks_have_info(self, broker: TaskBroker) -> None:
        assert await broker.get_tasks_info() == []
        assert await broker.get_tasks_info("plain") == []
        broker.register_task(plain)
        broker.register_task(scheduled)
        assert [info.name for info in await broker.get_tasks_info()] == ["plain", "scheduled"]
        (info,) = await broker.get_tasks_info("scheduled", "other")
        assert (info.name, info.enabled, info.priority) == ("scheduled", True, TaskPriority.high)
        assert (info.last_run_end, info.last_run_duration, info.last_run_state) == (None, None, None)
        assert info.schedule == str(scheduled.schedule)

    async def test_enable(self, open_broker: Open, keeps: list[str]) -> None:
        keeps.append("tasks")
        one, two = open_broker(), open_broker()
        for broker in (one, two):
            broker.register_task(plain)
            broker.register_task(scheduled)
        assert not (await one.enable_task("plain", False)).enabled
        assert [info.enabled for info in await two.get_tasks_info("plain", "scheduled")] == [False, True]
        assert (await two.claim("a", 1, tasks=["plain", "scheduled", "unheard"])).enabled == {
            "plain": False,
            "scheduled": True,
            "unheard": True,
        }
        assert (await two.enable_task("plain")).enabled
        assert (await one.claim("a", 1, tasks=["plain"])).enabled == {"plain": True}
        with pytest.raises(UnknownTaskError, match="nonesuch"):
            await one.enable_task("nonesuch")

    async def test_update(self, open_broker: Open, keeps: list[str]) -> None:
        keeps.append("tasks")
        one, two = open_broker(), open_broker()
        two.register_task(plain)
        info = await one.update_task(
            plain,
            {
                "last_run_end": "2026-07-01T10:20:30.5+00:00",
                "last_run_state": "aborted",
                "last_run_duration": timedelta(seconds=0.25),
            },
        )
        assert info.last_run_state is TaskState.aborted
        assert await two.get_tasks_info("plain") == [info]
        assert info.enabled
        info = await two.update_task(plain, {"enabled": False})
        assert info.last_run_state is TaskState.aborted
        assert await two.update_task(plain, {}) == info

    async def test_filter(self, broker: TaskBroker, keeps: list[str]) -> None:
        keeps.append("tasks")

        async def names(**how: bool) -> list[str]:
            return sorted(task.name for task in await broker.filter_tasks(**how))

        assert await names(enabled=True) == []
        broker.register_task(plain)
        broker.register_task(scheduled)
        await broker.enable_task("scheduled", False)
        assert await names() == ["plain", "scheduled"]
        assert await names(scheduled=True) == ["scheduled"]
        assert await names(scheduled=False) == ["plain"]
        assert await names(enabled=True) == ["plain"]
        assert await names(enabled=False) == ["scheduled"]
        assert await names(scheduled=True, enabled=True) == []

    async def test_registry(self, broker: TaskBroker) -> None:
        with pytest.raises(UnknownTaskError, match="plain"):
            broker.task_from_registry("plain")
        assert broker.task_from_registry(plain) is plain
        assert broker.task_from_registry("plain") is plain
        broker.register_task(scheduled)
        assert list(broker.registry.periodic()) == [scheduled]


class TestManagers:
    async def test_statuses(self, open_broker: Open) -> None:
        one, two = open_broker(), open_broker()
        assert await one.get_all_manager_statuses() == await two.get_all_manager_statuses()
        assert (await one.get_all_manager_statuses()).workers == []
        await one.set_manager_status("m1", {"kind": "task_consumer", "status": {"a": {"running": True}}}, ttl=60)
        await put(one, b"x", b"y", priority=HIGH)
        await two.set_manager_status("m2", {"kind": "task_scheduler", "status": {}}, ttl=60)
        await two.set_manager_status("m1", {"kind": "task_consumer", "status": {"a": {"running": False}}}, ttl=60)
        found = await one.get_all_manager_statuses()
        assert sorted((w.kind, w.status) for w in found.workers) == [
            ("task_consumer", {"a": {"running": False}}),
            ("task_scheduler", {}),
        ]
        assert found.queues == {"high": 2, "medium": 0, "low": 0}
        await take(one)

    async def test_a_status_is_forgotten(self, broker: TaskBroker) -> None:
        await broker.set_manager_status("m1", {"kind": "task_consumer", "status": {}}, ttl=1)

        async def forgotten() -> bool:
            return not (await broker.get_all_manager_statuses()).workers

        assert not await forgotten()
        await until(forgotten)

    async def test_aborted(self, open_broker: Open) -> None:
        one, two = open_broker(), open_broker()
        assert await one.get_task_aborted("run-1") is None
        await one.set_task_aborted("run-1", "no need: é")
        await one.set_task_aborted("run-2", "")
        assert await two.get_task_aborted("run-1") == "no need: é"
        assert not await two.get_task_aborted("run-2")
        assert await two.get_task_aborted("run-3") is None


class TestLock:
    @pytest.fixture
    def name(self) -> str:
        return f"lock-{new_id()}"

    async def test_one_holder_at_a_time(self, open_broker: Open, name: str) -> None:
        brokers = [open_broker(), open_broker()]
        inside = 0
        order: list[int] = []

        async def hold(i: int) -> None:
            nonlocal inside
            async with brokers[i % 2].lock(name, timeout=60):
                inside += 1
                assert inside == 1
                order.append(i)
                await asyncio.sleep(0)
                inside -= 1

        await within(asyncio.gather(*(hold(i) for i in range(6))))
        assert sorted(order) == list(range(6))

    async def test_other_names_are_other_locks(self, broker: TaskBroker, name: str) -> None:
        async with broker.lock(name, timeout=60), broker.lock(f"{name}:other", timeout=60):
            pass

    async def test_opens_by_itself(self, open_broker: Open, name: str) -> None:
        one, two = open_broker(), open_broker()
        start = monotonic()
        dead = one.lock(name, timeout=0.15)
        assert await dead.acquire()
        async with asyncio.timeout(20), two.lock(name, timeout=60):
            assert 0.1 < monotonic() - start < 10

    async def test_without_a_timeout_it_stays(self, open_broker: Open, name: str) -> None:
        one, two = open_broker(), open_broker()
        second = two.lock(name, timeout=60)
        async with one.lock(name):
            waiter = asyncio.create_task(second.acquire())
            done, _ = await asyncio.wait([waiter], timeout=0.3)
            assert not done
        assert await within(waiter)
        third = asyncio.create_task(one.lock(name).acquire())
        await asyncio.wait([third], timeout=0.05)
        third.cancel()  # who gives up waiting takes nothing
        await asyncio.wait([third], timeout=20)
        assert third.cancelled()
        await second.release()
        async with asyncio.timeout(20), one.lock(name, timeout=60):
            pass

    async def test_is_let_go_when_the_block_fails(self, broker: TaskBroker, name: str) -> None:
        with pytest.raises(ZeroDivisionError):
            async with broker.lock(name, timeout=60):
                raise ZeroDivisionError
        async with asyncio.timeout(20), broker.lock(name, timeout=60):
            pass


class TestFirst:
    async def test_one_of_all_callers(self, open_broker: Open) -> None:
        brokers = [open_broker() for _ in range(4)]
        for key in ("noon", "one o'clock"):
            assert sorted(await asyncio.gather(*(b.first(key, 60) for b in brokers))) == [False, False, False, True]

    async def test_for_a_time(self, broker: TaskBroker) -> None:
        assert await broker.first("noon", 0.1)
        assert not await broker.first("noon", 0.1)
        await until(lambda: broker.first("noon", 60))
        assert not await broker.first("noon", 60)


class TestLife:
    @pytest.mark.usefixtures("one_shard")
    async def test_close_twice_and_use_again(self, broker: TaskBroker) -> None:
        await broker.close()
        await broker.connect()
        await put(broker, b"x")
        await broker.close()
        await broker.close()
        await put(broker, b"y")
        await within(broker.wait("a", 10))
        await broker.close()
        taken = []
        while len(taken) < 2:
            taken += await take(broker, consumer="a")
        assert taken == [b"x", b"y"]
        await within(broker.wait("a", 0.05))
        await broker.deregister("a")
        await broker.close()

    async def test_clear(self, open_broker: Open) -> None:
        broker = open_broker(lease_seconds=0.1)
        other_url = "memory://" if broker.url.scheme == "memory" else broker.url.raw.partition("?")[0]
        other = TaskBroker.from_url(with_options(other_url, name=f"{broker.name}-other"))
        await put(other, b"theirs")
        broker.register_task(plain)
        await broker.enable_task("plain", False)
        await put(broker, b"a", b"b", b"c", b"d")
        claim = await broker.claim("a", 1)
        await broker.settle(Settlement(claim.batch, whole=True, dead=[(claim.items[0].field, "why")]))
        await broker.claim("a", 1)
        await until(broker.reap)
        await broker.claim("a", 1)
        await broker.delay([(60.0, MEDIUM, b"later")])
        assert await broker.acquire(plain._replace(max_concurrency=1), "run-1")
        await broker.set_task_aborted("run-1", "why")
        assert await broker.first("noon", 60)
        assert await broker.clear() > 0
        assert await places(broker) == {}
        assert await broker.clear() == 0
        assert (await broker.get_tasks_info("plain"))[0].enabled
        assert await broker.get_task_aborted("run-1") is None
        assert await broker.current_task_runs("plain") == 0
        assert await broker.first("noon", 60)
        await put(broker, b"new")
        assert await take(broker) == [b"new"]
        assert await take(other) == [b"theirs"]
        await other.close()

    async def test_brokers_of_another_name_are_others(self, broker_url: str, open_broker: Open) -> None:
        one, two = open_broker(), open_broker()
        assert one.name == two.name
        await put(one, b"x")
        assert await take(two) == [b"x"]
        assert str(one.url) == one.url.raw


class TestRuns:
    """One run at a time, without a consumer."""

    @pytest.fixture
    async def manager(self, broker_url: str) -> AsyncIterator[TaskManager]:
        async with TaskManager(broker_url=broker_url) as manager:
            manager.register_task(plain)
            yield manager

    @pytest.mark.usefixtures("one_shard")
    async def test_queue_and_get(self, manager: TaskManager, open_broker: Open) -> None:
        await open_broker().connect()
        broker = manager.broker
        assert await broker.get_task_run(manager) is None
        runs = [manager.create_task_run("plain", n=n) for n in range(3)]
        runs[2].set_state("queued")
        runs.append(manager.create_task_run("plain", priority="high", n=3))
        for run in runs:
            await broker.queue_task(run)
        got = [await broker.get_task_run(manager) for _ in range(4)]
        assert [(run.id, run.params.n) for run in got if run] == [(runs[i].id, i) for i in (3, 0, 1, 2)]
        assert {run.state for run in got if run} == {TaskState.queued}
        assert await broker.get_task_run(manager) is None
        assert await places(broker) == {}

    @pytest.mark.parametrize(
        ("payload", "error"), [(b"\xffnot json", PayloadError), (b'{"task":"nonesuch"}', UnknownTaskError)]
    )
    async def test_what_is_no_run_goes_to_the_dead(
        self, manager: TaskManager, open_broker: Open, keeps: list[str], payload: bytes, error: type[Exception]
    ) -> None:
        keeps.append("ff:dead")
        await put(open_broker(), payload)
        with pytest.raises(error):
            await manager.broker.get_task_run(manager)
        assert [body for _, body in await manager.broker.dead()] == [payload]
        assert await places(manager.broker) == {"dead": 1}
