"""The hooks of one psycopg_pool pool.

The public methods of the pool call internal ones, and those are wrapped. So checkouts
are recorded even by a bound ``pool.getconn`` that was passed on before the pool was
instrumented (``create_engine(creator=pool.getconn)``). ``getconn`` itself is wrapped
only to add a note to its timeout error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from inspect import iscoroutinefunction
from operator import attrgetter
from time import monotonic
from typing import Any

from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.base_null_pool import _BaseNullConnectionPool

from poolwatch.adapters.adoption import Unheld
from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.hooks import DriverHooks, request
from poolwatch.adapters.patching import Method, Patches, WrapperFactory
from poolwatch.adapters.psycopg3.connect import url_of
from poolwatch.adapters.psycopg3.connections import (
    Connections,
    KnownConnection,
    to_be_opened,
)
from poolwatch.adapters.psycopg3.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.pool import PoolLedger

_TIMEOUTS = (PoolTimeout, TooManyRequests)


class PsycopgHooks(DriverHooks):
    """Installs and removes the hooks of one psycopg_pool pool."""

    capacity = attrgetter("_max_size")  # resize() changes it
    wrapper_file = __file__

    def __init__(
        self, pool: Any, ledger: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        super().__init__(pool, ledger, context, patches)
        self._keeps_none = isinstance(pool, _BaseNullConnectionPool)
        """A null pool: its minimum size is always 0, which means nothing."""
        statements = StatementHooks(ledger, context.sites, self.guard)
        ledger.records_statements = True
        self.connections = Connections(
            ledger, self.guard, statements, self.remember, self._keeps_slot
        )
        self._known = self.connections.known
        self._connecting: dict[int, None] = {}
        """Connects in progress."""
        patches.hook(pool, self, **_WRAPPERS)
        for connection in list(pool._pool):  # so that a forked child knows them
            self._add(connection)

    def remove(self) -> None:
        """Remove all hooks. Calls in progress finish unrecorded."""
        super().remove()
        self.connections.forget()

    def _pool_collected(self) -> None:
        super()._pool_collected()
        self.connections.known.clear()

    def gauges(self) -> Gauges:
        """Read the current figures of the pool; empty once it was collected."""
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
            overflow=max(0, pool._nconns - self.ledger.slots.lost - size)
            if most
            else 0,
            unheld=self._unheld(pool),
        )

    def _unheld(self, pool: Any) -> tuple[int, int] | None:
        """See Gauges. The pool also counts connections that are yet to be opened."""
        if pool._closed or not pool._max_size:
            return None if pool._opened or not pool._max_size else (0, 0)
        with suppress(Exception):  # another version, or a pool class of one's own
            most = pool._nconns - len(pool._pool) - len(self.holds)
            on_their_way = self.connections.on_their_way(pool) + to_be_opened(pool)
            return most - on_their_way - len(self._connecting), most
        return None

    def _keeps_slot(self) -> bool:
        """Whether a dropped connection still occupies a slot of a limited pool."""
        pool = self.pool
        return pool is not None and not pool._closed and bool(pool._max_size)

    def meet(self, connection: Any) -> None:
        """Take note of a connection that may have been lent before the hooks."""
        if id(connection) not in self._known:
            self._add(connection)

    def unheld(self) -> Iterator[Unheld]:
        """Connections without a hold that belong to the pool: those that are lent."""
        pool = self._pool
        for key, known in list(self._known.items()):
            is_out = partial(_is_lent, pool, known.reference)
            if key not in self.holds and not known.closed and is_out():
                yield Unheld(key, key, known.reference, known.facts, is_out)

    # -- requests and holds ------------------------------------------------------------

    def explain_timeout(self, error: BaseException) -> None:
        """Add the note to the error that the application gets."""
        if not self.guard.tripped:
            try:
                super().explain_to(error)
            except Exception as failure:  # noqa: BLE001 - the application gets its own error
                self.guard.failed(failure)

    def explain_to(self, error: BaseException) -> None:
        """Do nothing: ``getconn`` replaces this error by its own timeout error."""

    def identify(
        self, checkout: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The key is the connection."""
        key = id(connection)
        known = self._known.get(key) or self._add(connection)
        unseen = self.holds.pop(key, None)
        if unseen is not None:  # it was returned unseen
            self.ledger.end(unseen, checkout.checked_out_at, False)
        checkout.facts = known.facts
        checkout.proxy = known.reference
        return key

    def is_timeout(self, error: BaseException, checkout: Checkout, args: Any) -> bool:
        """The pool has its own classes of timeout errors."""
        return isinstance(error, _TIMEOUTS)

    # -- connections -------------------------------------------------------------------

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Count a connect in progress."""
        key = object()
        self._connecting[id(key)] = None
        try:
            yield
        finally:
            self._connecting.pop(id(key), None)

    def opened(self, connection: Any, began: float) -> None:
        """Count a new connection. OpenTelemetry's creation time includes the set-up."""
        if self.guard.tripped:
            return
        try:
            now = monotonic()
            known = self._add(connection, now, now - began)
            self.ledger.connected(now - began, known.facts)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self.guard.failed(error)

    def _add(
        self,
        connection: Any,
        opened: float | None = None,
        connect_s: float | None = None,
    ) -> KnownConnection:
        """Record a new connection; psycopg_pool stores its creation time."""
        if opened is None:
            opened = getattr(connection, "_created_at", monotonic())
        if self.ledger.url is None:
            self.ledger.url = url_of(connection.info.get_parameters())
        return self.connections.add(connection, opened, connect_s)


