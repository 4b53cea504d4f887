"""What the user has done to one view: order, merging, selection."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from poolwatch.tui.state.selection import Selection


@dataclass(slots=True)
class TableState:
    """The state of one view's table."""

    sort: str | None = None
    """Key of the column that it is sorted by; None: by harm, the worst first."""
    reverse: bool = False
    merged: bool | None = None
    """Whether equal rows are merged; None if the user has not chosen."""
    show_all: bool | None = None
    """Whether all rows are shown; None if the user has not chosen."""
    label: str | None = None
    """The label whose values are the rows; None: they are call sites."""
    selection: Selection[Any] = field(default_factory=Selection)
    within: Hashable = None
    """What was selected before it was merged: it is selected again after that."""
    hidden: int = 0
    """Number of rows that the filter hides."""
    total: int = 0
    """Number of rows before the filter."""
    arranged_for: Hashable = None
    """What the rows were arranged for: reading, filter, order."""
    rows: Sequence[Any] = ()
    """The arranged rows, without a tombstone."""
    keys: frozenset[Hashable] = frozenset()
    """The keys of all rows, hidden ones included."""
