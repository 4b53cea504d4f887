"""Whose code takes a connection: a test's, or that of a fixture with a wider scope.

The main thread works for one owner at a time. Threads and tasks belong to whoever
started them, also when they take their connection later; what an executor runs belongs
to whoever submitted it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from poolwatch.runtime.import_hooks import when_imported
from poolwatch.stacks.holder import get_ident

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout, Lender
    from poolwatch.ledger.pool import PoolBook
    from poolwatch.model import Frame
    from poolwatch.stacks.holder import Holder
    from poolwatch.testing.limits import Limits
    from poolwatch.testing.scopes import Standing

_STARTED_BY = "_pool_leaks_owner"
_SERVES_ALL = "TestRunner._run_tests_and_fixtures"
"""anyio's one task that all tests and fixtures of an event loop run in."""


class Owner:
    """A test (one attempt of it), a fixture of a wider scope, or a file's import."""

    # One is made for each test: what few of them need is not made with it.
    dropped: Sequence[tuple[Lender, Checkout, float]] = ()
    """What only the garbage collector returned, and when (``time.monotonic()``)."""
    at_peak: Sequence[tuple[Frame, ...]] = ()
    """The stacks of what was out then, if that is of interest."""
    longest: tuple[float, tuple[Frame, ...]] = (0.0, ())
    """The longest ended hold, if that is of interest, and where it was taken."""
    failed = False
    limits: Limits | None = None
    """What a test's markers say."""
    pools: frozenset[str] | None = None
    """Ids of the pools that count; all if None."""

    def __init__(
        self,
        kind: Literal["test", "fixture", "collection"],
        node: Any,
        name: str | None = None,
    ) -> None:
        self.kind = kind
        self.node = node
        """The test or file that answers for it: of a fixture, its first user."""
        self._name = name
        self.out: dict[Checkout, Lender] = {}
        """What it has taken and not returned."""
        self.peak = 0
        self.keeps_peak = False
        self.over = False
        """It was judged."""
        self.notable = False
        """There is something to judge, even if it has returned everything."""

    @property
    def name(self) -> str:
        """A node id; of a fixture, its name, scope and home."""
        return self._name or self.blamed

    @property
    def blamed(self) -> str:
        """Node id of the test or file that answers for it."""
        return str(self.node.nodeid)

    @property
    def location(self) -> tuple[str, int | None, str]:
        """Where that is, as reports have it."""
        if self.kind == "collection":
            return self.blamed, None, self.blamed
        location: tuple[str, int | None, str] = self.node.location
        return location

    def rest(self) -> Owner:
        """One more of the same, that has nothing yet."""
        other = Owner(self.kind, self.node, self._name)
        other.pools, other.failed = self.pools, self.failed
        return other


