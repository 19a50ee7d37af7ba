"""What goes wrong, and how a program hears of it."""

import asyncio

from fluid.scheduler import TaskConsumer, TaskManager, TaskRun, TaskState, task
from fluid.scheduler.errors import (
    DisabledTaskError,
    TaskAbortedError,
    TaskDecoratorError,
    TaskError,
    TaskRunError,
    UnknownTaskError,
)
from fluid.scheduler.models import FINISHED_STATES
from pydantic import BaseModel, ValidationError


class Number(BaseModel):
    value: int


@task
async def fails(ctx: TaskRun) -> None:
    raise ValueError("as planned")


@task(timeout_seconds=1)
async def slow(ctx: TaskRun) -> None:
    await asyncio.sleep(30)


@task
async def gives_up(ctx: TaskRun) -> None:
    ctx.abort("enough")


@task
async def takes_number(ctx: TaskRun[Number]) -> None: ...


async def main() -> None:
    for kind in (UnknownTaskError, DisabledTaskError, TaskAbortedError, TaskDecoratorError, TaskRunError):
        print(kind.__name__, issubclass(kind, TaskError))
    manager = TaskManager()
    manager.register_from_dict(globals())
    for queue in (manager.queue, manager.execute):
        try:
            await queue("nonesuch")
        except UnknownTaskError as error:
            print(type(error).__name__)
    try:
        task()
    except TaskDecoratorError as error:
        print(type(error).__name__)
    try:
        await manager.queue("takes_number", value="many")
    except (ValidationError, ValueError) as error:
        print(isinstance(error, ValueError))
    try:
        await manager.execute("fails")
    except ValueError as error:
        print("execute raises", error)
    await manager.on_shutdown()

    consumer = TaskConsumer(sleep_millis=10)
    consumer.register_from_dict(globals())
    await consumer.startup()
    for name in ("fails", "slow", "gives_up"):
        run = await consumer.queue_and_wait(name, timeout=15)
        print(name, run.state, run.is_failure, run.is_done, run.state in FINISHED_STATES)
    info = await consumer.broker.enable_task("fails", enable=False)
    print(info.enabled, [i.enabled for i in await consumer.broker.get_tasks_info("fails")])
    run = await consumer.queue_and_wait("fails", timeout=15)
    print(run.state, run.state is TaskState.aborted)
    await consumer.broker.enable_task("fails")
    print([i.enabled for i in await consumer.broker.get_tasks_info("fails")])
    run = consumer.create_task_run("takes_number", value=1)
    run.set_state(TaskState.queued)
    run.set_state(TaskState.success)
    try:
        run.set_state(TaskState.running)
    except TaskRunError as error:
        print(type(error).__name__)
    await consumer.shutdown()


asyncio.run(main())
