"""The pages of a hold, a wait, a session, and of the help."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import BindingType

from poolwatch.model import Hold, Wait
from poolwatch.tui.board_screen import Page
from poolwatch.tui.draw.line import Line, rule
from poolwatch.tui.keys import bindings
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.selection import Selection
from poolwatch.tui.state.session_rows import SessionRow
from poolwatch.tui.state.wait_rows import WaitGroup
from poolwatch.tui.views import named
from poolwatch.tui.views.view import Detail


def detail_page(board: Board, target: Detail) -> DetailPage:
    """Return the page of a hold, a wait or a session."""
    if isinstance(target.row, SessionRow):
        return SessionPage(board, target.row)
    page = WaitPage if isinstance(target.row, WaitGroup) else DetailPage
    return page(board, target.row)


class DetailPage(Page):
    """The details of one hold, updated until the hold ends."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("detail")]
    FOOTER = "detail"

    def __init__(self, board: Board, row: Any) -> None:
        super().__init__(board)
        self.row = row
        """The last state of the row."""
        self._now = 0.0

    def paint(self, now: float, clock: str) -> None:
        """Draw the page; its position in the table depends on the time."""
        self._now = now
        super().paint(now, clock)

    def head(self, cells: int) -> Line:
        """Return the title line, with the verdict or how the hold ended."""
        selection = self._table()
        position = f"  {selection.at + 1} of {len(selection.shown)}"
        note = (("n N", "accent"), (position, "muted"))
        return rule(self.subject(), note, cells)

    def subject(self) -> Line:
        """Return the left part of the title line."""
        from poolwatch.tui.panels.detail import headline

        self.row = self.board.rows.get(self.row.key, self.row)
        gone = self.row.key not in self.board.rows
        ending = self.board.ending(self.row) if gone else None
        return (("HOLD", "title"), *headline(self.row, ending))

    def body(self, cells: int) -> list[Line]:
        """Return the source, why it is wrong, and the facts."""
        from poolwatch.tui.panels.detail import detail_lines

        return detail_lines(self.board, self.row, cells)

    def _table(self) -> Selection[Any]:
        return named(self.board.view).arrange(self.board, self._now).selection

    def action_step(self, by: int) -> None:
        """Go to the next or the previous row of the table that has a page."""
        view, selection = named(self.board.view), self._table()
        targets = [view.leads_to(self.board, row) for row in selection.shown]
        at = selection.at
        here = targets[at] if targets else None
        if not isinstance(here, Detail) or here.row.key == self.row.key or by < 0:
            at += by  # else the row is gone, and its neighbour is selected
        while 0 <= at < len(targets):
            target = targets[at]
            if isinstance(target, Detail):
                selection.move(at)
                if type(target.row) is not type(self.row):
                    self.app.switch_screen(detail_page(self.board, target))
                    return
                self.row = target.row
                self.action_scroll(-100_000)
                self.redraw()
                return
            at += by

    def action_copy(self) -> None:
        """Copy the place of the row in the source."""
        self.copy_place(self._request().site)

    def action_copy_issue(self) -> None:
        """Copy what is known of the row, in Markdown."""
        from poolwatch.tui.panels.issue import hold_issue

        self.copy_text(hold_issue(self.board, self.row))

    def _request(self) -> Hold | Wait:
        request: Hold | Wait = self.row.hold
        return request

    def action_fold(self) -> None:
        """Fold or unfold library frames."""
        self.board.unfold = not self.board.unfold
        self.redraw()


class WaitPage(DetailPage):
    """The details of one wait, updated until it is served or given up."""

    def subject(self) -> Line:
        """Return how long it waits, or that it waits no longer."""
        from poolwatch.tui.panels.wait_detail import wait_headline

        waits = {row.key: row for row in named("waits").rows(self.board)}
        gone = self.row.key not in waits
        self.row = waits.get(self.row.key, self.row)
        return (("WAIT", "title"), *wait_headline(self.row, gone=gone))

    def body(self, cells: int) -> list[Line]:
        """Return where it waits, and who holds the pool."""
        from poolwatch.tui.panels.wait_detail import wait_lines

        return wait_lines(self.board, self.row, cells)

    def action_copy_issue(self) -> None:
        """Copy what is known of the wait, in Markdown."""
        from poolwatch.tui.panels.issue import wait_issue

        self.copy_text(wait_issue(self.board, self.row))

    def _request(self) -> Hold | Wait:
        request: Wait = self.row.longest
        return request


class SessionPage(DetailPage):
    """What is known of a session that is no hold, updated until it ends."""

    row: SessionRow

    def subject(self) -> Line:
        """Return whose it is, or that it has ended."""
        from poolwatch.tui.panels.session_detail import session_headline

        gone = self.row.key not in self.board.sessions
        self.row = self.board.sessions.get(self.row.key, self.row)
        return (("SESSION", "title"), *session_headline(self.row, gone=gone))

    def body(self, cells: int) -> list[Line]:
        """Return what the server says of it, and who waits for it."""
        from poolwatch.tui.panels.session_detail import session_lines

        return session_lines(self.board, self.row, cells)

    def action_copy(self) -> None:
        """Copy the place of its last user in the source."""
        self.copy_place(self.row.site)

    def action_copy_issue(self) -> None:
        """Copy what is known of the session, in Markdown."""
        from poolwatch.tui.panels.session_detail import session_issue

        self.copy_text(session_issue(self.board, self.row))


class HelpPage(Page):
    """Every key, verdict and column, explained."""

    def head(self, cells: int) -> Line:
        return rule((("HELP", "title"),), (), cells)

    def body(self, cells: int) -> list[Line]:
        from poolwatch.tui.panels.help import help_lines

        return help_lines(cells)
