"""The list of incident snapshots, and a screen that shows one of them.

The screen has the same panels as the main screen. Its header shows the time of the
snapshot, and its data never changes.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from textual.binding import BindingType

from poolwatch.model import IncidentSnapshot, Snapshot
from poolwatch.text.format import call_site, local_time, one_line
from poolwatch.text.incident_snapshots import (
    incident_words,
    limited_to_pool,
    pool_name,
)
from poolwatch.tui.board_screen import Page
from poolwatch.tui.draw.line import BLANK, Line, Run, right, rule, wrap
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.draw.table import Column, Table, process_cell
from poolwatch.tui.keys import bindings
from poolwatch.tui.polling import Incidents, Reading
from poolwatch.tui.screens import MainScreen
from poolwatch.tui.state.board import Board

_ABOUT = (
    "A process saves a snapshot the first time that one of its pools is exhausted, "
    "times out or is deadlocked. The snapshots are lost when the process ends."
)
_ABOUT_HISTORY = (
    "The history has a snapshot of the first moment of each incident: poolwatch history"
)


class IncidentsPage(Page):
    """The list of incident snapshots; Enter opens the selected one."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("incidents")]
    FOOTER = "incidents"

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._index = 0

    @property
    def _incidents(self) -> Incidents:
        return self.board.incidents or Incidents()

    def selected(self) -> int | None:
        count = len(self._incidents.snapshots)
        return min(self._index, count - 1) if count else None

    def head(self, cells: int) -> Line:
        count = f" {len(self._incidents.snapshots)}" if self.board.incidents else " "
        title: Line = (("INCIDENT SNAPSHOTS", "title"), (count, "strong"))
        return rule(title, (("first incident of each pool", "muted"),), cells)

    def titles(self, cells: int) -> list[Line]:
        return [Table(COLUMNS, cells).titles()] if self._incidents.snapshots else []

    def body(self, cells: int) -> list[Line]:
        """Return the list of snapshots, or the reason why it is empty."""
        if self.board.incidents is None:
            return [(("  reading from the processes …", "muted"),)]
        table = Table(COLUMNS, cells + 1)
        lines = [*map(table.line, self._incidents.snapshots)]
        if not lines:
            lines = _empty(self._incidents, cells)
        for lost in self._incidents.unreachable:
            why = f"{self.board.name_of(lost)} could not be read: {lost.why}"
            lines += [BLANK, (("  ◆ ", "warn"), (one_line(why), "muted"))]
        text = _ABOUT if self.board.moment is None else _ABOUT_HISTORY
        about = [((f"  {part}", "faint"),) for part in wrap(text, cells - 4)]
        return [*lines, BLANK, *about]

    def _select(self, index: int) -> None:
        self._index = max(0, min(index, len(self._incidents.snapshots) - 1))
        self.redraw()

    def action_move(self, by: int) -> None:
        self._select(self._index + by)

    def action_open(self) -> None:
        """Show the selected snapshot."""
        snapshots = self._incidents.snapshots
        if snapshots:
            incident = snapshots[min(self._index, len(snapshots) - 1)]
            self.app.push_screen(IncidentScreen(incident_board(incident)))

    def on_painted_picked(self, event: Painted.Picked) -> None:
        """Select with the mouse; a double click opens."""
        if event.part == "body" and event.line < len(self._incidents.snapshots):
            self._select(event.line)
            if event.twice:
                self.action_open()


class IncidentScreen(MainScreen):
    """One incident snapshot, drawn like the main screen and with its keys."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("incident")]
    FOOTER = "incident"

    def __init__(self, board: Board) -> None:
        super().__init__(board, id="incident")

    def action_back(self) -> None:
        """Clear the filter first, then leave the snapshot."""
        if self.board.filter.text or self.query("#filter"):
            super().action_back()
        else:
            self.dismiss()


def incident_board(incident: IncidentSnapshot) -> Board:
    """Return a board with the pool that had the incident; it never changes."""
    board = Board(incident=incident, fixed="saved")
    process = limited_to_pool(incident.process, incident.pool)
    board.accept(Reading(0.0, Snapshot((process,))))
    return board


def _empty(incidents: Incidents, cells: int) -> list[Line]:
    if incidents.error is not None:
        return [((f"  {part}", "warn"),) for part in wrap(incidents.error, cells - 4)]
    if incidents.unreachable:
        return [(("  no incident snapshot was found", "muted"),)]
    text = "no incident snapshot: no pool has been exhausted, timed out or deadlocked"
    return [(("  ✓ ", "good"), (text, "text"))]


def _time(incident: IncidentSnapshot) -> Run:
    return local_time(incident.at), "strong"


def _pool(incident: IncidentSnapshot) -> Run:
    return pool_name(incident.process, incident.pool), "strong"


def _held(incident: IncidentSnapshot) -> Run:
    return str(len(limited_to_pool(incident.process, incident.pool).holds)), "text"


def _waiting(incident: IncidentSnapshot) -> Run:
    count = len(limited_to_pool(incident.process, incident.pool).waits)
    return str(count), "warn" if count else "faint"


def _top_site(incident: IncidentSnapshot) -> Run:
    """Return the call site that held the most connections, and their number."""
    holds = limited_to_pool(incident.process, incident.pool).holds
    if not holds:
        return "-", "faint"
    ((site, count),) = Counter(map(call_site, holds)).most_common(1)
    return f"{count} at {site}", "text"


COLUMNS: tuple[Column[IncidentSnapshot], ...] = (
    Column("at", "time", 19, 19, 0, _time),
    Column("pool", "pool", 8, 18, 1, _pool),
    Column(
        "kind",
        "what",
        10,
        10,
        2,
        lambda each: (incident_words(each.kind)[0], "bad"),
    ),
    Column("holds", "held", 4, 4, 4, _held, place=right),
    Column("waits", "waiting", 7, 7, 5, _waiting, place=right),
    Column("process", "process", 10, 24, 6, lambda each: process_cell(each.process)),
    Column("site", "top call site", 18, 60, 3, _top_site),
)
