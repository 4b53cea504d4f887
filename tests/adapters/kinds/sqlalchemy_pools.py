"""SQLAlchemy's QueuePool, on psycopg2 and on asyncpg."""

from __future__ import annotations

from typing import Any

from adapters.kinds.kind import AsyncKind, Kind
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool


class Engine(Kind):
    name = "sqlalchemy"
    pool_class = "QueuePool"
    exhausted = PoolTimeoutError
    reopens = True

    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        return create_engine(
            server.url(),
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=timeout,
        )

    def take(self, pool: Any) -> Any:
        return pool.connect()

    def give(self, pool: Any, connection: Any) -> None:
        connection.close()

    def discard(self, pool: Any, connection: Any) -> None:
        connection.invalidate()
        connection.close()

    def query(self, connection: Any, sql: str) -> Any:
        return connection.execute(text(sql)).scalar()

    def close(self, pool: Any) -> None:
        pool.dispose()

    def instances(self, pool: Any) -> list[Any]:
        return [pool, pool.pool]


class AsyncEngine(AsyncKind):
    name = "sqlalchemy-asyncpg"
    pool_class = "AsyncAdaptedQueuePool"
    exhausted = PoolTimeoutError
    reopens = True

    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        return create_async_engine(
            server.url("asyncpg"),
            pool_size=size,
            max_overflow=0,
            pool_timeout=timeout,
        )

    async def take(self, pool: Any) -> Any:
        return await pool.connect()

    async def give(self, pool: Any, connection: Any) -> None:
        await connection.close()

    async def discard(self, pool: Any, connection: Any) -> None:
        await connection.invalidate()
        await connection.close()

    async def query(self, connection: Any, sql: str) -> Any:
        return (await connection.execute(text(sql))).scalar()

    async def close(self, pool: Any) -> None:
        await pool.dispose()

    def instances(self, pool: Any) -> list[Any]:
        return [pool.sync_engine, pool.pool]


KINDS = [Engine, AsyncEngine]
