"""The hooks of one SQLAlchemy pool, sync or async.

SQLAlchemy has no event for a request or a wait, so ``connect`` is wrapped; so are
``_return_conn`` (an event costs more) and ``recreate``, by which dispose() makes pools.
"""

from __future__ import annotations

import time
from asyncio import current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable, Iterator
from contextlib import suppress
from sys import _getframe as frame_at
from time import monotonic
from types import SimpleNamespace
from typing import Any
from weakref import ref

from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool, QueuePool, SingletonThreadPool, StaticPool

from poolwatch.adapters.adoption import Unheld
from poolwatch.adapters.base import AdapterContext
from poolwatch.adapters.patching import (
    Wrapped,
    below,
    function_of_pool,
    takes_arguments,
    unbound,
)
from poolwatch.adapters.recovery import Hooks, guarded, raised_by
from poolwatch.adapters.refcounts import is_unused
from poolwatch.adapters.sqlalchemy.count import FailedReturns, capacity_of, gauges_of
from poolwatch.adapters.sqlalchemy.entry import entry
from poolwatch.adapters.sqlalchemy.events import listen, unlisten
from poolwatch.adapters.sqlalchemy.facts import Connections, proxy_ref
from poolwatch.adapters.sqlalchemy.statements import StatementHooks
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CapturedStack
from poolwatch.stacks.greenlets import current_greenlet
from poolwatch.stacks.holder import TaskRef

_context = current_context.get


def is_hooked(pool: Pool) -> bool:
    """Whether a pool may have hooks: a method is wrapped on the instance."""
    return not {"connect", "recreate"}.isdisjoint(pool.__dict__)


