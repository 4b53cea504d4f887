"""What the dashboard draws, as text: of a running one, and without a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from poolwatch.tui.app import Dashboard
from poolwatch.tui.draw.line import Line, plain
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.selection import Selection
from poolwatch.tui.views import named


def screen_text(app: Dashboard) -> str:
    """The screen of a running dashboard."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def text(lines: Iterable[Line]) -> str:
    return "\n".join(map(plain, lines))


def selection(board: Board, now: float = 101.0, view: str = "holds") -> Selection[Any]:
    """A view's rows and its selection, after they have followed the board."""
    return named(view).arrange(board, now).selection


def title(board: Board, cells: int, *, view: str = "holds", now: float = 101.0) -> str:
    selection(board, now, view)
    return plain(named(view).title_line(board, cells))


def rows(
    board: Board, cells: int, *, view: str = "holds", now: float = 101.0
) -> list[Line]:
    """The rows of a view, as the table shows them."""
    shown = selection(board, now, view)
    drawn = named(view)
    table = drawn.layout(board, cells)
    return [
        drawn.line(board, table, row, selected=at == shown.at, dim=False)
        for at, row in enumerate(shown.shown)
    ]
