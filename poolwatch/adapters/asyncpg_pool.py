"""asyncpg's pools.

asyncpg tells nobody anything, and its objects take no attributes: pool, holders and
connections become instances of subclasses made for the one pool (see asyncpg_classes).
The application is lent an object of its own in place of asyncpg's proxy, because
asyncpg keeps that one for itself (see asyncpg_lent).
"""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Callable
from contextlib import suppress
from sys import _getframe as frame_at
from time import monotonic
from typing import Any
from weakref import ref

from asyncpg.pool import Pool, PoolConnectionHolder, PoolConnectionProxy

from poolwatch.adapters.asyncpg_classes import give_back, subclass, theirs
from poolwatch.adapters.asyncpg_connect import database_of, server_connect, url_of
from poolwatch.adapters.asyncpg_lent import Lent, own
from poolwatch.adapters.asyncpg_statements import StatementHooks
from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.driver_hooks import DriverHooks
from poolwatch.adapters.library_pools import LibraryPools
from poolwatch.checkout import Checkout, Gauges
from poolwatch.holders import TaskRef
from poolwatch.labels import ambience
from poolwatch.ledger import PoolBook
from poolwatch.settings import Settings


class Holders(list[Any]):
    """The pool's own list of its holders: the one thing of it that can be referred to
    weakly, since the pool itself has no room for that.
    """

    __slots__ = ("__weakref__", "lent", "pool")

    def __init__(self, pool: Any) -> None:
        super().__init__(pool._holders)
        self.pool = pool
        self.lent: set[int] = set()
        """Ids of what was lent and is in somebody's hands yet, also if returned."""


