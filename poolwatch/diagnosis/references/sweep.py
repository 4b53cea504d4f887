"""The second walk: everything that one root can reach, in steps.

Depth first, so that a step which begins anew at the root skips what earlier steps have
finished. Objects are handled by the batch, with calls that run in C: a batch of rows or
of dicts full of numbers is dismissed as a whole.

An object that leads to a proxy is never dismissed: every further reference to it is
reported as well, since the first chain found may be a roundabout one.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.follow import (
    Guide,
    Parts,
    attributes_of,
    is_suspendable,
)

NEAR = 16
"""Objects in a chain that may still be short in words."""
_LARGE = 1000
"""Entries of a container that is read in parts."""
_ENTRIES = 4000
"""Entries of the containers of one batch."""
_PASSED = 40
"""Entries of a dict that are skipped in the time that it takes to visit one."""
_MOST_MORE = 15_000
"""Objects that a step may take longer for skipping."""
_OVERHEAD = 8
"""Cost of a batch beyond its objects, counted in objects."""
_REPORTING = 50
"""Cost of reporting a chain, counted in objects."""
_SLIGHT = 4
"""References of an object up to which visiting them again is cheaper than memory."""


class Progress:
    """What one step of a search leaves to the next: numbers only."""

    def __init__(self, proxies: Iterable[int], barren: set[int]) -> None:
        self.done = barren
        """Ids of objects that need not be followed again."""
        self.leads: dict[int, dict[int, int]] = {each: {each: 0} for each in proxies}
        """By the id of an object on the way to proxies: the next object, by proxy."""
        self.settled: set[int] = set()
        """Proxies of which no further chain need be reported."""
        self.reported: set[tuple[int, int, int]] = set()
        """References already reported: from, to, and the proxy they lead to."""
        self.positions: dict[int, int] = {}
        """How much of a large container is done."""
        self.lengths: dict[int, int] = {}

    def achieved(self) -> int:
        """A number that grows with everything that need not be done again."""
        reported = len(self.reported) + len(self.settled)
        return len(self.done) + reported + sum(self.positions.values())


class _Level:
    """A batch of objects, and the batches of what they refer to."""

    __slots__ = ("batch", "before", "chained", "large", "parents", "pieces")

    def __init__(self, batch: list[Any], before: int) -> None:
        self.batch = batch
        self.before = before
        """Objects that were visited before."""
        self.pieces: Iterator[list[Any]] = iter(())
        self.large = False
        """It is one container that is read in parts."""
        self.chained = False
        """Each object of the batch refers to the next."""
        self.parents: dict[int, int] | None = None

    @property
    def size(self) -> int:
        """How many objects of it are in a chain that goes over it."""
        return len(self.batch) if self.chained else min(1, len(self.batch))


class Sweep:
    """One step. It refers to the objects it has visited: drop it at the step's end."""

    def __init__(
        self, guide: Guide, progress: Progress, root: int, width: int = 128
    ) -> None:
        self._guide = guide
        self._progress = progress
        self._root = root
        self._width = width
        """Objects of one batch."""
        self.report: Callable[[list[Any]], None] = _ignore
        """Called with every chain that leads to a proxy."""
        self._levels: list[_Level] = []
        self._seen: set[int] = set()
        self._next: list[Any] = []
        """The batch that it stopped before."""
        self._limit = 0
        self._more = 0
        """Objects of this step beyond the limit: to go back to where the last one was
        takes time as well."""
        self.group = 0
        """Index of the group that it is at."""
        self.visited = 0
        self.changed = False
        """A container has lost entries while it was read."""

    def go(self, groups: Iterable[Iterable[Any]], limit: int) -> bool:
        """Visit what each group leads to; False if there is more."""
        self._limit = limit
        self._more = 0
        bottom = _Level([], 0)
        bottom.pieces = self._begin(groups)
        self._levels.append(bottom)
        while self._levels:
            piece = next(self._levels[-1].pieces, None)
            if piece is None:
                self._finish(self._levels.pop())
            elif self.visited < limit + self._more:
                if piece:
                    self._enter(piece)
            else:
                self._next = piece
                return False
        return True

    def forget(self) -> None:
        """Drop all visited objects; pending batches would keep them alive."""
        self._levels.clear()
        self._seen.clear()
        self._next = []
        self.report = _ignore

    def _begin(self, groups: Iterable[Iterable[Any]]) -> Iterator[list[Any]]:
        for self.group, values in enumerate(groups):
            yield from self._pieces(self._fresh([*values]))

    def _enter(self, batch: list[Any]) -> None:
        level = _Level(batch, self.visited)
        self._levels.append(level)
        if self._guide.length(batch[0]) > _LARGE:
            level.large = True
            level.pieces = self._parts(batch[0])
            return
        fresh = self._expand(batch)
        if len(batch) == 1:
            batch = level.batch = [*batch]
            while len(fresh) == 1 and self.visited < self._limit:
                if self._guide.length(fresh[0]) > _LARGE:
                    break
                level.chained = True
                batch += fresh
                fresh = self._expand(fresh)
        level.pieces = self._pieces(fresh)

    def _expand(self, batch: list[Any]) -> list[Any]:
        referents = self._referents(batch)
        self.visited += len(batch) + len(referents) // 4 + _OVERHEAD
        return self._fresh(referents)

    def _finish(self, level: _Level) -> None:
        """Remember the objects of a level, unless that is more than it is worth."""
        if self.visited - level.before > _SLIGHT * len(level.batch):
            leads = self._progress.leads
            ids = map(id, level.batch)
            self._progress.done.update([key for key in ids if key not in leads])

    def _referents(self, batch: list[Any]) -> list[Any]:
        plain, others = [], []
        by_type = self._guide.by_type
        for one in batch:
            if by_type[id(type(one))] is gc.get_referents:
                plain.append(one)
            else:
                others.append(one)
        found = gc.get_referents(*plain)
        for one in others:
            found.extend(self._guide.follow(one))
        return found

    def _fresh(self, objects: list[Any]) -> list[Any]:
        """The objects that are to be followed and are new."""
        guide, seen, done = self._guide, self._seen, self._progress.done
        kinds = list(map(id, map(type, objects)))
        unknown = set(kinds) - guide.by_type.keys()
        if unknown:
            for one in objects:
                if id(type(one)) not in guide.by_type:
                    guide.learn(type(one))
        self._report(objects)
        followed = list(
            itertools.compress(objects, map(guide.followed.__contains__, kinds))
        )
        unique = dict(zip(map(id, followed), followed, strict=True))
        fresh = {
            key: one
            for key, one in unique.items()
            if key not in seen and key not in done and gc.is_tracked(one)
        }
        seen.update(fresh)
        return list(fresh.values())

    def _pieces(self, objects: list[Any]) -> Iterator[list[Any]]:
        """Batches, those of small containers first; a large one is one by itself.

        Containers are by themselves: there are no weak references to them.
        """
        lengths = self._guide.lengths
        large: list[Any] = []
        others: list[Any] = []
        piece: list[Any] = []
        weight = 0
        for one in objects:
            if (count := lengths.get(id(type(one)))) is None:
                others.append(one)
            elif (length := count(one)) > _LARGE:
                large.append(one)
            else:
                piece.append(one)
                weight += length
                if len(piece) >= self._width or weight >= _ENTRIES:
                    yield piece
                    piece, weight = [], 0
        if piece:
            yield piece
        for at in range(0, len(others), self._width):
            yield others[at : at + self._width]
        for one in large:
            yield [one]

    def _parts(self, container: Any) -> Iterator[list[Any]]:
        """A large container, from where an earlier step has stopped."""
        key, progress, parts = id(container), self._progress, Parts(container)
        at = progress.positions.get(key, 0)
        if at == 0:
            attributes = attributes_of(container)
            yield from self._pieces(self._fresh([attributes] if attributes else []))
        self._more = max(self._more, min(at // _PASSED, _MOST_MORE))
        while at < (length := self._guide.length(container)):
            self.changed |= length < progress.lengths.get(key, 0)
            progress.lengths[key] = length
            entries = parts.read(at, _LARGE)
            self.visited += len(entries) // 4
            yield from self._pieces(self._fresh(entries))
            at += _LARGE
            progress.positions[key] = at
            yield []  # time to stop, if it was enough

    # -- where it has stopped ---------------------------------------------------------

    def frontier(self, begun: int) -> list[ref[Any]]:
        """What is next, as far as it can be referred to weakly.

        Only what is too far from the root to belong to it, which is itself ``begun``
        objects away. All that leads there need not be followed again.
        """
        found: list[ref[Any]] = []
        pending, deep = self._next, begun + sum(each.size for each in self._levels)
        while deep >= NEAR and (level := self._levels.pop()).batch:
            deep -= level.size
            if level.large:
                pending = level.batch
                continue
            weakly = _weakly([*pending, *itertools.chain.from_iterable(level.pieces)])
            if weakly is None:  # a list, say: to be reached again from what has it
                pending = level.batch[-1:] if level.chained else level.batch
                continue
            found += weakly
            pending = []
            if level.chained:
                level.batch = level.batch[max(0, NEAR - deep) :]
            self._finish(level)
        return found

    def is_parked(self) -> bool:
        """Whether something suspended is on the way to where it has stopped."""
        batches = [level.batch for level in self._levels]
        return any(map(is_suspendable, itertools.chain.from_iterable(batches)))

    # -- chains -----------------------------------------------------------------------

    def _report(self, objects: list[Any]) -> None:
        """Report the chains that end in one of the objects, or lead over it."""
        progress = self._progress
        if progress.leads.keys().isdisjoint(map(id, objects)):
            return
        for one in objects:
            proxies = progress.leads.get(id(one), {}).keys() - progress.settled
            if proxies:
                self._report_on(one, proxies)

    def _report_on(self, one: Any, proxies: set[int]) -> None:
        progress, chain = self._progress, self._to(one)
        before = id(chain[-2]) if len(chain) > 1 else self._root
        references = {each: (before, id(one), each) for each in proxies}
        fresh = [each for each in proxies if references[each] not in progress.reported]
        after = {id(each): each for each in self._guide.follow(one)} if fresh else {}
        for proxy in fresh:
            progress.reported.add(references[proxy])
            self.visited += _REPORTING
            whole = self._on_to(proxy, chain, after)
            if whole:
                self.report(whole)
                self._remember(whole, proxy)

    def _on_to(self, proxy: int, chain: list[Any], after: dict[int, Any]) -> list[Any]:
        """A chain with its known rest; empty if that has changed."""
        leads, chain = self._progress.leads, [*chain]
        while (key := id(chain[-1])) != proxy:
            following = after.get(leads.get(key, {}).get(proxy, 0))
            if following is None:
                return []
            chain.append(following)
            if id(following) != proxy:
                after = {id(each): each for each in self._guide.follow(following)}
        return chain

    def _remember(self, chain: list[Any], proxy: int) -> None:
        tail = [id(each) for each in chain[-NEAR:]]
        for before, after in itertools.pairwise(tail):
            self._progress.leads.setdefault(before, {}).setdefault(proxy, after)

    def _to(self, one: Any) -> list[Any]:
        """The chain from a value of the root to an object that was just visited."""
        chain = [one]
        for level in reversed(self._levels):
            if not level.batch:
                break
            at = self._parent(level, chain[-1])
            chain.append(level.batch[at])
            if level.chained:
                chain += level.batch[:at][::-1]
        return chain[::-1]

    def _parent(self, level: _Level, child: Any) -> int:
        if level.chained:
            return len(level.batch) - 1
        if len(level.batch) > 1 and level.parents is None:
            level.parents = {}
            for at, one in enumerate(level.batch):
                for each in self._guide.follow(one):
                    level.parents.setdefault(id(each), at)
        return level.parents.get(id(child), 0) if level.parents else 0


def _ignore(_: list[Any]) -> None: ...


def _weakly(objects: Iterable[Any]) -> list[ref[Any]] | None:
    try:
        return [ref(each) for each in objects]
    except TypeError:
        return None
