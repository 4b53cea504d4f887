"""The names of call sites, pools and values of labels in metrics: a bounded number."""

from __future__ import annotations

from collections.abc import Mapping

from poolwatch.model import OTHER_SITES, OTHER_VALUES, LabelStats, SiteStats
from poolwatch.text.format import neutral, one_line

MAX_NAMED = 32
"""Call sites of a pool, or values of one of its labels, with series of their own."""
MAX_TEXT = 128
"""Length of the longest value of a label, in characters."""
OTHER = "other"
"""Stands for all the others."""


class Named:
    """The call sites of a pool, the values of a label or the pools that have a name.

    A place stays taken while its process lives: a series that went over to ``other``
    would end, and one that came from there would have ``other`` fall.
    """

    def __init__(self, places: int = MAX_NAMED) -> None:
        self._places = places
        self._names: set[str] = set()

    def fill(self, weights: Mapping[str, float]) -> None:
        """Give the free places to the heaviest."""
        free = self._places - len(self._names)
        if free > 0:
            new = weights.keys() - self._names - {OTHER}
            self._names.update(sorted(new, key=lambda n: (-weights[n], n))[:free])

    def name(self, value: str) -> str:
        """Return the value if it has a place, else ``other``."""
        return value if value in self._names else OTHER

    def forget(self, name: str) -> None:
        """Take the place back."""
        self._names.discard(name)


def call_site(stats: SiteStats) -> str:
    """``path:line``; of a long path the end, which says more."""
    if stats.site == OTHER_SITES:
        return OTHER
    text = neutral(f"{stats.path or stats.site.file}:{stats.site.line}")
    return text if len(text) <= MAX_TEXT else "…" + text[1 - MAX_TEXT :]


def label_value(stats: LabelStats) -> str:
    """The value as one short line."""
    return OTHER if stats.value == OTHER_VALUES else bounded(stats.value)


def bounded(text: str) -> str:
    """Any text as the value of a label."""
    return one_line(text, MAX_TEXT)
