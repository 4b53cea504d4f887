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
- Locals are read as :mod:`poolwatch.keeping.references` says.
- Nothing of the application is called, and nothing is raised.

What it cannot see: values that a running function has in no variable (the iterator of
a ``for``, a ``with`` that names nothing: see :mod:`poolwatch.keeping.scopes`), the
context variables of threads, greenlets of libraries it does not know, and what
extension modules hide from the garbage collector. ``unknown`` is not "nobody".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poolwatch.keeping.references import SUSPENDABLE, Guide
from poolwatch.keeping.roots import (
    Place,
    Root,
    Who,
    exception_roots,
    greenlet_roots,
    loop_roots,
    module_roots,
    thread_roots,
)
from poolwatch.keeping.tasks import holding_task_roots, task_roots
from poolwatch.keeping.walk import Walk
from poolwatch.keeping.words import Kind, frame_in_words, kind_of, told
from poolwatch.model import Frame
from poolwatch.ownership import Owner

Taker = tuple[int | None, Callable[[], Any] | None]
"""Whose stack took a hold (Holder.stack_key; None if it has ended), and its task."""

STEP = 2000
"""Objects visited in one step; about a millisecond."""
_FURTHER = 6000
"""The same in a second step at a root that was not finished."""
_NAP_AFTER_S = 0.001
_PATIENCE = 20
"""Times the budget that a look may last when others want the interpreter."""
_NEAR = 2
"""Steps between a variable and the session or connection that make it its owner."""


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
    all_frames: bool
    """Every thread and task was looked at. If not, a missing keeper means nothing."""


