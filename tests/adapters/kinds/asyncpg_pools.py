"""asyncpg's own pools."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from adapters.kinds.kind import AsyncKind
from asyncpg.pool import Pool


class Plain(AsyncKind):
    name = "asyncpg"
    pool_class = "asyncpg.Pool"
    exhausted = TimeoutError
    may_lose_broken = not hasattr(Pool, "get_init_size")  # before 0.32
    made: Any = staticmethod(asyncpg.create_pool)

    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        self.timeout = timeout

        async def make() -> Any:
            return await self.made(
                server.dsn,
                min_size=size,
                max_size=size,
                # before 0.32 the timer of an idle connection outlives its pool
                max_inactive_connection_lifetime=0,
            )

        return self.run(make)

    async def take(self, pool: Any) -> Any:
        return await pool.acquire(timeout=self.timeout)

    async def give(self, pool: Any, connection: Any) -> None:
        await pool.release(connection)

    async def discard(self, pool: Any, connection: Any) -> None:
        connection.terminate()
        await pool.release(connection)

    async def query(self, connection: Any, sql: str) -> Any:
        return await connection.fetchval(sql)

    async def close(self, pool: Any) -> None:
        await asyncio.wait_for(pool.close(), 1)  # it waits for what is out

    def instances(self, pool: Any) -> list[Any]:
        held = [each._con for each in pool._holders if each._con is not None]
        return [pool, *pool._holders, *held]


class _Derived(Pool):
    """A pool of the user's own that calls the methods of its base."""

    def acquire(self, *, timeout: float | None = None) -> Any:
        return super().acquire(timeout=timeout)

    async def release(self, connection: Any, **settings: Any) -> Any:
        return await super().release(connection, **settings)


class Derived(Plain):
    name = "asyncpg-derived"
    pool_class = "_Derived"

    @staticmethod
    def made(dsn: str, **settings: Any) -> Any:
        return _Derived(
            dsn,
            max_queries=50000,
            loop=None,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            **settings,
        )


KINDS = [Plain, Derived]
