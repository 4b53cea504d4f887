"""The hooks of one database alias of Django.

Django has one ``DatabaseWrapper`` per alias and thread, which opens a connection when
code of the thread first needs one. A hold begins with the first cursor of a unit of
work, and ends when the connection is closed, or when Django has checked whether it must
be (``close_if_unusable_or_obsolete``: at the end of a request, and wherever the
application calls ``close_old_connections()``). A connection that stays open after that
is idle, as in a pool.

A thread that ends without closing its connection leaves it open until the garbage
collector finds the wrapper, which is part of reference cycles.

With a pool below Django, psycopg_pool's or another instrumented one, the hold is the
pool's, and none is recorded here.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from sys import _getframe as frame_at
from threading import current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.adapters.recovery import Hooks, guarded
from poolwatch.adapters.statements import StatementHooks
from poolwatch.ledger.checkout import (
    MAX_STATEMENT_LENGTH,
    Checkout,
    FrameworkWork,
    Gauges,
    Usage,
)
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard

if TYPE_CHECKING:
    from types import FrameType

    from poolwatch.adapters.base import AdapterContext

_MAX_NEWEST = 64
"""Holds of a pool among which the one that Django has just made is looked for."""


_BEGIN = "BEGIN"
"""Sent by ``transaction.atomic()`` to SQLite; to other databases with the first
statement."""
_MAX_WITHOUT_STATEMENT = 256
"""Holds of one pool that are remembered until their first statement."""


class Requester:
    """Makes the requests of Django's threads for a connection."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context

    def request(self, frame: FrameType | None) -> Checkout:
        """A request of the running thread, with the work that it is for."""
        context = self._context
        holder = context.per_thread.holder or context.register_thread()
        stack = context.sites.capture(frame)
        request = Checkout(stack, holder, current_context.get(), None, monotonic())
        request.work = holder.request or FrameworkWork(is_shared=_is_shared_thread())
        if request.work.task is None:
            request.work.task = context.sites.submitter(frame, False)[0]
        return request

    def locate(self, hold: Checkout, frame: FrameType | None) -> None:
        """Record the first statement of a hold as the place of its checkout.

        The connection may have been opened before, by ``transaction.atomic()`` or a
        cursor that was not used yet.
        """
        hold.stack = self._context.sites.capture(frame)

    def mark_hold_of_pool(self, request: Checkout) -> Checkout | None:
        """Note on the hold of the pool below that Django keeps it for the thread."""
        for pool in list(self._context.ledger.pools.values()):
            if pool.per_thread:  # another alias
                continue
            for hold in list(pool.holds.values())[-_MAX_NEWEST:]:
                made = hold.requested_at >= request.requested_at
                if made and hold.holder is request.holder:
                    hold.work = request.work
                    return hold
        return None


