"""psycopg2's own pools: SimpleConnectionPool, ThreadedConnectionPool, their like."""

from __future__ import annotations

import os
from typing import Any

from psycopg2.pool import AbstractConnectionPool

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.psycopg2_pool.connect import parameters_of, server_connect
from poolwatch.adapters.psycopg2_pool.hooks import Psycopg2Hooks, connect
from poolwatch.adapters.urls import masked_url
from poolwatch.ledger.pool import PoolLedger


class Psycopg2Pools(LibraryPools):
    """The instrumented pools of psycopg2. They are not kept alive."""

    accepted = (AbstractConnectionPool,)
    made = (AbstractConnectionPool,)
    arguments_of = staticmethod(parameters_of)
    server_connect = staticmethod(server_connect)

    def make_hooks(self, target: Any, book: PoolLedger) -> Psycopg2Hooks:
        """Hook the pool."""
        return Psycopg2Hooks(target, book, self._context, self._patches)

    def name_of(self, target: Any) -> str:
        """The database, or libpq's default for it, or the class."""
        parameters = parameters_of(target)
        database = parameters.get("dbname") or os.environ.get("PGDATABASE")
        return str(database or parameters.get("user") or type(target).__name__)

    def url_of(self, target: Any) -> str | None:
        """What it connects to."""
        return masked_url(parameters_of(target))

    def _watching_init(self, below: Any) -> Any:
        """Note how long each of the first connections took: ``__init__`` opens them."""

        def watched_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            if self._every is None:
                below(pool, *args, **kwargs)
                return
            first = _FirstConnections()
            with self._lock:
                self._patches.hook(pool, first, _connect=connect)
            try:
                below(pool, *args, **kwargs)
            finally:
                self._patches.unhook(id(pool))
            self.watch_one_of_all(pool)
            hooks = self._of(pool)
            if isinstance(hooks, Psycopg2Hooks):
                for opened in first.opened_so_far:
                    hooks.opened(*opened)

        return watched_init


class _FirstConnections:
    """What a pool opens in its ``__init__``, before it can be hooked."""

    def __init__(self) -> None:
        self.opened_so_far: list[tuple[Any, float, float]] = []
        """Connection, ``time.monotonic()``, seconds that it took."""

    def opened(self, connection: Any, opened: float, took: float) -> None:
        """Note one."""
        self.opened_so_far.append((connection, opened, took))

    def survives(self, error: BaseException) -> bool:
        """Whether an exception of ours is swallowed: not one for the application."""
        return isinstance(error, Exception)
