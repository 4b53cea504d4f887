"""The hooks of one asyncpg pool.

asyncpg has no events, and its objects take no attributes: the pool, its holders and its
connections become instances of subclasses made for this pool. The application gets
asyncpg's own proxy. The pool keeps a reference to the proxy until it is returned, so a
dropped proxy is never collected: see :mod:`poolwatch.adapters.refcounts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import methodcaller
from time import monotonic
from typing import Any
from weakref import ref

from asyncpg.pool import PoolConnectionHolder, PoolConnectionProxy

from poolwatch.adapters import refcounts
from poolwatch.adapters.adoption import Unheld
from poolwatch.adapters.asyncpg_pool.statements import StatementHooks
from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.hooks import DriverHooks, request
from poolwatch.adapters.patching import (
    Method,
    Patches,
    original_class,
    restore_class,
    subclass,
)
from poolwatch.adapters.recovery import raised_by
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.pool import PoolLedger

_POOL_REFERENCES = 2
"""asyncpg's own references to a proxy: from its PoolConnectionHolder and its
connection.
"""


class HolderList(list[Any]):
    """The pool's list of PoolConnectionHolders. Unlike the pool, it takes weak
    references.
    """

    __slots__ = ("__weakref__", "pool")

    def __init__(self, pool: Any) -> None:
        super().__init__(pool._holders)
        self.pool = pool


class AsyncpgHooks(DriverHooks):
    """Installs and removes the hooks of one asyncpg pool."""

    capacity = methodcaller("get_max_size")

    def __init__(
        self, pool: Any, ledger: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        holders = HolderList(pool)
        super().__init__(holders, ledger, context, patches)
        self._returning: set[int] = set()
        """Ids of the PoolConnectionHolders whose connection is being returned."""
        self._known: dict[int, ref[Any]] = {}
        """Weak references to connections, by their ``id()``. Their callbacks count
        connections that were collected without having been closed.
        """
        ledger.find_dropped = self._check_dropped
        ledger.records_statements = True
        self._statements = StatementHooks(
            self._hold_of, self._closed, context.sites, self.guard, ledger.concurrent
        )
        pool._holders = holders
        self._holder_kind = subclass(PoolConnectionHolder, _release=self._release())
        base = original_class(type(pool))
        self._pool_kind = subclass(base, **self._pool_methods(base, pool))
        pool.__class__ = self._pool_kind
        self._attach_to_existing(holders)

    @property
    def pool(self) -> Any:
        """The pool; None once it was collected."""
        holders = self._pool()
        return None if holders is None else holders.pool

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        return type(pool) is self._pool_kind

    def remove(self) -> None:
        """Restore the classes of all objects."""
        super().remove()
        self._known.clear()
        holders = self._pool()
        if holders is None:
            return
        pool = holders.pool
        restore_class(pool, self._pool_kind)
        for holder in list(holders):
            restore_class(holder, self._holder_kind)
            self._statements.detach(holder._con)
        pool._holders = list(holders)

    def gauges(self) -> Gauges:
        """Read the current figures of the pool; empty once it was collected."""
        holders = self._pool()
        if holders is None:
            return Gauges()
        pool, size, idle = holders.pool, 0, 0
        for holder in list(holders):
            if _is_open(holder._con):
                size += 1
                idle += holder._in_use is None
        least, unheld = pool.get_min_size(), None
        with suppress(Exception):  # another version of asyncpg
            unheld = self._unheld(pool)
        return Gauges(
            size=least,
            max_overflow=pool.get_max_size() - least,
            idle=idle,
            overflow=max(0, size - least),
            unheld=unheld,
            before=len(self.out_before or ()),
        )

    def _unheld(self, pool: Any) -> tuple[int, int] | None:
        """See Gauges. The pool's queue has its idle connections."""
        if pool._closing or pool._closed:
            return None
        queue = pool._queue
        if queue is None:  # not opened yet
            return 0, 0
        holders = {id(each): each for each in list(pool._holders)}
        inside = map(id, list(queue._queue))
        unheld = [
            holders[each] for each in self.out_now(set(holders).difference(inside))
        ]
        in_use = [each for each in unheld if each._in_use is not None]
        waiting = sum(not getter.done() for getter in list(queue._getters))
        requested = max(0, len(self.waits) - waiting)
        lost = max(0, len(unheld) - len(in_use) - requested)
        left_behind = self.left_behind([id(each._con) for each in in_use])
        for each in in_use:
            lost += id(each._con) in left_behind or _is_unused(each)
        return lost, len(unheld)

    # -- hooking -----------------------------------------------------------------------

    def _attach_to_existing(self, holders: HolderList) -> None:
        """Attach to the existing connections and their PoolConnectionHolders."""
        for holder in list(holders):
            holder.__class__ = self._holder_kind
            connection = holder._con
            if connection is not None and id(connection) not in self._known:
                self._add(connection, None)

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
                    returning.add(id(holder))  # until the connection is returned
            return await base.release(pool, connection, **kwargs)

        async def expire_connections(pool: Any) -> Any:
            self._count_expired(pool)
            return await base.expire_connections(pool)

        overrides = (_get_new_connection, release, expire_connections)
        methods: dict[str, Method] = {each.__name__: each for each in overrides}
        return methods | {"_acquire": request(base._acquire, {id(pool): self}.get)}

    def unheld(self) -> Iterator[Unheld]:
        """The PoolConnectionHolders in use that have no hold."""
        for holder in list(self._pool() or ()):
            key, proxy, connection = id(holder), holder._proxy, holder._con
            if key in self.holds or key in self._returning or proxy is None:
                continue
            if connection is None or holder._in_use is None:
                continue
            known = self.facts.get(id(connection)) or self._add(connection, None)
            reference = _ProxyReference(self._known[id(connection)])
            is_out = partial(self._is_out, ref(connection), id(proxy), key)
            yield Unheld(key, id(proxy), reference, known, is_out)

    def _is_out(self, connection: Callable[[], Any], proxy: int, key: int) -> bool:
        lent = getattr(connection(), "_proxy", None)
        return id(lent) == proxy and key not in self._returning

    # -- requests and holds ------------------------------------------------------------

    def identify(
        self, checkout: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The key is the PoolConnectionHolder, which outlives its proxies."""
        proxy = connection
        holder, connection = proxy._holder, proxy._con
        if type(holder) is not self._holder_kind:  # created after the pool was hooked
            holder.__class__ = self._holder_kind
        known = self.facts.get(id(connection))
        checkout.facts = known or self._add(connection, None)
        checkout.proxy = _ProxyReference(self._known[id(connection)])
        return id(holder)

    def is_timeout(self, error: BaseException, checkout: Checkout, args: Any) -> bool:
        """Whether the request timed out, as opposed to a connection attempt."""
        timeout = args[0] if args else None
        if timeout is None or not isinstance(error, TimeoutError):
            return False
        return bool(monotonic() - checkout.requested_at >= 0.9 * timeout)

    def give_back(
        self, pool: Any, connection: Any, checkout: Checkout, args: Any, kwargs: Any
    ) -> Any:
        """Release the proxy."""
        return pool.release(connection)

    # -- returns -----------------------------------------------------------------------

    def _release(self) -> Method:
        """Wrap PoolConnectionHolder._release, which runs at the end of every hold."""
        guard, holds = self.guard, self.ledger.holds
        end: Callable[..., Any] = self.ledger.end

        # nothing before the try: an exception there would leak the connection
        def _release(holder: Any, hold: Any = None, called: bool = False) -> None:
            try:
                if holder._in_use is not None and not guard.tripped:
                    hold = self._hold_ended(holder)
                    if hold is not None:
                        hold = end(hold, monotonic(), hold.is_dropped())
                called = True
                PoolConnectionHolder._release(holder)
            except BaseException as error:
                if raised_by(error, called, PoolConnectionHolder._release):
                    raise
                try:
                    self.uncount_hold(hold or holds.pop(id(holder), None))
                finally:  # Ctrl-C must not leak the connection
                    PoolConnectionHolder._release(holder)
                if not self.suppress_failure(error):
                    raise

        return _release

    def _hold_ended(self, holder: Any) -> Checkout | None:
        """Remove the hold of a connection that was returned or closed."""
        key = id(holder)
        self._returning.discard(key)
        if holder._con is not None and holder._con.is_closed():
            self._count_invalidated(holder)
        hold = self.ledger.holds.get(key)
        if hold is not None:
            hold.proxy = _no_proxy
        return self.ledger.holds.pop(key, None)

    def _count_invalidated(self, holder: Any) -> None:
        """Count a closed connection, unless it reached max_queries, or
        expire_connections() has counted it already.
        """
        protocol = holder._con._protocol  # None if it was aborted
        worn_out = protocol and protocol.queries_count >= holder._max_queries
        if not worn_out and holder._generation == holder._pool._generation:
            self.ledger.invalidated += 1

    def _count_expired(self, pool: Any) -> None:
        """Count all open connections: expire_connections() will replace them."""
        if self.guard.tripped:
            return
        try:
            self.ledger.invalidated += pool.get_size()
        except Exception as error:  # noqa: BLE001 - the application must go on
            self.guard.failed(error)

    def _check_dropped(self) -> None:
        """Find dropped holds. A connection that is being returned, or has notification
        listeners, is in use even without references.
        """
        for key, hold in list(self.ledger.holds.items()):
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
                refcounts.check_dropped(
                    hold, pool_references=_POOL_REFERENCES, weak_references=0
                )
            else:
                hold.dropped = 0

    def _hold_of(self, connection: Any) -> Checkout | None:
        """The hold of a connection; None while it is being returned."""
        proxy = connection._proxy
        if proxy is None:
            return None
        key = id(proxy._holder)
        return None if key in self._returning else self.ledger.holds.get(key)

    # -- connections -------------------------------------------------------------------

    def _opened(self, connection: Any, began: float) -> None:
        if self.guard.tripped:
            return
        try:
            connect_s = monotonic() - began
            facts = self._add(connection, connect_s)
            self.ledger.connected(connect_s, facts)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self.guard.failed(error)

    def _add(self, connection: Any, connect_s: float | None) -> Any:
        key = id(connection)
        self._statements.attach(connection)
        self._known[key] = ref(connection, lambda _: self._collected(key))
        return self.remember(
            connection, key, monotonic(), connect_s, age_unknown=connect_s is None
        )

    def _closed(self, connection: Any) -> None:
        """Record that a connection is closed; may be called twice."""
        key = id(connection)
        if self._known.pop(key, None) is not None:
            self.ledger.closed(self.ledger.connections.pop(key, None), monotonic())

    def _collected(self, key: int) -> None:
        """Record a connection that was collected without a close: by the server."""
        if self._known.pop(key, None) is not None:
            self.ledger.invalidated += 1
            self.ledger.closed(self.ledger.connections.pop(key, None), monotonic())


class _ProxyReference:
    """Returns the proxy of a connection, like a weak reference, which the proxy does
    not support.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Callable[[], Any]) -> None:
        self._connection = connection

    def __call__(self) -> Any:
        connection = self._connection()
        return None if connection is None else connection._proxy


def _no_proxy() -> None:
    """Stands in for the reference once the hold has ended."""


def _is_unused(holder: Any) -> bool:
    """Whether only asyncpg itself refers to the proxy of a connection in use."""
    return refcounts.is_unused(lambda: holder._proxy, _POOL_REFERENCES, 0)


def _is_open(connection: Any) -> bool:
    """Whether a connection is open; another thread may close it during the call."""
    with suppress(AttributeError):
        return connection is not None and not connection.is_closed()
    return False
