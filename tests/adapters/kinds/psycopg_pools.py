"""The four pools of psycopg_pool."""

from __future__ import annotations

from typing import Any

from adapters.kinds.kind import AsyncKind, Kind
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
    PoolTimeout,
)


class Kept(Kind):
    name = "psycopg-pool"
    pool_class = "ConnectionPool"
    exhausted = PoolTimeout
    twice = ValueError
    made: Any = ConnectionPool

    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        pool = self.made(
            server.dsn, max_size=size, timeout=timeout, open=True, **self.least(size)
        )
        pool.wait()  # its workers connect: that is not what is timed
        return pool

    def least(self, size: int) -> dict[str, int]:
        return {"min_size": size}

    def take(self, pool: Any) -> Any:
        return pool.getconn()

    def give(self, pool: Any, connection: Any) -> None:
        pool.putconn(connection)

    def discard(self, pool: Any, connection: Any) -> None:
        connection.close()
        pool.putconn(connection)

    def query(self, connection: Any, sql: str) -> Any:
        return connection.execute(sql).fetchone()[0]

    def close(self, pool: Any) -> None:
        pool.close()


class Null(Kept):
    name = "psycopg-null-pool"
    pool_class = "NullConnectionPool"
    keeps = False
    made = NullConnectionPool

    def least(self, size: int) -> dict[str, int]:
        return {}


class AsyncKept(AsyncKind):
    name = "psycopg-async-pool"
    pool_class = "AsyncConnectionPool"
    exhausted = PoolTimeout
    twice = ValueError
    made: Any = AsyncConnectionPool

    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        async def opened() -> Any:
            pool = self.made(
                server.dsn,
                max_size=size,
                timeout=timeout,
                open=False,
                **self.least(size),
            )
            await pool.open(wait=True)
            return pool

        return self.run(opened)

    def least(self, size: int) -> dict[str, int]:
        return {"min_size": size}

    async def take(self, pool: Any) -> Any:
        return await pool.getconn()

    async def give(self, pool: Any, connection: Any) -> None:
        await pool.putconn(connection)

    async def discard(self, pool: Any, connection: Any) -> None:
        await connection.close()
        await pool.putconn(connection)

    async def query(self, connection: Any, sql: str) -> Any:
        cursor = await connection.execute(sql)
        return (await cursor.fetchone())[0]

    async def close(self, pool: Any) -> None:
        await pool.close()


class AsyncNull(AsyncKept):
    name = "psycopg-async-null-pool"
    pool_class = "AsyncNullConnectionPool"
    keeps = False
    made = AsyncNullConnectionPool

    def least(self, size: int) -> dict[str, int]:
        return {}


KINDS = [Kept, Null, AsyncKept, AsyncNull]
