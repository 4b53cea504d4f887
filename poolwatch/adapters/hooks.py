"""What is attached to one pool of a driver: the part that all drivers share.

The life of a checkout is told by three verbs. ``asked`` enters a request in the waits.
``lent`` makes it a hold. ``refused`` counts a request that ended without a connection.
The end of a hold differs by library, and is in the library's own folder.

A driver's pool is one object for its whole life: it is hooked once, and forgotten when
it is collected.
"""

from __future__ import annotations

import sys
from asyncio import current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from contextlib import suppress
from inspect import iscoroutinefunction
from operator import attrgetter
from sys import _getframe as frame_at
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import finalize, ref

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.adapters.cut_short import Hooks, is_library_s
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.holder import TaskRef

if TYPE_CHECKING:
    from poolwatch.adapters.base import AdapterContext
    from poolwatch.adapters.patching import Method, Patches


class DriverHooks(Hooks):
    """Everything that is attached to one pool, and how it comes off again."""

    capacity: Callable[[Any], int | None] = attrgetter("maxconn")
    """Reads the most connections of a pool; 0 or None for no limit."""
    behind: str | None = None
    """The hooked method is called by a public one, which may be called by a stand-in of
    ours in this file: the recorded stack begins with the caller of those."""

    def __init__(
        self, pool: Any, book: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        self.book = book
        # tables of the book, one attribute away on the hot path
        self.holds, self.waits, self.facts = book.holds, book.waits, book.connections
        self._patches = patches
        self._number = id(pool)
        self.guard = Guard(f"pool {book.name!r}")
        self.on_gone: Callable[[str], None] = lambda _: None
        """Called with the id of the book once the pool is gone."""
        self._sites = context.sites
        self._per_thread = context.per_thread
        self._meet_thread = context.meet_thread
        self._explain = context.explain
        self._look_soon = context.look_soon
        self._tell_refused = context.refused
        self._pool = ref(pool)
        self._end = finalize(pool, self._pool_gone)
        self._end.atexit = False
        self.asked = self._asking()
        self.lent = self._lending()
        book.gauges = self.gauges
        book.switched_off = lambda: self.guard.tripped

    @property
    def pool(self) -> Any:
        """The pool; None once it is gone."""
        return self._pool()

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        return self._pool() is pool

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        self.guard.tripped = True
        self._end.detach()
        self._patches.unhook(self._number)
        self._patches.tidy()

    def gauges(self) -> Gauges:
        """What the pool says of itself; nothing once it is gone."""
        return Gauges()

    def _pool_gone(self) -> None:
        self._patches.unhook(self._number)
        self.on_gone(self.book.id)

    # -- what differs by library -------------------------------------------------------

    def identify(
        self, wait: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """Fill in ``facts`` and ``proxy`` of a checkout.

        Returns the key of its hold. None if the connection was out before, under the
        same key of the application's: then there is no new hold.
        """
        raise NotImplementedError

    def is_out(self, pool: Any, args: Any, kwargs: Any) -> bool:
        """Whether the application asks for a connection that is out already."""
        return False

    def is_timeout(self, error: BaseException, wait: Checkout, args: Any) -> bool:
        """Whether the pool raised its error because all its connections are out."""
        raise NotImplementedError

    def give_back(
        self, pool: Any, connection: Any, wait: Checkout, args: Any, kwargs: Any
    ) -> Any:
        """Return a connection that the application does not get; may be awaitable."""
        return pool.putconn(connection)

    # -- requests and holds ------------------------------------------------------------

    def _asking(self) -> Callable[..., tuple[Checkout | None, int]]:  # noqa: C901 - written out
        """Make ``asked``, on the hot path: what it needs is a local of this closure.

        ``asked`` returns the wait and its key; None if nothing is recorded.
        """
        book, guard = self.book, self.guard
        holds, waits = book.holds, book.waits
        per_thread, capture = self._per_thread, self._sites.capture
        get_context, capacity, behind = current_context.get, self.capacity, self.behind

        def asked(pool: Any, args: Any, kwargs: Any) -> tuple[Checkout | None, int]:
            if guard.tripped:
                return None, 0
            wait, key = None, 0
            try:
                holder = per_thread.holder or self._meet_thread()
                frame: Any = frame_at(1).f_back  # None in a greenlet that runs this
                if behind is not None:
                    frame = frame.f_back
                    if frame is not None and frame.f_code.co_filename == behind:
                        frame = frame.f_back
                path, loop = capture(frame), running_loop()
                running = None if loop is None else current_task(loop)
                task = None if running is None else TaskRef(running)
                wait = Checkout(path, holder, get_context(), task, monotonic())
                key = id(wait)
                waits[key] = wait
                most = capacity(pool) or sys.maxsize
                scarce = holder.out or len(holds) + book.lost_slots >= most
                if scarce and not self.is_out(pool, args, kwargs):
                    self._note_scarcity(wait, most)
                return wait, key  # noqa: TRY300 - also here the wait would be left
            except BaseException as error:
                if key in waits:  # no call: the stack may be full
                    del waits[key]
                if not self.goes_on(error, wait):
                    raise
            return None, 0

        return asked

    def _lending(self) -> Callable[..., None]:
        """Make ``lent``, which begins the hold."""
        book, guard, identify = self.book, self.guard, self.identify
        holds, blamed, observers = book.holds, book.blamed, book.observers

        def lent(wait: Any, connection: Any, args: Any, kwargs: Any) -> None:
            key: Any = 0
            before = None
            try:
                if not guard.tripped:  # uninstrument() may have come meanwhile
                    now = wait.taken = monotonic()
                    if blamed:
                        book.waited(wait, now)
                    key = identify(wait, connection, args, kwargs)
                    if key is not None:
                        holder = wait.holder
                        before = holder.out
                        holds[key] = wait
                        holder.out = before + 1
                        tell = observers.taken
                        if tell is not None:
                            tell(book, wait)
            except BaseException as error:
                if not self.goes_on(error, wait, key, before):
                    raise

        return lent

    def request_goes_on(
        self, error: BaseException, wait: Checkout | None, theirs: bool, args: Any
    ) -> bool:
        """Whether the application gets a connection in spite of an exception.

        Not if the exception is the library's own (``theirs``): that is counted.
        """
        if not theirs:
            return self.goes_on(error, wait)
        if wait is not None and not self.guard.tripped:
            self.gave_up(wait, error, self.is_timeout(error, wait, args))
        return False

    def _note_scarcity(self, wait: Checkout, most: int) -> None:
        """A second connection for one holder, or one more than the pool has."""
        book = self.book
        if wait.holder.out:
            book.requested_another(wait)
        if len(book.holds) + book.lost_slots >= most:
            book.requested_beyond_capacity(wait)
            self._look_soon(book.id)

    # -- connections -------------------------------------------------------------------

    def remember(
        self,
        connection: Any,
        key: int,
        opened: float,
        took: float | None,
        *,
        met: bool = False,
    ) -> ConnectionFacts:
        """Record the facts of a connection, until it is closed.

        ``met``: the connection was there before, and its age is not known.
        """
        facts = facts_of(connection, opened, took, met=met)
        self.book.connections[key] = facts
        return facts


# -- stand-ins -------------------------------------------------------------------------


def request(below: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Make the stand-in for the method of a pool that lends a connection."""
    return (_async_request if iscoroutinefunction(below) else _request)(below, hooks_of)


def _request(below: Method, hooks_of: Callable[[int], Any]) -> Method:  # noqa: C901 - written out
    def request(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901 - as above
        hooks = hooks_of(id(pool))
        if hooks is None:
            return below(pool, *args, **kwargs)
        waits = hooks.waits
        wait: Any = None
        key, connection, called = 0, None, False
        try:
            try:
                wait, key = hooks.asked(pool, args, kwargs)
                called = True
                connection = below(pool, *args, **kwargs)
            except BaseException:  # also if what follows is cut short
                if key in waits:
                    del waits[key]
                hooks.book.waited(wait, monotonic())
                raise
            if wait is not None:
                hooks.lent(wait, connection, args, kwargs)
                del waits[key]
            return connection  # noqa: TRY300 - also here the hold would be left
        except BaseException as error:
            if key in waits:  # no call: the stack may be full
                del waits[key]
            theirs = connection is None and is_library_s(error, called, below)
            if not hooks.request_goes_on(error, wait, theirs, args):
                if connection is not None:
                    with suppress(Exception):
                        hooks.give_back(pool, connection, wait, args, kwargs)
                raise
        return below(pool, *args, **kwargs) if connection is None else connection

    return request


def _async_request(below: Method, hooks_of: Callable[[int], Any]) -> Method:  # noqa: C901 - as above
    """The same with ``await``."""

    async def request(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901 - as above
        hooks = hooks_of(id(pool))
        if hooks is None:
            return await below(pool, *args, **kwargs)
        waits = hooks.waits
        wait: Any = None
        key, connection, called = 0, None, False
        try:
            try:
                wait, key = hooks.asked(pool, args, kwargs)
                called = True
                connection = await below(pool, *args, **kwargs)
            except BaseException:
                if key in waits:
                    del waits[key]
                hooks.book.waited(wait, monotonic())
                raise
            if wait is not None:
                hooks.lent(wait, connection, args, kwargs)
                del waits[key]
            return connection  # noqa: TRY300
        except BaseException as error:
            if key in waits:
                del waits[key]
            theirs = connection is None and is_library_s(error, called, below)
            if not hooks.request_goes_on(error, wait, theirs, args):
                if connection is not None:
                    with suppress(Exception):
                        await hooks.give_back(pool, connection, wait, args, kwargs)
                raise
        if connection is None:
            return await below(pool, *args, **kwargs)
        return connection

    return request