def _is_lent(pool: Callable[[], Any], connection: Callable[[], Any]) -> bool:
    owner = pool()
    return owner is not None and getattr(connection(), "_pool", None) is owner


# -- wrappers of methods of a pool -----------------------------------------------------


def _getconn(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Add a note to the timeout error."""

    def getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(pool, *args, **kwargs)
        except _TIMEOUTS as error:
            hooks = hooks_of(id(pool))
            if hooks is not None:
                hooks.explain_timeout(error)
            raise

    async def async_getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(pool, *args, **kwargs)
        except _TIMEOUTS as error:
            hooks = hooks_of(id(pool))
            if hooks is not None:
                hooks.explain_timeout(error)
            raise

    return async_getconn if iscoroutinefunction(original) else getconn


def _check_at_return(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    """End the hold, unless the pool refuses the connection."""

    def check(pool: Any, connection: Any) -> Any:
        result = original(pool, connection)
        hooks = hooks_of(id(pool))
        if hooks is None or hooks.guard.tripped:
            return result
        ledger, holds, hold = hooks.ledger, hooks.holds, None
        try:
            hold = holds.pop(id(connection), None)
            if hold is not None:
                hold = ledger.end(hold, monotonic(), False)
            if connection.closed:  # broken, or closed by the user
                ledger.invalidated += 1
                hooks.connections.closed(connection)
        except BaseException as error:
            if hooks.suppress_failure(error):
                hooks.uncount_hold(hold or holds.pop(id(connection), None))
                return result
            if hold is not None:  # it was not returned to the pool
                holds[id(connection)] = hold
            raise
        return result

    return check


def _connect(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Record that a connection was opened and set up."""

    def connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        hooks = hooks_of(id(pool))
        with nullcontext() if hooks is None else hooks.connecting():
            connection = original(pool, *args, **kwargs)
        if hooks is not None:
            hooks.opened(connection, began)
        return connection

    async def async_connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        hooks = hooks_of(id(pool))
        with nullcontext() if hooks is None else hooks.connecting():
            connection = await original(pool, *args, **kwargs)
        if hooks is not None:
            hooks.opened(connection, began)
        return connection

    return async_connect if iscoroutinefunction(original) else connect


def _close(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Record that a connection is closed. Async pools await the result."""

    def close(pool: Any, connection: Any) -> Any:
        hooks = hooks_of(id(pool))
        if hooks is not None and not hooks.guard.tripped:
            try:
                hooks.connections.closed(connection)
            except Exception as error:  # noqa: BLE001 - the application must go on
                hooks.guard.failed(error)
        return original(pool, connection)

    return close


_WRAPPERS: dict[str, WrapperFactory] = {
    "getconn": _getconn,
    "_getconn_with_check_loop": request,
    # The pool's check that the connection belongs to it. Every return starts with it,
    # in async pools too. It raises for a connection that was already returned.
    "_check_pool_putconn": _check_at_return,
    "_connect": _connect,
    # Missing before psycopg_pool 3.3: then a close is recorded at collection.
    "_close_connection": _close,
}
_NEEDED = _WRAPPERS.keys() - {"_close_connection"}

if not all(hasattr(ConnectionPool, name) for name in _NEEDED):
    raise ImportError("this version of psycopg_pool is not supported")
