"""psycopg2's own pools: SimpleConnectionPool, ThreadedConnectionPool, their like.

They lend the connection itself, which must stay what it is: psycopg2's functions in C
take no stand-in. They never wait: when nothing is free, PoolError is raised at once,
which counts as a timeout. And they keep what they have lent, so a connection that was
dropped never comes back: see :mod:`poolwatch.adapters.refcounts`.
"""

from __future__ import annotations

import os
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from contextlib import suppress
from sys import _getframe as frame_at
from time import monotonic
from typing import Any
from weakref import ref

import psycopg2
from psycopg2.extensions import parse_dsn
from psycopg2.pool import AbstractConnectionPool, PoolError

from poolwatch.adapters import refcounts
from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.cut_short import is_library_s
from poolwatch.adapters.hooks import DriverHooks
from poolwatch.adapters.patching.class_methods import ClassMethods, Method
from poolwatch.adapters.sync_driver import CONNECT_TIMEOUT_S
from poolwatch.adapters.urls import masked_url
from poolwatch.errors import ServerViewError
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.settings import Settings


class Psycopg2Pools(LibraryPools):
    """The instrumented pools of psycopg2. They are not kept alive."""

    accepted = (AbstractConnectionPool,)
    made = (AbstractConnectionPool,)

    def __init__(self, context: AdapterContext) -> None:
        super().__init__(context)
        self._methods = ClassMethods()

    def make_hooks(self, target: Any, book: PoolLedger) -> Psycopg2Hooks:
        """Hook the pool."""
        return Psycopg2Hooks(target, book, self._context, self._methods)

    def apply(self, hooks: Any, settings: Settings) -> None:
        """Look for dropped connections, or do not."""
        hooks.prove_dropped = settings.prove_dropped

    def forget_every(self) -> None:
        """Take off all hooks, also where the pools were collected meanwhile."""
        super().forget_every()
        self._methods.tidy()

    def name_of(self, target: Any) -> str:
        """The database; else what stands for it in libpq, or the class."""
        parameters = _parameters(target)
        database = parameters.get("dbname") or os.environ.get("PGDATABASE")
        return str(database or parameters.get("user") or type(target).__name__)

    def url_of(self, target: Any) -> str | None:
        """What it connects to."""
        return masked_url(_parameters(target))

    def arguments_of(self, target: Any) -> Any:
        """What libpq is given."""
        return _parameters(target)

    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """As the pool makes its own, but a plain connection."""
        reference = ref(target)

        def connect() -> Any:
            pool = reference()
            if pool is None:
                raise ServerViewError("the pool is gone")
            words = {"connect_timeout": CONNECT_TIMEOUT_S, **_parameters(pool)}
            return psycopg2.connect(**words)

        return connect

    def _watching_init(self, below: Any) -> Any:
        """The pool's first connections are made in here: note how long each took."""
        methods = self._methods

        def watched_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            if self._every is None:
                below(pool, *args, **kwargs)
                return
            made: list[tuple[Any, float, float]] = []
            with self._lock:
                methods.hook(pool, "_connect", lambda connect: _timed(connect, made))
            try:
                below(pool, *args, **kwargs)
            finally:
                methods.unhook(id(pool))
            self.watch_one_of_all(pool)
            hooks = self._of(pool)
            if isinstance(hooks, Psycopg2Hooks):
                for connection, opened, took in made:
                    hooks.opened(connection, opened, took)

        return watched_init


