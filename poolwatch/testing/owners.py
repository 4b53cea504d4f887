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
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.model import Frame

_STARTED_BY = "_pool_leaks_owner"
_SERVES_ALL = "TestRunner._run_tests_and_fixtures"
"""anyio's one task that all tests and fixtures of an event loop run in."""


class Owner:
    """A test (one attempt of it), a fixture of a wider scope, or a file's import."""

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
        self.out: dict[Checkout, PoolLedger] = {}
        """The holds it has taken and not returned."""
        self.dropped: list[tuple[PoolLedger, Checkout, float]] = []
        """Holds that only the garbage collector returned, and when
        (``time.monotonic()``)."""
        self.peak = 0
        """The most holds it has had at once."""
        self.keeps_peak = False
        """A marker limits its holds: the next two are recorded."""
        self.at_peak: Sequence[tuple[Frame, ...]] = ()
        """The stacks of the holds that were out at the peak."""
        self.longest: tuple[float, tuple[Frame, ...]] = (0.0, ())
        """The seconds of the longest ended hold, and its stack."""
        self.limits: Any = None
        """The limits of a test's markers, a ``Limits``; None if there are none."""
        self.pools: frozenset[str] | None = None
        """Ids of the pools that count; all if None."""
        self.failed = False
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
        """The owner of the main thread's work, but for a fixture in ``rising``."""
        self.rising: list[Any] = []
        """The wider fixtures (``Standing``) being set up, the innermost last. There is
        no hook for the end of a setup: each one has to be asked."""
        self._of: dict[Checkout, Owner] = {}
        """The owner of each open hold."""
        self.late: list[Owner] = []
        """Owners that were over when the collector found something of theirs."""
        self.again: dict[int, Owner] = {}
        """Owners that were over when a thread of theirs took one more."""
        self.unjudged: dict[str, str] = {}
        """Names of pools that were used and cannot be judged, and their kind."""
        self.thread = get_ident()
        """The main thread."""
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

    def taken(self, book: PoolLedger, hold: Checkout) -> None:
        """Add a hold to those of its owner."""
        if book.shared:  # one connection for all: no owner can be told
            self.unjudged.setdefault(book.name, book.kind)
            return
        owner = self.owner()
        if owner is None or hold.context.long_hold:
            return
        self.charge(owner, hold, book)
        if owner.over:
            self.again[id(owner)] = owner
        count = len(owner.out)
        if count > owner.peak:
            owner.peak = count
            if owner.keeps_peak:
                owner.at_peak = [each.path.frames() for each in list(owner.out)]

    def charge(self, owner: Owner, hold: Checkout, book: PoolLedger) -> None:
        """Make an owner answer for a hold."""
        self._of[hold] = owner
        owner.out[hold] = book

    def ended(
        self, book: PoolLedger, hold: Checkout, now: float, collected: bool
    ) -> None:
        """Take a hold off its owner, which answers for one that nobody returned."""
        owner = self._of.pop(hold, None)
        if owner is None or owner.out.pop(hold, None) is None:
            return
        if owner.keeps_peak and now - hold.taken > owner.longest[0]:
            owner.longest = now - hold.taken, hold.path.frames()
        if collected:
            # Words come later: nothing is imported in the middle of a collection.
            owner.dropped.append((book, hold, now))
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
            return self._of_main()
        inherited = self._inherited.get()
        if isinstance(inherited, Owner):
            return inherited
        if main or inherited == "current":
            return self._of_main()
        return getattr(threading.current_thread(), _STARTED_BY, None)

    def _of_main(self) -> Owner | None:
        """The owner of the main thread's work."""
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


def by_other_threads(holds: Iterable[Checkout]) -> bool:
    """Whether somebody who may still be running has some of these."""
    return any(hold.holder.ident != get_ident() for hold in holds)
