"""Who keeps a connection alive: the chain of references that leads to its proxy.

A hold is no leak as long as somebody can still use it. Whether anybody can is seen from
what refers to the connection proxy: a variable of a function that is running, here or
in another thread or task, or only a module's cache, a stored exception, the session
registry of a thread that went on to other work.

The search goes forward, from roots (the locals of all threads, of all tasks, the
globals of the user's modules, and so on) to the proxies of all holds at once, breadth
first, in steps of about a millisecond. It does not ask the garbage collector for
referrers: that is one call over the whole heap with the interpreter locked. The size
of a heap cannot be learned beforehand at a lower price (10 ms a million objects on the
machines this was made on, and there are heaps of fifty millions), and referrers do not
see the locals of running frames, which are the very thing in question.

What a look does to the application:

- In a step, this thread has references to frames and to objects of the application. At
  its end they are gone; between two steps there are none. A step is shorter than the
  interval after which another thread may ask for the interpreter's lock (5 ms), so as a
  rule nothing else runs meanwhile. Should the last other reference to an object be
  dropped in the middle of a step all the same (a slow machine, an interpreter without
  that lock), the object ends at the end of the step, in this thread: a dropped
  connection goes back to its pool as it would have, a few milliseconds later.
- Locals are read as :mod:`poolwatch.diagnosis.references.follow` says.
- Nothing of the application is called, and nothing is raised.

What it cannot see: values that a running function has in no variable (the iterator of
a ``for``, a ``with`` that names nothing: see
:mod:`poolwatch.diagnosis.references.hidden`), the
context variables of threads, greenlets of libraries it does not know, and what
extension modules hide from the garbage collector. ``unknown`` is not "nobody".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from poolwatch.diagnosis.references.describe import (
    Kind,
    frame_in_words,
    is_near,
    kind_of,
    steps_of,
    told,
)
from poolwatch.diagnosis.references.follow import Guide, class_name, is_suspendable
from poolwatch.diagnosis.references.gaps import Gaps
from poolwatch.diagnosis.references.roots import (
    Place,
    Root,
    Who,
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
from poolwatch.model import Frame
from poolwatch.stacks.code_owner import Owner

Taker = tuple[int | None, Callable[[], Any] | None]
"""Whose stack took a hold (Holder.stack_key; None if it has ended), and its task."""

STEP = 2000
"""Objects near a root that are visited in one step; about two milliseconds."""
_LONGER_S, _MORE = 1.2, 3_000_000
"""Budget and objects of a look that is to see everything."""
_MOST_IDS = 500_000
"""Ids that are remembered: 40 MB, for as long as a search takes."""
_NOT_TO_THE_END = "not followed to the end"
_NAP_AFTER_S = 0.001
_NAP_S = 0.00005
"""Not 0: a thread that waits for the interpreter must have the time to wake up. Else
each release, which it misses, makes it wait another switch interval."""
_PATIENCE = 4
"""Times the budget that a look may last when others want the interpreter."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """What keeps one connection alive."""

    kind: Kind
    owner: str | None
    """Name of the thread or task whose frame, context or exception it is."""
    same_holder: bool | None
    """Whether that is the one that took the hold; None if not known."""
    is_user: bool
    """Whether it is code (or a module) of the user's own."""
    frame: Frame | None
    """Where the frame is now that the chain begins in; None if it begins elsewhere."""
    path: tuple[str, ...]
    """The chain in words, the variable first."""
    in_hand: bool
    """A running or suspended frame, or a call that an event loop will make, can still
    use it: the chain begins there, and does not lead over an exception, a context or a
    thread-local."""
    direct: bool
    """A variable of that frame is the session or connection itself."""
    near: bool
    """Few enough steps to say that it belongs to that frame, rather than that the frame
    can see it somewhere in the application."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one look has found."""

    found: dict[str, Keeper]
    """By the id of the hold; nothing for one whose keeper was not seen."""
    left_out: str | None
    """What was not looked at, in words."""
    unseen: str | None
    """The part of it behind which a hold may be in use, in words."""

    @property
    def all_frames(self) -> bool:
        """Every thread and task was followed to its end.

        If not, a missing keeper means nothing.
        """
        return self.unseen is None


def keepers(
    holds: Mapping[str, Callable[[], Any]],
    *,
    taker: Mapping[str, Taker],
    budget_s: float = 0.05,
    nodes: int = 200_000,
    prove: bool = True,
) -> Result:
    """Look for what keeps the proxies alive that ``holds`` weakly refers to.

    ``budget_s`` is computing time of this thread; ``nodes`` is the number of objects
    that may be visited. Without ``prove`` a keeper of each is enough, and whether there
    is another one, which is in use, is left open.
    """
    search = _Search(holds, taker, budget_s, nodes)
    try:
        search.run(prove=prove)
    except Exception as error:  # noqa: BLE001 - it is the application's process
        search.failed(error)
    result = search.result()
    search.forget()
    return result


