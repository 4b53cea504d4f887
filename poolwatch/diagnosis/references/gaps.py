"""The roots that a search has not read completely, in words."""

from __future__ import annotations

from collections import defaultdict

from poolwatch.diagnosis.references.places import Root

_MAX_NAMED = 3
"""Most roots of one kind that are named."""


class Gaps:
    """Roots that were not read, or not followed to their end."""

    def __init__(self) -> None:
        self._roots: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        self.proving: set[tuple[str, str]] = set()
        """Keys of the roots that may have a connection in use."""

    def add(self, root: Root, reason: str) -> None:
        """Note why a root was not searched."""
        key = root.what, reason
        self._roots[key][root.title] = root.count
        if root.proves_use:
            self.proving.add(key)

    def words(self, *, proving: bool = False) -> str | None:
        """All gaps, or only gaps that may hide a connection in use."""
        words = [
            f"{what}: {_names(titles)} {reason}"
            for (what, reason), titles in self._roots.items()
            if (what, reason) in self.proving or not proving
        ]
        return "; ".join(words) or None


def _names(titles: dict[str, int]) -> str:
    named = [title for title in titles if title][:_MAX_NAMED]
    more = sum(titles.values()) - sum(titles[title] for title in named)
    if not named:
        return str(more)
    return ", ".join(named) + (f" and {more} more" if more else "")
