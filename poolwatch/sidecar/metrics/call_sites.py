"""The names of call sites, pools and values of labels in metrics: a bounded number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

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
    would end, and one that came from there would have ``other`` fall. Of a service
    that outlives its processes, the lines of an older version make room.
    """

    def __init__(self, places: int = MAX_NAMED) -> None:
        self._places = places
        self._names: set[str] = set()

    def fill(
        self,
        weights: Mapping[str, float],
        living: Callable[[], Collection[str]] | None = None,
    ) -> set[str]:
        """Give the free places to the heaviest.

        If there are too few, names that are not ``living`` make room; returns these.
        """
        new = weights.keys() - self._names - {OTHER}
        former: set[str] = set()
        if living is not None and len(self._names) + len(new) > self._places:
            former = self._names.difference(living())
            self._names -= former
        free = max(0, self._places - len(self._names))
        self._names.update(sorted(new, key=lambda n: (-weights[n], n))[:free])
        return former

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
