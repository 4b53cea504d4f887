"""What is attached to one pool of psycopg2, and how it comes off again.

They lend the connection itself, which must stay what it is: psycopg2's functions in C
take no stand-in. They never wait: when nothing is free, PoolError is raised at once,
which counts as a timeout. And they keep what they have lent, so a connection that was
dropped never comes back: see :mod:`poolwatch.adapters.refcounts`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from time import monotonic
from typing import Any
from weakref import ref

from psycopg2.pool import AbstractConnectionPool, PoolError

from poolwatch.adapters import refcounts
from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.cut_short import is_library_s
from poolwatch.adapters.hooks import DriverHooks, request
from poolwatch.adapters.patching import Method, Patches
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.pool import PoolLedger


class Psycopg2Hooks(DriverHooks):
    """What is attached to one pool of psycopg2."""

    capacity = attrgetter("maxconn")

    def __init__(
        self, pool: Any, book: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        super().__init__(pool, book, context, patches)
        self._known: dict[int, ref[Any]] = {}
        """Weak references to the connections, by their ``id()``."""
        book.find_dropped = self._look_for_dropped
        for connection in [*pool._pool, *pool._used.values()]:
            self._meet(connection)
        patches.hook(
            pool,
            self,
            getconn=request,
            putconn=_putconn,
            _connect=connect,
            closeall=_closeall,
        )

    def gauges(self) -> Gauges:
        """What the pool says of itself; nothing once it is gone."""
        pool = self.pool
        if pool is None:
            return Gauges()
        return Gauges(
            size=pool.maxconn,
            max_overflow=0,
            timeout_s=0.0,
            idle=len(pool._pool),
            overflow=0,
        )

    # -- requests and holds ------------------------------------------------------------

    def identify(
        self, wait: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """The pool lends the connection itself. A key may ask for one that is out."""
        key = id(connection)
        hold = self.holds.get(key)
        if hold is not None and self._again(hold, connection, args, kwargs):
            return None
        wait.facts = self.facts.get(key) or self._meet(connection)
        wait.proxy = self._known.get(key) or ref(connection)
        wait.keyed = bool(args or kwargs)
        return key

    def is_out(self, pool: Any, args: Any, kwargs: Any) -> bool:
        """Whether a connection is out under the key: then that one is lent again."""
        key = _key(args, kwargs)
        with suppress(Exception):  # a key of the application's own class
            return key is not None and key in pool._used
        return False

    def is_timeout(self, error: BaseException, wait: Checkout, args: Any) -> bool:
        """The pool raises PoolError at once when all are out, and when it is closed."""
        return isinstance(error, PoolError) and not self.pool.closed

    def give_back(
        self, pool: Any, connection: Any, wait: Checkout, args: Any, kwargs: Any
    ) -> None:
        """Return it, unless it was out before under the same key."""
        hold = self.holds.get(id(connection), wait)
        if hold is wait or _key(args, kwargs) is None:
            pool.putconn(connection)

    def _again(self, hold: Checkout, connection: Any, args: Any, kwargs: Any) -> bool:
        """Whether the key of ``hold`` was used again. If not, the connection has come
        back in a way that we have not seen.
        """
        if _key(args, kwargs) is not None:
            return True
        if self.holds.pop(id(connection), None) is hold:
            self.book.end(hold, monotonic(), False)
        return False

    # -- returns -----------------------------------------------------------------------

    def end_returned(self, pool: Any) -> None:
        """End the holds of connections that the pool does not count as out.

        A pool class of the application may choose itself which connection is returned.
        """
        holds = self.holds
        for number, hold in list(holds.items()):
            gone = number != id(hold) and number not in pool._rused
            if gone and holds.pop(number, None) is hold:
                self.book.end(hold, monotonic(), False)

    def not_returned(self, pool: Any, hold: Checkout | None, number: int) -> None:
        """The pool refused the connection, or failed while it took it."""
        try:
            if hold is None:
                return
            if number in pool._rused:
                self.holds[number] = hold
            else:
                self.book.end(hold, monotonic(), False)
        except Exception as error:  # noqa: BLE001 - the application waits for its own
            self.guard.failed(error)

    def all_closed(self) -> None:
        """The pool has closed all its connections, and forgotten what was out."""
        for number in list(self._known):
            self.discarded(number, invalidated=False)
        for number in list(self.holds):
            hold = self.holds.pop(number, None)
            if hold is not None:
                self.book.end(hold, monotonic(), False)

    # -- connections -------------------------------------------------------------------

    def opened(self, connection: Any, opened: float, took: float) -> None:
        """Count a connection that the pool has made."""
        if self.guard.tripped:
            return
        self._remember(connection, opened, took)
        self.book.connected(took)

    def _meet(self, connection: Any) -> ConnectionFacts:
        """A connection that was opened before the pool was instrumented."""
        return self._remember(connection, monotonic(), None)

    def _remember(
        self, connection: Any, opened: float, took: float | None
    ) -> ConnectionFacts:
        key, known, table = id(connection), self._known, self.facts

        def forget(dead: Any) -> None:
            if known.get(key) is dead:
                del known[key]
                table.pop(key, None)

        known[key] = ref(connection, forget)
        return self.remember(connection, key, opened, took, met=took is None)

    def discarded(self, number: int, *, invalidated: bool) -> None:
        """A connection was closed."""
        self._known.pop(number, None)
        self.book.closed(self.facts.pop(number, None), monotonic())
        self.book.invalidated += invalidated

    def _look_for_dropped(self) -> None:
        """Find holds that were dropped, unless a key leads back to the connection."""
        for hold in list(self.holds.values()):
            if self.prove_dropped and not hold.keyed:
                refcounts.look(hold)
            else:
                hold.dropped = 0


def _key(args: Any, kwargs: Any) -> Any:
    """The key that was given to ``getconn``, if any."""
    return args[0] if args else kwargs.get("key")


# -- stand-ins for methods of a pool ---------------------------------------------------


def _putconn(below: Method, hooks_of: Callable[[int], Any]) -> Method:  # noqa: C901 - written out
    """Another thread may have the connection before ``putconn`` returns.

    So the hold has a key of its own meanwhile.
    """

    def putconn(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912 - written out
        hooks = hooks_of(id(pool))
        if hooks is None or hooks.guard.tripped:
            return below(pool, *args, **kwargs)
        holds = hooks.holds
        number, hold, result = 0, None, None
        called = returned = False
        try:
            connection: Any = args[0] if args else kwargs.get("conn")
            number = id(connection)
            hold = holds.pop(number, None)
            if hold is not None:
                holds[id(hold)] = hold
            called = True
            result, returned = below(pool, *args, **kwargs), True
            if hold is None:
                hooks.end_returned(pool)
            elif holds.pop(id(hold), None) is hold:
                hold = hooks.book.end(hold, monotonic(), False)
            if getattr(connection, "closed", False):
                discarded = args[2] if len(args) > 2 else kwargs.get("close")
                hooks.discarded(number, invalidated=bool(discarded))
            return result  # noqa: TRY300 - also here the hold would be left
        except BaseException as error:
            if hold is not None:
                holds.pop(id(hold), None)
            if not returned and is_library_s(error, called, below):
                hooks.not_returned(pool, hold, number)
                raise
            survived = hooks.survives(error)
            if returned or survived:
                hooks.came_back(hold)
            elif hold is not None:  # it is still out
                holds[number] = hold
            if not survived:
                raise
        if returned:
            return result
        try:
            return below(pool, *args, **kwargs)
        finally:
            hooks.end_returned(pool)

    return putconn


def connect(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Tells how long it took: ``hooks`` has ``opened()`` and ``survives()``."""

    def _connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
        hooks = hooks_of(id(pool))
        if hooks is None:
            return below(pool, *args, **kwargs)
        connection = None
        try:
            began = monotonic()
            connection = below(pool, *args, **kwargs)
            now = monotonic()
            hooks.opened(connection, now, now - began)
            return connection  # noqa: TRY300 - also here it would be lost
        except BaseException as error:
            if connection is None:
                raise
            if not hooks.survives(error):
                with suppress(Exception):  # without the pool's lock: it is held
                    AbstractConnectionPool._putconn(pool, connection)
                raise
        return connection

    return _connect


def _closeall(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    def closeall(pool: Any, *args: Any, **kwargs: Any) -> Any:
        result = below(pool, *args, **kwargs)
        hooks = hooks_of(id(pool))
        if hooks is not None and not hooks.guard.tripped:
            try:
                hooks.all_closed()
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                hooks.guard.failed(error)
        return result

    return closeall