class PoolHooks(Hooks):
    """Installs and removes the hooks of one pool and its successors."""

    def __init__(
        self, target: Engine | Pool, ledger: PoolLedger, context: AdapterContext
    ) -> None:
        pool = target.pool if isinstance(target, Engine) else target
        self.ledger = ledger
        self.guard = Guard(f"pool {ledger.name!r}")
        self._sites = context.sites
        self._per_thread = context.per_thread
        self._register_thread = context.register_thread
        self._explain = context.explain
        self._check_soon = context.check_soon
        self._report_failure = context.report_failure
        self._shared = isinstance(pool, StaticPool | SingletonThreadPool)
        """One connection record may be lent several times: holds are keyed by proxy."""
        self._async = bool(pool._is_asyncio)
        ledger.shared = self._shared
        self._target: Callable[[], Any] = ref(target)
        self._pools: list[ref[Pool]] = []
        """The live pools, current and former, of the target; the newest last."""
        self._wrapped: list[Wrapped] = []
        self._returning: dict[int, None] = {}
        """Ids of the connection records that are being put back or closed."""
        self._connections = Connections(ledger.connections)
        self.statements: StatementHooks | None = None
        ledger.gauges = self.gauges
        ledger.switched_off = lambda: self.guard.tripped
        if not self._shared:
            returns = FailedReturns(ledger, self._connections.records)
            ledger.find_dropped = returns.check
        self._adopt(pool)
        for name, listener in self._listeners():
            listen(pool.dispatch, name, listener)
        if isinstance(target, Engine):
            self.record_statements(target)

    @property
    def pool(self) -> Pool | None:
        """The hooked pool; None once it was collected."""
        target = self._target()
        return target.pool if isinstance(target, Engine) else self._newest()

    def record_statements(self, engine: Engine) -> None:
        """Record the statements of an engine, too; a bare pool has no dialect."""
        if self.statements is None:
            self.statements = StatementHooks(
                engine.dialect, self.ledger, self._sites.of_statements, self.guard
            )

    def has(self, pool: Pool) -> bool:
        """Whether these hooks are on ``pool``."""
        return any(each is pool for each in self._alive())

    def remove(self) -> None:
        """Remove all hooks. Calls in progress finish unrecorded."""
        self.guard.tripped = True
        for name, listener in self._listeners():
            unlisten([pool.dispatch for pool in self._alive()], name, listener)
        if self.statements is not None:
            self.statements.remove()
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
        kind, return_conn = below(pool, "connect"), unbound(pool, "_return_conn")
        special = takes_arguments(type(pool).connect)
        wrap_connect = self._passing_arguments if special else self._connect_wrapper
        wrappers: list[Any] = [
            wrap_connect(kind, pool),
            self._recreate_wrapper(pool),
        ]
        if not self._shared:  # shared connections bypass _return_conn
            wrappers.append(self._return_wrapper(pool, return_conn))
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
                    self.ledger.slots.forget()
                    self._adopt(new)
                    if self.guard.tripped:  # another thread has removed the hooks
                        self.remove()
                except Exception as error:  # noqa: BLE001 - the application must go on
                    self.guard.failed(error)
            return new

        return recreate

    def _passing_arguments(self, kind: Any, pool: Pool) -> Callable[..., Any]:
        """Wrap a ``connect`` that the application has given parameters."""

        def connect(*args: Any, **kwargs: Any) -> Any:
            call = SimpleNamespace(
                connect=lambda pool: kind.connect(pool, *args, **kwargs)
            )
            return self._connect_wrapper(call, pool)()

        return connect

    def _connect_wrapper(  # noqa: C901, PLR0915 - written out
        self, kind: Any, pool: Pool
    ) -> Callable[..., Any]:
        """Make the wrapper of the pool's ``connect``; it calls ``kind.connect``.

        This is the hot path: all it needs is a closure local. The wrapper keeps
        ``pool`` alive, like the bound method that it replaces.
        """
        capacity = capacity_of(pool)
        ledger, guard = self.ledger, self.guard
        holds, waits = ledger.holds, ledger.waits
        connections, add_existing = ledger.connections, self._connections.add_existing
        blamed, observers = ledger.blamed, ledger.observers
        per_thread, capture = self._per_thread, self._sites.capture
        shared, is_async = self._shared, self._async
        found = kind.connect
        usual = function_of_pool(found)

        def connect() -> Any:  # noqa: C901, PLR0912, PLR0915 - every call would cost
            original = kind.connect  # a test may have patched the class since
            original = usual if original is found else function_of_pool(original)
            if guard.tripped:
                return original(pool)
            key = hold_key = 0
            called = False
            checkout: Any = None
            proxy = held_before = None
            try:
                holder = per_thread.holder or self._register_thread()
                if is_async or running_loop() is not None:
                    stack, task = self._async_caller(frame_at(1))
                else:
                    stack, task = capture(entry()), None
                checkout = Checkout(stack, holder, _context(), task, monotonic())
                scarce = holder.hold_count or len(holds) >= capacity
                key = id(checkout)
                try:
                    waits[key] = checkout
                    if scarce:
                        self._record_scarcity(checkout, capacity)
                    called = True
                    proxy = original(pool)
                except BaseException:  # also if an interrupt follows
                    if key in waits:
                        del waits[key]
                    ledger.waited(checkout, monotonic())
                    raise
                now = checkout.checked_out_at = monotonic()
                if blamed:
                    ledger.waited(checkout, now)
                if shared:
                    hold_key, held_before = id(proxy), holder.hold_count
                    self._begin_shared_hold(checkout, proxy)
                else:
                    record = proxy._connection_record
                    hold_key = id(record)
                    checkout.facts = connections.get(hold_key) or add_existing(proxy)
                    # reuse the pool's own weak reference
                    checkout.proxy = record.fairy_ref or proxy_ref(proxy)
                    held_before = holder.hold_count
                    holds[hold_key] = checkout
                    holder.hold_count = held_before + 1
                notify = observers.checked_out
                if notify is not None:
                    notify(ledger, checkout)
                if key in waits:
                    del waits[key]
                return proxy  # noqa: TRY300 - an exception here would leave the hold
            except BaseException as error:  # noqa: BLE001 - re-raised unless ours
                if key in waits:  # no call: the stack may be full
                    del waits[key]
                try:
                    if proxy is None and raised_by(error, called, original):
                        self.request_failed(
                            checkout, error, isinstance(error, PoolTimeoutError)
                        )
                        raise
                    if not self.recover(error, checkout, hold_key, held_before):
                        if proxy is not None:
                            with suppress(Exception):
                                proxy.close()
                        raise
                finally:
                    if key in blamed:
                        del blamed[key]
            return original(pool) if proxy is None else proxy

        return connect

    def _async_caller(self, frame: Any) -> tuple[CapturedStack, TaskRef | None]:
        loop = running_loop()
        task = current_task(loop) if loop is not None else None
        greenlet = current_greenlet()
        if greenlet is None or greenlet.parent is None:
            stack = self._sites.capture(frame)
        else:
            stack = self._sites.capture_across_greenlets(frame, greenlet)
        return stack, TaskRef(task) if task is not None else None

    def _record_scarcity(self, checkout: Checkout, capacity: int) -> None:
        """Record a holder's second request, or a request to an exhausted pool."""
        ledger = self.ledger
        if checkout.holder.hold_count and not self._shared:
            ledger.requested_another(checkout)
        if len(ledger.holds) >= capacity:
            ledger.requested_beyond_capacity(checkout)
            self._check_soon(ledger.id)

    def _begin_shared_hold(self, checkout: Checkout, proxy: Any) -> None:
        """Begin a hold, unless SingletonThreadPool has lent a proxy again."""
        known = self.ledger.holds.get(id(proxy))
        if known is not None and known.proxy() is proxy:
            return
        self._end_invalidated()  # a dead proxy may have had the same id
        key = id(proxy._connection_record)
        facts = self.ledger.connections.get(key)
        checkout.facts = facts or self._connections.add_existing(proxy)
        checkout.proxy = proxy_ref(proxy)
        self.ledger.holds[id(proxy)] = checkout
        checkout.holder.hold_count += 1

    # -- pool events -----------------------------------------------------------------

    @guarded
    def _on_connect(self, dbapi_connection: Any, record: Any) -> None:
        # From just before SQLAlchemy calls the driver to after its set-up of the
        # connection: OpenTelemetry's creation time.
        connect_s = max(0.0, time.time() - record.starttime)
        detached = self.ledger.holds.pop(id(record), None)
        if detached is not None:  # the detach event of another thread is yet to come
            self._keep_detached(detached)
        facts = self._connections.opened(dbapi_connection, record, connect_s)
        self.ledger.connected(connect_s, facts)

    def _return_wrapper(
        self, pool: Pool, original: Callable[[Any, Any], None]
    ) -> Callable[[Any], None]:
        """Wrap the method that puts a connection record back. This is the other half of
        the hot path.
        """
        ledger = self.ledger
        pop_hold: Callable[..., Checkout | None] = ledger.holds.pop
        end: Callable[..., Any] = ledger.end
        returning = self._returning

        # nothing before the try: an exception there would leak the connection
        def _return_conn(
            record: Any, hold: Any = None, called: bool = False, done: bool = False
        ) -> None:
            try:
                key = id(record)
                returning[key] = None
                hold = pop_hold(key, None)
                if hold is not None:
                    hold = end(hold, monotonic(), hold.proxy() is None)
                called = True
                original(pool, record)
                done = True  # a second time would lend the connection to two
                try:  # noqa: SIM105 - a call could be interrupted before SQLAlchemy goes on
                    del returning[key]
                except KeyError:  # another thread has returned it since
                    pass
            except BaseException as error:
                returning.pop(id(record), None)
                if raised_by(error, called, original):
                    raise
                try:
                    self.uncount_hold(hold or pop_hold(id(record), None))
                finally:  # Ctrl-C must not leak the connection
                    if not done:
                        original(pool, record)
                if not self.suppress_failure(error):
                    raise

        return _return_conn

    @guarded
    def _on_shared_checkin(self, dbapi_connection: Any, record: Any) -> None:
        self._end_invalidated()

    @guarded
    def _on_reset(self, dbapi_connection: Any, record: Any, state: Any) -> None:
        """End the hold in a shared pool: only this event fires at every return.

        The event does not name the proxy, and the record may be lent several times. So
        the proxy is read from the caller's ``self``.
        """
        holds = self.ledger.holds
        frame = frame_at(1)
        while frame is not None and frame.f_code.co_name != "_reset":
            frame = frame.f_back  # type: ignore[assignment]
        closing = id(frame.f_locals.get("self")) if frame is not None else 0
        hold = holds.pop(closing, None)
        if hold is not None:
            self.ledger.end(hold, monotonic(), hold.proxy() is None)
            return
        self._end_invalidated()

    def _end_invalidated(self) -> None:
        """In a shared pool, end the holds whose proxy is dead or has no connection."""
        holds = self.ledger.holds
        for hold in list(holds.values()):
            proxy = hold.proxy()
            if proxy is None or proxy.dbapi_connection is None:
                self.ledger.end_shared(hold, monotonic(), proxy is None)

    @guarded
    def _on_invalidate(
        self, dbapi_connection: Any, record: Any, error: BaseException | None
    ) -> None:
        self.ledger.invalidated += 1

    @guarded
    def _on_close(self, dbapi_connection: Any, record: Any) -> None:
        self.ledger.closed(self.ledger.connections.pop(id(record), None), monotonic())

    @guarded
    def _on_detach(self, dbapi_connection: Any, record: Any) -> None:
        self.ledger.connections.pop(id(record), None)
        hold = self._pop_detached_hold(record)
        if hold is not None:
            self._keep_detached(hold)

    def _keep_detached(self, hold: Checkout) -> None:
        """Keep the hold of a detached connection for as long as it is in use."""
        proxy = hold.proxy()
        if proxy is None:  # dropped, not detached: an async connection
            self.ledger.end(hold, monotonic(), True)
            return
        # No later event fires if the connection is dropped, or closed by the driver's
        # own close().
        key, dialect = id(proxy.dbapi_connection), proxy._pool._dialect
        # such a dialect tells of no close
        untold = dialect.is_async and not dialect.has_terminate
        driver = None
        with suppress(TypeError):  # the driver's connection has no weak references
            driver = ref(proxy.dbapi_connection)

        def on_end(_: Any) -> None:
            # the application may go on with the driver's connection alone
            unused = driver is None or is_unused(driver, 1, 1)
            self._dropped(key, hold, unused and not untold)

        hold.proxy = ref(proxy, on_end)
        self.ledger.detached[key] = hold

    def _pop_detached_hold(self, record: Any) -> Checkout | None:
        """Remove and return the hold of a connection that was detached.

        The event fires after the record was returned, so it may have another hold by
        now.
        """
        holds = self.ledger.holds
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

    @guarded
    def _dropped(self, key: int, hold: Checkout, collected: bool) -> None:
        if self.ledger.detached.get(key) is hold:
            del self.ledger.detached[key]
            self.ledger.end(hold, monotonic(), collected)

    @guarded
    def _on_close_detached(self, dbapi_connection: Any) -> None:
        now = monotonic()
        hold = self.ledger.detached.pop(id(dbapi_connection), None)
        self.ledger.closed(hold.facts if hold is not None else None, now)
        if hold is not None:
            self.ledger.end(hold, now, False)

    # -- adoption and gauges -----------------------------------------------------------

    def meet(self, connection: Any) -> None:
        """Take note of a proxy that may have been checked out unseen."""
        self._connections.meet(connection, shared=self._shared)

    def unheld(self) -> Iterator[Unheld]:
        """Proxies that have no hold, and whose connection is not being returned."""
        return self._connections.unheld(self.ledger.holds, self._returning)

    def gauges(self) -> Gauges:
        """Read the current figures of the pool; empty once it was collected."""
        pool = self.pool
        if not isinstance(pool, QueuePool):
            return Gauges()
        holds, waits = self.ledger.holds.copy(), self.ledger.waits
        records, returning = self._connections.records, self._returning
        try:
            return gauges_of(pool, holds, waits, returning, records)
        except Exception:
            if type(pool).__module__.startswith("sqlalchemy."):
                raise
            return Gauges()  # a pool class of the application
