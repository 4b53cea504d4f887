"""Checkouts, returns and statements where nobody can look: in a run of tests.

There each happens once or twice a test, with nothing of it in the processor's caches:
it costs as much as it makes calls and looks at objects. So each is one function, and
what it needs stands side by side in one object. Only the plain case is here: one
thread, no event loop, no connection out, one that is free. All else goes the general
way, through :mod:`poolwatch.adapters.sqlalchemy.hooks`.

These functions stand in SQLAlchemy's classes, not on each pool and dialect, because a
suite may make an engine for each of its tests. An engine is only marked when it is
made, and what is noted in the plain case hangs on the mark: its hooks and its books are
made when somebody asks for them.
"""

from __future__ import annotations

from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from sys import _getframe as frame_at
from sys import maxsize
from time import monotonic, time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool, QueuePool, SingletonThreadPool, StaticPool

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.adapters.cut_short import is_library_s
from poolwatch.adapters.patching import Patches, where_defined
from poolwatch.adapters.sqlalchemy.entry import (
    ENGINE_CONNECT,
    TO_ENGINE,
    asking_for_a_session,
    known_method,
    method_of_session,
)
from poolwatch.adapters.sqlalchemy.events import Common
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.labels import ambience
from poolwatch.ledger.observers import MOST_UNSEEN
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.holder import get_ident

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Protocol

    from sqlalchemy.engine import Dialect

    from poolwatch.ledger.checkout import ConnectionFacts
    from poolwatch.ledger.observers import Naming, Observers
    from poolwatch.ledger.pool import PoolBook
    from poolwatch.stacks.capture import Chain

    Lost = tuple[Checkout, float, Pool]
    """A hold, when it was lost (``time.monotonic()``), and its pool: until it is in the
    books somebody must know what that is called."""

    class Hooks(Protocol):
        """Those of the pool: see sqlalchemy.PoolHooks."""

        book: PoolBook
        guard: Guard

        def wake(self) -> None:
            """Note everything from now on."""

        def general(
            self, original: Callable[[Any], Any], capacity: int
        ) -> Callable[[int, Any], Any]:
            """What goes the general way; takes how many frames up the one is that
            stands for the pool's ``connect``, and the pool.
            """

        def facts(self, proxy: Any) -> ConnectionFacts | None:
            """What can be learned of a connection that is out."""

        def refused(self, asked: float, error: BaseException, timed_out: bool) -> None:
            """Take note of what the pool has raised."""

        def told_of(self, event: str, *args: Any) -> None:
            """Note what a pool has told."""

    class Library(Protocol):
        """Whoever makes the hooks: see sqlalchemy_engines.Engines."""

        def make(self, quiet: QuietPool) -> Hooks:
            """The hooks that go with it, and their books."""

        def use(self, quiet: QuietPool) -> Hooks | None:
            """The same; None if its pools are not watched any more."""

        def name_of(self, target: Any) -> str:
            """What the pool is called."""


MARK = "_poolwatch"
"""Attribute of a pool: its QuietPool. It is looked up in the pool's dictionary: a class
may have a ``__getattr__`` of its own, which is not to be asked."""

_ambience = ambience.get
_new: Callable[[type[Checkout]], Checkout] = object.__new__
"""Leaves out the call of ``__init__``."""
_NONE: dict[int, Checkout] = {}
"""The holds of a pool with one connection for all: they are not noted here."""
_SOUND = Guard("a pool")
"""That of a pool whose hooks are not made yet."""
_MOST_LOST = 256
"""That are kept out of the books for the time being."""
_COUNTED = {"connect": "connects", "invalidate": "invalidated", "close": "closes"}
"""Events that are only counted, and where, as long as nobody asks for more."""


def capacity_of(pool: Pool) -> int:
    """The most connections it lends at once."""
    if isinstance(pool, QueuePool) and pool._max_overflow >= 0 and pool.size():
        return pool.size() + pool._max_overflow
    return maxsize


def facts_by_record(dbapi_connection: Any, record: Any) -> ConnectionFacts:
    """What can be learned of a connection of a pool at any time."""
    age = max(0.0, time() - record.starttime)
    return facts_of(dbapi_connection, monotonic() - age, None)


