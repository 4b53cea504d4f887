"""Checkouts, returns and statements where nobody can look: in a run of tests.

There each happens once or twice a test, with nothing of it in the processor's caches:
it costs as much as it makes calls and looks at objects. So each is one function, and
what it needs stands side by side in one object. Only the plain case is here: one
thread, no event loop, no connection out, one that is free. All else goes the general
way, through :mod:`poolwatch.adapters.sqlalchemy`.

These functions stand in SQLAlchemy's classes, not on each pool and dialect, because a
suite may make an engine for each of its tests. An engine is only marked when it is
made; its hooks and its books are made when it is used.
"""

from __future__ import annotations

from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from functools import wraps
from sys import _getframe as frame_at
from sys import maxsize
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool

from poolwatch.adapters.patches import Patches, where_defined
from poolwatch.adapters.sqlalchemy_entry import (
    ENGINE_CONNECT,
    TO_ENGINE,
    asking_for_a_session,
    known_method,
    method_of_session,
)
from poolwatch.adapters.sqlalchemy_listeners import Common
from poolwatch.checkout import Checkout
from poolwatch.guard import log
from poolwatch.labels import ambience
from poolwatch.ledger import MOST_UNSEEN

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Protocol

    from sqlalchemy.engine import Dialect

    from poolwatch.callsites import CallSites, Chain
    from poolwatch.checkout import ConnectionFacts
    from poolwatch.guard import Guard
    from poolwatch.ledger import PoolBook
    from poolwatch.observers import Naming, Observers

    class Hooks(Protocol):
        """Those of the pool: see sqlalchemy.PoolHooks."""

        book: PoolBook
        guard: Guard

        def wake(self) -> None:
            """Note everything from now on."""

        def adopt(self, pool: Any) -> None:
            """Know one more pool of the same engine."""

        def general(
            self, original: Callable[[Any], Any], capacity: int
        ) -> Callable[[int, Any], Any]:
            """What goes the general way; takes how many frames up the one is that
            stands for the pool's ``connect``, and the pool.
            """

        def facts(self, proxy: Any) -> ConnectionFacts | None:
            """What can be learned of a connection that is out."""

        def facts_of(self, dbapi_connection: Any, record: Any) -> ConnectionFacts:
            """What can be learned of a connection of a pool."""

        def gave_up(self, asked: float, error: BaseException) -> None:
            """Take note of what the pool has raised."""

        def failed_after_connect(self, error: BaseException) -> None:
            """Take note of an exception of ours; may raise it."""

        def told_of(self, event: str, *args: Any) -> None:
            """Count what a pool has told."""

    class Library(Protocol):
        """Whoever makes the hooks: see sqlalchemy_engines.Engines."""

        def use(self, pool: Any, quiet: QuietPool) -> bool:
            """Make the hooks of a pool that is used for the first time, which begins
            ``quiet``; whether it is to be watched at all.
            """

        def name_of(self, target: Any) -> str:
            """What the pool is called."""


MARK = "_poolwatch"
"""Attribute of a pool: its QuietPool."""

_ambience = ambience.get
_new: Callable[[type[Checkout]], Checkout] = object.__new__
"""Leaves out the call of ``__init__``."""
_NONE: dict[int, Checkout] = {}
"""The holds of a pool that was not used yet; stays empty."""


