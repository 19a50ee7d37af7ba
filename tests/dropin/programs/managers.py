"""Dependencies, state and contexts of a manager, and of a consumer that takes them along."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fluid.scheduler import TaskConsumer, TaskManager, TaskManagerConfig, TaskRun, task
from fluid.scheduler.consumer import TaskDispatcher


@dataclass
class Deps:
    sent: list[str] = field(default_factory=list)


@task
async def send(ctx: TaskRun) -> None:
    ctx.deps.sent.append(ctx.name)


@asynccontextmanager
async def resource(name: str, told: list[str]):
    told.append(f"open {name}")
    yield name
    told.append(f"close {name}")


async def plain() -> None:
    told: list[str] = []
    deps = Deps()
    manager = TaskManager(deps=deps)
    manager.register_task(send)
    manager.add_async_context_manager(resource("first", told))
    manager.add_async_context_manager(resource("second", told))
    async with manager:
        print(manager.type, told)
        manager.state.answer = 42
        await manager.execute(send)
        print(deps.sent, manager.state.answer, manager.deps is deps)
    print(told)


async def consuming() -> None:
    told: list[str] = []
    consumer = TaskConsumer(deps=Deps(), max_concurrent_tasks=3, sleep_millis=20)
    consumer.register_task(send)
    consumer.add_async_context_manager(resource("pool", told))
    print(consumer.type, consumer.config.max_concurrent_tasks, consumer.config.sleep_millis)
    print(consumer.has_started(), consumer.is_running(), isinstance(consumer, TaskManager))
    print(isinstance(consumer.dispatcher, TaskDispatcher))
    await consumer.startup()
    print(consumer.has_started(), consumer.is_running(), consumer.is_stopped())
    run = await consumer.queue_and_wait("send", timeout=10)
    print(run.state, run.name, consumer.deps.sent)
    await consumer.shutdown()
    print(consumer.is_running(), consumer.is_stopped(), told)


async def main() -> None:
    await plain()
    await consuming()
    config = TaskManagerConfig(broker_url="redis://somewhere:6379", consume_tasks=False)
    print(config.broker_url, config.consume_tasks, config.max_concurrent_tasks)
    print(TaskManager(config=config).config is config)


asyncio.run(main())
