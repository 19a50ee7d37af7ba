"""An order in three steps: pay, then pack each item, then ship when all items are packed."""

import os

from fluidfast import RetryPolicy, TaskManager, TaskRun

manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
redis = manager.broker.redis_cli
prefix = manager.broker.prefix

RETRY = RetryPolicy(max_attempts=5, wait=1, backoff=2)
WEEK = 7 * 24 * 3600

# Each step may run twice (delivery is at least once), so each step is written such that twice is as good as once.


@manager.task(retry=RETRY)
async def pay(ctx: TaskRun, order: str, items: list[str]) -> None:
    """Charge the customer, then queue a run of ``pack`` for each item."""
    ctx.logger.info("charged %s, idempotency key %s", order, order)
    await pack.queue_many({"order": order, "item": item, "of": len(items)} for item in items)


@manager.task(retry=RETRY)
async def pack(order: str, item: str, of: int) -> None:
    """Pack an item. Whoever packs the last one queues ``ship``."""
    packed = f"{prefix}-packed-{order}"
    # A set, not a counter: packing an item twice adds it once.
    await redis.sadd(packed, item)
    await redis.expire(packed, WEEK)
    if await redis.scard(packed) == of:
        await ship.queue(order)


@manager.task(retry=RETRY)
async def ship(ctx: TaskRun, order: str) -> None:
    """Ship an order, once: two runs that pack the last two items at the same time both queue this."""
    shipped = f"{prefix}-shipped-{order}"
    first = await redis.set(shipped, ctx.id, ex=WEEK, nx=True)
    if first or await redis.get(shipped) == ctx.id.encode():  # or this run began to, and was delivered again
        print(f"shipped {order}", flush=True)
