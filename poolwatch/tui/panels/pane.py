"""The selected hold below the table, where the terminal is large enough."""

from __future__ import annotations

from poolwatch.tui.draw.line import BLANK, Line, rule
from poolwatch.tui.panels.detail import detail_lines, headline
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row


def pane_lines(board: Board, row: Row, cells: int, height: int) -> list[Line]:
    """Draw exactly ``height`` lines, so that moving about never shifts the table."""
    gone = board.selection.gone_at is not None
    title: Line = (
        ("SELECTED", "title"),
        *headline(row, gone=gone, how=board.parting(row)),
    )
    note: Line = (("enter ", "accent"), ("all of it", "muted"))
    body = detail_lines(board, row, cells)[: height - 2]
    filled = [*body, *([BLANK] * (height - 2 - len(body)))]
    return [BLANK, rule(title, note, cells), *filled]