def keepers_of(
    holds: Mapping[str, Callable[[], Any]], taker: Mapping[str, Taker]
) -> Result:
    """Search as thoroughly as a verdict needs: with a larger budget if need be."""
    result = keepers(holds, taker=taker)
    if not result.all_frames:
        result = keepers(holds, taker=taker, budget_s=_LONGER_S, nodes=_MORE)
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
        """Ids of objects that lead to no proxy. One may be another object's by now;
        but what leads to a hold that is worth asking about is older than the look."""
        self._found: dict[str, Keeper] = {}
        self._disputed = set(self._wanted.values())
        """Holds of which no running frame is the evident owner."""
        self._unfinished: list[Root] = []
        self._gaps = Gaps()
        self._why: str | None = None
        self._began = time.perf_counter()
        self._worked = time.thread_time()
        self._napped = self._began

    def run(self, *, prove: bool) -> None:
        """Look at what is near first, and at frames before anything else.

        What is found there need not be looked for further.
        """
        if not self._wanted:
            return
        guide, takers = self._guide, self._taker.values()
        tasks = [task for _, task in takers if task is not None]
        first = [key for key, _ in takers]
        self._look(thread_roots(guide, first))
        self._look(greenlet_roots(guide, first))
        self._look(holding_task_roots(guide, tasks))
        self._look(task_roots(guide, tasks))
        if not self._disputed:
            return
        self._look(loop_roots(guide))
        self._look(exception_roots())
        self._look(module_roots(Owner.USER))
        self._look(module_roots(Owner.PACKAGE))
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

    def _look(self, roots: Iterable[Root]) -> None:
        """Look at what is near each root."""
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
        """Take a step; one that fails is the last at that root."""
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
            self._why = "the time for a look was over"
        return self._why is not None

    def _read(self, root: Root) -> list[Place]:
        """The places of a root, those of the user's code first."""
        places = root.read()
        if any(place.unread for place in places):
            self._gaps.add(root, "not read in part")
        return sorted(places, key=lambda place: not place.is_user)

    def _step(self, root: Root) -> bool:
        """Visit what is near ``root``; False if there is more.

        Whatever it refers to, it lets go before it returns.
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
        sweep.tell = lambda chain: self._met(progress, places[sweep.group], chain)
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

    def _met(self, progress: Progress, place: Place, chain: Sequence[Any]) -> None:
        """Note a chain that a sweep has told of, unless it cannot change anything."""
        hold = self._wanted[id(chain[-1])]
        parked = any(map(is_suspendable, chain))
        if parked or len(chain) <= NEAR or hold not in self._found:
            self._note(place, chain)
        if hold not in self._disputed:
            progress.settled.add(id(chain[-1]))

    def failed(self, error: Exception) -> None:
        """Remember what went wrong, not the error: it keeps frames."""
        everything = Root("threads", "", list)
        self._gaps.add(everything, f"failed with {class_name(type(error))}")

    def _note(self, place: Place, chain: Sequence[Any]) -> None:
        hold = self._wanted[id(chain[-1])]
        if self._holds[hold]() is not chain[-1]:
            return
        known = self._found.get(hold)
        if hold not in self._disputed and not place.is_user:
            return  # it would not win: spare the words
        keeper = _keeper(place, chain, self._same(hold, place.who))
        if known is None or _rank(keeper) < _rank(known):
            self._found[hold] = keeper
        if _evident(keeper):
            self._disputed.discard(hold)

    def _same(self, hold: str, who: Who) -> bool | None:
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

    def result(self) -> Result:
        """What is known so far."""
        unseen = self._gaps.words(proving=True)
        said = [each for each in (self._why, self._gaps.words()) if each]
        return Result(self._found, "; ".join(said) or None, unseen)


def _keeper(place: Place, chain: Sequence[Any], same: bool | None) -> Keeper:
    kind, path = kind_of(place, chain), told(place, chain)
    frame = frame_in_words(place)
    direct = kind not in ("exception", "thread-local", "context variable")
    return Keeper(
        kind=kind,
        owner=place.who.name or None,
        same_holder=same,
        is_user=place.is_user or any(map(is_suspendable, chain)),
        frame=frame,
        path=path,
        in_hand=direct and (frame is not None or place.kind == "scheduled call"),
        direct=not steps_of(path),
        near=is_near(path, place),
    )


def _evident(keeper: Keeper) -> bool:
    """Whether it belongs to a frame."""
    return keeper.in_hand and keeper.near


def _rank(keeper: Keeper) -> tuple[int, ...]:
    """The order of several keepers of one hold: the lowest is reported.

    First a frame that it evidently belongs to: the user's before a library's, one that
    has it before one behind which something suspended has it (a request's middleware,
    and the generator that will close the session in the end), another holder's before
    the taker's own, a running one before a suspended one.
    """
    if _evident(keeper):
        return (
            0,
            not keeper.is_user,
            any("of suspended " in word for word in keeper.path[1:]),
            keeper.same_holder is not False,
            keeper.kind != "running frame",
            len(keeper.path),
        )
    return 1, len(keeper.path), not keeper.in_hand, not keeper.is_user
