"""The second walk, to the end: what lies behind one root, in steps.

Depth first, so that a step which begins anew at the root skips what earlier steps have
finished. Objects are handled by the batch, with calls that run in C: a batch of rows or
of dicts full of numbers is dismissed without a look at its single values.

An object that leads to a proxy is never dismissed: every further reference to it is
told as well, for what keeps a connection may be reached by a roundabout way first.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from poolwatch.keeping.references import Guide, attributes_of, part_of

_LARGE = 1000
"""Entries of a container that is read in parts."""
_BATCH = 64
"""Objects of a batch; ..."""
_ENTRIES = 4000
"""... fewer if their entries are more than these."""
_TAIL = 8
"""Objects before a proxy of which further references are told."""
_TELLING = 50
"""Objects that could be visited while one chain is told."""


class Progress:
    """What the steps of one search leave to the next: numbers only."""

    def __init__(self, proxies: Iterable[int], barren: set[int]) -> None:
        self.done = barren
        """Ids of objects that were followed to their end, and lead to no proxy."""
        self.leads: dict[int, dict[int, int]] = {each: {each: 0} for each in proxies}
        """By the id of an object on the way to proxies: by their ids, what is next."""
        self.settled: set[int] = set()
        """Proxies of which nothing more need be told."""
        self.positions: dict[int, int] = {}
        """How much of a large container is done."""
        self.lengths: dict[int, int] = {}

    def achieved(self) -> int:
        """A number that grows with all that need not be done again."""
        return len(self.done) + len(self.settled) + sum(self.positions.values())


class _Level:
    """A batch of objects, and the batches of what they refer to."""

    __slots__ = ("batch", "large", "marked", "parents", "pieces")

    def __init__(self, batch: list[Any]) -> None:
        self.batch = batch
        self.pieces: Iterator[list[Any]] = iter(())
        self.large = False
        """It is one container that is read in parts."""
        self.marked = False
        """Its objects are remembered when they are done. Rows and the like are not:
        that part of their container is done by then."""
        self.parents: dict[int, Any] | None = None


class Sweep:
    """One step. It holds what it has met: drop it at the step's end."""

    def __init__(
        self,
        guide: Guide,
        progress: Progress,
        tell: Callable[[list[Any]], None],
    ) -> None:
        self._guide = guide
        self._progress = progress
        self._tell = tell
        self._levels: list[_Level] = []
        self._seen: set[int] = set()
        self.visited = 0
        self.stopped_at: list[Any] = []
        """The batch that was next."""
        self.changed = False
        """A container has lost entries while it was read."""

    def go(self, values: list[Any], limit: int) -> bool:
        """Go on with what ``values`` lead to; False if there is more."""
        bottom = _Level([])
        bottom.pieces = self._pieces(self._fresh(values))
        self._levels.append(bottom)
        while self._levels:
            piece = next(self._levels[-1].pieces, None)
            if piece is None:
                self._finish(self._levels.pop())
            elif self.visited < limit:
                self._enter(piece)
            else:
                self.stopped_at = piece
                return False
        return True

    @property
    def depth(self) -> int:
        """How many batches lie between the root and where it has stopped."""
        return len(self._levels)

    def begins_with(self) -> Any:
        """What the chain begins with that leads to where it has stopped."""
        return self._to(self.stopped_at[0])[0]

    def _enter(self, batch: list[Any]) -> None:
        in_part, level = self._levels[-1].large, _Level(batch)
        self._levels.append(level)
        self.visited += len(batch)
        if self._guide.length(batch[0]) > _LARGE:
            level.large = level.marked = True
            level.pieces = self._parts(batch[0])
            return
        referents = self._referents(batch)
        self.visited += len(referents) // 4
        fresh = self._fresh(referents)
        level.marked = bool(fresh) or not in_part
        level.pieces = self._pieces(fresh)

    def _finish(self, level: _Level) -> None:
        if level.marked:
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
        """Those that are to be followed and were not met before."""
        guide, seen, done = self._guide, self._seen, self._progress.done
        kinds = set(map(id, map(type, objects)))
        if not kinds <= guide.by_type.keys():
            for one in objects:
                if id(type(one)) not in guide.by_type:
                    guide.learn(type(one))
        self._meet(objects)
        leaves = guide.leaves
        if kinds <= leaves:
            return []
        fresh = {
            key: one
            for one in objects
            if id(type(one)) not in leaves
            if (key := id(one)) not in seen and key not in done
            if gc.is_tracked(one)
        }
        seen.update(fresh)
        return list(fresh.values())

    def _pieces(self, objects: list[Any]) -> Iterator[list[Any]]:
        """Batches, the small containers first; a large container is one by itself."""
        guide, large, piece, weight = self._guide, [], [], 0
        for one in objects:
            if id(type(one)) in guide.lengths:
                length = guide.length(one)
                if length > _LARGE:
                    large.append(one)
                    continue
                weight += length
            piece.append(one)
            if len(piece) >= _BATCH or weight >= _ENTRIES:
                yield piece
                piece, weight = [], 0
        if piece:
            yield piece
        for one in large:
            yield [one]

    def _parts(self, container: Any) -> Iterator[list[Any]]:
        """A large container, from where an earlier step has stopped."""
        key, progress = id(container), self._progress
        at = progress.positions.get(key, 0)
        if at == 0:
            attributes = attributes_of(container)
            yield from self._pieces(self._fresh([attributes] if attributes else []))
        while at < (length := self._guide.length(container)):
            self.changed |= length < progress.lengths.get(key, 0)
            progress.lengths[key] = length
            entries = part_of(container, at, at + _LARGE)
            self.visited += len(entries) // 4
            yield from self._pieces(self._fresh(entries))
            at += _LARGE
            progress.positions[key] = at

    # -- chains -----------------------------------------------------------------------

    def _meet(self, objects: list[Any]) -> None:
        """Tell of chains that end in one of these, or go on over it."""
        progress = self._progress
        if progress.leads.keys().isdisjoint(map(id, objects)):
            return
        for one in objects:
            for proxy in list(progress.leads.get(id(one), ())):
                if proxy not in progress.settled:
                    chain = self._on_to(proxy, self._to(one))
                    self.visited += _TELLING
                    if chain:
                        self._tell(chain)
                        self._remember(chain, proxy)

    def _on_to(self, proxy: int, chain: list[Any]) -> list[Any]:
        """A chain with its known rest; empty if that has changed."""
        leads = self._progress.leads
        while (key := id(chain[-1])) != proxy:
            after = leads.get(key, {}).get(proxy)
            following = [r for r in self._guide.follow(chain[-1]) if id(r) == after]
            if not following:
                return []
            chain.append(following[0])
        return chain

    def _remember(self, chain: list[Any], proxy: int) -> None:
        tail = [id(each) for each in chain[-_TAIL:]]
        for before, after in itertools.pairwise(tail):
            self._progress.leads.setdefault(before, {}).setdefault(proxy, after)

    def _to(self, one: Any) -> list[Any]:
        chain = [one]
        for level in reversed(self._levels):
            if not level.batch:
                break
            parent = self._parent(level, chain[-1])
            if parent is None:
                break
            chain.append(parent)
        return chain[::-1]

    def _parent(self, level: _Level, child: Any) -> Any:
        if len(level.batch) == 1:
            return level.batch[0]
        if level.parents is None:
            level.parents = {}
            for one in level.batch:
                for each in self._guide.follow(one):
                    level.parents.setdefault(id(each), one)
        return level.parents.get(id(child))
