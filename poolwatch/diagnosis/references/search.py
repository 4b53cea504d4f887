"""The search for reference paths: what keeps a held connection alive.

A hold is no leak as long as some code can still use its connection. Whether it can is
seen from what refers to the connection's proxy: a variable of a function that is
running, in this or another thread or task, or only a module's cache, a stored
exception, the session registry of a thread that went on to other work.

The search goes forward, from roots (the locals of all threads, of all tasks, the
globals of the user's modules, and so on) to the proxies of all holds at once, breadth
first, in steps of about a millisecond. It does not ask the garbage collector for
referrers: that is one call over the whole heap with the interpreter locked. The size
of a heap cannot be learned beforehand at a lower price (10 ms a million objects on the
machines this was made on, and there are heaps of fifty millions), and referrers do not
include the locals of running frames, which are the very thing in question.

What a search does to the application:

- In a step, this thread has references to frames and to objects of the application. At
  its end they are gone; between two steps there are none. A step is shorter than the
  interval after which another thread may ask for the interpreter's lock (5 ms), so as a
  rule nothing else runs meanwhile. Should the last other reference to an object be
  dropped in the middle of a step all the same (a slow machine, an interpreter without
  that lock), the object ends at the end of the step, in this thread: a dropped
  connection goes back to its pool as it would have, a few milliseconds later.
- Locals are read as :mod:`poolwatch.diagnosis.references.follow` says.
- Nothing of the application is called, and nothing is raised.

What the search cannot see: values that a running function has in no variable (the
iterator of a ``for``, a ``with`` without a name: see
:mod:`poolwatch.diagnosis.references.hidden`), the context variables of threads,
greenlets of unknown libraries, and objects that extension modules hide from the garbage
collector. So a missing path alone does not prove that a connection is unused.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from poolwatch.diagnosis.references.describe import describe, rank
from poolwatch.diagnosis.references.follow import Guide, class_name, is_suspendable
from poolwatch.diagnosis.references.gaps import Gaps
from poolwatch.diagnosis.references.path import ReferencePath
from poolwatch.diagnosis.references.places import Place, Root, Who
from poolwatch.diagnosis.references.roots import (
    exception_roots,
    greenlet_roots,
    loop_roots,
    module_roots,
    thread_roots,
)
from poolwatch.diagnosis.references.sweep import NEAR, Progress, Sweep
from poolwatch.diagnosis.references.tasks import holding_task_roots, task_roots
from poolwatch.diagnosis.references.trail import Trail
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.stacks.code_owner import Owner

Taker = tuple[int | None, Callable[[], Any] | None]
"""Whose stack took a hold (Holder.stack_key; None if it has ended), and its task."""

STEP = 2000
"""Objects near a root that are visited in one step; about two milliseconds."""
_LONGER_S, _MORE = 1.2, 3_000_000
"""Budget and objects of a search that is to be complete."""
_MOST_IDS = 500_000
"""Ids that a search remembers: 40 MB."""
_NOT_TO_THE_END = "not followed to the end"
_NAP_AFTER_S = 0.001
_NAP_S = 0.00005
"""Not 0: a thread that waits for the interpreter must have the time to wake up. Else
each release, which it misses, makes it wait another switch interval."""
_PATIENCE = 4
"""Times the budget that a search may last when other threads want the interpreter."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The reference paths that one search has found."""

    paths: dict[str, ReferencePath]
    """By the id of the hold; nothing for a hold without a known path."""
    left_out: str | None
    """What was not searched, in words."""
    unseen: str | None
    """The part of it that may have a hold in use, in words: then a missing path proves
    nothing. None if every thread and task was searched to its end."""


def find_paths(
    holds: Mapping[str, Callable[[], Any]],
    *,
    taker: Mapping[str, Taker],
    budget_s: float = 0.05,
    nodes: int = 200_000,
    prove: bool = True,
) -> SearchResult:
    """Search for reference paths to the proxies that ``holds`` weakly refers to.

    ``budget_s`` is computing time of this thread; ``nodes`` is the number of objects
    that may be visited. Without ``prove`` any path to each proxy will do, and whether
    another path shows that it is in use is left open.
    """
    search = _Search(holds, taker, budget_s, nodes)
    try:
        search.run(prove=prove)
    except Exception as error:  # noqa: BLE001 - it is the application's process
        search.failed(error)
    result = search.result()
    search.forget()
    return result


