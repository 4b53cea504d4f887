"""The pools of psycopg_pool, sync and async, with and without connections kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg_pool.base import BasePool

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.psycopg3.connect import pool_name, pool_url, server_connect
from poolwatch.adapters.psycopg3.hooks import PsycopgHooks
from poolwatch.ledger.pool import PoolBook


class PsycopgPools(LibraryPools):
    """The instrumented pools of psycopg_pool."""

    accepted = (BasePool,)
    made = (BasePool,)  # before the pool opens, so that its first connections are seen

    def make_hooks(self, target: Any, book: PoolBook) -> PsycopgHooks:
        """Hook one pool."""
        return PsycopgHooks(target, book, self._context, self._patches)

    def name_of(self, target: Any) -> str:
        """The name that the user gave the pool, or the database."""
        return pool_name(target)

    def url_of(self, target: Any) -> str | None:
        """Where its connections go."""
        return pool_url(target)

    def server_connect(self, target: Any) -> Callable[[], Any]:
        """A connection with the pool's own parameters."""
        return server_connect(target)

    def is_ready(self, target: Any) -> bool:
        """Whether the last thing is there that the base class makes."""
        return "_open_implicit" in target.__dict__
