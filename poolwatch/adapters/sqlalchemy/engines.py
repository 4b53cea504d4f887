"""Which engines and pools of SQLAlchemy are instrumented, and how to reach them all."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import finalize, ref

from sqlalchemy.engine import Engine
from sqlalchemy.engine.base import OptionEngineMixin
from sqlalchemy.pool import NullPool, Pool, SingletonThreadPool, StaticPool

from poolwatch.adapters.base import AdapterContext, LibraryPools
from poolwatch.adapters.sqlalchemy.quiet import (
    MARK,
    QuietPool,
    QuietWay,
    capacity_of,
)
from poolwatch.ledger.settings import Settings
from poolwatch.runtime.guard import log

if TYPE_CHECKING:
    from poolwatch.adapters.sqlalchemy.hooks import PoolHooks
    from poolwatch.ledger.pool import PoolBook


class Engines(LibraryPools):
    """The instrumented engines and pools of this process. They are not kept alive.

    Hooks, and what they are made of, are loaded for the first engine that needs some.
    """

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

    def forget_parent(self) -> None:
        """Forget what is noted on marks, too."""
        super().forget_parent()
        for each in gc.get_objects() if self._quiet else ():
            if type(each) is QuietPool:
                each.forget()

    def _new_way(self) -> QuietWay:
        return QuietWay(self._context.bottoms, self._context.ledger.observers)

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
                most = capacity_of(pool)
                pool.__dict__[MARK] = QuietPool(self, target, pool, most)
        return True

    def _quiet_of(self, pool: Any) -> QuietPool | None:
        quiet = pool.__dict__.get(MARK)
        return quiet if quiet is not None and quiet.library is self else None

    def use(self, quiet: QuietPool) -> PoolHooks | None:
        """The hooks of an engine; None if it was marked by one that does not watch."""
        return None if self._every is None else self.make(quiet)

    def make(self, quiet: QuietPool) -> PoolHooks:
        """The hooks of an engine, whether it is watched or not: what was taken from it
        may have to be judged. Raises LookupError if neither it nor a pool is left.
        """
        if quiet.hooks is None:
            target = quiet.target() or quiet.newest()
            if target is None:
                raise LookupError("the engine is gone")
            from poolwatch.adapters.sqlalchemy.hooks import PoolHooks

            make = partial(PoolHooks, context=self._context, quiet=quiet)
            hooks = self._hook(target, self._every or Settings(), make)
            if quiet.hooks is not hooks:  # others were first
                self._gone(hooks.book.id)
            elif self._every is None:
                self._unhook(hooks.book.id)
        return cast("PoolHooks", quiet.hooks)

    def _of(self, pool: Any) -> Any:
        quiet = self._quiet_of(pool)
        return super()._of(pool) if quiet is None else self.use(quiet)

    def admit_viewers(self) -> None:
        """Have them see all engines, and the statements of each."""
        if not self._quiet:
            return
        for each in gc.get_objects():
            if issubclass(type(each), Engine) and self.is_ready(each):
                self._meet(each)
        for hooks in list(self._hooks.values()):
            cast("PoolHooks", hooks).wake()
            self.follow(hooks)

    def _meet(self, engine: Engine) -> None:
        try:
            quiet = self._quiet_of(engine.pool)
            if quiet is not None:
                self.make(quiet)
        except Exception:  # noqa: BLE001 - whatever it is, the app goes on
            log().exception("poolwatch could not instrument a pool")

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
        from poolwatch.adapters.sqlalchemy.connect import connect_arguments

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
        from poolwatch.adapters.sqlalchemy.hooks import PoolHooks

        return PoolHooks(target, book, self._context)

    def follow(self, hooks: Any) -> None:
        """They go with the last of their pools. Nobody misses them who cannot look."""
        if self._context.ledger.observers.watched:
            finalize(hooks, self._gone, hooks.book.id).atexit = False

    def name_of(self, target: Any) -> str:
        """The logging name, the database, or the class."""
        from poolwatch.adapters.sqlalchemy.names import pool_name

        return pool_name(target)

    def url_of(self, target: Any) -> str | None:
        """The engine's URL."""
        from poolwatch.adapters.sqlalchemy.names import pool_url

        return pool_url(target)

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """As the engine makes its own."""
        if isinstance(target, Engine):
            of_postgres = target.dialect.name == "postgresql"
            return partial(_connect_like, ref(target)) if of_postgres else None
        from poolwatch.adapters.sqlalchemy.connect import server_connect

        return server_connect(target)


def _connect_like(reference: Callable[[], Engine | None]) -> Any:
    """Open a connection as that engine does. Loads what it takes not before."""
    from poolwatch.adapters.sqlalchemy.connect import server_connect
    from poolwatch.errors import ServerViewError

    engine = reference()
    connect = None if engine is None else server_connect(engine)
    if connect is None:
        raise ServerViewError("the engine is gone")
    return connect()
