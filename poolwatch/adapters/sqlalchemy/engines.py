"""The instrumented engines and pools of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import finalize, ref

from sqlalchemy.engine import Engine
from sqlalchemy.engine.base import OptionEngineMixin
from sqlalchemy.pool import NullPool, Pool, SingletonThreadPool, StaticPool
from sqlalchemy.pool.base import _ConnectionFairy

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.sqlalchemy.hooks import PoolHooks, is_hooked

if TYPE_CHECKING:
    from poolwatch.adapters.recovery import Hooks
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.ledger.settings import Settings
    from poolwatch.stacks.capture import Pairs


class Engines(LibraryPools):
    """The instrumented engines and pools of this process, by weak reference."""

    target_classes = (Engine, Pool)
    patched_classes = (Engine,)
    lent_classes = (_ConnectionFairy,)
    request_codes = (Pool.connect.__code__,)

    def unwrapped(self, target: Any) -> Any:
        """The engine behind an AsyncEngine or an engine with options."""
        target = getattr(target, "sync_engine", target)
        while isinstance(target, Engine) and hasattr(target, "_proxied"):
            target = target._proxied  # options may be set upon options
        return target

    def is_wrapper(self, value: Any, target: Any) -> bool:
        """Whether ``value`` is the AsyncEngine of an engine."""
        from poolwatch.diagnosis.references.attributes import class_name, module_of

        if class_name(type(value)) != "AsyncEngine":
            return False
        if not module_of(type(value)).startswith("sqlalchemy."):
            return False
        return value.sync_engine is target

    def pool_of(self, target: Any) -> Any:
        """The current pool of an engine."""
        return target.pool if isinstance(target, Engine) else target

    def _hooks_of(self, pool: Any) -> Hooks | None:
        # a new pool of a thousand is found to be new at once
        return super()._hooks_of(pool) if is_hooked(pool) else None

    def arguments_of(self, target: Any) -> Any:
        """The arguments of the driver's connect()."""
        from poolwatch.adapters.sqlalchemy.connect import connect_arguments

        return connect_arguments(self.pool_of(target))

    def has_own_creator(self, target: Any) -> bool:
        """Whether the engine was made with ``creator=`` or ``async_creator=``."""
        arguments = self.arguments_of(target)
        return arguments is None or "async_creator_fn" in arguments[1]

    def options_of(self, target: Any) -> Any:
        """What the engine's connections are set to."""
        dialect = getattr(target, "dialect", None)
        isolation = getattr(dialect, "_on_connect_isolation_level", None)
        return isolation, getattr(target, "_execution_options", None)

    def keeps_connections(self, target: Any) -> bool:
        """False for a pool that keeps no connections, or one connection to an in-memory
        database: creating such engines is cheap, and often intended.
        """
        pool = self.pool_of(target)
        return not isinstance(pool, NullPool | StaticPool | SingletonThreadPool)

    def is_ready(self, target: Any) -> bool:
        """Whether ``target`` is a proper engine, not one with options, and has its
        pool.
        """
        if issubclass(type(target), OptionEngineMixin):
            return False
        return isinstance(target.__dict__.get("pool"), Pool)

    def on_reinstrument(self, hooks: Any, target: Any) -> None:
        """Record statements, too, if only the pool was instrumented before."""
        if isinstance(target, Engine):
            hooks.record_statements(target)

    def can_comment(self, target: Any) -> bool:
        """An engine sends statements; a bare pool only lends connections."""
        return isinstance(self.unwrapped(target), Engine)

    def apply(self, hooks: Any, settings: Settings) -> None:
        """Switch the comments of an engine's statements on or off."""
        super().apply(hooks, settings)
        if hooks.statements is not None:
            hooks.statements.comment(settings.comment)

    def make_hooks(self, target: Any, ledger: PoolLedger) -> PoolHooks:
        """Hook the pool, and the engine if there is one."""
        ledger.lending.foreign_creator = self.arguments_of(target) is None
        ledger.loaded_attribute = _loaded_attribute
        ledger.setup.hands_over = not getattr(self.pool_of(target), "_pre_ping", True)
        return PoolHooks(target, ledger, self._context)

    def track_collection(self, hooks: Any) -> None:
        """Wait for the hooks: they live until their last pool is collected."""
        finalize(hooks, self._on_pool_collected, hooks.ledger.id).atexit = False

    def name_of(self, target: Any) -> str:
        """The logging name, the database, or the class."""
        from poolwatch.adapters.sqlalchemy.names import pool_name

        return pool_name(target)

    def url_of(self, target: Any) -> str | None:
        """The engine's URL."""
        from poolwatch.adapters.sqlalchemy.names import pool_url

        return pool_url(target)

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """Connect like the engine."""
        if isinstance(target, Engine):
            of_postgres = target.dialect.name == "postgresql"
            return partial(_connect_like, ref(target)) if of_postgres else None
        from poolwatch.adapters.sqlalchemy.connect import server_connect

        return server_connect(target)


def _loaded_attribute(stack: Pairs) -> tuple[str, bool] | None:
    """The attribute whose load made a checkout. Loads the module on first use."""
    from poolwatch.adapters.sqlalchemy.lazy_loads import loaded_attribute

    return loaded_attribute(stack)


def _connect_like(reference: Callable[[], Engine | None]) -> Any:
    """Open a connection like those of the engine. Loads the modules on first use."""
    from poolwatch.adapters.sqlalchemy.connect import server_connect
    from poolwatch.errors import ServerViewError

    engine = reference()
    connect = None if engine is None else server_connect(engine)
    if connect is None:
        raise ServerViewError("the engine is gone")
    return connect()
