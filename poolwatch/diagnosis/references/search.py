"""The search for reference paths: which references keep a held connection alive.

A hold is no leak as long as some code can still use its connection. The references to
the connection's proxy show that: a variable of a running function, in any thread or
task, is a use. A module's cache, a stored exception, or the session registry of a
thread that went on to other work is not.

The search goes forward, from roots (the locals of all threads, of all tasks, the
globals of the user's modules, and so on) to the proxies of all holds at once, breadth
first, in steps of about a millisecond. It does not use ``gc.get_referrers``, which is
one call over the whole heap while holding the GIL: 10 ms per million objects, and
there are heaps of fifty millions, whose size cannot be determined at a lower cost.
Moreover, referrers do not include the locals of running frames, which matter most.

Effects of a search on the application:

- During a step, this thread has references to frames and objects of the application;
  between two steps it has none. A step is shorter than the switch interval of the GIL
  (5 ms), so other threads normally do not run meanwhile. If the last other reference to
  an object is dropped during a step all the same (a slow machine, or a free-threaded
  build), the object is finalized at the end of the step, in this thread. A dropped
  connection then returns to its pool some milliseconds later.
- For the reading of locals see :mod:`poolwatch.diagnosis.references.frames`.
- No code of the application is called, and no exception is raised.

The search cannot see: values that a running function has in no variable (the
iterator of a ``for``, a ``with`` without ``as``: see
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

from poolwatch.diagnosis.references.attributes import class_name
from poolwatch.diagnosis.references.describe import describe, rank
from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.frames import is_suspendable
from poolwatch.diagnosis.references.gaps import Gaps
from poolwatch.diagnosis.references.loops import loop_roots
from poolwatch.diagnosis.references.path import ReferencePath
from poolwatch.diagnosis.references.places import Place, Root, RootOwner
from poolwatch.diagnosis.references.roots import (
    exception_roots,
    greenlet_roots,
    module_roots,
    thread_roots,
)
from poolwatch.diagnosis.references.sweep import NEAR, Progress, Sweep
from poolwatch.diagnosis.references.tasks import holding_task_roots, task_roots
from poolwatch.diagnosis.references.trail import Trail
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.stacks.code_owner import CodeOwner

HolderKey = tuple[int | None, Callable[[], Any] | None]
"""The holder: its stack (Holder.stack_key; None if it has ended), and its task."""

STEP = 2000
"""Objects near a root that are visited in one step; about two milliseconds."""
_THOROUGH_BUDGET_S, _THOROUGH_NODES = 1.2, 3_000_000
"""Budget in seconds and number of objects of a thorough search."""
_MAX_IDS = 500_000
"""Most ids that a search remembers: 40 MB."""
_NOT_FINISHED = "not followed to the end"
_PAUSE_AFTER_S = 0.001
_PAUSE_S = 0.00005
"""Not 0: a thread that waits for the GIL needs time to wake up. If it
misses the release, it waits for another switch interval."""
_PATIENCE = 4
"""Factor of the budget that a search may last when other threads are running."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The reference paths that one search has found."""

    paths: dict[str, ReferencePath]
    """By the id of the hold. A hold without a known path has no entry."""
    left_out: str | None
    """The roots that were not searched, in words."""
    unseen: str | None
    """The threads and tasks among ``left_out``, in words: if there are any, a missing
    path proves nothing. None if every thread and task was searched completely."""


def find_paths(
    holds: Mapping[str, Callable[[], Any]],
    *,
    holders: Mapping[str, HolderKey],
    budget_s: float = 0.05,
    nodes: int = 200_000,
    prove: bool = True,
) -> SearchResult:
    """Search for reference paths to the proxies that ``holds`` weakly refers to.

    ``budget_s`` is computing time of this thread; ``nodes`` is the number of objects
    that may be visited. Without ``prove`` the search stops at any path to each
    proxy, even if another path might show that the connection is in use.
    """
    search = _Search(holds, holders, budget_s, nodes)
    try:
        search.run(prove=prove)
    except Exception as error:  # noqa: BLE001 - it is the application's process
        search.failed(error)
    result = search.result()
    search.forget()
    return result


