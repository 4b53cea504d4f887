"""A checkout and its return where nobody can look: in a run of tests.

There each happens once or twice a test, with nothing of it in the processor's caches:
it costs as much as it makes calls and looks at objects. So each of the two is one
function, and what it needs stands side by side in one object. Only the plain case is
here: one thread, no event loop, no connection out, one that is free. All else goes the
general way, through :mod:`poolwatch.adapters.sqlalchemy`.
"""

from __future__ import annotations

from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from sys import _getframe as frame_at
from time import monotonic
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.sqlalchemy_entry import (
    ENGINE_CONNECT,
    FOR_A_SESSION,
    TO_ENGINE,
    known_method,
    method_of_session,
)
from poolwatch.callsites import DEEPEST, LonePath
from poolwatch.checkout import Checkout
from poolwatch.labels import ambience
from poolwatch.ledger import MOST_UNSEEN

if TYPE_CHECKING:
    from types import FrameType
    from typing import Protocol

    from poolwatch.callsites import CallSites
    from poolwatch.checkout import ConnectionFacts
    from poolwatch.guard import Guard
    from poolwatch.holders import PerThread
    from poolwatch.ledger import PoolBook
    from poolwatch.observers import Observers

    class Hooks(Protocol):
        """Those of the pool: see sqlalchemy.PoolHooks."""

        book: PoolBook
        guard: Guard

        def wake(self) -> None:
            """Note everything from now on."""

        def general(
            self, pool: Any, original: Callable[[Any], Any]
        ) -> Callable[[int], Any]:
            """What goes the general way; takes how many frames up the one is that
            stands for the pool's ``connect``.
            """

        def meet(self, proxy: Any) -> ConnectionFacts:
            """Learn of a connection that was opened before."""

        def gave_up(self, asked: float, error: BaseException) -> None:
            """Take note of what the pool has raised."""

        def failed_after_connect(self, error: BaseException) -> None:
            """Take note of an exception of ours; may raise it."""


_ambience = ambience.get
_MOST_PLACES = 2 * DEEPEST


class QuietCheckouts:
    """What the checkouts of one pool look at."""

    __slots__ = (
        "book",
        "bottoms",
        "capacity",
        "connections",
        "general",
        "guard",
        "holds",
        "hooks",
        "observers",
        "original",
        "per_thread",
        "pool",
        "sites",
    )

    def __init__(
        self,
        hooks: Hooks,
        pool: Any,
        original: Callable[[Any], Any],
        *,
        per_thread: PerThread,
        sites: CallSites,
        capacity: int,
    ) -> None:
        """Take the pool's own ``connect``, which is ``original``, and the most
        connections that it lends at once.
        """
        book: PoolBook = hooks.book
        self.book = book
        self.holds = book.holds
        self.connections = book.connections
        self.observers: Observers = book.observers
        self.guard: Guard = hooks.guard
        self.hooks = hooks
        self.pool = pool
        self.original = original
        self.per_thread = per_thread
        self.sites = sites
        self.bottoms = sites.bottoms
        self.capacity = capacity
        self.general: Callable[[int], Any] | None = None
        """Made when it is needed."""

    def go_the_general_way(self) -> Any:
        """Called by what stands for the pool's own ``connect``."""
        general = self.general
        if general is None:
            general = self.general = self.hooks.general(self.pool, self.original)
        return general(3)

    def unnoted(self) -> Callable[[], Any]:
        """Make what stands for the ``connect`` of a pool with one connection for all:
        who has it is noted from the moment on when somebody looks.
        """
        quiet = self

        def connect() -> Any:
            q = quiet
            naming = q.observers.naming
            if q.book.watched or naming is None:
                try:
                    q.hooks.wake()
                except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                    q.guard.failed(error)
                return q.go_the_general_way()
            naming.meet_shared(q.book)
            return q.original(q.pool)

        return connect

    def connect(self) -> Callable[[], Any]:  # noqa: C901, PLR0915 - written out
        """Make what stands for the pool's own ``connect``."""
        quiet = self

        def connect() -> Any:  # noqa: C901, PLR0912, PLR0915 - written out
            q = quiet  # one cell; each more is one more object to look at
            book, holds, holder = q.book, q.holds, q.per_thread.holder
            naming = q.observers.naming
            if (
                book.watched
                or naming is None
                or naming.rising
                or holder is None
                or holder.ident != naming.thread
                or holder.out
                or len(holds) >= q.capacity
                or running_loop() is not None
                or q.guard.tripped
            ):
                return q.go_the_general_way()
            asked = monotonic()
            try:
                proxy = q.original(q.pool)
            except BaseException as error:
                q.hooks.gave_up(asked, error)
                raise
            try:
                path = LonePath()
                add = path.append
                try:
                    frame: FrameType = frame_at(TO_ENGINE)
                    code = frame.f_code
                    if code is ENGINE_CONNECT:
                        frame = frame.f_back  # type: ignore[assignment]
                        code = frame.f_code
                        if code.co_name == FOR_A_SESSION:
                            frame = known_method(1) or method_of_session(frame) or frame
                            code = frame.f_code
                    else:
                        frame = frame_at(1)
                        code = frame.f_code
                    bottoms = q.bottoms
                    while True:  # not counted: that would take as long as looking
                        add(code)
                        add(frame.f_lasti)
                        if id(code) in bottoms:
                            break
                        frame = frame.f_back  # type: ignore[assignment]
                        code = frame.f_code
                except (AttributeError, ValueError):  # there is no further frame
                    if not path:
                        path = q.sites.capture_alone(frame_at(0).f_back)
                if len(path) > _MOST_PLACES:
                    del path[_MOST_PLACES:]
                said = _ambience()
                hold = Checkout(path, holder, said, None, asked)
                record = proxy._connection_record
                at = id(record)
                hold.connection = q.connections.get(at) or q.hooks.meet(proxy)
                hold.proxy = record.fairy_ref  # the pool has made it
                hold.taken = monotonic()
                holds[at] = hold
                holder.out += 1
                account = naming.current
                if account is not None and (account.keeps_peak or account.over):
                    naming.taken(book, hold)
                elif account is not None and not said.long_hold:
                    hold.account = account
                    out = account.out
                    out[hold] = book
                    if len(out) > account.peak:  # noqa: PLR1730 - no call
                        account.peak = len(out)
            except BaseException as error:  # noqa: BLE001 - raised again there
                q.hooks.failed_after_connect(error)
            return proxy

        return connect


class QuietReturns:
    """What the returns to one pool look at. It does not keep the pool alive."""

    __slots__ = ("book", "guard", "holds", "observers", "unseen")

    def __init__(self, book: PoolBook, guard: Guard) -> None:
        self.book = book
        self.guard = guard
        self.holds = book.holds
        self.observers: Observers = book.observers
        self.unseen = book.unseen

    def checkin(self, dbapi_connection: Any, record: Any) -> None:
        """Listen to the event of that name."""
        try:
            hold = self.holds.pop(id(record), None)
            if hold is None:
                return
            book = self.book
            collected = hold.proxy() is None
            if collected or book.watched or self.observers.ended is not None:
                book.end(hold, monotonic(), collected)
                return
            hold.holder.out -= 1
            account = hold.account
            if account is not None:
                account.out.pop(hold, None)
            unseen, taken = self.unseen, hold.taken
            unseen += (monotonic() - taken, taken - hold.asked)
            if len(unseen) >= MOST_UNSEEN:
                book.fold_unseen()
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)