class AliasHooks(Hooks):
    """Records the connections of one alias, in all threads."""

    def __init__(self, alias: str, ledger: PoolLedger, context: AdapterContext) -> None:
        self.alias = alias
        self.ledger = ledger
        self.holds = ledger.holds
        self.guard = Guard(f"Django's database {alias!r}")
        self._requester = Requester(context)
        self._statements = StatementHooks(context.sites, self.guard, ledger.concurrent)
        self._wrappers: dict[int, ref[Any]] = {}
        """By ``id()``: the wrappers that have an open connection."""
        self._connecting: dict[int, tuple[Checkout, int]] = {}
        """By ``id()`` of the wrapper: the request, and the holds of the thread."""
        self._last: dict[int, Checkout] = {}
        """By ``id()`` of the wrapper: the last hold of an idle connection."""
        self._unused: set[int] = set()
        """By ``id()`` of the wrapper: holds without a statement so far."""
        self._over_pool = False
        """Whether Django gets its connections from an instrumented pool."""
        self._explain = context.explain
        self._report_failure = context.report_failure
        ledger.per_thread = True
        ledger.gauges = self.gauges
        ledger.switched_off = self.is_switched_off
        ledger.find_dropped = self._find_left_open

    @property
    def pool(self) -> Any:
        """The alias; it lasts as long as the process."""
        return self.alias

    def has(self, pool: Any) -> bool:
        """Whether these are the hooks of the alias ``pool``."""
        return bool(self.alias == pool)

    def is_switched_off(self) -> bool:
        """Whether the hooks are off, by the user or after a failure of poolwatch."""
        return self.guard.tripped

    def remove(self) -> None:
        """Record nothing any more."""
        self.guard.tripped = True
        self._wrappers.clear()
        self._last.clear()

    def forget_parent(self) -> None:
        """In a forked child: its threads have no connections of their own yet."""
        self._connecting.clear()
        self._last.clear()
        self._unused.clear()

    def gauges(self) -> Gauges:
        """The number of idle connections; there is no limit."""
        return Gauges(idle=max(0, len(self.ledger.connections) - len(self.holds)))

    # -- connections -------------------------------------------------------------------

    @guarded
    def begin_connect(self, wrapper: Any) -> None:
        """Record that a thread asks for a connection."""
        request = self._requester.request(frame_at(3))
        self._connecting[id(wrapper)] = request, request.holder.hold_count
        if not self._over_pool:
            self.ledger.waits[id(request)] = request

    @guarded
    def end_connect(self, wrapper: Any, error: BaseException | None) -> None:
        """Record a new connection as held by its thread."""
        request, held_before = self._connecting.get(id(wrapper), (None, 0))
        if request is None:
            return
        self.ledger.waits.pop(id(request), None)
        self._connecting.pop(id(wrapper), None)
        now = monotonic()
        if error is not None:
            if not self._over_pool:
                self._count_failure(request, error, timed_out=False)
            return
        another = request.holder.hold_count > held_before
        # or a receiver of connection_created has used another alias
        self._over_pool = another and bool(self._requester.mark_hold_of_pool(request))
        if self._over_pool:
            return
        took = now - request.requested_at
        facts = facts_of(wrapper.connection, now, took)
        self.ledger.connected(took, facts)
        self.ledger.connections[id(wrapper)] = facts
        self._begin_hold(wrapper, request)

    @guarded
    def use_again(self, wrapper: Any) -> None:
        """Begin a hold of a connection that is already open."""
        key = id(wrapper)
        if self._over_pool or key in self._connecting or wrapper.connection is None:
            return
        if key not in self.ledger.connections:
            facts = facts_of(wrapper.connection, monotonic(), None, age_unknown=True)
            self.ledger.connections[key] = facts
        self._begin_hold(wrapper, self._requester.request(frame_at(3)))

    @guarded
    def release(self, wrapper: Any) -> None:
        """End the hold of a connection: the request, or the job, is over."""
        hold = self.holds.pop(id(wrapper), None)
        if hold is None:
            return
        self.ledger.end(hold, monotonic(), False)
        if wrapper.connection is not None:
            self._last[id(wrapper)] = hold

    @guarded
    def close(self, wrapper: Any) -> None:
        """Record that a connection is closed."""
        if wrapper.connection is not None and not wrapper.closed_in_transaction:
            return
        key, now = id(wrapper), monotonic()
        self._wrappers.pop(key, None)
        self._last.pop(key, None)
        self._unused.discard(key)
        facts = self.ledger.connections.pop(key, None)
        if facts is not None:
            self.ledger.closed(facts, now)
        hold = self.holds.pop(key, None)
        if hold is not None:
            self.ledger.end(hold, now, False)

    # -- holds -------------------------------------------------------------------------

    def _begin_hold(self, wrapper: Any, hold: Checkout) -> None:
        key = id(wrapper)
        known = self._wrappers.get(key)
        if known is None or known() is not wrapper:
            known = self._wrappers[key] = ref(wrapper, partial(self._wrapper_gone, key))
        self._last.pop(key, None)
        self._unused.add(key)
        hold.proxy, hold.facts = known, self.ledger.connections.get(key)
        hold.checked_out_at = monotonic()
        self.holds[key] = hold
        hold.holder.hold_count += 1
        notify = self.ledger.observers.checked_out
        if notify is not None:
            notify(self.ledger, hold)

    def _wrapper_gone(self, key: int, gone: ref[Any]) -> None:
        """The wrapper was collected with an open connection. Runs in a finalizer."""
        if self._wrappers.get(key) is not gone:
            return
        del self._wrappers[key]
        self._unused.discard(key)
        hold, last = self.holds.pop(key, None), self._last.pop(key, None)
        facts = self.ledger.connections.pop(key, None)
        if self.guard.tripped or facts is None or facts.process != os.getpid():
            return
        if sys.is_finalizing():
            return
        try:
            now = monotonic()
            if hold is None and last is not None and last.holder.has_ended():
                hold = self._reopened(last, now)
            if hold is not None:
                self.ledger.end(hold, now, True)
            self.ledger.closed(facts, now)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self.guard.failed(error)

    @guarded
    def _find_left_open(self) -> None:
        """Find idle connections that no code can use: their threads have ended."""
        for key, last in list(self._last.items()):
            known = self._wrappers.get(key)
            if known is None or not last.holder.has_ended():
                continue
            if known() is not None and self._last.pop(key, None) is last:
                self.holds[key] = self._reopened(last, monotonic())

    @staticmethod
    def _reopened(last: Checkout, now: float) -> Checkout:
        """A hold by the thread that last used a connection, and left it open."""
        hold = Checkout(last.stack, last.holder, last.context, None, now)
        hold.proxy, hold.facts = last.proxy, last.facts
        hold.work = FrameworkWork(is_over=True)
        hold.holder.hold_count += 1
        return hold

    # -- statements --------------------------------------------------------------------

    @guarded
    def begin_statement(self, wrapper: Any, sql: Any) -> Usage | None:
        """Record the start of a statement."""
        hold = self.holds.get(id(wrapper))
        if hold is None:
            return None
        text = sql[:MAX_STATEMENT_LENGTH] if type(sql) is str else None
        if id(wrapper) in self._unused:
            self._requester.locate(hold, frame_at(3))
            if text is None or not text.startswith(_BEGIN):
                self._unused.discard(id(wrapper))
        return self._statements.begin(hold, text, frame_at(3))

    @guarded
    def begin_end_of_transaction(self, wrapper: Any) -> Usage | None:
        """Record the start of a commit or rollback, if a transaction is open."""
        hold = self.holds.get(id(wrapper))
        usage = None if hold is None else hold.usage
        if usage is None or usage.idle_since is None:
            return None
        usage.begin()
        return usage

    @guarded
    def begin_stream(self, wrapper: Any) -> None:
        """Record that a server-side cursor is opened: fetching is not measured."""
        hold = self.holds.get(id(wrapper))
        if hold is not None:
            hold.usage = hold.usage or Usage()
            hold.usage.streamed = True


