"""A checkout and its return where nobody can look: in a run of tests.

There each happens once or twice a test, with nothing of it in the processor's caches:
it costs as much as it makes calls and looks at objects. So each of the two is one
function, and what they need stands side by side in one object. Only the plain case is
here: one thread, no event loop, no connection out, one that is free. All else goes the
general way, through :mod:`poolwatch.adapters.sqlalchemy`.
"""

from __future__ import annotations

from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from sys import _getframe as frame_at
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.sqlalchemy_entry import (
    ENGINE_CONNECT,
    TO_ENGINE,
    asking_for_a_session,
    known_method,
    method_of_session,
)
from poolwatch.checkout import Checkout
from poolwatch.labels import ambience
from poolwatch.ledger import MOST_UNSEEN

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Protocol

    from poolwatch.callsites import CallSites, Chain
    from poolwatch.checkout import ConnectionFacts
    from poolwatch.guard import Guard
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
_new: Callable[[type[Checkout]], Checkout] = object.__new__
"""Leaves out the call of ``__init__``."""


def _short_stack(frame: FrameType | None) -> Chain:
    """All there is of a stack that ends before the application: a greenlet's."""
    chain: Chain = None
    while frame is not None:
        chain = frame.f_code, frame.f_lasti, chain
        frame = frame.f_back
    return chain


class QuietPool:
    """What the checkouts of one pool, and the returns to it, look at."""

    __slots__ = (
        "book",
        "bottoms",
        "capacity",
        "connections",
        "for_session",
        "general",
        "guard",
        "holds",
        "hooks",
        "observers",
        "original",
        "pool",
        "unseen",
    )

    def __init__(
        self,
        hooks: Hooks,
        pool: Any,
        original: Callable[[Any], Any],
        *,
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
        self.unseen = book.unseen
        self.guard: Guard = hooks.guard
        self.hooks = hooks
        self.pool = pool
        self.original = original
        self.bottoms = sites.bottoms
        self.capacity = capacity
        self.for_session: CodeType | None = None
        """See asking_for_a_session(): the ORM may be loaded later."""
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
            if naming is None:
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
            naming, holds = q.observers.naming, q.holds
            if (
                naming is None
                or naming.rising
                or (holder := naming.holder) is None
                or holder.ident != get_ident()
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
                chain: Chain = None
                try:
                    frame: FrameType = frame_at(TO_ENGINE)
                    code = frame.f_code
                    if code is ENGINE_CONNECT:
                        frame = frame.f_back  # type: ignore[assignment]
                        code = frame.f_code
                        if q.for_session is None:
                            q.for_session = asking_for_a_session()
                        if code is q.for_session:
                            frame = known_method(1) or method_of_session(frame) or frame
                            code = frame.f_code
                    else:
                        frame = frame_at(1)
                        code = frame.f_code
                    bottoms = q.bottoms
                    chain = code, frame.f_lasti, None
                    while id(code) not in bottoms:
                        frame = frame.f_back  # type: ignore[assignment]
                        code = frame.f_code
                        chain = code, frame.f_lasti, chain
                except (AttributeError, ValueError):  # there is no further frame
                    if chain is None:
                        chain = _short_stack(frame_at(0).f_back)
                said = _ambience()
                hold = _new(Checkout)
                hold.chain = chain
                hold.holder = holder
                hold.ambience = said
                hold.task = hold.usage = hold.account = None
                hold.asked = asked
                record = proxy._connection_record
                at = id(record)
                hold.connection = q.connections.get(at) or q.hooks.meet(proxy)
                hold.proxy = record.fairy_ref  # the pool has made it
                hold.taken = monotonic()
                holds[at] = hold
                holder.out += 1
                account = naming.current
                if account is None or said.long_hold:
                    return proxy
                if account.keeps_peak or account.over:
                    naming.taken(q.book, hold)
                    return proxy
                hold.account = account
                out = account.out
                out[hold] = q.book
                if len(out) > account.peak:  # noqa: PLR1730 - no call
                    account.peak = len(out)
            except BaseException as error:  # noqa: BLE001 - raised again there
                q.hooks.failed_after_connect(error)
            return proxy

        return connect

    def returned(self, original: Callable[[Any, Any], None]) -> Callable[[Any], None]:
        """Make what stands for ``_return_conn``, by which a connection comes back."""
        quiet = self

        def _return_conn(record: Any) -> None:
            q = quiet
            try:
                hold = q.holds.pop(id(record), None)
                if hold is not None:
                    collected = hold.proxy() is None
                    if collected or q.observers.naming is None:
                        q.book.end(hold, monotonic(), collected)
                    else:
                        hold.holder.out -= 1
                        account = hold.account
                        if account is not None:
                            account.out.pop(hold, None)
                        unseen, taken = q.unseen, hold.taken
                        unseen += (monotonic() - taken, taken - hold.asked)
                        if len(unseen) >= MOST_UNSEEN:
                            q.book.fold_unseen()
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                q.guard.failed(error)
            finally:  # Ctrl-C must not cost the pool its connection
                original(q.pool, record)

        return _return_conn
