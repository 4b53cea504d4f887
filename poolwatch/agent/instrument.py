"""instrument(), uninstrument(), and the agent of this process.

A pool is any object that an adapter supports. Pool libraries are never imported here
unless the application has imported them.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any
from weakref import proxy

from poolwatch.agent.in_use import in_use
from poolwatch.agent.timeout_notes import TimeoutNotes
from poolwatch.agent.watch import Watch
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.settings import LONG_AFTER, Settings, disabled
from poolwatch.runtime.guard import Guard, log
from poolwatch.runtime.made_once import made_once
from poolwatch.runtime.program import forks_unseen
from poolwatch.stacks import greenlets
from poolwatch.stacks.holder import (
    Holder,
    PerThread,
    per_greenlet,
    tell_greenlets_apart,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import CodeType, FunctionType

    from poolwatch.adapters.registry import InstrumentedPools
    from poolwatch.agent.inherited import Inherited
    from poolwatch.agent.outages import Outages
    from poolwatch.agent.server import Server
    from poolwatch.agent.server_view import ServerView
    from poolwatch.agent.snapshots import LedgerSource
    from poolwatch.model import Snapshot
    from poolwatch.stacks.capture import CallSites


_EARLY_TICK_S = 0.02
"""Delay before the check of an exhausted pool: most waits are over by then."""
_EARLY_TICK_INTERVAL_S = 0.5
"""Minimum time between two early checks of one pool."""
_MAX_POOLS = 64
"""Pools whose last early check is remembered."""
_NEVER = float("-inf")


class Agent:
    """The part of poolwatch in the application's process; one per process."""

    def __init__(self) -> None:
        self.ledger = Ledger(in_use)
        self._end_codes: dict[int, CodeType] = {}
        """By id: code that no stack goes beyond."""
        self.per_thread = PerThread()
        self.pools: InstrumentedPools | None = None
        """The instrumented pools; None before the first instrument()."""
        self.servers: Any = None
        self._watchdog: Any = None
        self._guard = Guard("the leak watchdog")
        self._timeout_notes = TimeoutNotes()
        self._early_ticks: dict[str, float] = {}
        self._inherited: Inherited | None = None
        self._wait_events: Any = None
        self._server: Server | None = None
        self._listening_pid: int | None = None
        self._pid = os.getpid()
        self._starting = threading.RLock()  # a finalizer may run while it is held
        self._closes = 0
        """How often it stopped to listen; listen() gives up if it changes meanwhile."""
        self._instrumenting = 0
        """How many threads are in instrument()."""
        self._unreachable = ""
        """Why no viewer could connect, as it was logged last."""
        self._stop = threading.Event()
        """Set at exit: a recording must not keep the process alive."""
        self._ended = False
        """Whether the interpreter is shutting down."""
        self.listens = True
        """Whether it listens by itself; False in a test run before instrument()."""
        self.directory: Path | None = None
        """The socket directory, if an attach has chosen one."""
        self.requested: Callable[[], object] = bool
        """Called at the first request of each thread, until the agent listens."""

    @made_once
    def sites(self) -> CallSites:
        """Captures the stacks of checkouts; imported for the first pool."""
        from poolwatch.agent.submitters import submitter_of
        from poolwatch.stacks.capture import CallSites

        if self.listens:  # at the first checkout, no descriptor may be left to read it
            from poolwatch.agent import endpoints, outages  # noqa: F401
        return CallSites(end_codes=self._end_codes, submitter=submitter_of)

    def end_stacks_at(self, function: FunctionType) -> None:
        """End captured stacks at this function, such as a test runner's."""
        code = function.__code__
        self._end_codes[id(code)] = code

    @made_once
    def source(self) -> LedgerSource:
        """The source of snapshots; imported when it is first used."""
        from poolwatch.agent.snapshots import LedgerSource

        return LedgerSource(self.ledger)

    def begin(self, pools: InstrumentedPools) -> InstrumentedPools:
        """Set the instrumented pools, unless another thread was faster; return them."""
        with self._starting:
            self.pools = self.pools or pools
            return self.pools

    @contextmanager
    def instrumenting(self) -> Iterator[None]:
        """Keep other threads from resetting the agent meanwhile."""
        with self._starting:
            self._instrumenting += 1
        try:
            yield
        finally:
            with self._starting:
                self._instrumenting -= 1

    # -- called during a checkout ----------------------------------------------------

    def register_thread(self) -> Holder:
        """Create the record of a thread or greenlet, and start to listen."""
        pid, self._pid = self._pid, os.getpid()
        if pid != self._pid:
            self.after_fork_in_child()
        if forks_unseen():
            return Holder()  # not kept: the next request asks again
        if greenlets.are_scheduled():
            tell_greenlets_apart()
            holder = per_greenlet.holder_of(greenlets.application_greenlet())
        else:  # one record per thread: the current greenlet may end before it
            holder = self.per_thread.holder = Holder(greenlets.first_greenlet())
        if self._listening_pid != os.getpid():
            self.listen()
        return holder

    def listen(self, directory: Path | None = None) -> None:
        """Open the socket, once per process; a failure is logged, and tried again.

        With a ``directory`` it is opened there, even if ``listens`` is False.
        """
        with self._starting:
            if self._ended or self._listening_pid == os.getpid():
                return
            self.requested()
            if directory is None and not self.listens:
                return
            self._listening_pid = os.getpid()
            attempt = self._closes
        try:
            server, servers = self._open(directory)
        except Exception as error:  # noqa: BLE001 - no error may reach the application
            self._is_unreachable(error)
            return
        try:
            server.start()
        except RuntimeError as error:  # no thread can be started
            server.close()
            self._listening_pid = None  # the next thread shows that one can be started
            self._is_unreachable(error)
            return
        with self._starting:
            current = attempt == self._closes
            if current:
                self._server, self.servers = server, servers
        if not current:  # uninstrument() was called meanwhile
            server.close()

    def _is_unreachable(self, error: Exception) -> None:
        """Log why, but not again when another attempt fails."""
        if str(error) == self._unreachable:
            return
        self._unreachable = str(error)
        level = logging.WARNING if self.listens else logging.DEBUG
        log().log(level, "poolwatch is not reachable by viewers: %s", error)

    def _open(self, directory: Path | None) -> tuple[Server, ServerView]:
        from poolwatch.adapters.connection_facts import connection_facts
        from poolwatch.agent.endpoints import open_server
        from poolwatch.agent.server_view import ServerView
        from poolwatch.agent.watchdog import Watchdog

        servers = ServerView(self.ledger, connection_facts, self.outages)
        self._watchdog = Watchdog(self.source, self.ledger)
        server = open_server(
            directory or self.directory,
            ledger=self.ledger,
            source=self.source,
            servers=servers,
            tick=self._tick,
            unreachable=self._is_unreachable,
            stop=self._stop,
        )
        return server, servers

    def _tick(self) -> None:
        if greenlets.are_scheduled():
            tell_greenlets_apart()
        if self._inherited is not None and self._inherited.is_over():
            self.ledger.observers.remove(self._inherited)
            self._inherited = None
        if self._watchdog is None or self._guard.tripped or not self.listens:
            return
        try:
            if self.pools is not None:
                self.pools.look_again()
            self.outages.check(self.ledger.pools.values())
            self._watchdog.tick()
        except Exception as error:  # noqa: BLE001 - no error may reach the application
            self._guard.failed(error)

    def explain_timeout(self, pool_id: str) -> str:
        """Return the note for a pool's TimeoutError."""
        return self._timeout_notes.of(pool_id, self.source)

    def check_soon(self, pool_id: str) -> None:
        """Have the watchdog check an exhausted pool soon: a checkout waits."""
        now = time.monotonic()
        if self._server is None or self.source.incident_snapshots.has(
            pool_id, "exhausted"
        ):
            return
        if now - self._early_ticks.get(pool_id, _NEVER) > _EARLY_TICK_INTERVAL_S:
            if len(self._early_ticks) >= _MAX_POOLS:
                self._early_ticks.clear()
            self._early_ticks[pool_id] = now
            self._server.hurry(_EARLY_TICK_S)

    @made_once
    def outages(self) -> Outages:
        """The servers that do not answer; imported by listen() or a failure."""
        from poolwatch.agent.outages import Outages

        return Outages()

    def trace_waits(self) -> None:
        """Observe long waits until the last pool is uninstrumented."""
        from poolwatch.agent.otel_import import opentelemetry

        if self._wait_events is None:
            self._wait_events = opentelemetry("trace_waits").WaitEvents()
            self.ledger.observers.append(self._wait_events)

    # -- forks and the end -----------------------------------------------------------

    def before_fork(self) -> None:
        """Stop the agent's thread while the process forks."""
        if self._server is not None:
            self._server.pause()

    def after_fork_in_parent(self) -> None:
        """Restart the agent's thread."""
        server = self._server
        if server is not None and server.pid == os.getpid():
            try:
                server.start()
            except RuntimeError as error:  # no thread can be started
                self.close()
                self._is_unreachable(error)

    def after_fork_in_child(self) -> None:
        """Reset the agent: the open holds belong to the parent."""
        server, self._server = self._server, None
        self._pid = os.getpid()
        self._starting = threading.RLock()
        self._instrumenting = 0
        if self.pools is None:  # nothing is instrumented, or not any more
            return
        self.per_thread.__dict__.clear()
        per_greenlet.clear()
        self.ledger.forget_parent()
        self._watch_inherited()
        self.source.incident_snapshots.forget()
        self.source.forget()
        self._early_ticks.clear()
        self.__dict__.pop("outages", None)
        self.pools.forget_parent()
        if server is not None:
            server.abandon()

    def _watch_inherited(self) -> None:
        """Record who checks out connections of the parent, while there are any."""
        observers = self.ledger.observers
        observers.remove(self._inherited)
        self._inherited = None
        if self.ledger.pools:
            from poolwatch.agent.inherited import Inherited

            inherited = Inherited(self.ledger)
            if not inherited.is_over():
                observers.append(inherited)
                self._inherited = inherited

    def close(self) -> None:
        """Stop listening until another thread checks out for the first time."""
        with self._starting:
            server = self._forget_server()
        self._close_server(server)

    def _forget_server(self) -> Server | None:
        server, self._server = self._server, None
        self._listening_pid = None
        self._closes += 1
        return server

    def _close_server(self, server: Server | None) -> None:
        if server is not None and server.pid == os.getpid():
            server.close()
            self.servers.close()

    def end(self) -> None:
        """Stop listening for good: a later socket would never be removed."""
        self._ended = True
        self._stop.set()
        self.close()

    def reset_if_unused(self) -> None:
        """Reset the agent after the last pool was uninstrumented."""
        with self._starting:  # what instrument() in another thread makes is kept whole
            pools = self.pools
            if pools is None or pools.watches_all:
                return
            if self.ledger.pools or self._instrumenting > 0:
                return
            server = self._forget_server()
            self.ledger.observers.remove(self._wait_events)
            self._wait_events = None
            self.ledger.forget_origins()
            if "source" in self.__dict__:
                self.source.forget()
            self.per_thread = PerThread()  # the next checkout of any thread listens
            per_greenlet.clear()
            self.pools = self.directory = None
            self.ledger.changes += 1
        self._close_server(server)


