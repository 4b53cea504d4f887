"""The selection: it follows a row by its key, not by its number.

When the selected row is gone, such as a hold that has ended, it remains for some
seconds as a tombstone, so that the user sees what happened. Then the neighbouring row
is selected.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Any)

TOMBSTONE_S = 3.0


class Selection(Generic[T]):
    """The selected row of a view, and its position."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.row: T | None = None
        """The last state of the selected row."""
        self.gone_at: float | None = None
        """When the row was found to be gone; None while it is there."""
        self.touched = False
        """Whether the user has moved the selection; before, it is the first row."""
        self._at = 0
        self._shown: list[T] = []

    @property
    def at(self) -> int:
        """Index of the selected row among those shown."""
        return self._at

    @property
    def shown(self) -> Sequence[T]:
        """The rows on the screen, including a tombstone; a list that never changes."""
        return self._shown

    def follow(
        self,
        rows: Sequence[T],
        alive: Collection[Hashable],
        now: float,
        *,
        is_past: bool = False,
    ) -> None:
        """Replace the rows, and find the selected one among them.

        ``is_past``: a row that is gone may be there again at the next moment.
        """
        self._shown = list(rows)
        for at, row in enumerate(rows):
            if row.key == self.key and self.touched:
                self._choose(at)
                return
        if is_past and self.touched:
            key = self.key
            self._choose(self._at)
            self.key = key
            return
        if self.row is not None and self.touched and self.key not in alive:
            self.gone_at = now if self.gone_at is None else self.gone_at
            if now - self.gone_at < TOMBSTONE_S:
                self._at = min(self._at, len(rows))
                self._shown.insert(self._at, self.row)
                return
        self._choose(self._at if self.touched else 0)

    def move(self, at: int) -> None:
        """Select by position, for the arrow keys and the mouse."""
        self.touched = True
        if self.gone_at is not None and at != self._at:
            self._shown = [*self._shown[: self._at], *self._shown[self._at + 1 :]]
            at -= at > self._at
        elif self.gone_at is not None:
            return
        self._choose(at)

    def _choose(self, at: int) -> None:
        self.gone_at = None
        self._at = max(0, min(at, len(self._shown) - 1))
        self.row = self._shown[self._at] if self._shown else None
        self.key = self.row.key if self.row else None
