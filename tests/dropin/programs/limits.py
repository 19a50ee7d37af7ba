"""max_concurrency: one run at a time, over the whole broker."""

import asyncio

from fluid.scheduler import RetryPolicy, TaskConsumer, TaskRun, TaskState, task

entered = asyncio.Event()
leave = asyncio.Event()
ran: list[str] = []


@task(max_concurrency=1, timeout_seconds=30)
async def alone(ctx: TaskRun) -> None:
    ran.append(ctx.id)
    entered.set()
    await leave.wait()


@task(max_concurrency=0)
async def free(ctx: TaskRun) -> None:
    ran.append("free")


async def main() -> None:
    consumer = TaskConsumer(sleep_millis=10, max_concurrent_tasks=4)
    consumer.register_task(alone)
    consumer.register_task(free)
    states: list[str] = []
    limited = asyncio.Event()

    def on_limited(run: TaskRun) -> None:
        states.append(f"{run.name} {run.state} start={run.start is not None}")
        limited.set()

    consumer.dispatcher.register_handler("rate_limited", on_limited)
    await consumer.startup()
    first = await consumer.queue(alone, run_id="first")
    async with asyncio.timeout(20):
        await entered.wait()
    print("running", await consumer.broker.current_task_runs("alone"))
    await consumer.queue(alone, run_id="second")
    async with asyncio.timeout(20):
        await limited.wait()
    print(states, TaskState.rate_limited in (TaskState.failure, TaskState.success))
    run = await consumer.queue_and_wait("free", timeout=10)
    print(run.state, ran)
    done = asyncio.Event()
    consumer.dispatcher.register_handler("success.last", lambda run: done.set())
    leave.set()
    async with asyncio.timeout(20):
        await done.wait()
    run = await consumer.queue_and_wait(alone, timeout=10)
    print(first.id, run.state, len(ran))
    await consumer.shutdown()
    print(alone.info().max_concurrency, RetryPolicy(max_attempts=2).max_attempts)


asyncio.run(main())
