"""How a search follows one root to its end, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.places import Place, Root
from poolwatch.diagnosis.references.sweep import NEAR, Sweep

_STRATEGIES = ((128, 5_000), (8, 5_000), (4, 40_000))
"""Objects per batch, and per step. Deeply nested containers need narrow batches or long
steps: a container is only finished after the innermost one in it."""
_MAX_ROOTS = 1000


@dataclass(slots=True)
class Trail:
    """A root, followed by further roots where earlier steps have stopped."""

    roots: list[Root]
    _strategy: int = 0

    @property
    def width(self) -> int:
        """Objects per batch."""
        return _STRATEGIES[self._strategy][0]

    @property
    def limit(self) -> int:
        """Objects per step."""
        return _STRATEGIES[self._strategy][1]

    def next_strategy(self) -> bool:
        """Try another strategy after a step without progress; False if none is left."""
        self._strategy = (self._strategy + 1) % len(_STRATEGIES)
        return self._strategy > 0

    def continue_from_frontier(self, sweep: Sweep, places: list[Place]) -> bool:
        """Add a root where a step has stopped; False if that is too near the first."""
        place = places[sweep.group].far_copy(via_suspended=sweep.passes_suspended())
        frontier = sweep.frontier(NEAR if places[0].far else 0)
        if not frontier or len(self.roots) >= _MAX_ROOTS:
            return False
        read = partial(_far_places, place, frontier)
        self.roots.append(replace(self.roots[-1], read=read))
        return True


def _far_places(place: Place, weak_refs: Iterable[ref[Any]]) -> list[Place]:
    objects = [each() for each in weak_refs]
    place = place.far_copy(via_suspended=False)
    place.values = [each for each in objects if each is not None]
    return [place]
