"""Determines the test or wider fixture (class, module, session) of each checkout.

The main thread works for one owner at a time. Threads and tasks belong to the owner
that started them, even if they check one out later. Jobs of an executor belong to
the owner that submitted them.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from poolwatch.ledger.labels import MAX_VALUE_LENGTH
from poolwatch.runtime.import_hooks import when_imported
from poolwatch.stacks.holder import get_ident
from poolwatch.testing.propagation import into_jobs, patch

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.model import Frame

_OWNER_ATTRIBUTE = "_pool_leaks_owner"
_SHARED_RUNNER = "TestRunner._run_tests_and_fixtures"
"""The coroutine of anyio's task that runs all tests and fixtures of an event loop."""


class Owner:
    """A test (one attempt), a wider fixture, or the import of a test file."""

    def __init__(
        self,
        kind: Literal["test", "fixture", "collection"],
        node: Any,
        name: str | None = None,
    ) -> None:
        self.kind = kind
        self.node = node
        """The test or file to report leaks for; of a fixture, its first test."""
        self._name = name
        self.began = monotonic()
        self.called = inf
        """When a test was called, after the set-up of its fixtures."""
        self.open_holds: dict[Checkout, PoolLedger] = {}
        """The open holds of the owner, with the ledger of each pool."""
        self.dropped: list[tuple[PoolLedger, Checkout, float]] = []
        """Holds that were garbage-collected, and when (``time.monotonic()``)."""
        self.peak = 0
        """The most open holds at once."""
        self.records_peak = False
        """Whether ``at_peak`` and ``longest`` are recorded: only for a limit."""
        self.at_peak: Sequence[tuple[Frame, ...]] = ()
        """The stacks of the holds that were open at the peak."""
        self.longest: tuple[float, tuple[Frame, ...]] = (0.0, ())
        """The duration of the longest ended hold in seconds, and its stack."""
        self.limits: Any = None
        """The ``Limits`` that the markers of a test set; None without markers."""
        self.pools: frozenset[str] | None = None
        """Ids of the pools whose leaks count; None for all pools."""
        self.failed = False
        """Whether the test failed: then its leaks are not counted."""
        self.judged = False
        """Whether its leaks were determined already."""
        self.needs_judging = False
        """Whether the owner must be judged even without open holds."""

    @property
    def name(self) -> str:
        """The node id; for a fixture, its name, scope and location."""
        return self._name or self.reported_node_id

    @property
    def reported_node_id(self) -> str:
        """Node id of the test or file that leaks are reported for."""
        return str(self.node.nodeid)

    @property
    def location(self) -> tuple[str, int | None, str]:
        """The location of that test or file, as in pytest's reports."""
        if self.kind == "collection":
            return self.reported_node_id, None, self.reported_node_id
        location: tuple[str, int | None, str] = self.node.location
        return location

    def without_holds(self) -> Owner:
        """Return an owner with the same identity and no holds."""
        copy = Owner(self.kind, self.node, self._name)
        copy.pools, copy.failed = self.pools, self.failed
        return copy


