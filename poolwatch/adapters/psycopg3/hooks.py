"""What is attached to one pool of psycopg_pool, and how it comes off again.

The public methods of the pool lead to inner ones, and those are replaced. So a
``pool.getconn`` that was handed on before the pool was instrumented is recorded, too
(``create_engine(creator=pool.getconn)``). ``getconn`` itself is replaced only because
it raises the timeout error that gets a note.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from operator import attrgetter
from time import monotonic
from typing import Any

from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.base_null_pool import _BaseNullConnectionPool

from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.hooks import DriverHooks, request
from poolwatch.adapters.patching import Method, Patches, Stand
from poolwatch.adapters.psycopg3.connect import url_of
from poolwatch.adapters.psycopg3.connections import Connections, Met
from poolwatch.adapters.psycopg3.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.pool import PoolLedger

_TIMEOUTS = (PoolTimeout, TooManyRequests)


class PsycopgHooks(DriverHooks):
    """What is attached to one pool of psycopg_pool."""

    capacity = attrgetter("_max_size")  # resize() changes it
    behind = __file__

    def __init__(
        self, pool: Any, book: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        super().__init__(pool, book, context, patches)
        self._keeps_none = isinstance(pool, _BaseNullConnectionPool)
        """The minimum size of such a pool is always 0, and says nothing."""
        statements = StatementHooks(book, context.sites, self.guard)
        self.connections = Connections(
            book, self.guard, statements, self.remember, self._keeps_slot
        )
        self._known = self.connections.known
        patches.hook(pool, self, **_STAND_INS)
        for connection in list(pool._pool):  # a forked child must find them known
            self._meet(connection)

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        super().remove()
        self.connections.forget()

    def _pool_gone(self) -> None:
        super()._pool_gone()
        self.connections.known.clear()

    def gauges(self) -> Gauges:
        """What the pool says of itself; nothing once it is gone."""
        pool = self.pool
        if pool is None:
            return Gauges()
        most = pool._max_size
        size = most if self._keeps_none else pool._min_size
        return Gauges(
            size=size,
            max_overflow=most - size if most else -1,
            timeout_s=float(pool.timeout),
            idle=len(pool._pool),
            overflow=max(0, pool._nconns - self.book.lost_slots - size) if most else 0,
        )

    def _keeps_slot(self) -> bool:
        """Whether the pool counts a connection that was dropped, and can run out."""
        pool = self.pool
        return pool is not None and not pool._closed and bool(pool._max_size)

    # -- requests and holds ------------------------------------------------------------

    def explain_timeout(self, error: BaseException) -> None:
        """Add the note to the error that the application gets."""
        if not self.guard.tripped:
            try:
                super().explain_to(error)
            except Exception as ours:  # noqa: BLE001 - the application waits for its own
                self.guard.failed(ours)

    def explain_to(self, error: BaseException) -> None:
        """Do nothing yet: ``getconn`` raises a timeout error of its own afterwards."""

    def identify(
        self, wait: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The pool lends the connection itself."""
        key = id(connection)
        met = self._known.get(key) or self._meet(connection)
        unseen = self.holds.pop(key, None)
        if unseen is not None:  # it has come back in a way that we do not know
            self.book.end(unseen, wait.taken, False)
        wait.facts = met.facts
        wait.proxy = met.reference
        return key

    def is_timeout(self, error: BaseException, wait: Checkout, args: Any) -> bool:
        """The pool has errors of its own for that."""
        return isinstance(error, _TIMEOUTS)

    # -- connections -------------------------------------------------------------------

    def opened(self, connection: Any, began: float) -> None:
        """Count a new connection. OpenTelemetry's creation time includes the set-up."""
        if self.guard.tripped:
            return
        try:
            now = monotonic()
            self.book.connected(now - began)
            self._meet(connection, now, now - began)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)

    def _meet(
        self, connection: Any, opened: float | None = None, took: float | None = None
    ) -> Met:
        """Record a connection that is new to us; it knows itself when it was made."""
        if opened is None:
            opened = getattr(connection, "_created_at", monotonic())
        if self.book.url is None:
            self.book.url = url_of(connection.info.get_parameters())
        return self.connections.meet(connection, opened, took)


# -- stand-ins for methods of a pool ---------------------------------------------------


def _getconn(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Adds a note to the timeout error."""

    def getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return below(pool, *args, **kwargs)
        except _TIMEOUTS as error:
            hooks = hooks_of(id(pool))
            if hooks is not None:
                hooks.explain_timeout(error)
            raise

    async def async_getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await below(pool, *args, **kwargs)
        except _TIMEOUTS as error:
            hooks = hooks_of(id(pool))
            if hooks is not None:
                hooks.explain_timeout(error)
            raise

    return async_getconn if iscoroutinefunction(below) else getconn


def _check_at_return(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Ends the hold, unless the pool refuses the connection."""

    def check(pool: Any, connection: Any) -> Any:
        found = below(pool, connection)
        hooks = hooks_of(id(pool))
        if hooks is None or hooks.guard.tripped:
            return found
        book, holds, hold = hooks.book, hooks.holds, None
        try:
            hold = holds.pop(id(connection), None)
            if hold is not None:
                hold = book.end(hold, monotonic(), False)
            if connection.closed:  # broken, or closed by the user
                book.invalidated += 1
                hooks.connections.closed(connection)
        except BaseException as error:
            if hooks.survives(error):
                hooks.came_back(hold or holds.pop(id(connection), None))
                return found
            if hold is not None:  # the pool has not got it back
                holds[id(connection)] = hold
            raise
        return found

    return check


def _connect(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Tells when a connection was opened, and set up."""

    def connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        connection = below(pool, *args, **kwargs)
        hooks = hooks_of(id(pool))
        if hooks is not None:
            hooks.opened(connection, began)
        return connection

    async def async_connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        connection = await below(pool, *args, **kwargs)
        hooks = hooks_of(id(pool))
        if hooks is not None:
            hooks.opened(connection, began)
        return connection

    return async_connect if iscoroutinefunction(below) else connect


def _close(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Tells that a connection is closed. It is awaited in async pools."""

    def close(pool: Any, connection: Any) -> Any:
        hooks = hooks_of(id(pool))
        if hooks is not None and not hooks.guard.tripped:
            try:
                hooks.connections.closed(connection)
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                hooks.guard.failed(error)
        return below(pool, connection)

    return close


_STAND_INS: dict[str, Stand] = {
    "getconn": _getconn,
    "_getconn_with_check_loop": request,
    # The pool's check that the connection is out of it. It comes first at every return,
    # also in async pools, and raises for a connection that was returned before.
    "_check_pool_putconn": _check_at_return,
    "_connect": _connect,
    # Absent before psycopg_pool 3.3: then a close is noticed when the object goes.
    "_close_connection": _close,
}
_NEEDED = _STAND_INS.keys() - {"_close_connection"}

if not all(hasattr(ConnectionPool, name) for name in _NEEDED):
    raise ImportError("this psycopg_pool is too old to be watched, or too new")