def _timed(connect: Method, made: list[tuple[Any, float, float]]) -> Method:
    def timed(pool: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        connection = connect(pool, *args, **kwargs)
        now = monotonic()
        made.append((connection, now, now - began))
        return connection

    return timed


def _key(args: Any, kwargs: Any) -> Any:
    """The key that was given to ``getconn``, if any."""
    return args[0] if args else kwargs.get("key")


def _is_out(pool: Any, key: Any) -> bool:
    """Whether a connection is out under this key: then that one is given again."""
    with suppress(Exception):  # a key of the application's own class
        return key is not None and key in pool._used
    return False


def _parameters(pool: Any) -> dict[str, Any]:
    """What the pool gives to libpq: the words of its DSN and its keywords.

    Empty if nobody can read it.
    """
    keywords = dict(getattr(pool, "_kwargs", None) or {})
    arguments = getattr(pool, "_args", None) or ()
    dsn = arguments[0] if arguments else keywords.pop("dsn", None)
    for other in ("dsn", "connection_factory", "cursor_factory", "async", "async_"):
        keywords.pop(other, None)
    found: dict[str, Any] = {}
    if dsn:
        with suppress(Exception):
            found = parse_dsn(dsn)
    if "database" in keywords:  # psycopg2's own other name for it
        keywords.setdefault("dbname", keywords.pop("database"))
    return {**found, **{k: v for k, v in keywords.items() if v is not None}}


class Psycopg2Hooks(DriverHooks):
    """What is attached to one pool of psycopg2."""

    def __init__(
        self,
        pool: Any,
        book: PoolLedger,
        context: AdapterContext,
        methods: ClassMethods,
    ) -> None:
        super().__init__(pool, book, context)
        self._methods = methods
        self._number = id(pool)
        self._known: dict[int, ref[Any]] = {}
        """Tell when a connection is gone; by its ``id()``, as its facts are."""
        self.prove_dropped = True
        book.look = self._look_for_dropped
        for connection in [*pool._pool, *pool._used.values()]:
            self._meet(connection)
        methods.hook(pool, "getconn", self._getconn)
        methods.hook(pool, "putconn", self._putconn)
        methods.hook(pool, "_connect", self._connect)
        methods.hook(pool, "closeall", self._closeall)

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        super().remove()
        self._methods.unhook(self._number)
        self._methods.tidy()

    def _pool_gone(self) -> None:
        self._methods.unhook(self._number)
        super()._pool_gone()

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

    # -- methods of the pool -----------------------------------------------------------

    def _getconn(self, original: Method) -> Method:  # noqa: C901, PLR0915 - written out
        """The hot path: everything it needs is a local of this closure."""
        book, guard = self.book, self.guard
        holds, waits, connections = book.holds, book.waits, book.connections
        blamed, observers = book.blamed, book.observers
        per_thread, capture = self._per_thread, self._sites.capture
        get_context = current_context.get
        known = self._known
        notable, again = self.notable, self._again
        capacity = self.pool.maxconn

        def getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912, PLR0915 - every call would cost
            if guard.tripped:
                return original(pool, *args, **kwargs)
            number = key = 0
            called = False
            wait: Any = None
            connection = before = None
            try:
                holder = per_thread.holder or self._meet_thread()
                try:
                    frame = frame_at(2)
                except ValueError:  # a greenlet that runs nothing but getconn()
                    frame = None
                if running_loop() is not None:
                    path, task = self.caller(frame)
                else:
                    path, task = capture(frame), None
                wait = Checkout(path, holder, get_context(), task, monotonic())
                number = id(wait)
                try:
                    waits[number] = wait
                    scarce = holder.out or len(holds) >= capacity
                    if scarce and not _is_out(pool, _key(args, kwargs)):
                        notable(wait, capacity)
                    called = True
                    connection = original(pool, *args, **kwargs)
                except BaseException:  # also if what follows is cut short
                    if number in waits:
                        del waits[number]
                    book.waited(wait, monotonic())
                    raise
                now = wait.taken = monotonic()
                if blamed:
                    book.waited(wait, now)
                key = id(connection)
                if key not in holds or not again(holds[key], connection, args, kwargs):
                    wait.facts = connections.get(key) or self._meet(connection)
                    wait.proxy = known.get(key) or ref(connection)
                    wait.keyed = bool(args or kwargs)
                    before = holder.out
                    holds[key] = wait
                    holder.out = before + 1
                    tell = observers.taken
                    if tell is not None:
                        tell(book, wait)
                del waits[number]
                return connection  # noqa: TRY300 - also here the hold would be left
            except BaseException as error:  # noqa: BLE001 - raised again but for ours
                if number in waits:  # no call: the stack may be full
                    del waits[number]
                try:
                    if connection is None and is_library_s(error, called, original):
                        self.gave_up(wait, error, _is_exhausted(pool, error))
                        raise
                    if not self.goes_on(error, wait, key, before):
                        hold = holds.get(id(connection), wait)
                        if hold is wait or _key(args, kwargs) is None:
                            _give_back(pool, connection)  # else it was out before
                        raise
                finally:
                    if number in blamed:
                        del blamed[number]
            if connection is None:
                return original(pool, *args, **kwargs)
            return connection

        return getconn

    def _again(self, hold: Checkout, connection: Any, args: Any, kwargs: Any) -> bool:
        """Whether it was asked for by the key under which it is out: then one hold.

        Else it came back in a way that was not seen.
        """
        if _key(args, kwargs) is not None:
            return True
        if self.book.holds.pop(id(connection), None) is hold:
            self.book.end(hold, monotonic(), False)
        return False

    def _putconn(self, original: Method) -> Method:  # noqa: C901 - written out
        """The other half: another thread may have the connection before this returns.

        So meanwhile the hold stands under a key of its own.
        """
        guard, holds = self.guard, self.book.holds
        end: Callable[..., Any] = self.book.end

        def putconn(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901, PLR0912 - written out
            if guard.tripped:
                return original(pool, *args, **kwargs)
            number, hold, result = 0, None, None
            called = returned = False
            try:
                connection: Any = args[0] if args else kwargs.get("conn")
                number = id(connection)
                hold = holds.pop(number, None)
                if hold is not None:
                    holds[id(hold)] = hold
                called = True
                result, returned = original(pool, *args, **kwargs), True
                if hold is None:
                    self._end_returned(pool)
                elif holds.pop(id(hold), None) is hold:
                    hold = end(hold, monotonic(), False)
                if getattr(connection, "closed", False):
                    discarded = args[2] if len(args) > 2 else kwargs.get("close")
                    self._discarded(number, invalidated=bool(discarded))
                return result  # noqa: TRY300 - also here the hold would be left
            except BaseException as error:
                if hold is not None:
                    holds.pop(id(hold), None)
                if not returned and is_library_s(error, called, original):
                    self._not_returned(pool, hold, number)
                    raise
                survived = self.survives(error)
                if returned or survived:
                    self.came_back(hold)
                elif hold is not None:  # it is still out
                    holds[number] = hold
                if not survived:
                    raise
            if returned:
                return result
            try:
                return original(pool, *args, **kwargs)
            finally:
                self._end_returned(pool)

        return putconn

    def _end_returned(self, pool: Any) -> None:
        """End the holds of what is not out any more.

        A pool of the user's own may know by itself what is returned.
        """
        holds = self.book.holds
        for number, hold in list(holds.items()):
            gone = number != id(hold) and number not in pool._rused
            if gone and holds.pop(number, None) is hold:
                self.book.end(hold, monotonic(), False)

    def _not_returned(self, pool: Any, hold: Checkout | None, number: int) -> None:
        """The pool would not have it, or failed in the middle of it."""
        try:
            if hold is None:
                return
            if number in pool._rused:
                self.book.holds[number] = hold
            else:
                self.book.end(hold, monotonic(), False)
        except Exception as error:  # noqa: BLE001 - the application waits for its own
            self.guard.failed(error)

    def _connect(self, original: Method) -> Method:
        guard = self.guard

        def connect(pool: Any, *args: Any, **kwargs: Any) -> Any:
            connection = None
            try:
                began = monotonic()
                connection = original(pool, *args, **kwargs)
                if not guard.tripped:
                    now = monotonic()
                    self.opened(connection, now, now - began)
                return connection  # noqa: TRY300 - also here it would be lost
            except BaseException as error:
                if connection is None:
                    raise
                if not self.survives(error):
                    with suppress(Exception):  # without the pool's lock: it is held
                        AbstractConnectionPool._putconn(pool, connection)
                    raise
            return connection

        return connect

    def _closeall(self, original: Method) -> Method:
        guard, book = self.guard, self.book

        def closeall(pool: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(pool, *args, **kwargs)
            if not guard.tripped:
                try:
                    for number in list(self._known):
                        self._discarded(number, invalidated=False)
                    for number in list(book.holds):
                        hold = book.holds.pop(number, None)
                        if hold is not None:
                            book.end(hold, monotonic(), False)
                except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                    guard.failed(error)
            return result

        return closeall

    # -- connections -------------------------------------------------------------------

    def opened(self, connection: Any, opened: float, took: float) -> None:
        """Count a connection that the pool has made."""
        self._remember(connection, opened, took)
        self.book.connected(took)

    def _meet(self, connection: Any) -> ConnectionFacts:
        """A connection that was opened before the pool was instrumented."""
        return self._remember(connection, monotonic(), None)

    def _remember(
        self, connection: Any, opened: float, took: float | None
    ) -> ConnectionFacts:
        key, known, table = id(connection), self._known, self.book.connections

        def forget(dead: Any) -> None:
            if known.get(key) is dead:
                del known[key]
                table.pop(key, None)

        known[key] = ref(connection, forget)
        return self.remember(connection, key, opened, took, met=took is None)

    def _discarded(self, number: int, *, invalidated: bool) -> None:
        """A connection was closed."""
        self._known.pop(number, None)
        self.book.closed(self.book.connections.pop(number, None), monotonic())
        self.book.invalidated += invalidated

    def _look_for_dropped(self) -> None:
        """Look at everything that is out, unless somebody may come back by its key."""
        for hold in list(self.book.holds.values()):
            if self.prove_dropped and not hold.keyed:
                refcounts.look(hold)
            else:
                hold.dropped = 0


def _give_back(pool: Any, connection: Any) -> None:
    """Let the pool have a connection that the application does not get after all."""
    if connection is not None:
        with suppress(Exception):
            pool.putconn(connection)


def _is_exhausted(pool: Any, error: BaseException) -> bool:
    return isinstance(error, PoolError) and not pool.closed
