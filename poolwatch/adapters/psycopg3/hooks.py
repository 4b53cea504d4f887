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
from poolwatch.adapters.hooks import DriverHooks
from poolwatch.adapters.patching import (
    Method,
    original_class,
    restore_class,
    subclass,
)
from poolwatch.adapters.psycopg3.connect import url_of
from poolwatch.adapters.psycopg3.connections import Connections, Met
from poolwatch.adapters.psycopg3.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.pool import PoolBook

_REQUEST = "_getconn_with_check_loop"
_RETURN = "_check_pool_putconn"
"""The pool's check that the connection is out of it. It comes first at every return,
also in async pools, and raises for a connection that was returned before."""
_CONNECT = "_connect"
_CLOSE = "_close_connection"
"""Absent before psycopg_pool 3.3: then a close is noticed when the object goes."""
_TIMEOUTS = (PoolTimeout, TooManyRequests)

if not all(hasattr(ConnectionPool, name) for name in (_REQUEST, _RETURN, _CONNECT)):
    raise ImportError("this psycopg_pool is too old to be watched, or too new")


class PsycopgHooks(DriverHooks):
    """What is attached to one pool of psycopg_pool."""

    capacity = attrgetter("_max_size")  # resize() changes it

    def __init__(self, pool: Any, book: PoolBook, context: AdapterContext) -> None:
        super().__init__(pool, book, context)
        self._keeps_none = isinstance(pool, _BaseNullConnectionPool)
        """The minimum size of such a pool is always 0, and says nothing."""
        statements = StatementHooks(book, context.sites, self.guard)
        self._connections = Connections(
            book, self.guard, statements, self.remember, self._keeps_slot
        )
        base: Any = original_class(type(pool))
        self._kind = subclass(
            base,
            getconn=self._getconn(base),
            **{
                _REQUEST: self.request_method(base, _REQUEST),
                _RETURN: self._returning(base),
                _CONNECT: self._connect(base),
                _CLOSE: self._closing(base),
            },
        )
        pool.__class__ = self._kind
        for connection in list(pool._pool):  # a forked child must find them known
            self._meet(connection)

    def remove(self) -> None:
        """Give the pool its class again, and the connections their methods."""
        super().remove()
        restore_class(self.pool, self._kind)
        self._connections.forget()

    def _pool_gone(self) -> None:
        super()._pool_gone()
        self._connections.known.clear()

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

    def _getconn(self, base: Any) -> Method:
        explain = self._explain_timeout

        def getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return base.getconn(pool, *args, **kwargs)
            except _TIMEOUTS as error:
                explain(error)
                raise

        async def async_getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await base.getconn(pool, *args, **kwargs)
            except _TIMEOUTS as error:
                explain(error)
                raise

        return async_getconn if iscoroutinefunction(base.getconn) else getconn

    def _explain_timeout(self, error: BaseException) -> None:
        if not self.guard.tripped:
            try:
                super().explain_to(error)
            except Exception as ours:  # noqa: BLE001 - the application waits for its own
                self.guard.failed(ours)

    def explain_to(self, error: BaseException) -> None:
        """Do nothing yet: ``getconn`` raises a timeout error of its own afterwards."""

    @staticmethod
    def asker(frame: Any) -> Any:
        """The frame that has called ``getconn``: neither the pool's nor ours."""
        asking = frame.f_back
        if asking is not None and asking.f_code.co_filename == __file__:
            return asking.f_back
        return asking

    def identify(
        self, wait: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The pool lends the connection itself."""
        key, holds = id(connection), self.book.holds
        met = self._connections.known.get(key) or self._meet(connection)
        unseen = holds.pop(key, None)
        if unseen is not None:  # it has come back in a way that we do not know
            self.book.end(unseen, wait.taken, False)
        wait.facts = met.facts
        wait.proxy = met.reference
        return key

    def is_timeout(self, error: BaseException, wait: Checkout, args: Any) -> bool:
        """The pool has errors of its own for that."""
        return isinstance(error, _TIMEOUTS)

    # -- returns -----------------------------------------------------------------------

    def _returning(self, base: Any) -> Method:
        """The stand-in for the check at a return, which may refuse the connection."""
        guard, book, closed = self.guard, self.book, self._connections.closed
        holds = book.holds
        take_out: Callable[..., Checkout | None] = holds.pop
        end: Callable[..., Any] = book.end

        def returned(pool: Any, connection: Any) -> Any:
            found = getattr(base, _RETURN)(pool, connection)
            if guard.tripped:
                return found
            hold = None
            try:
                hold = take_out(id(connection), None)
                if hold is not None:
                    hold = end(hold, monotonic(), False)
                if connection.closed:  # broken, or closed by the user
                    book.invalidated += 1
                    closed(connection)
            except BaseException as error:
                if self.survives(error):
                    self.came_back(hold or take_out(id(connection), None))
                    return found
                if hold is not None:  # the pool has not got it back
                    holds[id(connection)] = hold
                raise
            return found

        return returned

    # -- connections -------------------------------------------------------------------

    def _connect(self, base: Any) -> Method:
        """The stand-in for the method that opens a connection, and sets it up."""
        opened = self._opened

        def connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
            began = monotonic()
            connection = getattr(base, _CONNECT)(pool, *args, **kwargs)
            opened(connection, began)
            return connection

        async def async_connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
            began = monotonic()
            connection = await getattr(base, _CONNECT)(pool, *args, **kwargs)
            opened(connection, began)
            return connection

        asynchronous = iscoroutinefunction(getattr(base, _CONNECT))
        return async_connect if asynchronous else connect

    def _opened(self, connection: Any, began: float) -> None:
        """Count a new connection. OpenTelemetry's creation time includes the set-up."""
        if self.guard.tripped:
            return
        try:
            now = monotonic()
            self.book.connected(now - began)
            self._meet(connection, now, now - began)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)

    def _closing(self, base: Any) -> Method:
        """The stand-in for the method that closes: awaited in async pools."""

        def close(pool: Any, connection: Any) -> Any:
            if not self.guard.tripped:
                try:
                    self._connections.closed(connection)
                except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                    self.guard.failed(error)
            return getattr(base, _CLOSE)(pool, connection)

        return close

    def _meet(
        self, connection: Any, opened: float | None = None, took: float | None = None
    ) -> Met:
        """Record a connection that is new to us; it knows itself when it was made."""
        if opened is None:
            opened = getattr(connection, "_created_at", monotonic())
        if self.book.url is None:
            self.book.url = url_of(connection.info.get_parameters())
        return self._connections.meet(connection, opened, took)