def find_all(
    holds: Mapping[str, Callable[[], Any]], taker: Mapping[str, Taker]
) -> SearchResult:
    """Search as thoroughly as a verdict needs: with a larger budget if necessary."""
    result = find_paths(holds, taker=taker)
    if result.unseen is not None:
        result = find_paths(holds, taker=taker, budget_s=_LONGER_S, nodes=_MORE)
    return result


class _Search:
    def __init__(
        self,
        holds: Mapping[str, Callable[[], Any]],
        taker: Mapping[str, Taker],
        budget_s: float,
        nodes: int,
    ) -> None:
        self._holds = holds
        self._taker = taker
        self._budget_s = budget_s
        self._nodes = nodes
        self._guide = Guide()
        self._wanted: dict[int, str] = {}
        for hold, weakly in holds.items():
            proxy = weakly()
            if proxy is not None:
                self._wanted[id(proxy)] = hold
            del proxy
        self._barren: set[int] = set()
        """Ids of objects that lead to no proxy. Another object may have such an id by
        now; but objects that lead to a suspicious hold are older than the search."""
        self._found: dict[str, ReferencePath] = {}
        self._disputed = set(self._wanted.values())
        """Holds without a path that shows them in use."""
        self._unfinished: list[Root] = []
        self._gaps = Gaps()
        self._why: str | None = None
        self._began = time.perf_counter()
        self._worked = time.thread_time()
        self._napped = self._began

    def run(self, *, prove: bool) -> None:
        """Search near the roots first, and frames before all other roots.

        A hold that is found in use there is not searched for further.
        """
        if not self._wanted:
            return
        guide, takers = self._guide, self._taker.values()
        tasks = [task for _, task in takers if task is not None]
        first = [key for key, _ in takers]
        self._visit(thread_roots(guide, first))
        self._visit(greenlet_roots(guide, first))
        self._visit(holding_task_roots(guide, tasks))
        self._visit(task_roots(guide, tasks))
        if not self._disputed:
            return
        self._visit(loop_roots(guide))
        self._visit(exception_roots())
        self._visit(module_roots(Owner.USER))
        self._visit(module_roots(Owner.PACKAGE))
        progress = self._progress()
        proving = [root for root in self._unfinished if root.proves]
        others = [root for root in self._unfinished if not root.proves]
        self._sweep(proving, progress, self._is_disputed if prove else self._is_missing)
        self._sweep(others, progress, self._is_missing)

    def _is_disputed(self) -> bool:
        return bool(self._disputed)

    def _is_missing(self) -> bool:
        return len(self._found) < len(self._wanted)

    def _progress(self) -> Progress:
        disputed = [key for key, hold in self._wanted.items() if hold in self._disputed]
        self._barren.update(self._wanted.keys() - set(disputed))
        return Progress(disputed, self._barren)

    def _visit(self, roots: Iterable[Root]) -> None:
        """Visit the objects near each root."""
        for root in roots:
            if self._spent():
                self._gaps.add(root, "not looked at")
            elif not self._guarded(root, partial(self._step, root)):
                self._unfinished.append(root)

    def _sweep(
        self, roots: Iterable[Root], progress: Progress, worthwhile: Callable[[], bool]
    ) -> None:
        """Follow roots to their end, in turns."""
        trails = deque(Trail([root]) for root in roots)
        while trails and worthwhile():
            trail = trails.popleft()
            if self._spent():
                self._gaps.add(trail.roots[0], _NOT_TO_THE_END)
                continue
            step = partial(self._go_on, trail, progress)
            if self._guarded(trail.roots[-1], step):
                del trail.roots[-1:]
            if trail.roots:
                trails.append(trail)

    def _guarded(self, root: Root, step: Callable[[], bool]) -> bool:
        """Take a step. A step that fails is the last one at its root."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - it is the application's process
            self._gaps.add(root, f"not readable ({class_name(type(error))})")
            return True

    def _spent(self) -> bool:
        now = time.perf_counter()
        if now - self._napped >= _NAP_AFTER_S:
            time.sleep(_NAP_S)
            self._napped = time.perf_counter()
        if self._why is None and (self._nodes <= 0 or len(self._barren) > _MOST_IDS):
            self._why = "enough objects were visited"
        elif self._why is None and (
            time.thread_time() - self._worked > self._budget_s
            or now - self._began > self._budget_s * _PATIENCE
        ):
            self._why = "the search has run out of time"
        return self._why is not None

    def _read(self, root: Root) -> list[Place]:
        """The places of a root, those of the user's code first."""
        places = root.read()
        if any(place.unread for place in places):
            self._gaps.add(root, "not read in part")
        return sorted(places, key=lambda place: not place.is_user)

    def _step(self, root: Root) -> bool:
        """Visit the objects near ``root``; False if there are more.

        All references to them are dropped before it returns.
        """
        places = self._read(root)
        users = [place for place in places if place.is_user]
        others = [place for place in places if not place.is_user]
        return all([self._walk(some) for some in (users, others) if some])  # noqa: C419 - both

    def _walk(self, places: Sequence[Place]) -> bool:
        walk = Walk(places, self._guide, self._wanted, self._barren)
        finished = walk.go(STEP)
        for index in walk.hits:
            chain, place = walk.chain(index)
            self._note(place, chain)
        walk.mark_barren()
        self._nodes -= len(walk.nodes)
        return finished

    def _go_on(self, trail: Trail, progress: Progress) -> bool:
        """Follow the last root of a trail for one more step; False if there is more."""
        root = trail.roots[-1]
        places = self._read(root)
        sweep = Sweep(self._guide, progress, -id(root), trail.width)
        sweep.report = lambda chain: self._note_far(
            progress, places[sweep.group], chain
        )
        before = progress.achieved()
        try:
            finished = sweep.go([place.values for place in places], trail.limit)
            self._nodes -= sweep.visited
            if sweep.changed:
                self._gaps.add(root, "changed meanwhile")
            if finished or trail.go_on_behind(sweep, places):
                return finished
            if progress.achieved() == before and not trail.try_otherwise():
                self._gaps.add(root, _NOT_TO_THE_END)
                trail.roots.clear()
            return False
        finally:
            sweep.forget()

    def _note_far(self, progress: Progress, place: Place, chain: Sequence[Any]) -> None:
        """Note a chain that a sweep reports, unless it cannot change anything."""
        hold = self._wanted[id(chain[-1])]
        parked = any(map(is_suspendable, chain))
        if parked or len(chain) <= NEAR or hold not in self._found:
            self._note(place, chain)
        if hold not in self._disputed:
            progress.settled.add(id(chain[-1]))

    def failed(self, error: Exception) -> None:
        """Note what went wrong, without the error: it refers to frames."""
        everything = Root("threads", "", list)
        self._gaps.add(everything, f"failed with {class_name(type(error))}")

    def _note(self, place: Place, chain: Sequence[Any]) -> None:
        hold = self._wanted[id(chain[-1])]
        if self._holds[hold]() is not chain[-1]:
            return
        known = self._found.get(hold)
        if hold not in self._disputed and not place.is_user:
            return  # the known path would win: spare the words
        path = describe(place, chain, self._is_taker(hold, place.who))
        if known is None or rank(path) < rank(known):
            self._found[hold] = path
        if path.in_use:
            self._disputed.discard(hold)

    def _is_taker(self, hold: str, who: Who) -> bool | None:
        ident, task = self._taker.get(hold, (None, None))
        if not who.name:
            return None
        if who.task is not None:
            return task is not None and task() is who.task()
        if task is not None:
            return False if who.thread != ident else None
        return who.thread == ident

    def forget(self) -> None:
        """Drop the references to the application's classes."""
        self._guide.forget()

    def result(self) -> SearchResult:
        """The paths that are known so far."""
        unseen = self._gaps.words(proving=True)
        said = [each for each in (self._why, self._gaps.words()) if each]
        return SearchResult(self._found, "; ".join(said) or None, unseen)
