"""psycopg2's own pools."""

from __future__ import annotations

from typing import Any

from adapters.kinds.kind import Kind
from psycopg2.pool import PoolError, SimpleConnectionPool, ThreadedConnectionPool


class Threaded(Kind):
    name = "psycopg2-threaded"
    pool_class = "ThreadedConnectionPool"
    exhausted = PoolError
    waits = False
    twice = PoolError
    holds_outlive_close = False
    made = ThreadedConnectionPool

    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        return self.made(1, size, server.dsn)

    def take(self, pool: Any) -> Any:
        return pool.getconn()

    def give(self, pool: Any, connection: Any) -> None:
        pool.putconn(connection)

    def discard(self, pool: Any, connection: Any) -> None:
        pool.putconn(connection, close=True)

    def query(self, connection: Any, sql: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]

    def close(self, pool: Any) -> None:
        pool.closeall()


class Simple(Threaded):
    name = "psycopg2-simple"
    pool_class = "SimpleConnectionPool"
    made = SimpleConnectionPool


class _Derived(ThreadedConnectionPool):
    """A pool of the user's own that calls the methods of its base."""

    def getconn(self, key: Any = None) -> Any:
        return super().getconn(key)

    def putconn(self, conn: Any = None, key: Any = None, close: bool = False) -> None:
        super().putconn(conn, key, close)


class Derived(Threaded):
    name = "psycopg2-derived"
    pool_class = "_Derived"
    made = _Derived


KINDS = [Threaded, Simple, Derived]
