"""Tables: each panel declares its columns, and a Table draws them at a given width.

In a narrow terminal columns are dropped by rank; spare width is given to the others.
Widths do not depend on the rows, so columns never jump at a refresh.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from poolwatch.model import Hold, Process, Wait
from poolwatch.text.format import (
    about,
    call_site_short,
    duration,
    fit,
    one_line,
    short_time,
)
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.line import Line, Run, tail

T = TypeVar("T", bound=Any)

GAP = "  "
"""Follows each cell in the same run: every run costs bytes at a redraw."""
TIMES = "\N{MULTIPLICATION SIGN} "
MARGIN: Run = ("  ", "text")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column; it has either a ``cell`` function or a ``draw`` function."""

    key: str
    title: str
    least: int
    """Narrowest width in terminal cells."""
    most: int
    """Widest width in terminal cells."""
    rank: int
    """The column with the highest rank is dropped first."""
    cell: Callable[[T], Run] | None = None
    """Returns the text of a cell and its ink."""
    draw: Callable[[T, int], Line] | None = None
    """Draws a cell of several runs at a given width."""
    place: Callable[[str, int], str] = fit
    """Cuts or pads the title and the text of ``cell`` to the width."""
    title_ink: str = "muted"
    value: Callable[[T], Any] | None = None
    """Returns a text or a number that sorts and filters; None if unknown."""
    field: str = ""
    """The name of the value in the filter."""


class Table(Generic[T]):
    """The columns that fit into ``width`` terminal cells, with their widths."""

    def __init__(
        self, columns: Sequence[Column[T]], width: int, hidden: Collection[str] = ()
    ) -> None:
        fitting: list[Column[T]] = []
        room = width - len(MARGIN[0])
        for column in sorted(columns, key=lambda column: column.rank):
            cost = column.least + len(GAP)
            if column.key not in hidden and cost <= room:
                fitting.append(column)
                room -= cost
        widths = {column.key: column.least for column in fitting}
        for column in fitting:
            extra = min(room, column.most - column.least)
            widths[column.key] += extra
            room -= extra
        self.columns = [(c, widths[c.key]) for c in columns if c.key in widths]

    def titles(self, sort: str | None = None, *, reverse: bool = False) -> Line:
        """Return the line of column titles; ``sort``: key of the sort column."""
        runs = [(MARGIN[0], "muted")]
        for column, cells in self.columns:
            title, ink = column.title, column.title_ink
            if column.key == sort:
                title, ink = title + ("▴" if reverse else "▾"), "accent"
            runs.append((column.place(title, cells) + GAP, ink))
        return tuple(runs)

    def column_at(self, x: int) -> Column[T] | None:
        """Return the column at a position in the line, for the mouse."""
        left = len(MARGIN[0])
        for column, cells in self.columns:
            if left <= x < left + cells + len(GAP):
                return column
            left += cells + len(GAP)
        return None

    def line(self, record: T, *, margin: Run = MARGIN, dim: bool = False) -> Line:
        """Return the line of one record; ``dim`` removes the colours."""
        runs: list[Run] = [margin]
        for column, cells in self.columns:
            if column.draw is not None:
                drawn = column.draw(record, cells)
            else:
                assert column.cell is not None  # each column has one of the two
                text, ink = column.cell(record)
                drawn = ((column.place(text, cells), ink),)
            if dim:
                drawn = tuple((text, _dimmed(ink)) for text, ink in drawn)
            *others, (text, ink) = drawn
            runs += [*others, (text + GAP, ink)]
        return tuple(runs)


def _dimmed(ink: str) -> str:
    return "faint" if ink == "faint" else "muted"


def text_cell(text: str, ink: str = "muted") -> Run:
    """Return a text from another process, made safe for a terminal."""
    return one_line(text, 80), ink


def site_cell(request: Hold | Wait, cells: int, ink: str) -> Line:
    """Draw the call site, with its caller if there is room."""
    return ((tail(call_site_short(request, cells), cells), ink),)


def process_cell(process: Process, count: int = 1) -> Run:
    """Return pid and name of a process, in a history with its host; or how many."""
    if count > 1:
        return f"{count} processes", "muted"
    host = "" if process.at is None else f"@{process.host}"
    return text_cell(f"{process.pid}{host} {process_name(process)}")


def event_cell(event: str | None) -> Run:
    """Return a wait event; one for a lock stands out."""
    if not event:
        return "-", "faint"
    short = one_line(event.removeprefix("Client:"), 40)
    return short, "warn" if event.startswith("Lock:") else "muted"


def count_cell(number: int, ink: str) -> Run:
    """Return a count of undesired events; zero is faint."""
    return str(number), ink if number else "faint"


def time_cell(seconds: float | None) -> Run:
    """Return a duration; a dash if it is unknown."""
    if seconds is None:
        return "-", "faint"
    return (short_time(seconds) if seconds < 9.95 else duration(seconds)), "text"


def percentile_cell(seconds: float | None) -> Run:
    """Return a duration that is the edge of a range."""
    return ("-", "faint") if seconds is None else (about(seconds), "text")


def age_cell(seconds: float | None) -> Run:
    """Return a duration in the units of ages; a dash if it is unknown."""
    return duration(seconds), "faint" if seconds is None else "text"
