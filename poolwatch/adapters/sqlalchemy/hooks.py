"""The hooks of one pool of SQLAlchemy, sync or async.

SQLAlchemy has no event for a request or a wait, so the pool's ``connect`` is wrapped,
on the instance. So is ``_return_conn``, in which every return ends: a listener costs
more than its own work. ``recreate`` is wrapped because ``Engine.dispose()`` makes a new
pool by it (listeners carry over to that pool, wrappers do not). Other facts come from
pool events.
"""

from __future__ import annotations

import sys
import time
from asyncio import current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from sys import _getframe as frame_at
from time import monotonic
from typing import Any
from weakref import ref

from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool, QueuePool, SingletonThreadPool, StaticPool

from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.cut_short import Hooks, is_library_s
from poolwatch.adapters.patching import Wrapped, unbound
from poolwatch.adapters.sqlalchemy.entry import entry
from poolwatch.adapters.sqlalchemy.events import listen, unlisten
from poolwatch.adapters.sqlalchemy.facts import Connections, watch
from poolwatch.adapters.sqlalchemy.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import Path
from poolwatch.stacks.greenlets import current_greenlet
from poolwatch.stacks.holder import TaskRef

_context = current_context.get


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Wrap a listener: if it fails, its pool's hooks are switched off."""

    @wraps(hook)
    def guarded(hooks: PoolHooks, *args: Any) -> None:
        if hooks.guard.tripped:
            return
        try:
            hook(hooks, *args)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            hooks.guard.failed(error)

    return guarded