class AsyncpgHooks(DriverHooks):
    """Everything that is attached to one pool, and how it comes off again."""

    def __init__(self, pool: Any, book: PoolBook, context: AdapterContext) -> None:
        holders = pool._holders
        if type(holders) is not Holders:
            holders = Holders(pool)
        super().__init__(holders, book, context)
        self.lends = True
        """What is lent stands before asyncpg's proxy."""
        self._leaving = False
        self._returning: set[int] = set()
        """Ids of holders whose connection is on its way back."""
        self._known: dict[int, ref[Any]] = {}
        """Tell of the end of a connection that was never closed."""
        self._statements = StatementHooks(
            self._hold_of, self._closed, context.sites.of_statements, self.guard
        )
        pool._holders = holders
        self._holder_kind = subclass(PoolConnectionHolder, self._holder_methods())
        base = theirs(type(pool))
        self._pool_kind = subclass(base, self._pool_methods(base, pool.get_max_size()))
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
        """Give all objects their classes again.

        Only the pool has to wait for it while somebody has what it lent: it alone
        knows how to take that back.
        """
        super().remove()
        self._leaving = True
        self._known.clear()
        holders = self._pool()
        if holders is not None and not holders.lent:
            self._leave(holders)

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
        """Attach to connections that are there already, and their holders."""
        for holder in list(holders):
            holder.__class__ = self._holder_kind
            connection = holder._con
            if connection is not None and id(connection) not in self._known:
                self._meet(connection, None)

    def _leave(self, holders: Holders) -> None:
        pool = holders.pool
        if not self.has(pool):  # it was hooked anew
            return
        give_back(pool, self._pool_kind)
        for holder in list(holders):
            give_back(holder, self._holder_kind)
            if holder._con is not None:
                self._statements.release(holder._con)
        pool._holders = list(holders)

    def _pool_methods(self, base: Any, capacity: int) -> dict[str, Any]:
        returning = self._returning
        opened = self._opened

        async def _get_new_connection(pool: Any) -> Any:
            began = monotonic()
            connection = await base._get_new_connection(pool)
            opened(connection, began)
            return connection

        async def release(pool: Any, connection: Any, **kwargs: Any) -> Any:
            behind = own(connection)
            if type(behind) is PoolConnectionProxy and behind._con is not None:
                holder = behind._holder
                if holder._pool is pool:
                    returning.add(id(holder))  # until it has come back
            return await base.release(pool, behind, **kwargs)

        async def expire_connections(pool: Any) -> Any:
            self.book.invalidated += pool.get_size()
            return await base.expire_connections(pool)

        made = (_get_new_connection, release, expire_connections)
        methods: dict[str, Any] = {each.__name__: each for each in made}
        return methods | {"_acquire": self._acquire_method(base, capacity)}

    def _acquire_method(self, base: Any, capacity: int) -> Callable[..., Any]:
        """The hot path: everything it needs is a local of this closure."""
        book, guard = self.book, self.guard
        holds, waits = book.holds, book.waits
        per_thread, capture = self._per_thread, self._sites.capture
        get_ambience, take = ambience.get, self._take

        async def _acquire(pool: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - asyncpg's own
            if guard.tripped:
                return await base._acquire(pool, timeout)
            try:
                holder = per_thread.holder or self._meet_thread()
                task = current_task()
                wait = Checkout(
                    capture(frame_at(1)),
                    holder,
                    get_ambience(),
                    TaskRef(task) if task is not None else None,
                    monotonic(),
                )
                key = id(wait)
                waits[key] = wait
                if holder.out or len(holds) >= capacity:
                    self.notable(wait, capacity)
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                guard.failed(error)
                return await base._acquire(pool, timeout)
            try:
                proxy = await base._acquire(pool, timeout)
            except BaseException as error:
                waits.pop(key, None)
                self.gave_up(wait, error, _timed_out(wait, error, timeout))
                raise
            try:
                return take(pool, wait, proxy)
            except BaseException as error:  # noqa: BLE001 - raised again there
                self.failed_after(error)
            finally:
                waits.pop(key, None)
            return proxy

        return _acquire

    def _take(self, pool: Any, wait: Checkout, proxy: Any) -> Any:
        """Begin the hold; returns what the application gets."""
        book = self.book
        now = wait.taken = monotonic()
        if book.blamed:
            book.waited(wait, now)
        holder, connection = proxy._holder, proxy._con
        if type(holder) is not self._holder_kind:  # made since the pool was hooked
            holder.__class__ = self._holder_kind
        known = book.connections.get(id(connection))
        wait.connection = known or self._meet(connection, None)
        lent = proxy
        if self.lends:
            lent = Lent(proxy, wait, self._gone)
            pool._holders.lent.add(id(lent))
            wait.proxy = ref(lent)
        else:
            wait.proxy = ref(connection)
        book.holds[id(holder)] = wait
        wait.holder.out += 1
        for observer in list(book.observers):
            observer.taken(book, wait)
        return lent

    def _holder_methods(self) -> dict[str, Any]:
        guard, ended = self.guard, self._ended

        def _release(holder: Any) -> None:
            if holder._in_use is not None and not guard.tripped:
                try:
                    ended(holder)
                except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                    guard.failed(error)
            PoolConnectionHolder._release(holder)

        return {"_release": _release}

    # -- the end of holds --------------------------------------------------------------

    def _ended(self, holder: Any) -> None:
        """The connection has come back, or is closed."""
        key = id(holder)
        self._returning.discard(key)
        if holder._con is not None and holder._con.is_closed():
            self._count_invalidated(holder)
        self.book.lost.pop(key, None)
        hold = self.book.holds.pop(key, None)
        if hold is not None:
            self.book.end(hold, monotonic(), False)

    def _count_invalidated(self, holder: Any) -> None:
        """Unless it has served its time, or was counted when all were expired."""
        protocol = holder._con._protocol  # None if it was aborted
        worn_out = protocol and protocol.queries_count >= holder._max_queries
        if not worn_out and holder._generation == holder._pool._generation:
            self.book.invalidated += 1

    def _gone(self, proxy: Any, hold: Checkout, lent: int) -> None:
        """What was lent is in nobody's hands any more. May run in a garbage collection,
        in any thread.
        """
        holder = proxy._holder
        holders = holder._pool._holders
        if type(holders) is not Holders:
            return
        holders.lent.discard(lent)
        connection = proxy._con
        if (
            connection is not None
            and not self.guard.tripped
            and self.book.holds.get(id(holder)) is hold
        ):
            self._dropped(holder, connection, hold)
        if self._leaving and not holders.lent:
            self._leave(holders)

    def _dropped(self, holder: Any, connection: Any, hold: Checkout) -> None:
        """Nobody can return it any more, and asyncpg never gets it back."""
        if id(holder) in self._returning:
            return
        if connection._listeners or connection._log_listeners:
            hold.proxy = ref(connection)  # in use by whoever listens, on purpose
            return
        del self.book.holds[id(holder)]
        self.book.lost[id(holder)] = hold.connection
        self.book.end(hold, monotonic(), True)

    def _hold_of(self, connection: Any) -> Checkout | None:
        """The hold of a connection, if it is one that is not on its way back."""
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
        return self.remember(connection, key, monotonic(), took)

    def _closed(self, connection: Any) -> None:
        """Closed by the pool or by the application; it may be told more than once."""
        key = id(connection)
        if self._known.pop(key, None) is not None:
            self.book.closed(self.book.connections.pop(key, None), monotonic())

    def _lost_sight(self, key: int) -> None:
        """Nobody has closed it: the server has, and the pool let go of it."""
        if self._known.pop(key, None) is not None:
            self.book.invalidated += 1
            self.book.closed(self.book.connections.pop(key, None), monotonic())


def _is_open(connection: Any) -> bool:
    """Whether it is; asked from another thread, while it may be closed."""
    with suppress(AttributeError):
        return connection is not None and not connection.is_closed()
    return False


def _timed_out(wait: Checkout, error: BaseException, timeout: Any) -> bool:
    """Whether it was the pool's own timeout, not one of a connection attempt."""
    if timeout is None or not isinstance(error, TimeoutError):
        return False
    return bool(monotonic() - wait.asked >= 0.9 * timeout)


class AsyncpgPools(LibraryPools):
    """The instrumented asyncpg pools of this process. They are not kept alive."""

    accepted = (Pool,)
    made = (Pool,)

    def make_hooks(self, target: Any, book: PoolBook) -> AsyncpgHooks:
        """Hook the pool, also one that is not initialised yet."""
        book.kind = "asyncpg.Pool"
        hooks = AsyncpgHooks(target, book, self._context)
        book.server_connect = server_connect(_reach(hooks))
        return hooks

    def apply(self, hooks: Any, settings: Settings) -> None:
        """Lend asyncpg's own proxies, if that is wished."""
        hooks.lends = getattr(settings, "proxy", True)

    def is_ready(self, target: Any) -> bool:
        """Whether its ``__init__`` has come to its end."""
        return hasattr(target, "_max_inactive_connection_lifetime")

    def name_of(self, target: Any) -> str:
        """The database."""
        return database_of(target) or "asyncpg"

    def url_of(self, target: Any) -> str | None:
        """As asyncpg understands its DSN and keywords."""
        return url_of(target)

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """It is made with the hooks, which know how to reach the pool weakly."""
        return None


def _reach(hooks: AsyncpgHooks) -> Callable[[], Any]:
    weakly = hooks._pool

    def reach() -> Any:
        holders = weakly()
        return None if holders is None else holders.pool

    return reach
