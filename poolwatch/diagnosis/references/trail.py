"""How a search follows one root to its end, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import ref

from poolwatch.diagnosis.references.places import Place, Root
from poolwatch.diagnosis.references.sweep import NEAR, Sweep

_WAYS = ((128, 5_000), (8, 5_000), (4, 40_000))
"""Objects of a batch, and of a step. Containers that are nested deeply need narrow
batches, or a long step: nothing is done before the innermost is."""
_LONGEST = 1000


@dataclass(slots=True)
class Trail:
    """A root, and behind it those at which earlier steps have stopped."""

    roots: list[Root]
    _way: int = 0

    @property
    def width(self) -> int:
        """Objects of a batch."""
        return _WAYS[self._way][0]

    @property
    def limit(self) -> int:
        """Objects of a step."""
        return _WAYS[self._way][1]

    def try_otherwise(self) -> bool:
        """After a step that has achieved nothing; False if there is no other way."""
        self._way = (self._way + 1) % len(_WAYS)
        return self._way > 0

    def go_on_behind(self, sweep: Sweep, places: list[Place]) -> bool:
        """Take where a step has stopped for the next root, if it is far away."""
        place = places[sweep.group].beyond(parked=sweep.is_parked())
        frontier = sweep.frontier(NEAR if places[0].far else 0)
        if not frontier or len(self.roots) >= _LONGEST:
            return False
        read = partial(_far, place, frontier)
        self.roots.append(replace(self.roots[-1], read=read))
        return True


def _far(place: Place, weakly: Iterable[ref[Any]]) -> list[Place]:
    objects = [each() for each in weakly]
    place = place.beyond(parked=False)
    place.values = [each for each in objects if each is not None]
    return [place]
