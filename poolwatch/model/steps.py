"""The cells of a timeline."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple


class Step(NamedTuple):
    """One cell of a timeline: the most connections out and requests waiting at once."""

    out: int
    waiting: int


def in_cells(
    recorded: Iterable[tuple[float, float, Step]],
    since: float,
    until: float,
    cells: int,
) -> list[Step | None]:
    """Divide a stretch of time into cells, None where nothing is recorded.

    ``recorded``: pieces of time, each with its beginning, its end and its step.
    """
    found: list[Step | None] = [None] * cells
    if cells < 1 or until <= since:
        return found
    scale = cells / (until - since)
    for began, ended, step in recorded:
        if not (since <= began <= until or began < since < ended):
            continue
        if began == until < ended:  # it belongs to the time after
            continue
        first = min(max(int((began - since) * scale), 0), cells - 1)
        behind = min(ceil((ended - since) * scale), cells)
        for cell in range(first, max(behind, first + 1)):
            known = found[cell] or step
            found[cell] = Step(*map(max, known, step))
    return found