class QuietPool:
    """What checkouts and returns look at, the same for all pools that one engine has
    in its life.
    """

    __slots__ = (
        "book",
        "capacity",
        "general",
        "guard",
        "holds",
        "hooks",
        "library",
        "shared",
        "target",
        "told",
        "unseen",
    )

    book: PoolBook
    guard: Guard
    unseen: list[float]

    def __init__(self, library: Library, target: Any, pool: Pool) -> None:
        """Take the engine, and the pool that it has."""
        self.library = library
        self.target: Callable[[], Any] = ref(target)
        self.shared = isinstance(pool, StaticPool | SingletonThreadPool)
        """It has one connection for all."""
        self.hooks: Hooks | None = None
        """Made when it is used."""
        self.holds = _NONE
        self.capacity = 0
        """The most connections that it lends at once; 0 if it has one for all."""
        self.general: Callable[[int, Any], Any] | None = None
        """Made when it is needed."""
        self.told: Naming | None = None
        """Has been told that it has one connection for all."""

    def begin(self, hooks: Hooks, capacity: int) -> None:
        """Take the hooks that were made."""
        self.book = hooks.book
        self.guard = hooks.guard
        self.unseen = hooks.book.unseen
        if not self.shared:  # who has its connection is not noted here
            self.holds = hooks.book.holds
            self.capacity = capacity
        self.hooks = hooks

    def is_used(self, pool: Pool, naming: Naming | None) -> bool:
        """Called at a checkout without hooks; whether there are some now.

        A pool with one connection for all gets none as long as nobody looks: who has
        it is of no interest then.
        """
        try:
            if self.shared and naming is not None:
                self._tell(naming, type(pool).__name__)
                return False
            return self.library.use(pool, self)
        except Exception:  # noqa: BLE001 - whatever it is, the app goes on
            pool.__dict__.pop(MARK, None)
            log().exception("poolwatch could not instrument a pool")
            return False

    def _tell(self, naming: Naming, kind: str) -> None:
        if self.told is not naming:
            self.told = naming
            target = self.target()
            if target is not None:
                naming.meet_shared(self.library.name_of(target), kind)

    def go_the_general_way(self, pool: Pool, below: Callable[[Any], Any]) -> Any:
        """Called by what stands for the pool's own ``connect``."""
        hooks = self.hooks
        assert hooks is not None
        observers = self.book.observers
        try:
            if self.shared:
                if observers.naming is not None:
                    self._tell(observers.naming, self.book.kind)
                    return below(pool)
                hooks.wake()
            general = self.general
            if general is None:
                general = self.general = hooks.general(below, self.capacity or maxsize)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)
            return below(pool)
        return general(3, pool)

    def facts(self, hold: Checkout) -> ConnectionFacts | None:
        """What can be learned of its connection, now that somebody asks."""
        try:
            assert self.hooks is not None
            return self.hooks.facts(hold.proxy())
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.guard.failed(error)
            return None

    def follow(self, new: Pool) -> None:
        """Hang on one more pool of the engine."""
        new.__dict__[MARK] = self
        if self.hooks is not None:
            try:
                self.hooks.adopt(new)
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                self.guard.failed(error)

    def remove(self, pool: Pool) -> None:
        """Take it off a pool."""
        if pool.__dict__.get(MARK) is self:
            del pool.__dict__[MARK]


class QuietWay:
    """The functions of ours that stand in SQLAlchemy's classes."""

    __slots__ = (
        "_common",
        "_kinds",
        "_patches",
        "bottoms",
        "closed",
        "for_session",
        "observers",
    )

    def __init__(self, sites: CallSites, observers: Observers) -> None:
        self.bottoms = sites.bottoms
        self.observers = observers
        self.for_session: CodeType | None = None
        """See asking_for_a_session(): the ORM may be loaded later."""
        self.closed = False
        """For good. Under somebody else's functions ours may stay, and pass through."""
        self._common = Common()
        self._patches = Patches()
        self._kinds: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
        """Classes of pools and dialects that were met, and whether they go this way."""

    def __bool__(self) -> bool:
        """Whether it is open."""
        return bool(self._common)

    def begin(self) -> None:
        """Open it, if it can be: see Common."""
        self._common.begin(LISTENERS.items())

    def end(self) -> None:
        """Close it."""
        self.closed = True
        self._patches.undo()
        self._kinds.clear()
        self._common.end()

    def leads_to(self, pool: Pool) -> bool:
        """Whether a pool can go this way: then its class does from now on."""
        kind = type(pool)
        if kind not in self._kinds:
            self._kinds[kind] = self._cover(kind)
        return self._kinds[kind]

    def _cover(self, kind: type[Pool]) -> bool:
        lends, takes = (where_defined(kind, n) for n in ("connect", "_return_conn"))
        makes = where_defined(kind, "recreate")
        if (
            lends not in (Pool, SingletonThreadPool)
            or takes is not Pool  # another's may call, or not call, that of its base
            or makes is None
        ):
            return False
        self._patches.put(lends, "connect", self._connecting)
        self._patches.put(takes, "_return_conn", self._returning)
        self._patches.put(makes, "recreate", _recreating)
        return True

    def note_statements(self, kind: type[Dialect]) -> None:
        """Note the text of what goes through dialects of that class."""
        if kind not in self._kinds:
            self._kinds[kind] = True
            for name, make in _EXECUTING.items():
                where = where_defined(kind, name)
                if where is not None:
                    self._patches.put(where, name, make)

    def _connecting(self, below: Callable[[Any], Any]) -> Callable[[Any], Any]:  # noqa: C901, PLR0915 - written out
        """Make what stands for the pool's own ``connect``."""
        way = self

        @wraps(below)
        def connect(pool: Pool) -> Any:  # noqa: C901, PLR0912, PLR0915 - written out
            w = way  # one cell; each more is one more object to look at
            q: QuietPool | None = pool.__dict__.get(MARK)
            naming = w.observers.naming
            if (
                q is None
                or w.closed
                or (q.hooks is None and not q.is_used(pool, naming))
            ):
                return below(pool)
            holds = q.holds
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
                return q.go_the_general_way(pool, below)
            asked = monotonic()
            try:
                proxy = below(pool)
            except BaseException as error:
                q.hooks.gave_up(asked, error)  # type: ignore[union-attr]
                raise
            try:
                chain: Chain = None
                try:
                    frame: FrameType = frame_at(TO_ENGINE)
                    code = frame.f_code
                    if code is ENGINE_CONNECT:
                        frame = frame.f_back  # type: ignore[assignment]
                        code = frame.f_code
                        if w.for_session is None:
                            w.for_session = asking_for_a_session()
                        if code is w.for_session:
                            frame = known_method(1) or method_of_session(frame) or frame
                            code = frame.f_code
                    else:
                        frame = frame_at(1)
                        code = frame.f_code
                    bottoms = w.bottoms
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
                hold.lender = q
                record = proxy._connection_record
                hold.proxy = record.fairy_ref  # the pool has made it
                hold.taken = monotonic()
                holds[id(record)] = hold
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
                q.hooks.failed_after_connect(error)  # type: ignore[union-attr]
            return proxy

        return connect

    def _returning(
        self, below: Callable[[Any, Any], None]
    ) -> Callable[[Any, Any], None]:
        """Make what stands for ``_return_conn``, by which a connection comes back."""
        observers = self.observers

        @wraps(below)
        def _return_conn(pool: Pool, record: Any) -> None:
            q: QuietPool | None = None
            try:
                q = pool.__dict__.get(MARK)
                hold = None if q is None else q.holds.pop(id(record), None)
                if hold is not None:
                    collected = hold.proxy() is None
                    if collected or observers.naming is None:
                        _end(q, hold, record, collected)  # type: ignore[arg-type]
                    else:
                        hold.holder.out -= 1
                        account = hold.account
                        if account is not None:
                            account.out.pop(hold, None)
                        unseen, taken = q.unseen, hold.taken  # type: ignore[union-attr]
                        unseen += (monotonic() - taken, taken - hold.asked)
                        if len(unseen) >= MOST_UNSEEN:
                            q.book.fold_unseen()  # type: ignore[union-attr]
            except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
                if q is not None:
                    q.guard.failed(error)
            finally:  # Ctrl-C must not cost the pool its connection
                below(pool, record)

        return _return_conn


