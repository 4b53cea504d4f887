"""The second pass of a search: all objects that one root can reach, in steps.

The sweep is depth-first, so that a step that begins again at the root skips objects
that earlier steps have finished. Objects are handled in batches by calls that run in C:
a batch of rows, or of dicts full of numbers, is dismissed as a whole.

An object that leads to a proxy is never dismissed. Every further reference to it is
reported as well, because the first chain found need not be the shortest.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.attributes import attributes_of
from poolwatch.diagnosis.references.follow import ChunkReader, Guide, is_of_server
from poolwatch.diagnosis.references.frames import is_suspendable

NEAR = 16
"""Most objects in a chain that may still be short in words."""
_LARGE = 1000
"""Entries above which a container is read in chunks."""
_ENTRIES = 4000
"""Most entries of all containers in one batch."""
_SKIPPED_PER_VISIT = 40
"""Entries of a dict that are skipped in the time that it takes to visit one."""
_MAX_EXTRA = 15_000
"""Most objects by which skipping may prolong a step."""
_OVERHEAD = 8
"""Fixed cost of a batch, counted in objects."""
_REPORTING = 50
"""Cost of reporting a chain, counted in objects."""
_CHEAP_REFERENCES = 4
"""Visited objects per object of a batch up to which its ids are not worth storing."""


class Progress:
    """The state that one step of a search passes to the next: numbers only."""

    def __init__(self, proxies: Iterable[int], dead_ends: set[int]) -> None:
        self.done = dead_ends
        """Ids of objects that need not be followed again."""
        self.leads: dict[int, dict[int, int]] = {each: {each: 0} for each in proxies}
        """By the id of an object on the way to proxies: the next object, by proxy."""
        self.settled: set[int] = set()
        """Ids of proxies for which no further chain need be reported."""
        self.reported: set[tuple[int, int, int]] = set()
        """References already reported: referrer, referent, and the proxy at the end."""
        self.positions: dict[int, int] = {}
        """By the id of a large container: how many of its entries are done."""
        self.lengths: dict[int, int] = {}

    def achieved(self) -> int:
        """A measure of progress: it grows with all work that need not be repeated."""
        reported = len(self.reported) + len(self.settled)
        return len(self.done) + reported + sum(self.positions.values())


class _Level:
    """A batch of objects, and the batches of their referents."""

    __slots__ = ("batch", "before", "chained", "large", "parents", "pieces")

    def __init__(self, batch: list[Any], before: int) -> None:
        self.batch = batch
        self.before = before
        """Number of objects visited before this batch."""
        self.pieces: Iterator[list[Any]] = iter(())
        self.large = False
        """Whether the batch is one container that is read in chunks."""
        self.chained = False
        """Whether each object of the batch refers to the next."""
        self.parents: dict[int, int] | None = None

    @property
    def size(self) -> int:
        """The number of its objects that a chain through this level has."""
        return len(self.batch) if self.chained else min(1, len(self.batch))


class Sweep:
    """One step of the second pass. It refers to all visited objects, so drop it."""

    def __init__(
        self, guide: Guide, progress: Progress, root: int, width: int = 128
    ) -> None:
        self._guide = guide
        self._progress = progress
        self._root = root
        self._width = width
        """Most objects in one batch."""
        self.report: Callable[[list[Any]], None] = _ignore
        """Called with every chain that leads to a proxy."""
        self._levels: list[_Level] = []
        self._seen: set[int] = set()
        self._pending: list[Any] = []
        """The batch at which the step stopped."""
        self._limit = 0
        self._extra = 0
        """Objects that this step may visit beyond the limit, because skipping to the
        position of the previous step takes time as well."""
        self.group = 0
        """Index of the current group."""
        self.visited = 0
        self.changed = False
        """Whether a container has lost entries while it was read."""

    def go(self, groups: Iterable[Iterable[Any]], limit: int) -> bool:
        """Visit all objects that each group leads to; False if more are left."""
        self._limit = limit
        self._extra = 0
        bottom = _Level([], 0)
        bottom.pieces = self._first_pieces(groups)
        self._levels.append(bottom)
        while self._levels:
            piece = next(self._levels[-1].pieces, None)
            if piece is None:
                self._finish(self._levels.pop())
            elif self.visited < limit + self._extra:
                if piece:
                    self._enter(piece)
            else:
                self._pending = piece
                return False
        return True

    def forget(self) -> None:
        """Drop all visited objects; pending batches would keep them alive."""
        self._levels.clear()
        self._seen.clear()
        self._pending = []
        self.report = _ignore

    def _first_pieces(self, groups: Iterable[Iterable[Any]]) -> Iterator[list[Any]]:
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
        """Mark the objects of a level as done, if that saves enough work."""
        if self.visited - level.before > _CHEAP_REFERENCES * len(level.batch):
            leads = self._progress.leads
            ids = map(id, level.batch)
            self._progress.done.update([key for key in ids if key not in leads])

    def _referents(self, batch: list[Any]) -> list[Any]:
        plain, others = [], []
        by_type = self._guide.by_type
        for node in batch:
            if by_type[id(type(node))] is gc.get_referents:
                plain.append(node)
            else:
                others.append(node)
        found = gc.get_referents(*plain)
        for node in others:
            found.extend(self._guide.follow(node))
        return found

    def _fresh(self, objects: list[Any]) -> list[Any]:
        """The objects that are new and are to be followed."""
        guide, seen, done = self._guide, self._seen, self._progress.done
        kinds = list(map(id, map(type, objects)))
        unknown = set(kinds) - guide.by_type.keys()
        if unknown:
            for node in objects:
                if id(type(node)) not in guide.by_type:
                    guide.learn(type(node))
        self._report(objects)
        followed = list(
            itertools.compress(objects, map(guide.followed.__contains__, kinds))
        )
        unique = dict(zip(map(id, followed), followed, strict=True))
        fresh = {
            key: node
            for key, node in unique.items()
            if key not in seen and key not in done and gc.is_tracked(node)
        }
        seen.update(fresh)
        return list(fresh.values())

    def _pieces(self, objects: list[Any]) -> Iterator[list[Any]]:
        """Divide objects into batches: small containers, others, large containers.

        Each large container is a batch of its own. Containers are not mixed with other
        objects, because containers have no weak references.
        """
        lengths = self._guide.lengths
        large: list[Any] = []
        others: list[Any] = []
        piece: list[Any] = []
        weight = 0
        for node in objects:
            if (count := lengths.get(id(type(node)))) is None:
                others.append(node)
            elif (length := count(node)) > _LARGE:
                large.append(node)
            else:
                piece.append(node)
                weight += length
                if len(piece) >= self._width or weight >= _ENTRIES:
                    yield piece
                    piece, weight = [], 0
        if piece:
            yield piece
        for at in range(0, len(others), self._width):
            yield others[at : at + self._width]
        for node in large:
            yield [node]

    def _parts(self, container: Any) -> Iterator[list[Any]]:
        """The batches of a large container, from the position of an earlier step."""
        key, progress, parts = id(container), self._progress, ChunkReader(container)
        at = progress.positions.get(key, 0)
        if at == 0:
            attributes = attributes_of(container)
            yield from self._pieces(self._fresh([attributes] if attributes else []))
        self._extra = max(self._extra, min(at // _SKIPPED_PER_VISIT, _MAX_EXTRA))
        while at < (length := self._guide.length(container)):
            self.changed |= length < progress.lengths.get(key, 0)
            progress.lengths[key] = length
            entries = parts.read(at, _LARGE)
            self.visited += len(entries) // 4
            yield from self._pieces(self._fresh(entries))
            at += _LARGE
            progress.positions[key] = at
            yield []  # an opportunity to stop

    # -- the frontier -----------------------------------------------------------------

    def frontier(self, distance: int) -> list[ref[Any]]:
        """Weak references to the next objects, as far as they allow them.

        Only objects that are too far from the root to belong to it; the first level is
        ``distance`` objects away from the root. The objects that lead to them are
        marked as done.
        """
        found: list[ref[Any]] = []
        pending, deep = (
            self._pending,
            distance + sum(each.size for each in self._levels),
        )
        while deep >= NEAR and (level := self._levels.pop()).batch:
            deep -= level.size
            if level.large:
                pending = level.batch
                continue
            weak_refs = _weak_refs(
                [*pending, *itertools.chain.from_iterable(level.pieces)]
            )
            if weak_refs is None:  # a list, say: to be reached again from its referrer
                pending = level.batch[-1:] if level.chained else level.batch
                continue
            found += weak_refs
            pending = []
            if level.chained:
                level.batch = level.batch[max(0, NEAR - deep) :]
            self._finish(level)
        return found

    def passes_suspended(self) -> bool:
        """Whether a generator or coroutine is on the way to the current position.

        Perhaps it is only beside the way.
        """
        batches = [level.batch for level in self._levels]
        return any(map(is_suspendable, itertools.chain.from_iterable(batches)))

    def passes_server(self) -> bool:
        """Whether a server's object is surely on the way to the current position."""
        levels = [each for each in self._levels if each.chained or len(each.batch) == 1]
        batches = [level.batch for level in levels]
        return any(map(is_of_server, itertools.chain.from_iterable(batches)))

    # -- chains -----------------------------------------------------------------------

    def _report(self, objects: list[Any]) -> None:
        """Report the chains that end in one of the objects, or lead through it."""
        progress = self._progress
        if progress.leads.keys().isdisjoint(map(id, objects)):
            return
        for node in objects:
            proxies = progress.leads.get(id(node), {}).keys() - progress.settled
            if proxies:
                self._report_chains_over(node, proxies)

    def _report_chains_over(self, node: Any, proxies: set[int]) -> None:
        progress, chain = self._progress, self._chain_to(node)
        before = id(chain[-2]) if len(chain) > 1 else self._root
        references = {each: (before, id(node), each) for each in proxies}
        fresh = [each for each in proxies if references[each] not in progress.reported]
        after = {id(each): each for each in self._guide.follow(node)} if fresh else {}
        for proxy in fresh:
            progress.reported.add(references[proxy])
            self.visited += _REPORTING
            whole = self._complete_chain(proxy, chain, after)
            if whole:
                self.report(whole)
                self._remember_chain(whole, proxy)

    def _complete_chain(
        self, proxy: int, chain: list[Any], after: dict[int, Any]
    ) -> list[Any]:
        """A chain completed by its known rest; empty if the rest has changed."""
        leads, chain = self._progress.leads, [*chain]
        while (key := id(chain[-1])) != proxy:
            following = after.get(leads.get(key, {}).get(proxy, 0))
            if following is None:
                return []
            chain.append(following)
            if id(following) != proxy:
                after = {id(each): each for each in self._guide.follow(following)}
        return chain

    def _remember_chain(self, chain: list[Any], proxy: int) -> None:
        tail = [id(each) for each in chain[-NEAR:]]
        for before, after in itertools.pairwise(tail):
            self._progress.leads.setdefault(before, {}).setdefault(proxy, after)

    def _chain_to(self, node: Any) -> list[Any]:
        """The chain from a value of the root to an object that was just visited."""
        chain = [node]
        for level in reversed(self._levels):
            if not level.batch:
                break
            at = self._parent_index(level, chain[-1])
            chain.append(level.batch[at])
            if level.chained:
                chain += level.batch[:at][::-1]
        return chain[::-1]

    def _parent_index(self, level: _Level, child: Any) -> int:
        if level.chained:
            return len(level.batch) - 1
        if len(level.batch) > 1 and level.parents is None:
            level.parents = {}
            for at, node in enumerate(level.batch):
                for each in self._guide.follow(node):
                    level.parents.setdefault(id(each), at)
        return level.parents.get(id(child), 0) if level.parents else 0


def _ignore(_: list[Any]) -> None: ...


def _weak_refs(objects: Iterable[Any]) -> list[ref[Any]] | None:
    try:
        return [ref(each) for each in objects]
    except TypeError:
        return None
