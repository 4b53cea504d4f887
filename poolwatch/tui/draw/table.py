"""Which columns a table shows at a width, and how wide each one is.

Columns leave in the order of their rank as the terminal gets narrower; what is left
over is shared out. Nothing depends on the rows, so columns never jump at a refresh.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from poolwatch.text.format import fit
from poolwatch.tui.draw.line import Line, right

GAP = "  "
"""Set after each column, in the same run: every run costs bytes at a redraw."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    key: str
    title: str
    least: int
    most: int
    rank: int
    """Who stays: the lowest rank leaves last."""
    right: bool = False


Layout = tuple[tuple[Column, int], ...]
"""The columns that are shown, each with its width."""


def arrange(columns: Sequence[Column], cells: int, hidden: Collection[str]) -> Layout:
    """Choose columns and widths for a table of ``cells``."""
    chosen: list[Column] = []
    room = cells
    for column in sorted(columns, key=lambda column: column.rank):
        if column.key in hidden:
            continue
        cost = column.least + (len(GAP) if chosen else 0)
        if cost > room:
            continue
        chosen.append(column)
        room -= cost
    widths = {column.key: column.least for column in chosen}
    for column in chosen:
        more = min(room, column.most - column.least)
        widths[column.key] += more
        room -= more
    return tuple((c, widths[c.key]) for c in columns if c.key in widths)


def heads(layout: Layout, margin: int = 2) -> Line:
    """Give the line of column titles."""
    runs = [(" " * margin, "muted")]
    for column, cells in layout:
        place = right if column.right else fit
        runs.append((place(column.title, cells) + GAP, "muted"))
    return tuple(runs)
