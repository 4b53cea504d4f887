"""The tab line: every view with its key and its count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poolwatch.tui.draw.line import Line, Run, length
from poolwatch.tui.state.board import Board
from poolwatch.tui.views.view import View


def tab_line(board: Board, views: Sequence[View[Any]], cells: int) -> Line:
    """Draw the line; its names and gaps are shorter in a narrow terminal."""
    counts = [_count(board, view) for view in views]
    # one blank between tabs reads badly: "HOLDS 7 2 waits 3 3 sess"
    for name, gap in (("name", "   "), ("name", "  "), ("short", "  "), ("short", " ")):
        line = _line(board, views, counts, name, gap)
        if length(line) <= cells:
            break
    return line


def _count(board: Board, view: View[Any]) -> Run:
    """Count once a reading, not at every key."""
    revision, count = board.counts.get(view.name, (None, ("", "")))
    if revision != board.revision:
        count = view.count(board)
        board.counts[view.name] = board.revision, count
    return count


def _line(
    board: Board,
    views: Sequence[View[Any]],
    counts: Sequence[Run],
    name: str,
    gap: str,
) -> Line:
    runs: list[Run] = [("  ", "text")]
    for key, (view, (count, ink)) in enumerate(zip(views, counts, strict=True), 1):
        text: str = getattr(view, name)
        if view.name == board.view:
            runs += [(f"{key} {text.upper()} ", "title"), (count, ink)]
        else:
            runs += [(f"{key} ", "accent"), (f"{text} ", "muted"), (count, ink)]
        runs.append((gap, "text"))
    return tuple(runs)
