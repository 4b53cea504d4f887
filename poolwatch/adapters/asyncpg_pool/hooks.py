"""What is attached to one pool of asyncpg, and how it comes off again.

asyncpg has no events, and its objects take no attributes: pool, holders and connections
become instances of subclasses made for the one pool. The application gets asyncpg's own
proxy. The pool keeps the proxy as long as it is out, so a proxy that was dropped never
comes back: see :mod:`poolwatch.adapters.refcounts`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from operator import methodcaller
from time import monotonic
from typing import Any
from weakref import ref

from asyncpg.pool import PoolConnectionHolder, PoolConnectionProxy

from poolwatch.adapters import refcounts
from poolwatch.adapters.asyncpg_pool.statements import StatementHooks
from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.cut_short import is_library_s
from poolwatch.adapters.hooks import DriverHooks, request
from poolwatch.adapters.patching import (
    Method,
    Patches,
    original_class,
    restore_class,
    subclass,
)
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.pool import PoolLedger

_BY_POOL = 2
"""asyncpg's own references to a proxy: from its holder and its connection."""


class Holders(list[Any]):
    """The pool's list of its holders, which takes weak references, unlike the pool."""

    __slots__ = ("__weakref__", "pool")

    def __init__(self, pool: Any) -> None:
        super().__init__(pool._holders)
        self.pool = pool


