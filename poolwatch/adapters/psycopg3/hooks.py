"""What is attached to one pool of psycopg_pool, and how it comes off again.

The public methods lead to inner ones, and those are wrapped: then a ``pool.getconn``
that was handed on before the pool was instrumented is seen like any other
(``create_engine(creator=pool.getconn)``), and the pool gets no reference to itself but
one: by ``getconn``, which raises the timeout error that is to be explained.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from sys import _getframe as frame_at
from time import monotonic
from typing import Any
from weakref import ref

from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.base_null_pool import _BaseNullConnectionPool

from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.hooks import DriverHooks
from poolwatch.adapters.patching.wrapping import Wrapped
from poolwatch.adapters.psycopg3 import wrappers as psycopg_wrappers
from poolwatch.adapters.psycopg3.connect import url_of
from poolwatch.adapters.psycopg3.connections import Connections, Met
from poolwatch.adapters.psycopg3.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger

_REQUEST = "_getconn_with_check_loop"
_RETURN = "_check_pool_putconn"
"""The pool's own question whether that connection is out of it. It comes first at every
return, in async pools too, and raises for one that was returned before."""
_CONNECT = "_connect"
_CLOSE = "_close_connection"
"""Absent before psycopg_pool 3.3: then a close is noticed when the object goes."""
_TIMEOUTS = (PoolTimeout, TooManyRequests)
_WRAPPERS = psycopg_wrappers.__file__

if not all(hasattr(ConnectionPool, name) for name in (_REQUEST, _RETURN, _CONNECT)):
    raise ImportError("this psycopg_pool is too old to be watched, or too new")


class PsycopgHooks(DriverHooks):
    """What is attached to one pool of psycopg_pool."""

    def __init__(self, pool: Any, book: PoolLedger, context: AdapterContext) -> None:
        super().__init__(pool, book, context)
        self._keeps_none = isinstance(pool, _BaseNullConnectionPool)
        """Its least size is 0 always, and says nothing."""
        statements = StatementHooks(book, context.sites, self.guard)
        self._connections = Connections(
            book, self.guard, statements, self.remember, self._keeps_slot
        )
        wrappers = self._wrappers(pool)
        self._wrapped = Wrapped(pool, wrappers)
        self._wrapped.end = self._end
        self._wrapped.wrap(wrappers)
        for connection in list(pool._pool):  # a forked child must find them known
            self._meet(connection)

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        super().remove()
        self._wrapped.unwrap()
        self._connections.forget()

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

    def explain_to(self, error: BaseException) -> None:
        """Do nothing yet: ``getconn`` raises a timeout error of its own afterwards."""

    def _keeps_slot(self) -> bool:
        """Whether the pool counts a connection that was dropped, and can run out."""
        pool = self.pool
        return pool is not None and not pool._closed and bool(pool._max_size)

    def _wrappers(self, pool: Any) -> list[Any]:
        make, guarded = psycopg_wrappers, self._guarded
        closed = guarded(self._connections.closed)
        wrappers = [
            make.explaining(pool, _TIMEOUTS, guarded(self._explain_to)),
            make.requesting(
                pool,
                _REQUEST,
                self.book,
                self._asking(pool),
                self._lending(),
                self._request_goes_on,
            ),
            make.after(pool, _RETURN, self._returning()),
            make.connecting(pool, _CONNECT, guarded(self._connected)),
        ]
        if hasattr(type(pool), _CLOSE):
            wrappers.append(make.before(pool, _CLOSE, closed))
        return wrappers

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        guard = self.guard

        @wraps(hook)
        def guarded(*args: Any) -> None:
            if guard.tripped:
                return
            try:
                hook(*args)
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                guard.failed(error)

        return guarded

    # -- requests, holds and returns ---------------------------------------------------

    def _asking(self, pool: Any) -> Callable[[], tuple[Checkout | None, int]]:
        """The first part of the hot path: what it needs is a local of this closure."""
        book, guard, weakly = self.book, self.guard, ref(pool)
        holds, waits = book.holds, book.waits
        per_thread, caller, notable = self._per_thread, self.caller, self.notable
        get_context = current_context.get

        def asked() -> tuple[Checkout | None, int]:
            if guard.tripped:
                return None, 0
            wait, key = None, 0
            try:
                pool: Any = weakly()
                holder = per_thread.holder or self._meet_thread()
                path, task = caller(_asker())
                wait = Checkout(path, holder, get_context(), task, monotonic())
                key = id(wait)
                waits[key] = wait
                most = (pool._max_size or sys.maxsize) - book.lost_slots  # resize()
                if holder.out or len(holds) >= most:
                    notable(wait, most)
                return wait, key  # noqa: TRY300 - also here the wait would be left
            except BaseException as error:
                if key in waits:  # no call: the stack may be full
                    del waits[key]
                if not self.goes_on(error, wait):
                    raise
            return None, 0

        return asked

    def _lending(self) -> Callable[[Checkout, Any], None]:
        """The second part."""
        book, guard = self.book, self.guard
        known, meet = self._connections.known, self._meet
        holds, waits = book.holds, book.waits
        blamed, observers = book.blamed, book.observers

        def lent(wait: Checkout, connection: Any) -> None:
            if guard.tripped:
                waits.pop(id(wait), None)
                return
            at, before = 0, None
            try:
                now = wait.taken = monotonic()
                if blamed:
                    book.waited(wait, now)
                at = id(connection)
                met = known.get(at) or meet(connection)
                unseen = holds.pop(at, None)
                if unseen is not None:  # it came back by a way that we do not know
                    book.end(unseen, now, False)
                wait.facts = met.facts
                wait.proxy = met.reference
                holder = wait.holder
                before = holder.out
                holds[at] = wait
                holder.out = before + 1
                tell = observers.taken
                if tell is not None:
                    tell(book, wait)
                del waits[id(wait)]
            except BaseException as error:
                waits.pop(id(wait), None)
                if not self.goes_on(error, wait, at, before):
                    raise

        return lent

    def _request_goes_on(
        self, error: BaseException, wait: Checkout | None, refused: bool
    ) -> bool:
        """Whether a connection is lent in spite of an exception: see requesting()."""
        if not refused:
            return self.goes_on(error, wait)
        if wait is not None and not self.guard.tripped:
            self.gave_up(wait, error, isinstance(error, _TIMEOUTS))
        return False

    def _explain_to(self, error: BaseException) -> None:
        error.add_note(self._explain(self.book.id))

    def _returning(self) -> Callable[[Any], None]:
        """The last part of the hot path."""
        guard, book, closed = self.guard, self.book, self._connections.closed
        holds = book.holds
        take_out: Callable[..., Checkout | None] = holds.pop
        end: Callable[..., Any] = book.end

        def returned(connection: Any) -> None:
            if guard.tripped:
                return
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
                    return
                if hold is not None:  # the pool has not got it back
                    holds[id(connection)] = hold
                raise

        return returned

    # -- connections -------------------------------------------------------------------

    def _connected(self, connection: Any, began: float) -> None:
        """One was made, and set up: that is the creation time of OpenTelemetry."""
        now = monotonic()
        self.book.connected(now - began)
        self._meet(connection, now, now - began)

    def _meet(
        self, connection: Any, opened: float | None = None, took: float | None = None
    ) -> Met:
        """Take down a connection; by itself it knows when it was made."""
        if opened is None:
            opened = getattr(connection, "_created_at", monotonic())
        if self.book.url is None:
            self.book.url = url_of(connection.info.get_parameters())
        return self._connections.meet(connection, opened, took)


def _asker() -> Any:
    """The frame that has called ``getconn``: neither the pool's nor ours."""
    frame = frame_at(3).f_back  # below it: this, asked(), the wrapper, getconn()
    if frame is not None and frame.f_code.co_filename == _WRAPPERS:
        return frame.f_back
    return frame
