"""instrument() and its undo: one line in the application, and what hangs on it.

A pool is any object that an adapter knows. Nothing of a pool library is imported here
that the application has not imported itself.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any
from weakref import proxy

from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.settings import LONG_AFTER, Settings, disabled
from poolwatch.runtime.guard import Guard, log
from poolwatch.stacks import greenlets
from poolwatch.stacks.holder import (
    Holder,
    PerThread,
    per_greenlet,
    tell_greenlets_apart,
)

if TYPE_CHECKING:
    from types import CodeType, FunctionType

    from poolwatch.adapters.registry import EveryLibrary
    from poolwatch.agent.inherited import Inherited
    from poolwatch.agent.outages import Outages
    from poolwatch.agent.server import Server
    from poolwatch.agent.server_view import ServerView
    from poolwatch.agent.snapshots import LedgerSource
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.model import Hold, Snapshot
    from poolwatch.stacks.capture import CallSites


_SOON_S = 0.02
"""An empty pool is looked at after this time: most waits are over by then."""
_HURRY_AGAIN_S = 0.5
_MOST_POOLS = 64
"""Pools of which it is remembered when they were last explained, or looked at soon."""
_NEVER = float("-inf")


class Watch:
    """What :func:`instrument` returns: a handle on what is watched."""

    def __init__(self, agent: Agent, pool_id: str | None) -> None:
        self._agent = agent
        self._pool_id = pool_id

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this process (of all its pools)."""
        return self._agent.source.snapshot()

    def holds(self) -> tuple[Hold, ...]:
        """Return the open holds of this pool, the oldest first.

        Those of all pools if the watch is on every pool.
        """
        holds = self._agent.source.process().holds
        if self._pool_id is None:
            return holds
        return tuple(hold for hold in holds if hold.pool == self._pool_id)

    def __repr__(self) -> str:
        """Name the pool."""
        return f"<poolwatch.Watch on {self._pool_id or 'every pool'}>"


def _in_use(connections: Sequence[Any], several: Collection[int]) -> list[int]:
    """The ledger's ``InUse``, loaded at the first nested request."""
    from poolwatch.diagnosis.references.own_stack import used_by_running_code

    return used_by_running_code(connections, several)