class AsyncpgHooks(DriverHooks):
    """What is attached to one pool of asyncpg."""

    capacity = methodcaller("get_max_size")

    def __init__(
        self, pool: Any, book: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        holders = Holders(pool)
        super().__init__(holders, book, context, patches)
        self._returning: set[int] = set()
        """Ids of the holders whose connection is being returned."""
        self._known: dict[int, ref[Any]] = {}
        """Weak references to connections, by their ``id()``. They report connections
        that are gone without having been closed."""
        book.find_dropped = self._look_for_dropped
        self._statements = StatementHooks(
            self._hold_of, self._closed, context.sites, self.guard
        )
        pool._holders = holders
        self._holder_kind = subclass(PoolConnectionHolder, _release=self._release())
        base = original_class(type(pool))
        self._pool_kind = subclass(base, **self._pool_methods(base, pool))
        pool.__class__ = self._pool_kind
        self._adopt(holders)

    @property
    def pool(self) -> Any:
        """The pool; None once it is gone."""
        holders = self._pool()
        return None if holders is None else holders.pool

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        return type(pool) is self._pool_kind

    def remove(self) -> None:
        """Give all objects their classes again."""
        super().remove()
        self._known.clear()
        holders = self._pool()
        if holders is None:
            return
        pool = holders.pool
        restore_class(pool, self._pool_kind)
        for holder in list(holders):
            restore_class(holder, self._holder_kind)
            self._statements.release(holder._con)
        pool._holders = list(holders)

    def gauges(self) -> Gauges:
        """What the pool says of itself; nothing once it is gone."""
        holders = self._pool()
        if holders is None:
            return Gauges()
        pool, size, idle = holders.pool, 0, 0
        for holder in list(holders):
            if _is_open(holder._con):
                size += 1
                idle += holder._in_use is None
        least = pool.get_min_size()
        return Gauges(
            size=least,
            max_overflow=pool.get_max_size() - least,
            idle=idle,
            overflow=max(0, size - least),
        )

    # -- hooking -----------------------------------------------------------------------

    def _adopt(self, holders: Holders) -> None:
        """Attach to the existing connections and their holders."""
        for holder in list(holders):
            holder.__class__ = self._holder_kind
            connection = holder._con
            if connection is not None and id(connection) not in self._known:
                self._meet(connection, None)

    def _pool_methods(self, base: Any, pool: Any) -> dict[str, Method]:
        returning, opened = self._returning, self._opened

        async def _get_new_connection(pool: Any) -> Any:
            began = monotonic()
            connection = await base._get_new_connection(pool)
            opened(connection, began)
            return connection

        async def release(pool: Any, connection: Any, **kwargs: Any) -> Any:
            if type(connection) is PoolConnectionProxy and connection._con is not None:
                holder = connection._holder
                if holder._pool is pool:
                    returning.add(id(holder))  # until it has come back
            return await base.release(pool, connection, **kwargs)

        async def expire_connections(pool: Any) -> Any:
            self._expired(pool)
            return await base.expire_connections(pool)

        made = (_get_new_connection, release, expire_connections)
        methods: dict[str, Method] = {each.__name__: each for each in made}
        return methods | {"_acquire": request(base._acquire, {id(pool): self}.get)}

    # -- requests and holds ------------------------------------------------------------

    def identify(
        self, wait: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The pool lends a proxy of the connection. Its holder stays the same."""
        proxy = connection
        lent, connection = proxy._holder, proxy._con
        if type(lent) is not self._holder_kind:  # made since the pool was hooked
            lent.__class__ = self._holder_kind
        known = self.facts.get(id(connection))
        wait.facts = known or self._meet(connection, None)
        wait.proxy = _Lent(self._known[id(connection)])
        return id(lent)

    def is_timeout(self, error: BaseException, wait: Checkout, args: Any) -> bool:
        """Whether it was the timeout of the request, not of a connection attempt."""
        timeout = args[0] if args else None
        if timeout is None or not isinstance(error, TimeoutError):
            return False
        return bool(monotonic() - wait.asked >= 0.9 * timeout)

    def give_back(
        self, pool: Any, connection: Any, wait: Checkout, args: Any, kwargs: Any
    ) -> Any:
        """Release the proxy."""
        return pool.release(connection)

    # -- returns -----------------------------------------------------------------------

    def _release(self) -> Method:
        """The stand-in for the holder's method at which every hold ends."""
        guard, holds = self.guard, self.book.holds
        end: Callable[..., Any] = self.book.end

        # nothing before the try: an exception there would cost the pool a connection
        def _release(holder: Any, hold: Any = None, called: bool = False) -> None:
            try:
                if holder._in_use is not None and not guard.tripped:
                    hold = self._hold_ended(holder)
                    if hold is not None:
                        hold = end(hold, monotonic(), hold.is_dropped())
                called = True
                PoolConnectionHolder._release(holder)
            except BaseException as error:
                if is_library_s(error, called, PoolConnectionHolder._release):
                    raise
                try:
                    self.came_back(hold or holds.pop(id(holder), None))
                finally:  # Ctrl-C must not cost the pool its connection
                    PoolConnectionHolder._release(holder)
                if not self.survives(error):
                    raise

        return _release

    def _hold_ended(self, holder: Any) -> Checkout | None:
        """Remove the hold: its connection has come back, or is closed."""
        key = id(holder)
        self._returning.discard(key)
        if holder._con is not None and holder._con.is_closed():
            self._count_invalidated(holder)
        hold = self.book.holds.get(key)
        if hold is not None:
            hold.proxy = _nothing
        return self.book.holds.pop(key, None)

    def _count_invalidated(self, holder: Any) -> None:
        """Count it, unless it is worn out, or was counted when all were expired."""
        protocol = holder._con._protocol  # None if it was aborted
        worn_out = protocol and protocol.queries_count >= holder._max_queries
        if not worn_out and holder._generation == holder._pool._generation:
            self.book.invalidated += 1

    def _expired(self, pool: Any) -> None:
        """All open connections will be replaced."""
        if self.guard.tripped:
            return
        try:
            self.book.invalidated += pool.get_size()
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)

    def _look_for_dropped(self) -> None:
        """Find holds that were dropped. A connection that is being returned, or that
        listens for notifications, is in use although nothing refers to it.
        """
        for key, hold in list(self.book.holds.items()):
            proxy = hold.proxy()
            connection = None if proxy is None else proxy._con
            del proxy
            if (
                self.prove_dropped
                and connection is not None
                and key not in self._returning
                and not connection._listeners
                and not connection._log_listeners
            ):
                refcounts.look(hold, by_pool=_BY_POOL, weakly=0)
            else:
                hold.dropped = 0

    def _hold_of(self, connection: Any) -> Checkout | None:
        """The hold of a connection; None while it is being returned."""
        proxy = connection._proxy
        if proxy is None:
            return None
        key = id(proxy._holder)
        return None if key in self._returning else self.book.holds.get(key)

    # -- connections -------------------------------------------------------------------

    def _opened(self, connection: Any, began: float) -> None:
        if self.guard.tripped:
            return
        try:
            took = monotonic() - began
            self._meet(connection, took)
            self.book.connected(took)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)

    def _meet(self, connection: Any, took: float | None) -> Any:
        key = id(connection)
        self._statements.adopt(connection)
        self._known[key] = ref(connection, lambda _: self._lost_sight(key))
        return self.remember(connection, key, monotonic(), took, met=took is None)

    def _closed(self, connection: Any) -> None:
        """The pool or the application closes a connection; may be called twice."""
        key = id(connection)
        if self._known.pop(key, None) is not None:
            self.book.closed(self.book.connections.pop(key, None), monotonic())

    def _lost_sight(self, key: int) -> None:
        """A connection is gone that was not closed here: the server closed it."""
        if self._known.pop(key, None) is not None:
            self.book.invalidated += 1
            self.book.closed(self.book.connections.pop(key, None), monotonic())


class _Lent:
    """Finds the proxy of a connection: the proxy takes no weak reference."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Callable[[], Any]) -> None:
        self._connection = connection

    def __call__(self) -> Any:
        connection = self._connection()
        return None if connection is None else connection._proxy


def _nothing() -> None:
    """The hold is over: there is no proxy."""


def _is_open(connection: Any) -> bool:
    """Whether a connection is open; it may be closed by another thread meanwhile."""
    with suppress(AttributeError):
        return connection is not None and not connection.is_closed()
    return False
