"""Print the sums of the files that are indexed so far."""

import asyncio

import msgspec
from index import Counts, manager


async def main() -> None:
    async with manager:
        results = await manager.deps.redis.hvals(manager.deps.results)
        total = sum((msgspec.json.decode(result, type=Counts) for result in results), Counts())
        print(msgspec.json.encode(total).decode())


asyncio.run(main())
