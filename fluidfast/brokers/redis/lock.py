"""The lock that a broker gives to tasks and managers: redis-py's, with our errors."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from redis.asyncio.lock import Lock
from redis.exceptions import LockError, LockNotOwnedError

from ...checks import check_number
from ...errors import BrokerError, ConfigError
from .client import RedisClient

__all__ = ["BrokerLock"]


class BrokerLock(Lock):
    """redis-py's lock, with our errors: BrokerError where the server is not there or refuses. That it is held no more
    is LockError, as ever."""

    def __init__(self, client: RedisClient, name: str, timeout: float | None) -> None:
        if timeout is not None:
            check_number("timeout", timeout, ConfigError, least=0.001)
        super().__init__(client.redis_cli, name, timeout=timeout)
        self._client = client

    async def do_acquire(self, token: Any) -> bool:
        async def acquire() -> bool:
            # The answer to a first sending may be lost: then the lock is ours, and would wait for itself.
            return await take(token) or await self.redis.get(self.name) == token

        take = super().do_acquire
        return bool(await self._client.redis(acquire))

    async def do_release(self, expected_token: bytes) -> None:
        sent = 0

        async def release() -> None:
            nonlocal sent
            sent += 1
            try:
                await let_go(expected_token)
            except LockNotOwnedError:
                if sent == 1:
                    raise

        let_go = super().do_release
        await self._patiently(release)

    async def do_extend(self, additional_time: Any, replace_ttl: Any) -> Literal[True]:
        extend = super().do_extend
        await self._patiently(lambda: extend(additional_time, replace_ttl))
        return True

    async def do_reacquire(self) -> Literal[True]:
        await self._patiently(super().do_reacquire)
        return True

    async def locked(self) -> bool:
        return bool(await self._client.redis(super().locked))

    async def owned(self) -> bool:
        return bool(await self._client.redis(super().owned))

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await self._client.redis(call)
        except BrokerError as exc:
            if isinstance(exc.__cause__, LockError):
                raise exc.__cause__ from None
            raise
