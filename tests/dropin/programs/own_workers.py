"""Workers: a function again and again, a queue with a callback, and a group of them."""

import asyncio

from fluid.utils.errors import WorkerStartError
from fluid.utils.worker import QueueConsumerWorker, Worker, WorkerFunction, Workers, WorkerState


class Countdown(Worker):
    def __init__(self, start: int) -> None:
        super().__init__(name="countdown")
        self.left = start
        self.done = asyncio.Event()

    async def run(self) -> None:
        while self.is_running() and self.left:
            self.left -= 1
            await asyncio.sleep(0)
        self.done.set()
        while self.is_running():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def a_function() -> None:
    calls: list[int] = []
    enough = asyncio.Event()

    async def call() -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()

    worker = WorkerFunction(call, heartbeat=0.001, name="caller")
    print(worker.worker_name, worker.worker_state is WorkerState.INIT, worker.num_workers, worker.has_started())
    await worker.startup()
    try:
        await worker.startup()
    except WorkerStartError as error:
        print(type(error).__name__)
    async with asyncio.timeout(10):
        await enough.wait()
    print(worker.is_running(), await worker.status())
    await worker.shutdown()
    print(worker.is_running(), worker.is_stopped(), len(calls) >= 3)


async def a_queue() -> None:
    got: list[str] = []
    all_there = asyncio.Event()

    async def take(message: str) -> None:
        got.append(message)
        if message == "c":
            all_there.set()

    worker: QueueConsumerWorker[str] = QueueConsumerWorker(take, name="taker")
    worker.send("a")
    print(worker.queue_size())
    await worker.startup()
    worker.send("b")
    worker.send("c")
    async with asyncio.timeout(10):
        await all_there.wait()
    await worker.shutdown()
    print(got, worker.queue_size(), worker.is_stopped())


async def a_group() -> None:
    first, second = Countdown(5), Countdown(2)
    group = Workers(first, name="group")
    group.add_workers(second)
    print(group.worker_name, group.num_workers, [worker.worker_name for worker in group.workers()])
    await group.startup()
    async with asyncio.timeout(10):
        await first.done.wait()
        await second.done.wait()
    print(group.is_running(), first.left, second.left)
    group.gracefully_stop()
    print(group.is_stopping())
    await group.wait_for_shutdown()
    print(group.is_stopped(), first.is_stopped(), second.is_stopped())


async def main() -> None:
    await a_function()
    await a_queue()
    await a_group()


asyncio.run(main())
