"""What all screens share: they draw a board, and ask to be drawn again."""

from __future__ import annotations

from textual.message import Message
from textual.screen import Screen

from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.state.board import Board


class Redraw(Message):
    """What is asked for has changed; the data has not."""


class BoardScreen(Screen[None]):
    """A screen made of painted parts."""

    ALLOW_SELECT = False

    def __init__(self, board: Board, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.board = board

    def part(self, name: str) -> Painted:
        """Give one panel."""
        return self.get_child_by_id(name, Painted)

    def paint(self, now: float, clock: str) -> None:
        """Draw the board; panels that say the same as before cost nothing."""
        raise NotImplementedError

    def paint_head(self, now: float, clock: str) -> None:
        """Draw what changes although nothing was read: clock and ages."""
        self.paint(now, clock)

    def redraw(self) -> None:
        """Draw after a key press; asks the source nothing."""
        self.post_message(Redraw())

    def on_screen_resume(self) -> None:
        """Draw what was missed while another screen was on top."""
        self.redraw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.redraw()