class Owners:
    """Tells the owner of the code that runs, and notes what each owner has taken.

    Observes the ledger: see :mod:`poolwatch.ledger.observers`.
    """

    def __init__(self) -> None:
        self.current: Owner | None = None
        """Whom the main thread works for, but for ..."""
        self.rising: list[Standing] = []
        """... a fixture that is being set up, the innermost last. pytest tells when
        that begins; that it is over, whoever asks sees for himself."""
        self.late: list[Owner] = []
        """Owners that were over when the collector found something of theirs."""
        self.again: dict[int, Owner] = {}
        """Owners that were over when a thread of theirs took one more."""
        self.unjudged: dict[str, str] = {}
        """Names of pools that were used and cannot be judged, and their kind."""
        self.thread = get_ident()
        """The main one, and ..."""
        self.holder: Holder | None = None
        """... as it is known where connections are taken. If it is not met before it
        takes its first, all that is needed for other threads is loaded for that."""
        self._inherited: ContextVar[Owner | Literal["current"] | None] = ContextVar(
            "pool_leaks_owner", default=None
        )
        """"current" in all that comes from the main thread's own context: whoever the
        main thread works for when it is asked, as for the calls of a test that a
        thread of a wider fixture runs."""
        self._tasks: weakref.WeakKeyDictionary[Any, Owner | None] = (
            weakref.WeakKeyDictionary()
        )
        self._undo: list[Callable[[], None]] = []

    # -- observing the ledger --------------------------------------------------------

    def taken(self, book: PoolBook, hold: Checkout) -> None:
        """Note a hold under its owner."""
        if book.shared:
            self.meet_shared(book.name, book.kind)
            return
        # owner(), written out where it is simple
        simple = False
        if hold.holder.ident == self.thread:
            self.holder = hold.holder
            simple = running_loop() is None
        owner = self.owner() if self.rising or not simple else self.current
        if owner is None or hold.ambience.long_hold:
            return
        hold.account = owner
        out = owner.out
        out[hold] = book
        if owner.over:
            self.again[id(owner)] = owner
        count = len(out)
        if count > owner.peak:
            owner.peak = count
            if owner.keeps_peak:
                owner.at_peak = [each.path.frames() for each in list(out)]

    def meet_shared(self, name: str, kind: str) -> None:
        """Note one connection for all: nobody can be said to have it."""
        self.unjudged.setdefault(name, kind)

    def lost(self, lender: Lender, hold: Checkout, now: float) -> None:
        """Note a hold that nobody returned, unless that has been judged."""
        owner = hold.account
        if isinstance(owner, Owner) and hold in owner.out:
            # Words come later: nothing is imported in the middle of a collection.
            owner.dropped = (*owner.dropped, (lender, hold, now))
            owner.notable = True
            if owner.over:
                self.late.append(owner)

    # -- who it is ---------------------------------------------------------------------

    def owner(self) -> Owner | None:
        """The owner of the code that calls."""
        main = get_ident() == self.thread
        loop = running_loop()
        if loop is not None:
            task = asyncio.current_task(loop)
            if task is not None and task in self._tasks:
                return self._tasks[task]
        elif main:
            return self.answering()
        inherited = self._inherited.get()
        if isinstance(inherited, Owner):
            return inherited
        if main or inherited == "current":
            return self.answering()
        return getattr(threading.current_thread(), _STARTED_BY, None)

    def answering(self) -> Owner | None:
        """Whom the main thread works for."""
        rising = (each.owner for each in reversed(self.rising) if not each.is_up)
        return next(rising, self.current)

    def follow(self) -> None:
        """From now on threads, tasks and jobs of executors are told apart."""
        self._token = self._inherited.set("current")
        self._patch(threading.Thread, "start", self._starting)
        self._undo.append(when_imported("concurrent.futures.thread", self._follow_jobs))
        self._patch(asyncio.base_events.BaseEventLoop, "create_task", self._creating)

    def unfollow(self) -> None:
        """Undo it."""
        while self._undo:
            self._undo.pop()()
        with suppress(ValueError):  # another context than it was set in
            self._inherited.reset(self._token)

    def _follow_jobs(self) -> None:
        executor = sys.modules["concurrent.futures.thread"].ThreadPoolExecutor
        self._patch(executor, "submit", self._submitting)

    def _patch(self, kind: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(kind, name)
        ours = wraps(original)(wrap(original))
        setattr(kind, name, ours)

        def undo() -> None:
            if getattr(kind, name) is ours:
                setattr(kind, name, original)

        self._undo.append(undo)

    def _starting(self, original: Any) -> Any:
        def start(thread: threading.Thread) -> None:
            setattr(thread, _STARTED_BY, self.owner())
            original(thread)

        return start

    def _submitting(self, original: Any) -> Any:
        def submit(executor: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if type(executor).__name__ == "InterpreterPoolExecutor":
                return original(executor, function, *args, **kwargs)  # it pickles
            owner = self.owner()

            def job(*args: Any, **kwargs: Any) -> Any:
                token = self._inherited.set(owner)
                try:
                    return function(*args, **kwargs)
                finally:
                    self._inherited.reset(token)

            return original(executor, job, *args, **kwargs)

        return submit

    def _creating(self, original: Any) -> Any:
        def create_task(
            loop: Any, coro: Any, *, context: Context | None = None, **kwargs: Any
        ) -> Any:
            serves_all = getattr(coro, "__qualname__", "") == _SERVES_ALL
            owner = self.owner()
            if context is None:  # else it is somebody's own: nothing is changed there
                context = copy_context()
                context.run(self._inherited.set, "current" if serves_all else owner)
            task = original(loop, coro, context=context, **kwargs)
            if not serves_all:
                self._tasks[task] = owner
            return task

        return create_task


class Lengths:
    """Observes how long the longest hold lasts of those who keep their peak."""

    @staticmethod
    def ended(book: PoolBook, hold: Checkout, now: float, collected: bool) -> None:  # noqa: ARG004 - as it is called
        """Keep it with its stack if it was the longest so far."""
        owner, lasted = hold.account, now - hold.taken
        if isinstance(owner, Owner) and owner.keeps_peak and lasted > owner.longest[0]:
            owner.longest = lasted, hold.path.frames()


def by_other_threads(holds: Iterable[Checkout]) -> bool:
    """Whether somebody who may still be running has some of these."""
    return any(hold.holder.ident != get_ident() for hold in holds)