class PoolHooks(Hooks):
    """Everything that is attached to one pool, and how it comes off again."""

    def __init__(
        self, target: Engine | Pool, book: PoolLedger, context: AdapterContext
    ) -> None:
        pool = target.pool if isinstance(target, Engine) else target
        self.book = book
        self.guard = Guard(f"pool {book.name!r}")
        self._sites = context.sites
        self._per_thread = context.per_thread
        self._meet_thread = context.meet_thread
        self._explain = context.explain
        self._look_soon = context.look_soon
        self._tell_refused = context.refused
        self._shared = isinstance(pool, StaticPool | SingletonThreadPool)
        """One record may be lent several times: holds are told apart by proxy."""
        self._async = bool(pool._is_asyncio)
        book.shared = self._shared
        self._target: Callable[[], Any] = ref(target)
        self._pools: list[ref[Pool]] = []
        """The pools that the target has had and that are alive, the newest last."""
        self._wrapped: list[Wrapped] = []
        self._connections = Connections(book.connections)
        self._statements: StatementHooks | None = None
        book.gauges = self.gauges
        book.switched_off = self.is_off
        self._adopt(pool)
        for name, listener in self._listeners():
            listen(pool.dispatch, name, listener)
        if isinstance(target, Engine):
            self.note_statements(target)

    @property
    def pool(self) -> Pool | None:
        """The pool that is hooked now; None once it is gone."""
        target = self._target()
        return target.pool if isinstance(target, Engine) else self._newest()

    def is_off(self) -> bool:
        """Whether they were switched off, by the user or by a failure of ours."""
        return self.guard.tripped

    def note_statements(self, engine: Engine) -> None:
        """Note the statements of an engine, too; a bare pool knows none."""
        if self._statements is None:
            self._statements = StatementHooks(
                engine.dialect, self.book, self._sites.of_statements, self.guard
            )

    def has(self, pool: Pool) -> bool:
        """Whether these hooks are on ``pool``."""
        return any(each is pool for each in self._alive())

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        self.guard.tripped = True
        for name, listener in self._listeners():
            unlisten([pool.dispatch for pool in self._alive()], name, listener)
        if self._statements is not None:
            self._statements.remove()
        for wrapped in self._wrapped:
            wrapped.unwrap()
        self._wrapped.clear()
        self._pools = []

    # -- hooking -------------------------------------------------------------------

    def _alive(self) -> list[Pool]:
        pools = (each() for each in self._pools)
        return [pool for pool in pools if pool is not None]

    def _adopt(self, pool: Pool) -> None:
        alive = [each for each in self._pools if each() is not None]
        self._pools = [*alive, ref(pool)]
        self._wrap(pool)

    def _newest(self) -> Pool | None:
        return next(reversed(self._alive()), None)

    def _listeners(self) -> Iterator[tuple[str, Any]]:
        yield "connect", self._on_connect
        yield "invalidate", self._on_invalidate
        yield "close", self._on_close
        yield "detach", self._on_detach
        yield "close_detached", self._on_close_detached
        if self._shared:
            yield "checkin", self._on_shared_checkin
            yield "reset", self._on_reset

    def _wrap(self, pool: Pool) -> None:
        connect, back = unbound(pool, "connect"), unbound(pool, "_return_conn")
        wrappers: list[Any] = [
            self._connecting(connect, pool),
            self._recreate_wrapper(pool),
        ]
        if not self._shared:  # such a connection is never returned
            wrappers.append(self._returned(pool, back))
        wrapped = Wrapped(pool, wrappers)
        alive = [each for each in self._wrapped if each.pool() is not None]
        self._wrapped = [*alive, wrapped]
        wrapped.wrap(wrappers)

    def _recreate_wrapper(self, pool: Pool) -> Callable[[], Pool]:
        original = unbound(pool, "recreate")

        def recreate() -> Pool:
            new: Pool = original(pool)
            if not self.guard.tripped:
                try:
                    self._adopt(new)
                except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                    self.guard.failed(error)
            return new

        return recreate

    def _connecting(  # noqa: C901, PLR0915 - written out
        self, original: Callable[..., Any], pool: Pool
    ) -> Callable[..., Any]:
        """Make the wrapper of the pool's ``connect``, which is ``original``.

        The hot path: everything it needs is a local of this closure. It keeps ``pool``
        alive, as the bound method does in whose place it stands.
        """
        capacity = _capacity_of(pool)
        book, guard = self.book, self.guard
        holds, waits = book.holds, book.waits
        connections, meet = book.connections, self._connections.meet
        blamed, observers = book.blamed, book.observers
        per_thread, capture = self._per_thread, self._sites.capture
        shared, is_async = self._shared, self._async

        def connect() -> Any:  # noqa: C901, PLR0912, PLR0915 - every call would cost
            if guard.tripped:
                return original(pool)
            key = at = 0
            called = False
            wait: Any = None
            proxy = before = None
            try:
                holder = per_thread.holder or self._meet_thread()
                if is_async or running_loop() is not None:
                    path, task = self._async_caller(frame_at(1))
                else:
                    path, task = capture(entry()), None
                wait = Checkout(path, holder, _context(), task, monotonic())
                scarce = holder.out or len(holds) >= capacity
                key = id(wait)
                try:
                    waits[key] = wait
                    if scarce:
                        self._notable(wait, capacity)
                    called = True
                    proxy = original(pool)
                except BaseException:  # also if what follows is cut short
                    if key in waits:
                        del waits[key]
                    book.waited(wait, monotonic())
                    raise
                now = wait.taken = monotonic()
                if blamed:
                    book.waited(wait, now)
                if shared:
                    at, before = id(proxy), holder.out
                    self._take_shared(wait, proxy)
                else:
                    record = proxy._connection_record
                    at = id(record)
                    wait.facts = connections.get(at) or meet(proxy)
                    # the pool has such a reference already
                    wait.proxy = record.fairy_ref or watch(proxy)
                    before = holder.out
                    holds[at] = wait
                    holder.out = before + 1
                tell = observers.taken
                if tell is not None:
                    tell(book, wait)
                if key in waits:
                    del waits[key]
                return proxy  # noqa: TRY300 - also here the hold would be left behind
            except BaseException as error:  # noqa: BLE001 - raised again but for ours
                if key in waits:  # no call: the stack may be full
                    del waits[key]
                try:
                    if proxy is None and is_library_s(error, called, original):
                        self.gave_up(wait, error, isinstance(error, PoolTimeoutError))
                        raise
                    if not self.goes_on(error, wait, at, before):
                        _give_back(proxy)
                        raise
                finally:
                    if key in blamed:
                        del blamed[key]
            return original(pool) if proxy is None else proxy

        return connect

    def _async_caller(self, frame: Any) -> tuple[Path, TaskRef | None]:
        loop = running_loop()
        task = current_task(loop) if loop is not None else None
        greenlet = current_greenlet()
        if greenlet is None or greenlet.parent is None:
            path = self._sites.capture(frame)
        else:
            path = self._sites.capture_across_greenlets(frame, greenlet)
        return path, TaskRef(task) if task is not None else None

    def _notable(self, wait: Checkout, capacity: int) -> None:
        """A second connection for one holder, or one more than the pool has."""
        book = self.book
        if wait.holder.out and not self._shared:
            book.requested_another(wait)
        if len(book.holds) >= capacity:
            book.requested_beyond_capacity(wait)
            self._look_soon(book.id)

    def _take_shared(self, wait: Checkout, proxy: Any) -> None:
        """A proxy may be handed out again (SingletonThreadPool): that is one hold."""
        known = self.book.holds.get(id(proxy))
        if known is not None and known.proxy() is proxy:
            return
        self._end_invalidated()  # one of the dead may stand under this very id
        key = id(proxy._connection_record)
        wait.facts = self.book.connections.get(key) or self._connections.meet(proxy)
        wait.proxy = watch(proxy)
        self.book.holds[id(proxy)] = wait
        wait.holder.out += 1

    # -- pool events -----------------------------------------------------------------

    @_guarded
    def _on_connect(self, dbapi_connection: Any, record: Any) -> None:
        # SQLAlchemy notes the time just before it calls the driver, and tells us after
        # its own set-up of the connection: that is the creation time of OpenTelemetry.
        took = max(0.0, time.time() - record.starttime)
        before = self.book.holds.pop(id(record), None)
        if before is not None:  # detached in another thread, which is to tell us yet
            self._detached(before)
        self._connections.opened(dbapi_connection, record, took)
        self.book.connected(took)

    def _returned(
        self, pool: Pool, original: Callable[[Any, Any], None]
    ) -> Callable[[Any], None]:
        """The other half of the hot path, around the method that puts a connection's
        record back.
        """
        book = self.book
        take_out: Callable[..., Checkout | None] = book.holds.pop
        end: Callable[..., Any] = book.end

        # nothing before the try: what is raised there costs the pool a connection
        def _return_conn(record: Any, hold: Any = None, called: bool = False) -> None:
            try:
                hold = take_out(id(record), None)
                if hold is not None:
                    hold = end(hold, monotonic(), hold.proxy() is None)
                called = True
                original(pool, record)
            except BaseException as error:
                if is_library_s(error, called, original):
                    raise
                try:
                    self.came_back(hold or take_out(id(record), None))
                finally:  # Ctrl-C must not cost the pool its connection
                    original(pool, record)
                if not self.survives(error):
                    raise

        return _return_conn

    @_guarded
    def _on_shared_checkin(self, dbapi_connection: Any, record: Any) -> None:
        self._end_invalidated()

    @_guarded
    def _on_reset(self, dbapi_connection: Any, record: Any, state: Any) -> None:
        """Shared pools only: the one event at every return of such a connection.

        It does not name the proxy, and the record may be lent several times: the proxy
        is the ``self`` of the caller.
        """
        holds = self.book.holds
        frame = frame_at(1)
        while frame is not None and frame.f_code.co_name != "_reset":
            frame = frame.f_back  # type: ignore[assignment]
        closing = id(frame.f_locals.get("self")) if frame is not None else 0
        hold = holds.pop(closing, None)
        if hold is not None:
            self.book.end(hold, monotonic(), hold.proxy() is None)
            return
        self._end_invalidated()

    def _end_invalidated(self) -> None:
        """Shared pools only: end the holds whose proxy is dead or has no connection."""
        holds = self.book.holds
        for hold in list(holds.values()):
            proxy = hold.proxy()
            if proxy is None or proxy.dbapi_connection is None:
                self.book.end_shared(hold, monotonic(), proxy is None)

    @_guarded
    def _on_invalidate(
        self, dbapi_connection: Any, record: Any, error: BaseException | None
    ) -> None:
        self.book.invalidated += 1

    @_guarded
    def _on_close(self, dbapi_connection: Any, record: Any) -> None:
        self.book.closed(self.book.connections.get(id(record)), monotonic())

    @_guarded
    def _on_detach(self, dbapi_connection: Any, record: Any) -> None:
        hold = self._hold_detached(record)
        if hold is not None:
            self._detached(hold)

    def _detached(self, hold: Checkout) -> None:
        """Keep a hold that was taken out, for as long as its connection is in use."""
        proxy = hold.proxy()
        if proxy is None:  # a dropped async connection: nobody detached it
            self.book.end(hold, monotonic(), True)
            return
        # From here on no event tells of its end if it is dropped, or closed by the
        # driver's own close().
        key = id(proxy.dbapi_connection)
        hold.proxy = ref(proxy, lambda _: self._dropped(key, hold))
        self.book.detached[key] = hold

    def _hold_detached(self, record: Any) -> Checkout | None:
        """Take out the hold of a connection that has left its record.

        The record was given back before we are told: it may be another's by now.
        """
        holds = self.book.holds
        keys = [id(record)]
        if self._shared:
            self._end_invalidated()
            keys = list(holds)
        for key in keys:
            hold = holds.get(key)
            proxy = hold.proxy() if hold is not None else None
            if proxy is None or proxy._connection_record is None:
                return holds.pop(key, None)
        return None

    @_guarded
    def _dropped(self, key: int, hold: Checkout) -> None:
        if self.book.detached.get(key) is hold:
            del self.book.detached[key]
            self.book.end(hold, monotonic(), True)

    @_guarded
    def _on_close_detached(self, dbapi_connection: Any) -> None:
        now = monotonic()
        hold = self.book.detached.pop(id(dbapi_connection), None)
        self.book.closed(hold.facts if hold is not None else None, now)
        if hold is not None:
            self.book.end(hold, now, False)

    # -- gauges ------------------------------------------------------------------------

    def gauges(self) -> Gauges:
        """What the pool says of itself; nothing once it is gone."""
        pool = self.pool
        if isinstance(pool, QueuePool):
            return Gauges(
                size=pool.size(),
                max_overflow=pool._max_overflow,
                timeout_s=float(pool.timeout()),
                idle=pool.checkedin(),
                overflow=max(0, pool.overflow()),
            )
        return Gauges()


def _capacity_of(pool: Pool) -> int:
    """The most connections it lends at once."""
    if isinstance(pool, QueuePool) and pool._max_overflow >= 0 and pool.size():
        return pool.size() + pool._max_overflow
    return sys.maxsize


def _give_back(proxy: Any) -> None:
    """Let the pool have a connection that the application does not get after all."""
    if proxy is not None:
        with suppress(Exception):
            proxy.close()
