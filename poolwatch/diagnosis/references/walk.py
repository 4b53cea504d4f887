"""The first pass of a search: a short breadth-first walk near one root."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from poolwatch.diagnosis.references.follow import Guide, newest
from poolwatch.diagnosis.references.places import Place

_MAX_ENTRIES = 1000
"""Most entries of one container that are visited, newest first."""
_SMALL = 50
"""Most entries of a container that is not put off until all else was visited."""


class Walk:
    """A breadth-first walk from the places of one root, up to a number of objects.

    Objects that often lead to a connection come first, large containers last. The walk
    refers to every visited object, so it must be dropped within the same step.
    """

    def __init__(
        self,
        places: Sequence[Place],
        guide: Guide,
        wanted: Mapping[int, str],
        dead_ends: set[int],
    ) -> None:
        self._places = places
        self._guide = guide
        self._wanted = wanted
        self._dead_ends = dead_ends
        self.nodes: list[Any] = []
        self._from: list[int] = []
        """For each node, the index of its referrer; ``~index`` if that is a place."""
        self._index: dict[int, int] = {}
        self._crossings: tuple[list[int], list[int]] = [], []
        """Further references between nodes: indices of referrers and of referents."""
        self._queues: tuple[list[int], list[int], list[int]] = [], [], []
        """Indices of nodes to visit: likely types, other types, large containers."""
        self._open: set[int] = set()
        """Indices of nodes that were not visited, or only partly."""
        self.hits: list[int] = []

    def go(self, limit: int) -> bool:
        """Visit about ``limit`` objects; False if more are left."""
        for number, place in enumerate(self._places):
            self._add(place.values, ~number)
        heads = [0, 0, 0]
        while len(self.nodes) < limit:
            for which, queue in enumerate(self._queues):
                if heads[which] < len(queue):
                    self._visit(queue[heads[which]])
                    heads[which] += 1
                    break
            else:
                break
        for head, queue in zip(heads, self._queues, strict=True):
            self._open.update(queue[head:])
        return not self._open

    def _visit(self, index: int) -> None:
        node = self.nodes[index]
        if self._guide.length(node) > _MAX_ENTRIES:
            self._open.add(index)
            self._add(newest(node, _MAX_ENTRIES), index)
        else:
            self._add(self._guide.follow(node), index)

    def _add(self, objects: Iterable[Any], origin: int) -> None:
        guide, index, dead_ends = self._guide, self._index, self._dead_ends
        by_type, wanted = guide.by_type, self._wanted
        for each in objects:
            kind = id(type(each))
            follow = by_type[kind] if kind in by_type else guide.learn(type(each))
            key = id(each)
            if key in index:
                self._crossings[0].append(origin)
                self._crossings[1].append(index[key])
            elif key in wanted:
                self.hits.append(self._enter(each, key, origin))
            elif follow is not None and key not in dead_ends and gc.is_tracked(each):
                number = self._enter(each, key, origin)
                if kind in guide.likely:
                    self._queues[0].append(number)
                elif kind in guide.lengths and guide.lengths[kind](each) > _SMALL:
                    self._queues[2].append(number)
                else:
                    self._queues[1].append(number)

    def _enter(self, each: Any, key: int, origin: int) -> int:
        number = self._index[key] = len(self.nodes)
        self.nodes.append(each)
        self._from.append(origin)
        return number

    def chain(self, index: int) -> tuple[list[Any], Place]:
        """The chain from a value of a place to the object at ``index``."""
        chain = []
        while index >= 0:
            chain.append(self.nodes[index])
            index = self._from[index]
        return chain[::-1], self._places[~index]

    def mark_dead_ends(self) -> None:
        """Remember the objects that lead to no proxy, for later walks."""
        nodes, origins = self.nodes, self._from
        leads_on = bytearray(len(nodes))
        for index in (*self._open, *self.hits):
            leads_on[index] = 1
        changed = any(leads_on)
        while changed:
            changed = False
            for index in range(len(nodes) - 1, -1, -1):
                if leads_on[index] and origins[index] >= 0:
                    leads_on[origins[index]] = 1
            for referrer, referent in zip(*self._crossings, strict=True):
                if referrer >= 0 and leads_on[referent] and not leads_on[referrer]:
                    leads_on[referrer] = 1
                    changed = True
        self._dead_ends.update(
            [id(node) for node, more in zip(nodes, leads_on, strict=True) if not more]
        )

    def mark_far(self, most: int) -> None:
        """Like mark_dead_ends, for all objects more than ``most`` steps away."""
        referrers: dict[int, list[int]] = {}
        for index, origin in enumerate(self._from):
            referrers.setdefault(index, []).append(origin)
        for origin, index in zip(*self._crossings, strict=True):
            referrers.setdefault(index, []).append(origin)
        near, level = set(self.hits), list(self.hits)
        for _ in range(most):
            found = {each for at in level for each in referrers[at] if each >= 0} - near
            near |= found
            level = list(found)
        self._dead_ends.update(
            [id(node) for at, node in enumerate(self.nodes) if at not in near]
        )