agent = Agent()


def _at_fork(method: str) -> Callable[[], None]:
    """Return a fork handler, with a weak reference: it lives as long as Python."""
    return partial(methodcaller(method), proxy(agent))


os.register_at_fork(
    before=_at_fork("before_fork"),
    after_in_parent=_at_fork("after_fork_in_parent"),
    after_in_child=_at_fork("after_fork_in_child"),
)
atexit.register(agent.end)


def instrument(
    target: Any = None,
    *,
    name: str | None = None,
    long_after: float = LONG_AFTER,
    server_view: bool = True,
    prove_dropped: bool = True,
    comment: bool = False,
    trace_waits: bool = False,
) -> Watch:
    """Record who holds each connection of a pool, and let viewers read it.

    Args:
        target: an ``Engine``, ``AsyncEngine`` or ``Pool`` of SQLAlchemy 2.0 or later,
            a pool of psycopg2, psycopg_pool or asyncpg, or a Django connection (all of
            its alias); without one, all of them in this process, existing and future.
        name: the pool's name in all views; by default the pool's own name or that of
            its database.
        long_after: seconds after which a hold counts as long.
        server_view: whether a viewer may have this process read ``pg_stat_activity``
            over a short-lived connection of its own, outside the pool.
        prove_dropped: whether a connection that only its pool refers to is reported as
            leaked at once. This is for pools that keep references to checked-out
            connections (psycopg2's, asyncpg's). Switch it off if code reaches a
            connection by a path that Python's reference counts do not include.
        comment: whether each statement of an engine ends with a comment that names its
            call site and labels, in sqlcommenter's format, so that
            ``pg_stat_activity`` shows them. Without a target: of every engine.
        trace_waits: whether waits of more than 1 ms become events on the current span.

    Calling it again for the same pool changes its settings. ``engine.dispose()`` does
    not undo it. With POOLWATCH_DISABLE=1 in the environment it does nothing.

    Raises:
        TypeError: for a target that is not a pool, or a setting of the wrong type.
        ValueError: for a setting out of range.
        MissingExtraError: for ``trace_waits`` without OpenTelemetry.
    """
    settings = Settings(
        name=name,
        long_after=long_after,
        server_view=server_view,
        prove_dropped=prove_dropped,
        comment=comment,
        trace_waits=trace_waits,
    )
    with agent.instrumenting():
        pools = _pools()
        if target is not None:
            pools.check(target, settings)
        if disabled():
            return Watch(lambda: agent.source, None)
        if trace_waits:
            agent.trace_waits()
        if target is None:
            pools.watch_all(settings)
        pool_id = None if target is None else pools.watch(target, settings)
    if not agent.listens:
        agent.listens = True
        agent.listen()  # known threads do not trigger it
    return Watch(lambda: agent.source, pool_id)