def keepers(
    holds: Mapping[str, Callable[[], Any]],
    *,
    taker: Mapping[str, Taker],
    budget_s: float = 0.05,
    nodes: int = 200_000,
) -> Result:
    """Look for what keeps the proxies alive that ``holds`` weakly refers to.

    ``budget_s`` is computing time of this thread; ``nodes`` is the number of objects
    that may be visited.
    """
    search = _Search(holds, taker, budget_s, nodes)
    try:
        search.run()
    except Exception as error:  # noqa: BLE001 - it is the application's process
        search.failed(error)
    result = search.result()
    search.forget()
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
        self._skipped: dict[str, int] = {}
        self._further = False
        """What is found now is farther from its root than all before."""
        self._cut = 0
        self._why: str | None = None
        self._began = time.perf_counter()
        self._worked = time.thread_time()
        self._napped = self._began

    def run(self) -> None:
        """Look at frames first: what is found there need not be looked for further."""
        if not self._wanted:
            return
        guide, takers = self._guide, self._taker.values()
        first = [key for key, _ in takers]
        cut = self._look(thread_roots(guide, first), STEP)
        cut += self._look(greenlet_roots(guide, first), STEP)
        tasks = [task for _, task in takers if task is not None]
        cut += self._look(holding_task_roots(guide, tasks), STEP)
        cut += self._look(task_roots(guide, tasks), STEP)
        if not self._open():
            return
        cut += self._look(exception_roots(), STEP)
        cut += self._look(module_roots(Owner.USER), STEP)
        cut += self._look(loop_roots(guide), STEP)
        cut += self._look(module_roots(Owner.PACKAGE), STEP)
        self._further = True
        self._cut = len(self._look(cut, _FURTHER))

    def _open(self) -> bool:
        """Whether there are holds of which no running frame is the evident owner."""
        known = [self._found.get(hold) for hold in self._wanted.values()]
        return not all(keeper is not None and _evident(keeper) for keeper in known)

    def _look(self, roots: Iterable[Root], limit: int) -> list[Root]:
        """Search from each root; returns those with more behind them."""
        cut = []
        for root in roots:
            if root.read is not None and not self._spent():
                if not self._step(root, limit):
                    cut.append(root)
            elif self._further:  # its nearest objects were looked at
                cut.append(root)
            else:
                self._skipped[root.what] = self._skipped.get(root.what, 0) + root.count
        return cut

    def _spent(self) -> bool:
        now = time.perf_counter()
        if now - self._napped >= _NAP_AFTER_S:
            time.sleep(0)
            self._napped = time.perf_counter()
        if self._why is None and self._nodes <= 0:
            self._why = "enough objects were visited"
        elif self._why is None and (
            time.thread_time() - self._worked > self._budget_s
            or now - self._began > self._budget_s * _PATIENCE
        ):
            self._why = "the time for a look was over"
        return self._why is not None

    def _step(self, root: Root, limit: int) -> bool:
        """Visit what can be reached from ``root``; False if there was more.

        Whatever it refers to, it lets go before it returns.
        """
        try:
            places = root.read() if root.read is not None else []
            if self._further:  # the largest is not to be in the way of all others
                for place in places:
                    self._walk([place], limit // len(places))
            users = [place for place in places if place.is_user]
            others = [place for place in places if not place.is_user]
            return all([self._walk(some, limit) for some in (users, others) if some])  # noqa: C419 - both
        except Exception as error:  # noqa: BLE001 - e.g. a dict that changed meanwhile
            self.failed(error)
            return True

    def _walk(self, places: Sequence[Place], limit: int) -> bool:
        walk = Walk(places, self._guide, self._wanted, self._barren)
        finished = walk.go(limit)
        for index in walk.hits:
            self._note(walk, index)
        walk.mark_barren()
        self._nodes -= len(walk.nodes)
        return finished

    def failed(self, error: Exception) -> None:
        """Remember what went wrong, not the error: it keeps frames."""
        key = f"failed with {type(error).__name__}"
        self._skipped[key] = self._skipped.get(key, 0) + 1

    def _note(self, walk: Walk, index: int) -> None:
        chain, place = walk.chain(index)
        hold = self._wanted[id(chain[-1])]
        if self._holds[hold]() is not chain[-1]:
            return
        known = self._found.get(hold)
        if known is not None and (
            self._further or (_evident(known) and not place.is_user)
        ):
            return  # it would not win: spare the words
        keeper = _keeper(place, chain, self._same(hold, place.who))
        if known is None or _rank(keeper) < _rank(known):
            self._found[hold] = keeper

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
        """Let go of the application's classes."""
        self._guide.forget()

    def result(self) -> Result:
        """What is known so far."""
        skipped, left = self._skipped, []
        if self._why is not None:
            left.append(self._why)
        left += [f"{what}: {count} not looked at" for what, count in skipped.items()]
        if self._cut:
            left.append(f"large graphs of objects: {self._cut} not to their end")
        if self._guide.shortened:
            left.append(f"large containers: {self._guide.shortened} in part")
        frames = not any(what not in ("modules", "others") for what in skipped)
        return Result(self._found, "; ".join(left) or None, frames)


def _keeper(place: Place, chain: Sequence[Any], same: bool | None) -> Keeper:
    kind, path = kind_of(place, chain), told(place, chain)
    frame = frame_in_words(place)
    direct = kind not in ("exception", "thread-local", "context variable")
    steps = [word for word in path[1:] if word != "its connection"]
    parked = [at for at, word in enumerate(steps) if "of suspended " in word]
    beyond = steps[parked[-1] + 1 :] if parked else steps
    return Keeper(
        kind=kind,
        owner=place.who.name or None,
        same_holder=same,
        is_user=place.is_user or any(type(each) in SUSPENDABLE for each in chain),
        frame=frame,
        path=path,
        in_hand=direct and (frame is not None or place.kind == "scheduled call"),
        near=len(beyond) <= (0 if _is_module(frame) else _NEAR),
    )


def _is_module(frame: Frame | None) -> bool:
    """Whether it is a script's own level.

    Its variables are its hands, but its containers are the globals of a module.
    """
    return frame is not None and frame.function == "<module>"


def _evident(keeper: Keeper) -> bool:
    """Whether it belongs to a frame."""
    return keeper.in_hand and keeper.near


def _rank(keeper: Keeper) -> tuple[int, ...]:
    """What is told if there are several: the least.

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
