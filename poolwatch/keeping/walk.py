"""One walk along references, from a root to the proxies in question."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from poolwatch.keeping.references import Guide
from poolwatch.keeping.roots import Place


class Walk:
    """A breadth-first walk from the places of one root.

    It holds everything it has met: make it, ask it and drop it within one step.
    """

    def __init__(
        self,
        places: Sequence[Place],
        guide: Guide,
        wanted: Mapping[int, str],
        barren: set[int],
    ) -> None:
        self._places = places
        self._guide = guide
        self._wanted = wanted
        self._barren = barren
        self.nodes: list[Any] = []
        self._from: list[int] = []
        """Index of the node that each was found from; of a place, below zero."""
        self._index: dict[int, int] = {}
        self._crossings: tuple[list[int], list[int]] = [], []
        """Further references between known nodes."""
        self._visited = 0
        self.hits: list[int] = []

    def go(self, limit: int) -> bool:
        """Visit up to about ``limit`` objects; False if there are more."""
        for number, place in enumerate(self._places):
            self._add(place.values, ~number)
        by_type = self._guide.by_type
        nodes, wanted = self.nodes, self._wanted
        while self._visited < len(nodes) and len(nodes) < limit:
            node = nodes[self._visited]
            if id(node) not in wanted:
                follow = by_type[type(node)]
                if follow is not None:
                    self._add(follow(node), self._visited)
            self._visited += 1
        return self._visited >= len(nodes)

    def _add(self, objects: Iterable[Any], origin: int) -> None:
        by_type, index, barren = self._guide.by_type, self._index, self._barren
        for each in objects:
            kind = type(each)
            follow = by_type[kind] if kind in by_type else self._guide.learn(kind)
            key = id(each)
            if key in index:
                self._crossings[0].append(origin)
                self._crossings[1].append(index[key])
            elif key in self._wanted or (
                follow is not None and key not in barren and gc.is_tracked(each)
            ):
                index[key] = len(self.nodes)
                self.nodes.append(each)
                self._from.append(origin)
                if key in self._wanted:
                    self.hits.append(index[key])

    def chain(self, index: int) -> tuple[list[Any], Place]:
        """From what a place refers to, to the object at ``index``."""
        chain = []
        while index >= 0:
            chain.append(self.nodes[index])
            index = self._from[index]
        return chain[::-1], self._places[~index]

    def mark_barren(self) -> None:
        """Remember what leads nowhere, for the walks to come."""
        nodes, origins = self.nodes, self._from
        fertile = bytearray(len(nodes))
        fertile[self._visited :] = b"\1" * (len(nodes) - self._visited)
        for index in self.hits:
            fertile[index] = 1
        changed = any(fertile)
        while changed:
            changed = False
            for index in range(len(nodes) - 1, -1, -1):
                if fertile[index] and origins[index] >= 0:
                    fertile[origins[index]] = 1
            for one, other in zip(*self._crossings, strict=True):
                if one >= 0 and fertile[other] and not fertile[one]:
                    fertile[one] = 1
                    changed = True
        self._barren.update(
            [id(node) for node, more in zip(nodes, fertile, strict=True) if not more]
        )
