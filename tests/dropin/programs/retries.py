"""Retry policies: which failures come back, and how often."""

import asyncio

from fluid.scheduler import RetryPolicy, TaskConsumer, TaskRun, task

attempts: list[str] = []


class Flaky(Exception):
    """Will be better soon."""


@task(retry=RetryPolicy(max_attempts=1, wait=0.1, exceptions=(Flaky,)))
async def flaky(ctx: TaskRun) -> None:
    attempts.append(f"flaky {ctx.retry_attempt}")
    if ctx.retry_attempt == 0:
        raise Flaky("not yet")


@task(retry=RetryPolicy(max_attempts=5, wait=0.1, exceptions=(Flaky,)))
async def other(ctx: TaskRun) -> None:
    attempts.append(f"other {ctx.retry_attempt}")
    raise ValueError("of another kind")


@task
async def never(ctx: TaskRun) -> None:
    attempts.append(f"never {ctx.retry_attempt}")
    raise Flaky("no policy")


async def main() -> None:
    policy = RetryPolicy(max_attempts=4, wait=2, backoff=3, max_wait=30)
    print([policy.delay(attempt) for attempt in (1, 2, 3, 4)])
    print(policy.matches(Flaky()), RetryPolicy(exceptions=(Flaky,)).matches(ValueError()))
    print(flaky.info().retry.model_dump(include={"max_attempts", "wait", "exceptions"}))

    consumer = TaskConsumer(sleep_millis=10)
    consumer.register_from_dict(globals())
    seen: dict[str, list[str]] = {}
    over = asyncio.Event()

    def note(run: TaskRun) -> None:
        seen.setdefault(run.name, []).append(f"{run.state} {run.retry_attempt}")
        if all(name in seen for name in ("other", "never")) and len(seen.get("flaky", [])) == 2:
            over.set()

    for state in ("success", "failure"):
        consumer.dispatcher.register_handler(f"{state}.note", note)
    await consumer.startup()
    ids = [(await consumer.queue(name)).id for name in ("flaky", "other", "never")]
    async with asyncio.timeout(30):
        await over.wait()
    await consumer.shutdown()
    print(len(set(ids)), sorted(attempts))
    for name in sorted(seen):
        print(name, seen[name])


asyncio.run(main())
