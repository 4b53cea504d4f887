"""The hooks of one psycopg2 pool.

These pools lend the connection itself, which cannot be replaced by a proxy: psycopg2's
C functions check its type. The pools never wait: with no free connection they raise
PoolError at once, which counts as a timeout. They keep references to lent connections,
so a dropped connection is never collected: see :mod:`poolwatch.adapters.refcounts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import Any
from weakref import ref

from psycopg2.pool import AbstractConnectionPool, PoolError

from poolwatch.adapters import refcounts
from poolwatch.adapters.adoption import Unheld
from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.hooks import DriverHooks, request
from poolwatch.adapters.patching import Method, Patches
from poolwatch.adapters.recovery import raised_by
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.pool import PoolLedger


class Psycopg2Hooks(DriverHooks):
    """Installs and removes the hooks of one psycopg2 pool."""

    capacity = attrgetter("maxconn")

    def __init__(
        self, pool: Any, ledger: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        super().__init__(pool, ledger, context, patches)
        self._known: dict[int, ref[Any]] = {}
        """Weak references to the connections, by their ``id()``."""
        ledger.find_dropped = self._check_dropped
        for connection in [*pool._pool, *pool._used.values()]:
            self._add_existing(connection)
        patches.hook(
            pool,
            self,
            getconn=request,
            putconn=_putconn,
            _connect=connect,
            closeall=_closeall,
        )

    def gauges(self) -> Gauges:
        """Read the current figures of the pool; empty once it was collected."""
        pool = self.pool
        if pool is None:
            return Gauges()
        unheld = None
        with suppress(Exception):  # a pool class of the application
            unheld = None if pool.closed else self._unheld(pool)
        lost, missing = unheld or (0, 0)
        return Gauges(
            size=pool.maxconn,
            max_overflow=0,
            timeout_s=0.0,
            idle=len(pool._pool),
            overflow=0,
            unheld=unheld,
            before=len(self.out_before or ()),
            unseen=max(0, missing - lost - len(self.waits)),
        )

    def _unheld(self, pool: Any) -> tuple[int, int]:
        """See Gauges. The pool refers to all connections that are out."""
        unheld = self.out_now(set(pool._rused.copy()))
        left_behind = self.left_behind(unheld)
        known = [(self._known.get(key), key in left_behind) for key in unheld]
        unused = [
            each for each, left in known if each and (left or refcounts.is_unused(each))
        ]
        return len(unused), len(unheld)

    def unheld(self) -> Iterator[Unheld]:
        """The connections that the pool counts as out and that have no hold."""
        pool = self.pool
        for name, connection in list(pool._used.items()) if pool is not None else ():
            key = id(connection)
            if not self._has_hold(key):
                facts = self.facts.get(key) or self._add_existing(connection)
                is_out = partial(self._is_out, ref(pool), key)
                keyed = type(name) is not int  # the pool's own keys are numbers
                yield Unheld(key, key, self._known[key], facts, is_out, keyed)

    def _has_hold(self, key: int) -> bool:
        """Whether a hold has the connection, perhaps under the key of its return."""
        holds = self.holds.copy()
        return key in holds or any(id(each.proxy()) == key for each in holds.values())

    def _is_out(self, pool: Callable[[], Any], key: int) -> bool:
        out = getattr(pool(), "_rused", ())
        holds = self.holds.copy().values()
        return key in out and sum(id(each.proxy()) == key for each in holds) == 1

    # -- requests and holds ------------------------------------------------------------

    def identify(
        self, checkout: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The key is the connection. ``getconn(key)`` may return one already lent."""
        key = id(connection)
        hold = self.holds.get(key)
        if hold is not None and self._key_reused(hold, connection, args, kwargs):
            return None
        checkout.facts = self.facts.get(key) or self._add_existing(connection)
        checkout.proxy = self._known.get(key) or ref(connection)
        checkout.keyed = bool(args or kwargs)
        return key

    def is_out(self, pool: Any, args: Any, kwargs: Any) -> bool:
        """Whether a connection is out under this key: ``getconn`` returns it again."""
        key = _key(args, kwargs)
        with suppress(Exception):  # the key may be an object of the application
            return key is not None and key in pool._used
        return False

    def is_timeout(self, error: BaseException, checkout: Checkout, args: Any) -> bool:
        """Whether the pool was exhausted; a closed pool raises PoolError, too."""
        return isinstance(error, PoolError) and not self.pool.closed

    def give_back(
        self, pool: Any, connection: Any, checkout: Checkout, args: Any, kwargs: Any
    ) -> None:
        """Return the connection, unless it was already out under the same key."""
        hold = self.holds.get(id(connection), checkout)
        if hold is checkout or _key(args, kwargs) is None:
            pool.putconn(connection)

    def _key_reused(
        self, hold: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> bool:
        """Whether ``getconn`` was called again with the key of ``hold``. If not, the
        connection was returned without our wrapper being called.
        """
        if _key(args, kwargs) is not None:
            return True
        if self.holds.pop(id(connection), None) is hold:
            self.ledger.end(hold, monotonic(), False)
        return False

    # -- returns -----------------------------------------------------------------------

    def end_returned(self, pool: Any) -> None:
        """End the holds of connections that the pool no longer counts as out.

        A subclass of the pool may return another connection than the given one.
        """
        holds = self.holds
        for connection_id, hold in list(holds.items()):
            returned = connection_id != id(hold) and connection_id not in pool._rused
            if returned and holds.pop(connection_id, None) is hold:
                self.ledger.end(hold, monotonic(), False)

    def not_returned(
        self, pool: Any, hold: Checkout | None, connection_id: int
    ) -> None:
        """Handle a connection that the pool refused or failed to take back."""
        try:
            if hold is None:
                return
            if connection_id in pool._rused:
                self.holds[connection_id] = hold
            else:
                self.ledger.end(hold, monotonic(), False)
        except Exception as error:  # noqa: BLE001 - the application gets its own error
            self.guard.failed(error)

    def all_closed(self) -> None:
        """End all holds: the pool has closed and forgotten its connections."""
        for connection_id in list(self._known):
            self.discarded(connection_id, invalidated=False)
        for connection_id in list(self.holds):
            hold = self.holds.pop(connection_id, None)
            if hold is not None:
                self.ledger.end(hold, monotonic(), False)

    # -- connections -------------------------------------------------------------------

    def opened(self, connection: Any, opened: float, connect_s: float) -> None:
        """Count a connection that the pool has opened."""
        if self.guard.tripped:
            return
        facts = self._remember(connection, opened, connect_s)
        self.ledger.connected(connect_s, facts)

    def _add_existing(self, connection: Any) -> ConnectionFacts:
        """Record a connection that was opened before the pool was instrumented."""
        return self._remember(connection, monotonic(), None)

    def _remember(
        self, connection: Any, opened: float, connect_s: float | None
    ) -> ConnectionFacts:
        key, known, table = id(connection), self._known, self.facts

        def forget(dead: Any) -> None:
            if known.get(key) is dead:
                del known[key]
                table.pop(key, None)

        known[key] = ref(connection, forget)
        return self.remember(
            connection, key, opened, connect_s, age_unknown=connect_s is None
        )

    def discarded(self, connection_id: int, *, invalidated: bool) -> None:
        """Record that a connection was closed."""
        self._known.pop(connection_id, None)
        self.ledger.closed(self.facts.pop(connection_id, None), monotonic())
        self.ledger.invalidated += invalidated

    def _check_dropped(self) -> None:
        """Find dropped holds, except those whose key can still get the connection."""
        for hold in list(self.holds.values()):
            if self.prove_dropped and not hold.keyed:
                refcounts.check_dropped(hold)
            else:
                hold.dropped = 0


def _key(args: Any, kwargs: Any) -> Any:
    """The key that was passed to ``getconn``, if any."""
    return args[0] if args else kwargs.get("key")


# -- wrappers of methods of a pool -----------------------------------------------------


def _putconn(original: Method, hooks_of: Callable[[int], Any]) -> Method:  # noqa: C901 - written out
    """Another thread may get the connection before ``putconn`` returns.

    So the hold is moved to a key of its own during the call.
    """

    def putconn(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912 - written out
        hooks = hooks_of(id(pool))
        if hooks is None or hooks.guard.tripped:
            return original(pool, *args, **kwargs)
        holds = hooks.holds
        connection_id, hold, result = 0, None, None
        called = returned = False
        try:
            connection: Any = args[0] if args else kwargs.get("conn")
            connection_id = id(connection)
            hold = holds.pop(connection_id, None)
            if hold is not None:
                holds[id(hold)] = hold
            called = True
            result, returned = original(pool, *args, **kwargs), True
            if hold is None:
                hooks.end_returned(pool)
            elif holds.pop(id(hold), None) is hold:
                hold = hooks.ledger.end(hold, monotonic(), False)
            if getattr(connection, "closed", False):
                discarded = args[2] if len(args) > 2 else kwargs.get("close")
                hooks.discarded(connection_id, invalidated=bool(discarded))
            return result  # noqa: TRY300 - an exception here would leave the hold
        except BaseException as error:
            if hold is not None:
                holds.pop(id(hold), None)
            if not returned and raised_by(error, called, original):
                hooks.not_returned(pool, hold, connection_id)
                raise
            suppressed = hooks.suppress_failure(error)
            if returned or suppressed:
                hooks.uncount_hold(hold)
            elif hold is not None:  # it is still out
                holds[connection_id] = hold
            if not suppressed:
                raise
        if returned:
            return result
        try:
            return original(pool, *args, **kwargs)
        finally:
            hooks.end_returned(pool)

    return putconn


def connect(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Wrap ``_connect``; ``hooks`` needs ``opened()`` and ``suppress_failure()``."""

    def _connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        hooks = hooks_of(id(pool))
        if hooks is None:
            return original(pool, *args, **kwargs)
        connection = None
        try:
            began = monotonic()
            connection = original(pool, *args, **kwargs)
            now = monotonic()
            hooks.opened(connection, now, now - began)
            return connection  # noqa: TRY300 - an exception here would leak it
        except BaseException as error:
            if connection is None:
                raise
            if not hooks.suppress_failure(error):
                with suppress(Exception):  # not putconn(): the pool's lock is held
                    AbstractConnectionPool._putconn(pool, connection)
                raise
        return connection

    return _connect


def _closeall(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    def closeall(pool: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(pool, *args, **kwargs)
        hooks = hooks_of(id(pool))
        if hooks is not None and not hooks.guard.tripped:
            try:
                hooks.all_closed()
            except Exception as error:  # noqa: BLE001 - the application must go on
                hooks.guard.failed(error)
        return result

    return closeall
