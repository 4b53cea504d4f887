"""The screens above the first: a hold, what is wrong, call sites, help."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from poolwatch.tui import silence
from poolwatch.tui.board_screen import BoardScreen
from poolwatch.tui.draw.line import BLANK, Line, rule
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.panels import footer
from poolwatch.tui.panels.detail import detail_lines, finding_lines, headline
from poolwatch.tui.panels.header import header, troubles, why
from poolwatch.tui.panels.help import help_lines
from poolwatch.tui.panels.sites import explained, site_lines, sites, title_line
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row


class Page(BoardScreen):
    """A page to read: a title, lines that scroll, and the way back."""

    KEYS = footer.PAGE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("pagedown,space", "scroll(15)", show=False),
        Binding("pageup", "scroll(-15)", show=False),
        Binding("g,home", "scroll(-100000)", show=False),
        Binding("G,end", "scroll(100000)", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Stack title, body and keys."""
        for part in ("header", "head", "body", "footer"):
            yield Painted(id=part)

    def paint(self, now: float, clock: str) -> None:
        """Draw the page from the board."""
        width = self.app.size.width
        top = [header(self.board, now, clock, width)]
        self.part("header").paint(top, fixed=True)
        titles = self.titles(width)
        self.part("head").paint([BLANK, self.head(width), *titles], fixed=True)
        body = self.body(width - 1)
        self.part("body").paint(body if titles else [BLANK, *body])
        self.part("footer").paint([footer.footer(self.KEYS, width)], fixed=True)

    def head(self, cells: int) -> Line:
        """Give the title line."""
        raise NotImplementedError

    def titles(self, cells: int) -> list[Line]:  # noqa: ARG002 - for pages with columns
        """Give what stands still above the lines, such as titles of columns."""
        return []

    def body(self, cells: int) -> list[Line]:
        """Give the lines to read."""
        raise NotImplementedError

    def action_back(self) -> None:
        """Go one step back."""
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        """Scroll the body."""
        body = self.part("body")
        body.jump(min(body.scroll_offset.y + by, body.max_scroll_y))


class HelpPage(Page):
    """Says what every key, word and column means."""

    def head(self, cells: int) -> Line:
        """Give the title line."""
        return rule((("HELP", "title"),), (), cells)

    def body(self, cells: int) -> list[Line]:
        """Give the words."""
        return help_lines(cells)


class WhyPage(Page):
    """Lists everything that is wrong, with its proof and its remedy."""

    _now = 0.0
    """When it was painted."""

    def head(self, cells: int) -> Line:
        """Give the title line with the count."""
        count = len(troubles(self.board, self._now))
        return rule((("FINDINGS", "title"), (f" {count}", "strong")), (), cells)

    def body(self, cells: int) -> list[Line]:
        """Give the findings, the worst first."""
        past = self.board.mode(self._now) in ("lost", "failed")
        lines = [why(self.board, self._now, cells, 1)[0], BLANK] if past else []
        for text in silence.silent(self.board, self._now):
            lines += [(("  ■ ", "bad"), (text, "strong")), BLANK]
        for process, finding in self.board.findings():
            lines += finding_lines(finding, min(cells - 4, 140))
            places = f"    {finding.kind}, process {process.pid}"
            lines += [((places, "faint"),), BLANK]
        told = why(self.board, self._now, cells, 2)
        return lines or [line for line in told if line]

    def paint(self, now: float, clock: str) -> None:
        """Draw the page; ages are of now."""
        self._now = now
        super().paint(now, clock)


class SitesPage(Page):
    """Lists the call sites by the connections they keep."""

    def head(self, cells: int) -> Line:
        """Give the title line with the count and the order."""
        found = sites(self.board)
        count = sum(not site.below for site in found)
        title: Line = (("CALL SITES", "title"), (f" {count}", "strong"))
        return rule(title, (("by ", "muted"), ("average out", "accent")), cells)

    def titles(self, cells: int) -> list[Line]:
        """Give the titles of the columns."""
        return [title_line(sites(self.board), cells)]

    def body(self, cells: int) -> list[Line]:
        """Give the call sites, and what the titles mean."""
        found = sites(self.board)
        if not found:
            return [(("  no connection has been taken yet", "muted"),)]
        return [*site_lines(found, cells + 1), BLANK, *explained(cells)]


class DetailPage(Page):
    """One hold in full; it keeps following that hold, and says when it ended."""

    KEYS = footer.DETAIL
    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "fold", show=False)]

    def __init__(self, board: Board, row: Row) -> None:
        super().__init__(board)
        if board.past is not None:
            self.KEYS = footer.PAST_DETAIL
        self.row = row
        """The hold as it was last seen."""

    @property
    def gone(self) -> bool:
        """Whether the hold is no longer in the data."""
        return self.row.key not in self.board.rows

    def head(self, cells: int) -> Line:
        """Give the verdict, or say that it is over."""
        self.row = self.board.rows.get(self.row.key, self.row)
        how = self.board.parting(self.row)
        told = headline(self.row, gone=self.gone, how=how)
        return rule((("HOLD", "title"), *told), (), cells)

    def body(self, cells: int) -> list[Line]:
        """Give both truths."""
        return detail_lines(self.board, self.row, cells)

    def action_fold(self) -> None:
        """Fold or unfold library frames."""
        self.board.unfold = not self.board.unfold
        self.redraw()
