"""The tasks of the service. The API queues them; workers execute them."""

import os

from fluidfast import RetryPolicy, TaskManager, TaskRun

# A TaskManager queues runs and executes none. The worker command makes a consumer of it.
manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))


@manager.task(retry=RetryPolicy(max_attempts=5, wait=1, backoff=2, jitter=0.2), timeout_seconds=30)
async def send_welcome(ctx: TaskRun, to: str) -> None:
    """Send the welcome mail."""
    # Delivery is at least once: pass the run's id to your mail provider as the idempotency key.
    ctx.logger.info("welcome mail to %s, idempotency key %s", to, ctx.id)