def _end(q: QuietPool, hold: Checkout, record: Any, collected: bool) -> None:
    """Close the books of a hold in the general way."""
    if collected and q.hooks is not None:  # the last moment to learn of its connection
        hold.connection = q.hooks.facts_of(record.dbapi_connection, record)
    q.book.end(hold, monotonic(), collected)


def _short_stack(frame: FrameType | None) -> Chain:
    """All there is of a stack that ends before the application: a greenlet's."""
    chain: Chain = None
    while frame is not None:
        chain = frame.f_code, frame.f_lasti, chain
        frame = frame.f_back
    return chain


def _recreating(below: Callable[[Any], Pool]) -> Callable[[Any], Pool]:
    """Make what stands for ``recreate``, by which ``dispose()`` gets its new pool."""

    @wraps(below)
    def recreate(pool: Pool) -> Pool:
        new = below(pool)
        q: QuietPool | None = pool.__dict__.get(MARK)
        if q is not None:
            q.follow(new)
        return new

    return recreate


def _executing(below: Callable[..., None]) -> Callable[..., None]:
    """Make what stands for a method of a dialect that sends a statement."""

    @wraps(below)
    def execute(
        dialect: Any, cursor: Any, statement: str, parameters: Any, context: Any = None
    ) -> None:
        try:
            proxy = context.root_connection._dbapi_connection
            q: QuietPool | None = proxy._pool.__dict__.get(MARK)
            if q is not None:
                hold = q.holds.get(id(proxy._connection_record))
                if hold is not None and hold.usage is None:
                    hold.said = statement
        except Exception:  # noqa: BLE001, S110 - no pool, no context: the app goes on
            pass
        below(dialect, cursor, statement, parameters, context)

    return execute


def _executing_bare(below: Callable[..., None]) -> Callable[..., None]:
    """The same of the method for statements without parameters."""
    note = _executing(lambda *_: None)

    @wraps(below)
    def execute(dialect: Any, cursor: Any, statement: str, context: Any = None) -> None:
        note(dialect, cursor, statement, None, context)
        below(dialect, cursor, statement, context)

    return execute


_EXECUTING = {
    "do_execute": _executing,
    "do_executemany": _executing,
    "do_execute_no_params": _executing_bare,
}


def _telling(event: str) -> Callable[..., None]:
    def listener(dbapi_connection: Any, record: Any, *more: Any) -> None:
        q = record._ConnectionRecord__pool.__dict__.get(MARK)
        if q is not None and q.hooks is not None:
            q.hooks.told_of(event, dbapi_connection, record, *more)

    return listener


LISTENERS = {
    name: _telling(name) for name in ("connect", "invalidate", "close", "detach")
}
"""Of all pools at once. Always the same ones: those that had to stay are not added a
second time."""