class Owners:
    """Determines the owner of the running code, and records the holds of each owner.

    An observer of the ledger: see :mod:`poolwatch.ledger.observers`.
    """

    def __init__(self) -> None:
        self.current: Owner | None = None
        """The owner that the main thread works for, except in a fixture's setup."""
        self.in_setup: list[Any] = []
        """The wider fixtures (``WiderFixture``) in setup, the innermost last. pytest
        has no hook for the end of a setup, so ``is_set_up`` is polled."""
        self._owner_by_hold: dict[Checkout, Owner] = {}
        """The owner of each open hold."""
        self.collected_after_judging: list[Owner] = []
        """Owners with a hold that was garbage-collected after they were judged."""
        self.checked_out_after_judging: dict[int, Owner] = {}
        """By id: owners with a hold that one of their threads began after judging."""
        self.unjudged: dict[str, str] = {}
        """Name and kind of the used pools that cannot be judged."""
        self.main_thread = get_ident()
        """The main thread."""
        self._inherited: ContextVar[Owner | Literal["current"] | None] = ContextVar(
            "pool_leaks_owner", default=None
        )
        """The owner that tasks and jobs inherit. "current" stands for the owner that
        the main thread works for at the time of the checkout: e.g. when a thread of a
        wider fixture runs the calls of a test."""
        self._tasks: weakref.WeakKeyDictionary[Any, Owner | None] = (
            weakref.WeakKeyDictionary()
        )
        self._undo: list[Callable[[], None]] = []

    # -- observing the ledger --------------------------------------------------------

    def checked_out(self, pool: PoolLedger, hold: Checkout) -> None:
        """Charge a new hold to its owner."""
        if pool.shared:  # one connection for all: the owner is unknown
            self.unjudged.setdefault(pool.name, pool.kind)
            return
        owner = self.owner()
        if owner is None or hold.context.long_hold:
            return
        self.charge(owner, hold, pool)
        if owner.judged:
            self.checked_out_after_judging[id(owner)] = owner
        count = len(owner.open_holds)
        if count > owner.peak:
            owner.peak = count
            if owner.records_peak:
                owner.at_peak = [each.stack.frames() for each in list(owner.open_holds)]

    def charge(self, owner: Owner, hold: Checkout, pool: PoolLedger) -> None:
        """Assign a hold to an owner."""
        self._owner_by_hold[hold] = owner
        owner.open_holds[hold] = pool

    def ended(
        self, pool: PoolLedger, hold: Checkout, now: float, collected: bool
    ) -> None:
        """Remove an ended hold from its owner; a garbage-collected one is a leak."""
        owner = self._owner_by_hold.pop(hold, None)
        if owner is None or owner.open_holds.pop(hold, None) is None:
            return
        if owner.records_peak and now - hold.checked_out_at > owner.longest[0]:
            owner.longest = now - hold.checked_out_at, hold.stack.frames()
        if collected:
            # The text is made later: nothing may be imported during a collection.
            owner.dropped.append((pool, hold, now))
            owner.needs_judging = True
            if owner.judged:
                self.collected_after_judging.append(owner)

    # -- the current owner -------------------------------------------------------------

    def owner(self) -> Owner | None:
        """Return the owner of the calling code."""
        main = get_ident() == self.main_thread
        loop = running_loop()
        if loop is not None:
            task = asyncio.current_task(loop)
            if task is not None and task in self._tasks:
                return self._tasks[task]
        elif main:
            return self.main_thread_owner()
        inherited = self._inherited.get()
        if isinstance(inherited, Owner):
            return inherited
        if main or inherited == "current":
            return self.main_thread_owner()
        return getattr(threading.current_thread(), _OWNER_ATTRIBUTE, None)

    def main_thread_owner(self) -> Owner | None:
        """Return the owner that the main thread works for."""
        in_setup = (
            each.owner for each in reversed(self.in_setup) if not each.is_set_up
        )
        return next(in_setup, self.current)

    # -- read by viewers: see ledger.TestRun -------------------------------------------

    def running(self) -> str | None:
        """The test or fixture that the main thread works for."""
        owner = self.main_thread_owner()
        return None if owner is None else owner.name

    def labels_of(self, request: Checkout) -> dict[str, str]:
        """The test or fixture of a hold or wait, if it is known.

        What a wait in another thread belongs to cannot be told from outside: the job
        of an executor may have been submitted by any test.
        """
        owner = self.owner_of(request)
        return {} if owner is None else {owner.kind: owner.name[:MAX_VALUE_LENGTH]}

    def owner_of(self, request: Checkout) -> Owner | None:
        """Return the owner of a hold or wait; None if it is not known."""
        owner = self._owner_by_hold.get(request)
        if owner is None and request.task is not None:
            task = request.task.reference()
            owner = None if task is None else self._tasks.get(task)
        if owner is None and request.holder.ident == self.main_thread:
            owner = self.main_thread_owner()
        return owner

    def start_tracking(self) -> None:
        """Start tracking the owners of threads, tasks and executor jobs."""
        self._token = self._inherited.set("current")
        self._patch(threading.Thread, "start", self._wrap_start)
        self._undo.append(when_imported("concurrent.futures.thread", self._track_jobs))
        self._patch(
            asyncio.base_events.BaseEventLoop, "create_task", self._wrap_create_task
        )
        self._undo.append(when_imported("uvloop", self._track_uvloop))

    def stop_tracking(self) -> None:
        """Stop tracking."""
        while self._undo:
            self._undo.pop()()
        with suppress(ValueError):  # set in another context
            self._inherited.reset(self._token)

    def _track_jobs(self) -> None:
        executor = sys.modules["concurrent.futures.thread"].ThreadPoolExecutor
        self._patch(executor, "submit", into_jobs(self._inherited, self.owner))

    def _track_uvloop(self) -> None:
        loop = sys.modules["uvloop"].Loop  # no BaseEventLoop
        self._patch(loop, "create_task", self._wrap_create_task)

    def _patch(self, kind: Any, name: str, make_wrapper: Callable[[Any], Any]) -> None:
        self._undo.append(patch(kind, name, make_wrapper))

    def _wrap_start(self, original: Any) -> Any:
        def start(thread: threading.Thread) -> None:
            setattr(thread, _OWNER_ATTRIBUTE, self.owner())
            original(thread)

        return start

    def _wrap_create_task(self, original: Any) -> Any:
        def create_task(loop: Any, coro: Any, **kwargs: Any) -> Any:
            is_shared_runner = getattr(coro, "__qualname__", "") == _SHARED_RUNNER
            owner = self.owner()
            # The task copies this context, unless the caller passes another one. None
            # is passed by us: not every task factory takes one.
            token = self._inherited.set("current" if is_shared_runner else owner)
            try:
                task = original(loop, coro, **kwargs)
            finally:
                self._inherited.reset(token)
            if not is_shared_runner:
                with suppress(TypeError):  # a factory may return any object
                    self._tasks[task] = owner
            return task

        return create_task


def any_in_other_thread(holds: Iterable[Checkout]) -> bool:
    """Whether another thread checked out any of these holds."""
    return any(hold.holder.ident != get_ident() for hold in holds)
