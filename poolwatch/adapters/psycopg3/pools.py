"""The pools of psycopg_pool: sync and async, null pools included."""

from __future__ import annotations

from typing import Any

from psycopg import BaseConnection
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from psycopg_pool.base import BasePool

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.psycopg3.connect import pool_name, pool_url, server_connect
from poolwatch.adapters.psycopg3.hooks import PsycopgHooks
from poolwatch.ledger.pool import PoolLedger


class PsycopgPools(LibraryPools):
    """The instrumented pools of psycopg_pool."""

    target_classes = (BasePool,)
    # its __init__ ends before the pool opens, so the first connections are recorded
    patched_classes = (BasePool,)
    lent_classes = (BaseConnection,)
    request_codes = (
        ConnectionPool._getconn_with_check_loop.__code__,
        AsyncConnectionPool._getconn_with_check_loop.__code__,
    )
    name_of = staticmethod(pool_name)
    url_of = staticmethod(pool_url)
    server_connect = staticmethod(server_connect)

    def make_hooks(self, target: Any, ledger: PoolLedger) -> PsycopgHooks:
        """Hook the pool."""
        return PsycopgHooks(target, ledger, self._context, self._patches)

    def is_ready(self, target: Any) -> bool:
        """Whether the base class has set its last attribute."""
        return "_open_implicit" in target.__dict__

    def options_of(self, target: Any) -> Any:
        """The connect arguments, and which callbacks set up a connection."""
        names = ("_configure", "_reset", "_check")
        callbacks = [getattr(target, name, None) is not None for name in names]
        return getattr(target, "kwargs", None), callbacks
