"""An order in three steps: pay, then pack each item, then ship when all items are packed."""

import os

import msgspec

from fluidfast import RetryPolicy, TaskManager, TaskRun, task

RETRY = RetryPolicy(max_attempts=5, wait=1, backoff=2)
WEEK = 7 * 24 * 3600


class Order(msgspec.Struct):
    order: str
    items: list[str]


class Item(msgspec.Struct):
    order: str
    item: str
    of: int


class Parcel(msgspec.Struct):
    order: str


# Each step may run twice (delivery is at least once), so each step is written such that twice is as good as once.


@task(retry=RETRY)
async def pay(ctx: TaskRun[Order]) -> None:
    """Charge the customer, then queue a run of ``pack`` for each item."""
    order, items = ctx.params.order, ctx.params.items
    ctx.logger.info("charged %s, idempotency key %s", order, order)
    for item in items:
        await ctx.queue(pack, order=order, item=item, of=len(items))


@task(retry=RETRY)
async def pack(ctx: TaskRun[Item]) -> None:
    """Pack an item. Whoever packs the last one queues ``ship``."""
    packed = f"{ctx.deps.prefix}-packed-{ctx.params.order}"
    # A set, not a counter: packing an item twice adds it once.
    await ctx.deps.redis.sadd(packed, ctx.params.item)
    await ctx.deps.redis.expire(packed, WEEK)
    if await ctx.deps.redis.scard(packed) == ctx.params.of:
        await ctx.queue(ship, order=ctx.params.order)


@task(retry=RETRY)
async def ship(ctx: TaskRun[Parcel]) -> None:
    """Ship an order, once: two runs that pack the last two items at the same time both queue this."""
    shipped = f"{ctx.deps.prefix}-shipped-{ctx.params.order}"
    first = await ctx.deps.redis.set(shipped, ctx.id, ex=WEEK, nx=True)
    if first or await ctx.deps.redis.get(shipped) == ctx.id.encode():  # or this run began to, and was delivered again
        print(f"shipped {ctx.params.order}", flush=True)


manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
for step in (pay, pack, ship):
    manager.register_task(step)
manager.deps.redis = manager.broker.redis_cli
manager.deps.prefix = manager.broker.prefix
