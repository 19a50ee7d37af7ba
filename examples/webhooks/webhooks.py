"""Deliver webhooks, signed, with retries that back off for hours."""

import hashlib
import hmac
import os
from typing import Any

import httpx
import msgspec

from fluidfast import RetryPolicy, TaskManager, TaskRun, task

SECRET = os.environ.get("WEBHOOK_SECRET", "change me").encode()
FIRST_WAIT = float(os.environ.get("FIRST_WAIT", "10"))


class Hook(msgspec.Struct):
    url: str
    event: dict[str, Any]


@task(
    # about 10 s, 40 s, 3 min, 11 min, 43 min, 3 h, 6 h, 6 h; then the run goes to the dead letters
    retry=RetryPolicy(max_attempts=8, wait=FIRST_WAIT, backoff=4, max_wait=6 * 3600, jitter=0.2),
    timeout_seconds=30,
)
async def deliver(ctx: TaskRun[Hook]) -> None:
    """Send an event to a receiver."""
    body = msgspec.json.encode(ctx.params.event)
    response = await ctx.deps.http.post(
        ctx.params.url,
        content=body,
        headers={
            "content-type": "application/json",
            "webhook-id": ctx.id,  # the same in each retry and redelivery: the receiver drops what it has seen
            "webhook-signature": hmac.new(SECRET, body, hashlib.sha256).hexdigest(),
        },
    )
    if response.status_code == 410:
        ctx.abort(f"{ctx.params.url} wants no webhooks any more")  # no retry
    response.raise_for_status()  # raises for 4xx and 5xx: retry


manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
manager.register_task(deliver)
manager.deps.http = httpx.AsyncClient(timeout=20)
manager.add_async_context_manager(manager.deps.http)  # closed at the end