class QuietPool:
    """What is known of one engine: the mark of all pools that it has in its life."""

    __slots__ = (
        "capacity",
        "closes",
        "connects",
        "first",
        "general",
        "guard",
        "holds",
        "hooks",
        "invalidated",
        "library",
        "lost",
        "pools",
        "shared",
        "target",
        "told",
        "unseen",
    )

    def __init__(
        self, library: Library, target: Any, pool: Pool, capacity: int
    ) -> None:
        """Take the engine, the pool that it has, and the most connections that this
        lends at once.
        """
        self.library = library
        self.target: Callable[[], Any] = ref(target)
        self.pools = [ref(pool)]
        """The newest last: old ones may have holds out."""
        self.shared = isinstance(pool, StaticPool | SingletonThreadPool)
        """It has one connection for all."""
        self.holds: dict[int, Checkout] = _NONE if self.shared else {}
        """As those of PoolBook, which takes them over, and ..."""
        self.unseen: list[float] = []
        """... these as well."""
        self.capacity = 0 if self.shared else capacity
        self.connects = self.closes = self.invalidated = 0
        self.lost: list[Lost] = []
        """Those that the garbage collector has returned and that are in no books."""
        self.hooks: Hooks | None = None
        self.first: dict[str, Hooks] = {}
        """Those that were made first: others may be in the making, in another thread or
        in a collection in the middle of it. No lock: it ends holds, too."""
        self.guard = _SOUND
        self.general: Callable[[int, Any], Any] | None = None
        """What goes the general way, once it was needed."""
        self.told: Naming | None = None
        """Has been told that it has one connection for all."""

    @property
    def book(self) -> PoolBook:
        """Its books."""
        return self.made().book

    def made(self) -> Hooks:
        """Its hooks, now that somebody asks for them."""
        return self.hooks or self.library.make(self)

    def begin(self, hooks: Hooks) -> None:
        """Take the hooks that were made, unless others were first: what was noted so
        far is in their books.
        """
        book = hooks.book
        if not self.shared:
            book.holds = self.holds
        book.unseen = self.unseen
        for name in _COUNTED.values():
            setattr(book, name, getattr(self, name))
        first = self.first.setdefault("hooks", hooks)
        self.guard = first.guard
        self.hooks = first
        self._enter_lost(first.book)

    def _enter_lost(self, book: PoolBook) -> None:
        while self.lost:
            try:
                hold, now, _ = self.lost.pop()
            except IndexError:  # another thread was first
                return
            book.enter_lost(hold, now)

    def forget(self) -> None:
        """In a forked child: what is out belongs to the parent."""
        self.holds.clear()
        del self.unseen[:]
        self.connects = self.closes = self.invalidated = 0

    def go_the_general_way(
        self, pool: Pool, below: Callable[[Any], Any], naming: Naming | None
    ) -> Any:
        """Called by what stands for the pool's own ``connect``."""
        general = self.general
        if general is None or self.shared:
            general = self._way(pool, below, naming)
        return below(pool) if general is None else general(3, pool)

    def _way(
        self, pool: Pool, below: Callable[[Any], Any], naming: Naming | None
    ) -> Callable[[int, Any], Any] | None:
        """Make what goes the general way, if there is something to note.

        Who has the one connection of a pool is of no interest as long as nobody looks.
        """
        try:
            if self.shared and naming is not None:
                self._tell(naming, type(pool).__name__)
                return None
            hooks = self.library.use(self)
            if hooks is None:
                self.remove(pool)
                return None
            if self.shared:
                hooks.wake()
            if self.general is None:
                self.general = hooks.general(below, self.capacity or maxsize)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.failed(error)
            return None
        return self.general

    def _tell(self, naming: Naming, kind: str) -> None:
        if self.told is not naming:
            self.told = naming
            target = self.target()
            if target is not None:
                naming.meet_shared(self.library.name_of(target), kind)

    def facts(self, hold: Checkout) -> ConnectionFacts | None:
        """What can be learned of its connection, now that somebody asks."""
        try:
            return self.made().facts(hold.proxy())
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.failed(error)
            return None

    def gave_up(self, asked: float, error: BaseException) -> None:
        """Take note of what the pool has raised."""
        try:
            timed_out = isinstance(error, PoolTimeoutError)
            self.made().refused(asked, error, timed_out)
        except Exception as ours:  # noqa: BLE001 - the application waits for its own
            self.failed(ours)

    def end(
        self, hold: Checkout, pool: Pool, record: Any, naming: Naming | None
    ) -> Any:
        """Close the books of a hold in the general way; returns None.

        They are not made in the middle of a collection, where nothing may be imported,
        unless so many were lost that it is better than to keep them all.
        """
        now, collected = monotonic(), hold.proxy() is None
        if collected:  # the last moment to learn of its connection
            hold.facts = facts_by_record(record.dbapi_connection, record)
        late = self.hooks is None and len(self.lost) < _MOST_LOST
        if not collected or naming is None or not late:
            self.made().book.end(hold, now, collected)
            return
        self.lost.append((hold, now, pool))
        naming.lost(self, hold, now)
        if hold.account is not None:
            hold.account.out.pop(hold, None)
        if self.hooks is not None:  # another thread has made them meanwhile
            self._enter_lost(self.hooks.book)
        hold.holder.out -= 1

    def goes_on(
        self,
        error: BaseException,
        hold: Checkout | None,
        proxy: Any,
        before: int | None,
    ) -> bool:
        """Whether the application gets a connection in spite of an exception of ours.

        ``before`` is the number of holds that its holder had until then; None if it did
        not come to that.
        """
        if hold is not None and before is not None:
            key = id(proxy._connection_record)
            hold.holder.out = before + (self.holds.get(key) is hold)
        if isinstance(error, Exception):
            self.failed(error)
            return True
        if proxy is not None:
            with suppress(Exception):
                proxy.close()
        return False

    def came_back(self, hold: Checkout | None, record: Any) -> None:
        """A connection has come back, but the end of its hold was cut short."""
        hold = hold or self.holds.pop(id(record), None)
        if hold is not None:
            hold.holder.out -= 1
            if hold.account is not None:
                hold.account.out.pop(hold, None)

    def told_of(self, event: str, *args: Any) -> None:
        """Note what a pool has told."""
        counter = _COUNTED.get(event)
        detached = event == "connect" and id(args[1]) in self.holds
        if self.hooks is None and counter is not None and not detached:
            setattr(self, counter, getattr(self, counter) + 1)
            return
        try:
            self.made().told_of(event, *args)
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Take note of an exception of ours, unless it is meant for the application."""
        if not isinstance(error, Exception):
            raise error  # Ctrl-C, or a greenlet or thread that was told to end
        try:
            self.made()
        except Exception:  # noqa: BLE001 - it was that
            self.guard = Guard("a pool")
        self.guard.failed(error)

    def follow(self, new: Pool) -> None:
        """Hang on one more pool of the engine."""
        try:
            if new.__dict__.get(MARK) is not self:  # a recreate may call another's
                alive = [each for each in self.pools if each() is not None]
                self.pools = [*alive, ref(new)]
                new.__dict__[MARK] = self
        except Exception as error:  # noqa: BLE001 - whatever it is, the app goes on
            self.failed(error)

    def newest(self) -> Pool | None:
        """The last of its pools that is alive."""
        pools = (each() for each in reversed(self.pools))
        return next((pool for pool in pools if pool is not None), None)

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

    def __init__(self, bottoms: Mapping[int, CodeType], observers: Observers) -> None:
        self.bottoms = bottoms
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
        def connect(pool: Any) -> Any:  # noqa: C901, PLR0912, PLR0915 - written out
            w = way  # one cell; each more is one more object to look at
            q: QuietPool | None = pool.__dict__.get(MARK)
            if q is None or w.closed:
                return below(pool)
            naming, holds = w.observers.naming, q.holds
            if (
                naming is None
                or (holder := naming.holder) is None
                or holder.ident != get_ident()
                or holder.out
                or len(holds) >= q.capacity
                or running_loop() is not None
                or q.guard.tripped
            ):
                return q.go_the_general_way(pool, below, naming)
            called = False
            hold = proxy = before = None
            asked = monotonic()
            try:
                called = True
                proxy = below(pool)
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
                before = holder.out
                holds[id(record)] = hold
                holder.out = before + 1
                account = naming.answering() if naming.rising else naming.current
                if account is None or said.long_hold:
                    return proxy
                if account.keeps_peak or account.over:
                    naming.taken(q.book, hold)
                    return proxy
                hold.account = account
                out = account.out
                out[hold] = q
                if len(out) > account.peak:  # noqa: PLR1730 - no call
                    account.peak = len(out)
                return proxy  # noqa: TRY300 - also here the hold would be left behind
            except BaseException as error:
                if proxy is None and is_library_s(error, called, below):
                    q.gave_up(asked, error)
                    raise
                if not q.goes_on(error, hold, proxy, before):
                    raise
            return below(pool) if proxy is None else proxy

        return connect

    def _returning(  # noqa: C901 - written out
        self, below: Callable[[Any, Any], None]
    ) -> Callable[[Any, Any], None]:
        """Make what stands for ``_return_conn``, by which a connection comes back."""
        observers = self.observers

        @wraps(below)
        def _return_conn(  # noqa: C901 - written out
            pool: Any,
            record: Any,
            q: QuietPool | None = None,
            hold: Any = None,
            called: bool = False,
        ) -> None:
            try:  # nothing before it: what is raised there costs a connection
                q = pool.__dict__.get(MARK)
                hold = None if q is None else q.holds.pop(id(record), None)
                if hold is not None:
                    naming = observers.naming
                    if naming is None or hold.proxy() is None:
                        hold = q.end(hold, pool, record, naming)
                    else:
                        account = hold.account
                        if account is not None:
                            account.out.pop(hold, None)
                        unseen: list[float] = q.unseen
                        taken = hold.taken
                        unseen += (monotonic() - taken, taken - hold.asked)
                        if len(unseen) >= MOST_UNSEEN:
                            q.book.fold_unseen()
                        hold.holder.out, hold = hold.holder.out - 1, None
                called = True
                below(pool, record)
            except BaseException as error:
                if is_library_s(error, called, below):
                    raise
                try:
                    if q is not None:  # else the pool has none
                        q.came_back(hold, record)
                finally:  # Ctrl-C must not cost the pool its connection
                    below(pool, record)
                if not isinstance(error, Exception):
                    raise
                if q is not None:
                    q.failed(error)

        return _return_conn


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
            q: QuietPool = proxy._pool.__dict__[MARK]
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
        if q is not None:
            q.told_of(event, dbapi_connection, record, *more)

    return listener


LISTENERS = {
    name: _telling(name) for name in ("connect", "invalidate", "close", "detach")
}
"""Of all pools at once. Always the same ones: those that had to stay are not added a
second time."""
