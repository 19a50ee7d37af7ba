"""Tenants with queues of their own, and two plans that share a worker fairly."""

import os

import msgspec

from fluidfast import TaskManager, TaskPriority, TaskRun, task

BROKER = os.environ.get("FLUID_BROKER_URL", "redis://localhost:6379")
PAID = {"acme", "globex"}


class Export(msgspec.Struct):
    tenant: str
    table: str


@task(timeout_seconds=300)
async def export(ctx: TaskRun[Export]) -> None:
    """Export a table of a tenant."""
    print(f"export {ctx.params.table} of {ctx.params.tenant}, {ctx.priority}", flush=True)


def manager_of(queues: str) -> TaskManager:
    """Return a manager whose queues are named ``queues``. Brokers with different names share nothing."""
    manager = TaskManager(broker_url=f"{BROKER}?name={queues}")
    manager.register_task(export)
    return manager


def place_of(tenant: str) -> tuple[TaskManager, TaskPriority]:
    """Return the manager and the priority for a tenant: queues of its own if it pays, else the shared ones."""
    if tenant in PAID:
        return manager_of(tenant), TaskPriority.medium
    return shared, TaskPriority.low


shared = manager_of("shared")
manager = manager_of(os.environ.get("TENANT", "shared"))
"""The manager of a worker: ``TENANT=acme fluidfast worker tenants:manager``."""