class Agent:
    """The part of poolwatch that lives in the application's process."""

    def __init__(self) -> None:
        self.ledger = Ledger(_in_use)
        self._end_codes: dict[int, CodeType] = {}
        """By id: code that no stack goes beyond."""
        self.per_thread = PerThread()
        self.pools: EveryLibrary | None = None
        """The instrumented pools, once there was a reason to have some."""
        self.servers: Any = None
        self._watchdog: Any = None
        self._guard = Guard("its watch over leaks")
        self._explained: dict[str, tuple[float, str]] = {}
        self._hurried: dict[str, float] = {}
        self._inherited: Inherited | None = None
        self._server: Server | None = None
        self._tried_in: int | None = None
        self._starting = threading.Lock()
        self._attempt = 0
        """Number of times that close() was called."""
        self._stop = threading.Event()
        """Set at the end: a recording must not keep the process."""
        self._ended = False
        """The interpreter is going down."""
        self.listens = True
        """The agent may open its socket; False in a run of tests by itself."""

    @cached_property
    def sites(self) -> CallSites:
        """The stacks of all checkouts; loaded for the first pool."""
        from poolwatch.stacks.capture import CallSites

        return CallSites(end_codes=self._end_codes)

    def end_stacks_at(self, function: FunctionType) -> None:
        """Let no stack go beyond a frame of this function: a test runner's, say."""
        code = function.__code__
        self._end_codes[id(code)] = code

    @cached_property
    def source(self) -> LedgerSource:
        """The snapshots of this process; loaded for the first one."""
        from poolwatch.agent.snapshots import LedgerSource

        return LedgerSource(self.ledger)

    # -- called on the way of a checkout ---------------------------------------------

    def meet_thread(self) -> Holder:
        """Make the record of a thread at its first checkout, and begin to listen.

        Where greenlets are scheduled, this is called at each checkout.
        """
        if greenlets.are_scheduled():
            tell_greenlets_apart()
            holder = per_greenlet.holder_of(greenlets.asking_greenlet())
        else:  # the record is the thread's: the greenlet that runs may end before it
            holder = self.per_thread.holder = Holder(greenlets.first_greenlet())
        if self._tried_in != os.getpid():
            self.listen()
        return holder

    def listen(self) -> None:
        """Open the socket, once per process; the application goes on without one."""
        with self._starting:
            if not self.listens or self._ended or self._tried_in == os.getpid():
                return
            self._tried_in = os.getpid()
            attempt = self._attempt
        try:
            server, servers = self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            log().warning("poolwatch is not reachable from outside: %s", error)
            return
        try:
            server.start()
        except RuntimeError as error:  # no more threads
            server.close()
            log().warning("poolwatch is not reachable from outside: %s", error)
            return
        with self._starting:
            wanted = attempt == self._attempt
            if wanted:
                self._server, self.servers = server, servers
        if not wanted:  # uninstrument() came in between
            server.close()

    def _open(self) -> tuple[Server, ServerView]:
        from poolwatch.adapters.connection_facts import connection_facts
        from poolwatch.agent.endpoints import open_server
        from poolwatch.agent.server_view import ServerView
        from poolwatch.agent.watchdog import Watchdog
        from poolwatch.protocol import sockets

        directory = sockets.runtime_directory()
        sockets.prepare(directory)
        servers = ServerView(self.ledger, connection_facts, self.outages)
        self._watchdog = Watchdog(self.source, self.ledger)
        server = open_server(
            directory,
            ledger=self.ledger,
            source=self.source,
            servers=servers,
            tick=self._tick,
            stop=self._stop,
        )
        return server, servers

    def _tick(self) -> None:
        if greenlets.are_scheduled():
            tell_greenlets_apart()
        if self._inherited is not None and self._inherited.is_over():
            self.ledger.observers.remove(self._inherited)
            self._inherited = None
        if self._watchdog is None or self._guard.tripped:
            return
        try:
            self.outages.look(self.ledger.books.values())
            self._watchdog.tick()
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self._guard.failed(error)

    def explain_timeout(self, pool_id: str) -> str:
        """What the pool's own TimeoutError does not say; at most once a second anew.

        An application in trouble may raise hundreds a second.
        """
        now = time.monotonic()
        known = self._explained.get(pool_id)
        if known is None or now - known[0] > 1.0:
            from poolwatch.diagnosis import timeout_note

            process = self.source.process(search=False)
            self.source.freezer.keep(pool_id, "timeout", process)
            known = now, timeout_note.note(process, pool_id)
            if len(self._explained) >= _MOST_POOLS:  # many may be gone by now
                self._explained.clear()
            self._explained[pool_id] = known
        return known[1]

    def look_soon(self, pool_id: str) -> None:
        """Have the watchdog look at a pool that is empty, if it is for the first time.

        Called on the way of a checkout that will probably have to wait.
        """
        now = time.monotonic()
        if self._server is None or self.source.freezer.has(pool_id, "exhausted"):
            return
        if now - self._hurried.get(pool_id, _NEVER) > _HURRY_AGAIN_S:
            if len(self._hurried) >= _MOST_POOLS:
                self._hurried.clear()
            self._hurried[pool_id] = now
            self._server.hurry(_SOON_S)

    @cached_property
    def outages(self) -> Outages:
        """The servers that do not answer; loaded at a first failure, or to listen."""
        from poolwatch.agent.outages import Outages

        return Outages()

    def refused(self, book: PoolLedger, error: BaseException) -> None:
        """Record an error that a pool raised instead of lending a connection."""
        self.outages.refused(book, error)

    # -- forks and the end -----------------------------------------------------------

    def before_fork(self) -> None:
        """Have no thread while the process forks."""
        if self._server is not None:
            self._server.pause()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._server is not None and self._server.pid == os.getpid():
            self._server.start()

    def after_fork_in_child(self) -> None:
        """Begin anew: what is out is the parent's."""
        server, self._server = self._server, None
        self._starting = threading.Lock()
        self.per_thread.__dict__.clear()
        per_greenlet.clear()
        self.ledger.forget_parent()
        self._watch_inherited()
        self.source.freezer.forget()
        self.source.forget()
        self._hurried.clear()
        self.__dict__.pop("outages", None)
        if self.pools is not None:
            self.pools.forget_parent()
        if server is not None:
            server.abandon()

    def _watch_inherited(self) -> None:
        """Record which code takes connections of the parent, while there are any."""
        observers = self.ledger.observers
        observers.remove(self._inherited)
        self._inherited = None
        if self.ledger.books:
            from poolwatch.agent.inherited import Inherited

            inherited = Inherited(self.ledger)
            if not inherited.is_over():
                observers.append(inherited)
                self._inherited = inherited

    def close(self) -> None:
        """Stop listening, until a thread that was not met yet checks out."""
        with self._starting:
            server, self._server = self._server, None
            self._tried_in = None
            self._attempt += 1
        if server is not None and server.pid == os.getpid():
            server.close()
            self.servers.close()

    def end(self) -> None:
        """Stop listening for good: a later socket would be left behind."""
        self._ended = True
        self._stop.set()
        self.close()

    def begin_anew(self) -> None:
        """After the last pool: nothing is left but what a new start needs."""
        self.close()
        self.ledger.forget_origins()
        if "source" in self.__dict__:
            self.source.forget()
        self.per_thread = PerThread()  # every thread is met again, and then we listen
        per_greenlet.clear()
        self.pools = None
        self.ledger.changes += 1


