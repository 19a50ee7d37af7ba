"""Fetch pages with one request at a time for each host, and a pause between two of them, over all workers."""

import asyncio
import os
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from fluidfast import RetryPolicy, Task, TaskManager, TaskRun, task

HOSTS = os.environ.get("HOSTS", "example.com example.org").split()
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "1"))


class Page(msgspec.Struct):
    url: str


async def fetch(ctx: TaskRun[Page]) -> None:
    """Fetch a page and store its text under its address."""
    response = await ctx.deps.http.get(ctx.params.url, follow_redirects=True)
    if response.status_code in (404, 410):
        ctx.abort(f"{ctx.params.url} is gone")  # no retry
    response.raise_for_status()
    await ctx.deps.redis.hset(ctx.deps.pages, ctx.params.url, response.text)
    await asyncio.sleep(PAUSE_SECONDS)  # the run keeps its host's only slot meanwhile


def task_of(host: str) -> Task[Any]:
    """Return the task of a host. ``max_concurrency`` counts over all workers."""
    return task(
        name=f"fetch-{host}",
        max_concurrency=1,
        rate_limit_retry=RetryPolicy(wait=PAUSE_SECONDS, jitter=0.5),  # no limit: a run waits until it is its turn
        retry=RetryPolicy(max_attempts=4, wait=1, backoff=3, jitter=0.2, exceptions=(httpx.HTTPError,)),
        timeout_seconds=60,
    )(fetch)


async def queue_page(url: str) -> None:
    """Queue a page with the task of its host."""
    await manager.queue(f"fetch-{urlsplit(url).netloc}", url=url)


manager = TaskManager(broker_url=os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379"))
for host in HOSTS:
    manager.register_task(task_of(host))
manager.deps.redis = manager.broker.redis_cli
manager.deps.pages = f"{manager.broker.prefix}-pages"
manager.deps.http = httpx.AsyncClient(headers={"user-agent": "my-crawler (crawler@example.com)"}, timeout=20)
manager.add_async_context_manager(manager.deps.http)  # closed at the end
