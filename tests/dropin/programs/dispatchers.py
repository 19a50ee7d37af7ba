"""Handlers of states, plain and async, and dispatchers of one's own."""

import asyncio

from fluid.scheduler import TaskConsumer, TaskManager, TaskRun, task
from fluid.utils.dispatcher import AsyncDispatcher, Dispatcher, Event


@task
async def greet(ctx: TaskRun) -> None:
    ctx.logger.debug("hello")


@task
async def refuse(ctx: TaskRun) -> None:
    ctx.abort("not today")


class Words(Dispatcher[str]):
    def event_type(self, message: str) -> str:
        return message[:1]


class AsyncWords(AsyncDispatcher[str]):
    def event_type(self, message: str) -> str:
        return message[:1]


async def own_dispatchers() -> None:
    heard: list[str] = []
    words = Words()
    print(words.register_handler("a", heard.append), words.register_handler("a.twice", heard.append))
    print(words.dispatch("apple"), words.dispatch("pear"), heard)
    print(words.unregister_handler("a.twice") == heard.append, words.unregister_handler("a.twice"))
    print(Event.from_string("a.b"), Event.from_string_or_event(Event("x", "")))

    async def hear(word: str) -> None:
        heard.append(word.upper())

    async_words = AsyncWords()
    async_words.register_handler("p", hear)
    await async_words.dispatch("pear")
    print(heard)


async def main() -> None:
    await own_dispatchers()
    plain = TaskManager()
    print(plain.register_async_handler("success", None), plain.unregister_async_handler("success"))

    consumer = TaskConsumer(sleep_millis=10)
    consumer.register_from_dict(globals())
    told: list[str] = []
    over = asyncio.Event()
    for state in ("init", "queued", "running", "success", "aborted"):
        consumer.dispatcher.register_handler(f"{state}.tell", lambda run: told.append(f"{run.name} {run.state}"))

    async def later(run: TaskRun) -> None:
        told.append(f"{run.name} async")
        over.set()

    consumer.register_async_handler("success.mine", later)
    await consumer.startup()
    run = await consumer.queue_and_wait("greet", timeout=10)
    async with asyncio.timeout(10):
        await over.wait()
    print(run.state, told)
    told.clear()
    run = await consumer.queue_and_wait("refuse", timeout=10)
    print(run.state, told, run.is_failure)
    print(consumer.unregister_async_handler("success.mine") is later)
    await consumer.shutdown()


asyncio.run(main())
