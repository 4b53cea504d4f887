"""psycopg2's own pools: SimpleConnectionPool, ThreadedConnectionPool, their like."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from psycopg2.pool import AbstractConnectionPool

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.patching import original_class, restore_class, subclass
from poolwatch.adapters.psycopg2_pool.connect import parameters_of, server_connect
from poolwatch.adapters.psycopg2_pool.hooks import Psycopg2Hooks
from poolwatch.adapters.urls import masked_url
from poolwatch.ledger.pool import PoolBook
from poolwatch.ledger.settings import Settings


class Psycopg2Pools(LibraryPools):
    """The instrumented pools of psycopg2. They are not kept alive."""

    accepted = (AbstractConnectionPool,)
    made = (AbstractConnectionPool,)

    def make_hooks(self, target: Any, book: PoolBook) -> Psycopg2Hooks:
        """Hook the pool."""
        return Psycopg2Hooks(target, book, self._context)

    def apply(self, hooks: Any, settings: Settings) -> None:
        """Look for dropped connections, or do not."""
        hooks.prove_dropped = settings.prove_dropped

    def name_of(self, target: Any) -> str:
        """The database; else what stands for it in libpq, or the class."""
        parameters = parameters_of(target)
        database = parameters.get("dbname") or os.environ.get("PGDATABASE")
        return str(database or parameters.get("user") or type(target).__name__)

    def url_of(self, target: Any) -> str | None:
        """What it connects to."""
        return masked_url(parameters_of(target))

    def arguments_of(self, target: Any) -> Any:
        """What libpq is given."""
        return parameters_of(target)

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """As the pool makes its own, but a plain connection."""
        return server_connect(target)

    def _watching_init(self, below: Any) -> Any:
        """Note how long each of the first connections took: ``__init__`` opens them."""

        def watched_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            if self._every is None:
                below(pool, *args, **kwargs)
                return
            opened: list[tuple[Any, float, float]] = []
            with _timed(pool, opened):
                below(pool, *args, **kwargs)
            self.watch_one_of_all(pool)
            hooks = self._of(pool)
            if isinstance(hooks, Psycopg2Hooks):
                for connection, when, took in opened:
                    hooks.opened(connection, when, took)

        return watched_init


@contextmanager
def _timed(pool: Any, opened: list[tuple[Any, float, float]]) -> Iterator[None]:
    """Note what the pool opens: the connection, the time, and the seconds it took."""
    base: Any = original_class(type(pool))

    def _connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        connection = base._connect(pool, *args, **kwargs)
        now = monotonic()
        opened.append((connection, now, now - began))
        return connection

    timed = subclass(base, _connect=_connect)
    pool.__class__ = timed
    try:
        yield
    finally:
        restore_class(pool, timed)