class PooledAliasHooks:
    """Notes the work for which holds of Django's own pool were made.

    The pool is instrumented by the adapter of its library, and records the holds.
    """

    def __init__(self, alias: str, context: AdapterContext) -> None:
        self.guard = Guard(f"Django's database {alias!r}")
        self.holds: dict[int, Checkout] = {}
        """By ``id()`` of the wrapper: holds of the pool, before the first statement."""
        self._requester = Requester(context)
        self._connecting: dict[int, Checkout] = {}

    @guarded
    def begin_connect(self, wrapper: Any) -> None:
        """Note the thread that asks for a connection."""
        self._connecting[id(wrapper)] = self._requester.request(frame_at(3))

    @guarded
    def end_connect(self, wrapper: Any, error: BaseException | None) -> None:
        """Mark the hold of the pool, if there is one."""
        request = self._connecting.pop(id(wrapper), None)
        if request is None or error is not None:
            return
        hold = self._requester.mark_hold_of_pool(request)
        if hold is not None:
            if len(self.holds) >= _MAX_WITHOUT_STATEMENT:
                self.holds.clear()
            self.holds[id(wrapper)] = hold

    @guarded
    def begin_statement(self, wrapper: Any, sql: Any) -> None:
        """Record the place of the first statement; the pool's hooks do the rest."""
        hold = self.holds.pop(id(wrapper), None)
        if hold is not None:
            self._requester.locate(hold, frame_at(3))

    def forget_parent(self) -> None:
        """In a forked child."""
        self._connecting.clear()
        self.holds.clear()

    def close(self, wrapper: Any) -> None:
        """The connection has gone back to the pool."""
        self.holds.pop(id(wrapper), None)

    def ignore(self, wrapper: Any) -> None:
        """Do nothing: the pool's own hooks do it."""

    use_again = release = begin_end_of_transaction = begin_stream = ignore


def _is_shared_thread() -> bool:
    """Whether asgiref runs all thread-sensitive code outside of requests here."""
    sync: Any = sys.modules.get("asgiref.sync")
    executor = getattr(
        getattr(sync, "SyncToAsync", None), "single_thread_executor", None
    )
    return current_thread() in getattr(executor, "_threads", ())
