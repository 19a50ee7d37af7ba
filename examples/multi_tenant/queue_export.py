"""Queue the export of a table: python queue_export.py TENANT TABLE"""

import asyncio
import sys

from tenants import export, place_of


async def main(tenant: str, table: str) -> None:
    manager, priority = place_of(tenant)
    async with manager:
        await manager.queue(export, priority=priority, tenant=tenant, table=table)


asyncio.run(main(*sys.argv[1:]))
