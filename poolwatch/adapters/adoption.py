"""Makes holds and waits of what had begun before a pool was hooked.

A connection on its way to or from its holder is out without a hold, too, for a moment.
So a connection is adopted only if two looks, some time apart, have found it so.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from itertools import compress, repeat
from time import monotonic
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from poolwatch.adapters.open_requests import OpenRequest, of_tasks, of_threads
from poolwatch.ledger.adopted import AdoptedHold, AdoptedWait
from poolwatch.ledger.checkout import ConnectionFacts
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks import greenlets
from poolwatch.stacks.capture import CallSites
from poolwatch.stacks.holder import OtherThread, TaskRef, UnknownHolder

if TYPE_CHECKING:
    from poolwatch.adapters.base import LibraryPools
    from poolwatch.adapters.recovery import Hooks

_CHUNK = 50_000
_APART_S = 0.05
"""Minimum time between two looks."""


class Unheld(NamedTuple):
    """A connection that is out and has no hold."""

    key: int
    """The key that its hold would have."""
    checkout: int
    """Identifies the checkout, as far as the pool tells two of them apart."""
    proxy: Callable[[], Any]
    """Weak reference to what the application has."""
    facts: ConnectionFacts | None
    is_out: Callable[[], bool]
    """Whether it is out still, and not being returned."""
    keyed: bool = False
    """See Checkout.keyed."""


class Adoption:
    """Adopts the connections of one pool, and the requests for them."""

    def __init__(
        self,
        ledger: PoolLedger,
        unheld: Callable[[], Iterable[Unheld]],
        guard: Guard,
        codes: Collection[CodeType],
    ) -> None:
        """``unheld`` returns what is out without a hold; ``codes`` are those of the
        functions that lend.
        """
        self._ledger = ledger
        self._unheld = unheld
        self._guard = guard
        self._codes = codes
        self._waits: dict[ref[Any], AdoptedWait] = {}
        """By the thread or task."""
        self._seen: dict[tuple[int, int], float] = {}
        """When a connection was first found like that, by key and checkout."""

    def add_wait(self, request: OpenRequest, sites: CallSites) -> None:
        """Make a wait of a request, unless it is one already."""
        who = ref(request.who)
        if who not in self._waits:
            stack = sites.capture_frames(request.callers)
            is_thread = hasattr(request.who, "native_id")
            wait = AdoptedWait(
                stack,
                OtherThread(request.who) if is_thread else UnknownHolder(),
                None if is_thread else TaskRef(request.who),
            )
            self._waits[who] = wait
            self._ledger.waits[id(wait)] = wait

    def look(self) -> None:
        """Adopt what is out now and was at an earlier look; end waits that are over."""
        if self._guard.tripped:
            return
        try:
            for who in [each for each in self._waits if not self._still_waits(each)]:
                wait = self._waits.pop(who)
                self._ledger.waits.pop(id(wait), None)
            now, before = monotonic(), self._seen
            unheld = list(self._unheld())
            self._seen = {
                (each.key, each.checkout): before.get((each.key, each.checkout), now)
                for each in unheld
            }
            for each in unheld:
                if now - self._seen[each.key, each.checkout] >= _APART_S:
                    self._adopt(each)
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)

    def _still_waits(self, who: ref[Any]) -> bool:
        requester = who()
        if requester is None:
            return False
        of = of_threads if hasattr(requester, "native_id") else of_tasks
        return any(of([requester], self._codes))

    def _adopt(self, found: Unheld) -> None:
        """Add a hold, unless another thread was faster.

        A return removes the hold by its key, after ``is_out`` has become false: if it
        is true once the hold is there, the return will find it.
        """
        hold, holds = AdoptedHold(found.proxy, found.facts), self._ledger.holds
        hold.keyed = found.keyed
        if holds.setdefault(found.key, hold) is not hold:
            return
        if not found.is_out() and holds.get(found.key) is hold:
            holds.pop(found.key, None)


def adopt(
    library: LibraryPools, all_hooks: Collection[Hooks], sites: CallSites
) -> None:
    """Look for what had begun on the pools of a library: now, and at every snapshot."""
    if not all_hooks:
        return
    codes = library.request_codes
    # listing the heap stops every thread for a moment
    tasks = _meet_lent(library, all_hooks) if codes or library.lent_classes else []
    for hooks in all_hooks:
        if hooks.adoption is None:
            adoption = Adoption(hooks.ledger, hooks.unheld, hooks.guard, codes)
            hooks.adoption, hooks.ledger.adopt = adoption, adoption.look
        hooks.adoption.look()
    if not codes or greenlets.are_scheduled():  # then one thread waits for many
        return
    threads = threading.enumerate()
    for request in (*of_threads(threads, codes), *of_tasks(tasks, codes)):
        for hooks in _with(request.pool, all_hooks):
            if hooks.adoption is not None:
                hooks.adoption.add_wait(request, sites)


def _meet_lent(library: LibraryPools, all_hooks: Collection[Hooks]) -> list[Any]:
    """Find on the heap what the pools have lent and keep no record of.

    Returns the tasks that were found on the way.
    """
    asyncio = sys.modules.get("asyncio")
    lent, task = library.lent_classes, () if asyncio is None else (asyncio.Task,)
    kinds, heap, tasks = repeat((*lent, *task)), gc.get_objects(), []
    for at in range(0, len(heap), _CHUNK):  # each chunk runs in C, for about 2 ms
        chunk = heap[at : at + _CHUNK]
        for each in compress(chunk, map(issubclass, map(type, chunk), kinds)):
            if not issubclass(type(each), lent):
                tasks.append(each)
                continue
            for hooks in _with(library.lender_of(each), all_hooks):
                try:
                    hooks.meet(each)
                except Exception as error:  # noqa: BLE001 - the application must go on
                    hooks.guard.failed(error)
    return tasks


def _with(pool: Any, all_hooks: Iterable[Hooks]) -> list[Hooks]:
    """The hooks of a pool."""
    return [each for each in all_hooks if pool is not None and each.has(pool)]
