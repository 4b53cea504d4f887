"""asyncpg's pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncpg.pool import Pool

from poolwatch.adapters.asyncpg_pool.connect import (
    arguments_of,
    database_of,
    server_connect,
    url_of,
)
from poolwatch.adapters.asyncpg_pool.hooks import AsyncpgHooks
from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.urls import uncut
from poolwatch.ledger.pool import PoolLedger


class AsyncpgPools(LibraryPools):
    """The instrumented asyncpg pools of this process, by weak reference."""

    target_classes = (Pool,)
    patched_classes = (Pool,)
    request_codes = (Pool._acquire.__code__,)
    url_of = staticmethod(url_of)
    arguments_of = staticmethod(arguments_of)

    def kind_of(self, target: Any) -> str:
        """The name of its class; "Pool" alone is ambiguous."""
        return "asyncpg.Pool" if type(target) is Pool else super().kind_of(target)

    def make_hooks(self, target: Any, ledger: PoolLedger) -> AsyncpgHooks:
        """Hook the pool, which may not be initialised yet."""
        hooks = AsyncpgHooks(target, ledger, self._context, self._patches)
        ledger.server_connect = server_connect(lambda: hooks.pool)
        return hooks

    def is_new(self, target: Any) -> bool:
        """Whether no statement was sent yet; the pool takes no weak reference."""
        protocols = [h._con._protocol for h in target._holders if h._con is not None]
        return not any(each is None or each.queries_count for each in protocols)

    def options_of(self, target: Any) -> Any:
        """Which callbacks set up a connection."""
        return [getattr(target, name, None) is not None for name in ("_init", "_setup")]

    def is_ready(self, target: Any) -> bool:
        """Whether its ``__init__`` is complete."""
        return hasattr(target, "_max_inactive_connection_lifetime")

    def name_of(self, target: Any) -> str:
        """The database."""
        return uncut(database_of(target) or "asyncpg")

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """None: make_hooks() sets it, with hooks that do not keep the pool alive."""
        return None
