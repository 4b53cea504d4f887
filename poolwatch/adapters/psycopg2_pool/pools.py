"""psycopg2's pools: SimpleConnectionPool, ThreadedConnectionPool and subclasses."""

from __future__ import annotations

import os
from typing import Any

from psycopg2.pool import AbstractConnectionPool

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.psycopg2_pool.connect import parameters_of, server_connect
from poolwatch.adapters.psycopg2_pool.hooks import Psycopg2Hooks, connect
from poolwatch.adapters.urls import masked_url, uncut
from poolwatch.ledger.pool import PoolLedger


class Psycopg2Pools(LibraryPools):
    """The instrumented psycopg2 pools of this process, by weak reference."""

    target_classes = (AbstractConnectionPool,)
    patched_classes = (AbstractConnectionPool,)
    arguments_of = staticmethod(parameters_of)
    server_connect = staticmethod(server_connect)

    def make_hooks(self, target: Any, ledger: PoolLedger) -> Psycopg2Hooks:
        """Hook the pool."""
        return Psycopg2Hooks(target, ledger, self._context, self._patches)

    def name_of(self, target: Any) -> str:
        """The database, libpq's default for it, or the class."""
        parameters = parameters_of(target)
        database = parameters.get("dbname") or os.environ.get("PGDATABASE")
        return uncut(str(database or parameters.get("user") or type(target).__name__))

    def url_of(self, target: Any) -> str | None:
        """The URL of the database."""
        return masked_url(parameters_of(target))

    def _instrumenting_init(self, original: Any) -> Any:
        """Measure the connect times of the connections that ``__init__`` opens."""

        def instrumenting_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            if self._settings_for_all is None:
                original(pool, *args, **kwargs)
                return
            first = _FirstConnections()
            with self._lock:
                self._patches.hook(pool, first, _connect=connect)
            try:
                original(pool, *args, **kwargs)
            finally:
                self._patches.unhook(id(pool))
            self.watch_discovered(pool)
            hooks = self._hooks_of(pool)
            if isinstance(hooks, Psycopg2Hooks):
                for opened in first.opened_so_far:
                    hooks.opened(*opened)

        return instrumenting_init


class _FirstConnections:
    """Records the connections of a pool that its ``__init__`` opens."""

    def __init__(self) -> None:
        self.opened_so_far: list[tuple[Any, float, float]] = []
        """Connection, ``time.monotonic()``, seconds to connect."""

    def opened(self, connection: Any, opened: float, connect_s: float) -> None:
        """Record one connection."""
        self.opened_so_far.append((connection, opened, connect_s))

    def suppress_failure(self, error: BaseException) -> bool:
        """Whether a failure of poolwatch is hidden from the application."""
        return isinstance(error, Exception)