def find_all(
    holds: Mapping[str, Callable[[], Any]], holders: Mapping[str, HolderKey]
) -> SearchResult:
    """Search as thoroughly as a verdict needs: with a larger budget if necessary."""
    result = find_paths(holds, holders=holders)
    if result.unseen is not None:
        result = find_paths(
            holds, holders=holders, budget_s=_THOROUGH_BUDGET_S, nodes=_THOROUGH_NODES
        )
    return result


class _Search:
    def __init__(
        self,
        holds: Mapping[str, Callable[[], Any]],
        holders: Mapping[str, HolderKey],
        budget_s: float,
        nodes: int,
    ) -> None:
        self._holds = holds
        self._holder_of = holders
        self._budget_s = budget_s
        self._nodes_left = nodes
        self._guide = Guide()
        self._wanted: dict[int, str] = {}
        for hold, weak_ref in holds.items():
            proxy = weak_ref()
            if proxy is not None:
                self._wanted[id(proxy)] = hold
            del proxy
        self._dead_ends: set[int] = set()
        """Ids of objects that lead to no proxy. A new object may reuse such an id; but
        objects that lead to a suspicious hold are older than the search."""
        self._found: dict[str, ReferencePath] = {}
        self._undecided = set(self._wanted.values())
        """Holds without a path that shows them in use."""
        self._unfinished: list[Root] = []
        self._gaps = Gaps()
        self._stop_reason: str | None = None
        self._began = time.perf_counter()
        self._cpu_began = time.thread_time()
        self._last_pause = self._began

    def run(self, *, prove: bool) -> None:
        """Search near the roots first, and frames before all other roots.

        A hold that is found in use there is not searched for further.
        """
        if not self._wanted:
            return
        guide, holders = self._guide, self._holder_of.values()
        tasks = [task for _, task in holders if task is not None]
        first = [key for key, _ in holders]
        self._visit(thread_roots(guide, first))
        self._visit(greenlet_roots(guide, first))
        guide.loops_of_frames = frozenset(guide.loops)
        self._visit(holding_task_roots(guide, tasks))
        self._visit(task_roots(guide, tasks))
        if not self._undecided:
            return
        self._visit(loop_roots(guide))
        self._visit(exception_roots())
        self._visit(module_roots(CodeOwner.USER))
        self._visit(module_roots(CodeOwner.PACKAGE))
        progress = self._progress()
        proving = [root for root in self._unfinished if root.proves_use]
        others = [root for root in self._unfinished if not root.proves_use]
        self._sweep(
            proving, progress, self._any_undecided if prove else self._any_without_path
        )
        self._sweep(others, progress, self._any_without_path)

    def _any_undecided(self) -> bool:
        return bool(self._undecided)

    def _any_without_path(self) -> bool:
        return len(self._found) < len(self._wanted)

    def _progress(self) -> Progress:
        undecided = [
            key for key, hold in self._wanted.items() if hold in self._undecided
        ]
        self._dead_ends.update(self._wanted.keys() - set(undecided))
        return Progress(undecided, self._dead_ends)

    def _visit(self, roots: Iterable[Root]) -> None:
        """Visit the objects near each root."""
        for root in roots:
            if self._is_over_budget():
                self._gaps.add(root, "not searched")
            elif not self._attempt(root, partial(self._step, root)):
                self._unfinished.append(root)

    def _sweep(
        self, roots: Iterable[Root], progress: Progress, worthwhile: Callable[[], bool]
    ) -> None:
        """Follow roots to their end, in turns."""
        trails = deque(Trail([root]) for root in roots)
        while trails and worthwhile():
            trail = trails.popleft()
            if self._is_over_budget():
                self._gaps.add(trail.roots[0], _NOT_FINISHED)
                continue
            step = partial(self._follow_further, trail, progress)
            if self._attempt(trail.roots[-1], step):
                del trail.roots[-1:]
            if trail.roots:
                trails.append(trail)

    def _attempt(self, root: Root, step: Callable[[], bool]) -> bool:
        """Take a step; True if the root is done. No step follows a failed one."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - it is the application's process
            self._gaps.add(root, f"not readable ({class_name(type(error))})")
            return True

    def _is_over_budget(self) -> bool:
        now = time.perf_counter()
        if now - self._last_pause >= _PAUSE_AFTER_S:
            time.sleep(_PAUSE_S)
            self._last_pause = time.perf_counter()
        if self._stop_reason is None and (
            self._nodes_left <= 0 or len(self._dead_ends) > _MAX_IDS
        ):
            self._stop_reason = "enough objects were visited"
        elif self._stop_reason is None and (
            time.thread_time() - self._cpu_began > self._budget_s
            or now - self._began > self._budget_s * _PATIENCE
        ):
            self._stop_reason = "the search has run out of time"
        return self._stop_reason is not None

    def _read(self, root: Root) -> list[Place]:
        """The places of a root, those of the user's code first."""
        places = root.read()
        if any(place.unreadable for place in places):
            self._gaps.add(root, "not read in part")
        return sorted(places, key=lambda place: not place.is_user)

    def _step(self, root: Root) -> bool:
        """Visit the objects near ``root``; False if more are left.

        All references to them are dropped before it returns.
        """
        places = self._read(root)
        users = [place for place in places if place.is_user]
        others = [place for place in places if not place.is_user]
        return all([self._walk(group) for group in (users, others) if group])  # noqa: C419 - both

    def _walk(self, places: Sequence[Place]) -> bool:
        walk = Walk(places, self._guide, self._wanted, self._dead_ends)
        finished = walk.go(STEP)
        for index in walk.hits:
            chain, place = walk.chain(index)
            self._add_path(place, chain)
        walk.mark_dead_ends()
        self._nodes_left -= len(walk.nodes)
        return finished

    def _follow_further(self, trail: Trail, progress: Progress) -> bool:
        """Follow the last root of a trail for one more step; False if more is left."""
        root = trail.roots[-1]
        places = self._read(root)
        sweep = Sweep(self._guide, progress, -id(root), trail.width)
        sweep.report = lambda chain: self._add_far_path(
            progress, places[sweep.group], chain
        )
        before = progress.achieved()
        try:
            finished = sweep.go([place.values for place in places], trail.limit)
            self._nodes_left -= sweep.visited
            if sweep.changed:
                self._gaps.add(root, "changed meanwhile")
            if finished or trail.continue_from_frontier(sweep, places):
                return finished
            if progress.achieved() == before and not trail.next_strategy():
                self._gaps.add(root, _NOT_FINISHED)
                trail.roots.clear()
            return False
        finally:
            sweep.forget()

    def _add_far_path(
        self, progress: Progress, place: Place, chain: Sequence[Any]
    ) -> None:
        """Add a chain that a sweep reports, unless it cannot change the result."""
        hold = self._wanted[id(chain[-1])]
        via_suspended = any(map(is_suspendable, chain))
        if via_suspended or len(chain) <= NEAR or hold not in self._found:
            self._add_path(place, chain)
        if hold not in self._undecided:
            progress.settled.add(id(chain[-1]))

    def failed(self, error: Exception) -> None:
        """Note the type of an error; the error itself would refer to frames."""
        everything = Root("threads", "", list)
        self._gaps.add(everything, f"failed with {class_name(type(error))}")

    def _add_path(self, place: Place, chain: Sequence[Any]) -> None:
        hold = self._wanted[id(chain[-1])]
        if self._holds[hold]() is not chain[-1]:
            return
        known = self._found.get(hold)
        if hold not in self._undecided and not place.is_user:
            return  # the known path ranks first: no need to describe this one
        path = describe(place, chain, self._is_holder(hold, place.owner))
        if known is None or rank(path) < rank(known):
            self._found[hold] = path
        if path.in_use:
            self._undecided.discard(hold)

    def _is_holder(self, hold: str, owner: RootOwner) -> bool | None:
        if not owner.name or hold not in self._holder_of:
            return None
        ident, task = self._holder_of[hold]
        if owner.task is not None:
            return task is not None and task() is owner.task()
        if task is not None:
            return False if owner.thread != ident else None
        return owner.thread == ident

    def forget(self) -> None:
        """Drop the references to the application's classes."""
        self._guide.forget()

    def result(self) -> SearchResult:
        """The paths found so far."""
        unseen = self._gaps.words(proving=True)
        reasons = [each for each in (self._stop_reason, self._gaps.words()) if each]
        return SearchResult(self._found, "; ".join(reasons) or None, unseen)
