"""View 3: every session of the databases in question, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poolwatch.model import ServerRow
from poolwatch.text.format import one_line
from poolwatch.tui.draw.line import Run, right
from poolwatch.tui.draw.table import Column, text_cell
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row, short_state
from poolwatch.tui.views.view import Detail, View


@dataclass(frozen=True, slots=True, eq=False)
class SessionRow:
    """One session."""

    key: Any
    pid: int
    row: ServerRow
    hold: Row


# fmt: off
COLUMNS: tuple[Column[SessionRow], ...] = (
    Column("pid", "pid", 7, 7, 0, lambda row: (str(row.pid), "muted"), place=right,
           value=lambda row: row.pid, field="pid"),
    Column("whose", "whose", 13, 30, 1,
           lambda row: text_cell(row.hold.holder, "strong"),
           value=lambda row: row.hold.holder, field="holder"),
    Column("state", "state", 7, 8, 2, lambda row: (short_state(row.row) or "-", "text"),
           value=lambda row: short_state(row.row), field="state"),
    Column("statement", "statement", 14, 400, 3,
           lambda row: (one_line(row.row.query or "-"), "muted"),
           value=lambda row: row.row.query, field="statement"),
)
# fmt: on


class SessionsView(View[SessionRow]):
    """The sessions of the servers."""

    name = "sessions"
    short = "sess"
    columns = COLUMNS

    def rows(self, board: Board) -> list[SessionRow]:
        return [
            SessionRow(row.key, row.hold.backend_pid or 0, row.hold.server, row)
            for row in board.rows.values()
            if row.hold.server is not None
        ]

    def count(self, board: Board) -> Run:
        return str(len(self.rows(board))), "strong"

    def empty(self, board: Board) -> str:
        return "no server was read"

    def leads_to(self, board: Board, row: SessionRow) -> Detail:
        return Detail(row.hold)
