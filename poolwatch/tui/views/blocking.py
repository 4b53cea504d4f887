"""View 4: who holds up whom, as a tree."""

from __future__ import annotations

from poolwatch.tui.draw.line import Run
from poolwatch.tui.state.board import Board
from poolwatch.tui.views.sessions import COLUMNS, SessionRow
from poolwatch.tui.views.view import View


class BlockingView(View[SessionRow]):
    """The sessions that wait for locks, below those that block them."""

    name = "blocking"
    short = "block"
    columns = COLUMNS
    order = "by held up"

    def rows(self, board: Board) -> list[SessionRow]:
        return []

    def count(self, board: Board) -> Run:
        return str(len(self.rows(board))), "muted"

    def empty(self, board: Board) -> str:
        return "no session waits for a lock of another one"
