"""Queue the addresses of stdin, one a line."""

import asyncio
import sys

from scraper import manager, queue_page


async def main() -> None:
    async with manager:
        for line in sys.stdin:
            await queue_page(line.strip())


asyncio.run(main())
