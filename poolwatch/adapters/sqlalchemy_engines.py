"""Which engines and pools of SQLAlchemy are instrumented, and how to reach them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import finalize

from sqlalchemy.engine import Engine
from sqlalchemy.engine.base import OptionEngineMixin
from sqlalchemy.pool import NullPool, Pool, SingletonThreadPool, StaticPool

from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.library_pools import LibraryPools
from poolwatch.adapters.sqlalchemy import (
    PoolHooks,
    counting_listeners,
    pool_name,
    pool_url,
)
from poolwatch.adapters.sqlalchemy_listeners import Common
from poolwatch.ledger import PoolBook
from poolwatch.settings import Settings


class Engines(LibraryPools):
    """The instrumented engines and pools of this process. They are not kept alive."""

    accepted = (Engine, Pool)
    made = (Engine,)

    def __init__(self, context: AdapterContext) -> None:
        super().__init__(context)
        self._common = Common()

    def watch_every(self, settings: Settings, *, existing: bool = True) -> None:
        """Count what is only counted for all at once, if there can be no pool yet."""
        if not existing and not self._context.ledger.observers.watched:
            self._common.begin(counting_listeners())
        super().watch_every(settings, existing=existing)

    def forget_every(self) -> None:
        """Take off all hooks."""
        super().forget_every()
        self._common.end()

    def unwrapped(self, target: Any) -> Any:
        """The engine behind an AsyncEngine or an engine with options."""
        target = getattr(target, "sync_engine", target)
        while isinstance(target, Engine) and hasattr(target, "_proxied"):
            target = target._proxied  # options may be set upon options
        return target

    def pool_of(self, target: Any) -> Any:
        """The pool that an engine has now."""
        return target.pool if isinstance(target, Engine) else target

    def arguments_of(self, target: Any) -> Any:
        """What the driver is called with."""
        from poolwatch.adapters.sqlalchemy_connect import connect_arguments

        return connect_arguments(self.pool_of(target))

    def is_new(self, target: Any) -> bool:
        """Not if its pool keeps no connections, or one for a database of its own in
        memory: making such engines is cheap, and often meant.
        """
        if isinstance(
            self.pool_of(target), NullPool | StaticPool | SingletonThreadPool
        ):
            return False
        return super().is_new(target)

    def is_ready(self, target: Any) -> bool:
        """Whether it is an engine of its own, and has its pool."""
        if issubclass(type(target), OptionEngineMixin):
            return False
        return isinstance(target.__dict__.get("pool"), Pool)

    def is_bare(self, pool: Any) -> bool:
        """If it has its own ``connect``."""
        return "connect" not in vars(pool)

    def met_again(self, hooks: Any, target: Any) -> None:
        """The engine of a pool that was given without it knows statements."""
        if isinstance(target, Engine):
            hooks.note_statements(target)

    def make_hooks(self, target: Any, book: PoolBook) -> PoolHooks:
        """Hook the pool, and the engine if there is one."""
        return PoolHooks(target, book, self._context, self._common)

    def follow(self, hooks: Any) -> None:
        """They go with the last of their pools."""
        finalize(hooks, self._gone, hooks.book.id).atexit = False

    def name_of(self, target: Any) -> str:
        """The logging name, the database, or the class."""
        return pool_name(target)

    def url_of(self, target: Any) -> str | None:
        """The engine's URL."""
        return pool_url(target)

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """As the engine makes its own."""
        if isinstance(target, Engine) and target.dialect.name != "postgresql":
            return None
        from poolwatch.adapters.sqlalchemy_connect import server_connect

        return server_connect(target)