def uninstrument(target: Any = None) -> None:
    """Undo :func:`instrument`: no listener, wrapper or thread is left behind.

    ``target`` is the object that was instrumented; without one, every pool. A pool that
    is not instrumented is left alone. Raises TypeError for a target that is not a pool.
    """
    pools = _pools()
    if target is None:
        pools.unwatch_all()
    else:
        pools.unwatch(target)
    agent.reset_if_unused()


def instrument_without_agent() -> None:
    """Instrument every pool without a socket or a thread: for a test run.

    The first ``instrument()`` still opens the socket.
    """
    if disabled():
        return
    with agent.instrumenting():
        pools = _pools()
        if not pools.watches_all:
            if not agent.ledger.pools:
                agent.listens = False
            pools.watch_all(Settings())


def snapshot() -> Snapshot:
    """Return the snapshot of this process, without data from the servers."""
    return agent.source.snapshot()


def _pools() -> InstrumentedPools:
    pools = agent.pools
    if pools is None:
        from poolwatch.adapters.base import AdapterContext
        from poolwatch.adapters.registry import InstrumentedPools

        made = InstrumentedPools(
            AdapterContext(
                ledger=agent.ledger,
                sites=lambda: agent.sites,
                per_thread=agent.per_thread,
                register_thread=agent.register_thread,
                explain=agent.explain_timeout,
                check_soon=agent.check_soon,
                report_failure=lambda *failure: agent.outages.refused(*failure),  # noqa: PLW0108 - reset() makes another
            )
        )
        pools = agent.begin(made)
    return pools