agent = Agent()


def _at_fork(method: str) -> Callable[[], None]:
    """Call a method of the agent at forks, without keeping the agent alive."""
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
) -> Watch:
    """Record who holds each connection of a pool, and let viewers ask.

    Args:
        target: an ``Engine``, ``AsyncEngine`` or ``Pool`` of SQLAlchemy 2.0 or later,
            or a pool of psycopg2, psycopg_pool or asyncpg; without one, every engine
            and pool of this process, existing and future.
        name: what the pool is called everywhere; else the pool's own name or its
            database.
        long_after: seconds after which a hold counts as long.
        server_view: whether a viewer may have this process read ``pg_stat_activity``
            over a short-lived connection of its own, outside the pool.
        prove_dropped: whether a connection that nothing refers to any more, but its
            pool, is reported as leaked at once. Pools that keep what they have lent
            (psycopg2's, asyncpg's) cannot tell it otherwise; switch it off where code
            comes back for a connection by a way that Python does not count.

    Calling it again for the same pool changes its settings. It goes on working after
    ``engine.dispose()``. With POOLWATCH_DISABLE=1 in the environment it does nothing.

    Raises:
        TypeError: for a target that is no pool, or a setting of the wrong type.
        ValueError: for a setting out of range.
    """
    settings = Settings(
        name=name,
        long_after=long_after,
        server_view=server_view,
        prove_dropped=prove_dropped,
    )
    pools = _pools()
    if target is not None and not pools.accepts(target):
        raise _refusal(target)
    if disabled():
        return Watch(agent, None)
    if target is None:
        pools.watch_every(settings)
        watch = Watch(agent, None)
    else:
        watch = Watch(agent, pools.watch(target, settings))
    if not agent.listens:
        agent.listens = True
        agent.listen()  # a thread that was met before does not cause it
    return watch


def uninstrument(target: Any = None) -> None:
    """Undo :func:`instrument`: no listener, wrapper or thread is left behind.

    ``target`` is what was instrumented; without one, everything. Something that is not
    instrumented is left alone. Raises TypeError for a target that is no pool.
    """
    pools = _pools()
    if target is None:
        pools.forget_every()
    elif not pools.accepts(target):
        raise _refusal(target)
    else:
        pools.forget(target)
    if not agent.ledger.books and not pools.watches_every:
        agent.begin_anew()


def instrument_without_agent() -> None:
    """Instrument every pool, without a socket or a thread: for a run of tests.

    The first ``instrument()`` opens the socket all the same.
    """
    if disabled():
        return
    pools = _pools()
    if not pools.watches_every:
        if not agent.ledger.books:
            agent.listens = False
        pools.watch_every(Settings())


def snapshot() -> Snapshot:
    """Return the snapshot of this process; its holds are not joined with a server."""
    return agent.source.snapshot()


def _pools() -> EveryLibrary:
    pools = agent.pools
    if pools is None:
        from poolwatch.adapters.base import AdapterContext
        from poolwatch.adapters.registry import EveryLibrary

        pools = agent.pools = EveryLibrary(
            AdapterContext(
                ledger=agent.ledger,
                sites=lambda: agent.sites,
                per_thread=agent.per_thread,
                meet_thread=agent.meet_thread,
                explain=agent.explain_timeout,
                look_soon=agent.look_soon,
                refused=agent.refused,
            )
        )
    return pools


def _refusal(target: Any) -> TypeError:
    from poolwatch.adapters.registry import unknown

    return TypeError(unknown(target))
