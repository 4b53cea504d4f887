"""Which engines and pools of SQLAlchemy are instrumented, and how to reach them all."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import finalize

from sqlalchemy.engine import Engine
from sqlalchemy.engine.base import OptionEngineMixin
from sqlalchemy.pool import NullPool, Pool, SingletonThreadPool, StaticPool

from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.library_pools import LibraryPools
from poolwatch.adapters.sqlalchemy import PoolHooks, pool_name, pool_url
from poolwatch.adapters.sqlalchemy_quiet import MARK, QuietPool, QuietWay
from poolwatch.ledger import PoolBook
from poolwatch.settings import Settings


class Engines(LibraryPools):
    """The instrumented engines and pools of this process. They are not kept alive."""

    accepted = (Engine, Pool)
    made = (Engine,)

    def __init__(self, context: AdapterContext) -> None:
        super().__init__(context)
        self._quiet = self._new_way()

    def watch_every(self, settings: Settings, *, existing: bool = True) -> None:
        """Take the quiet way if nobody can look."""
        if not self._context.ledger.observers.watched:
            self._quiet.begin()
        super().watch_every(settings, existing=existing)

    def forget_every(self) -> None:
        """Take off all hooks."""
        super().forget_every()
        self._quiet.end()
        self._quiet = self._new_way()

    def _new_way(self) -> QuietWay:
        return QuietWay(self._context.sites, self._context.ledger.observers)

    def can_wait(self, target: Any) -> bool:
        """Where nobody can look it is enough to mark its pool: see sqlalchemy_quiet."""
        if not self._quiet or self._context.ledger.observers.watched:
            return False
        pool: Pool = target.pool
        with self._lock:
            if self._quiet_of(pool) is None:
                if not self.is_bare(pool) or not self._quiet.leads_to(pool):
                    return False
                self._quiet.note_statements(type(target.dialect))
                pool.__dict__[MARK] = QuietPool(self, target, pool)
        return True

    def _quiet_of(self, pool: Any) -> QuietPool | None:
        quiet = pool.__dict__.get(MARK)
        return quiet if quiet is not None and quiet.library is self else None

    def use(self, pool: Pool, quiet: QuietPool) -> bool:
        """Make the hooks of an engine that is used for the first time."""
        with self._lock:
            if quiet.hooks is None:
                if self._every is None or quiet.library is not self:
                    quiet.remove(pool)  # it was marked by one that does not watch now
                    return False
                target = quiet.target()
                self._hook(pool if target is None else target, self._every)
        return True

    def _of(self, pool: Any) -> Any:
        quiet = self._quiet_of(pool)
        if quiet is None:
            return super()._of(pool)
        return quiet.hooks if self.use(pool, quiet) else None

    def admit_viewers(self) -> None:
        """Have them see all engines, and the statements of each."""
        if not self._quiet:
            return
        for each in gc.get_objects():
            if issubclass(type(each), Engine) and self.is_ready(each):
                quiet = self._quiet_of(each.pool)
                if quiet is not None:
                    quiet.is_used(each.pool, None)
        for hooks in list(self._hooks.values()):
            if isinstance(hooks, PoolHooks):
                hooks.wake()
                self.follow(hooks)

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
        quiet = self._quiet_of(self.pool_of(target))
        return PoolHooks(target, book, self._context, quiet)

    def follow(self, hooks: Any) -> None:
        """They go with the last of their pools. Nobody misses them who cannot look."""
        if self._context.ledger.observers.watched:
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
