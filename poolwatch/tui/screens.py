"""The main screen, and the pages for a hold, the findings, call sites and help."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen

from poolwatch.text.format import neutral, one_line
from poolwatch.tui.draw.line import BLANK, Line, rule
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.keys import bindings
from poolwatch.tui.panels import header, holds, pools, sites, waits
from poolwatch.tui.panels.footer import footer
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.rows import Row

if TYPE_CHECKING:
    from textual.widgets import Input

TALL = 30
"""Minimum height for blank lines between sections."""
PANE_MIN = (100, 36)
"""Minimum width and height for the pane with the selected hold."""


class Redraw(Message):
    """Posted after a key press that changes the view, not the data."""


class BoardScreen(Screen[None]):
    """A screen made of Painted widgets, its parts, that show a board."""

    ALLOW_SELECT = False
    PARTS: ClassVar[tuple[str, ...]] = ()
    FOOTER: ClassVar[str]
    """The screen's name in KEYS."""

    def __init__(self, board: Board, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.board = board

    def compose(self) -> ComposeResult:
        for part in self.PARTS:
            yield Painted(id=part)

    def part(self, name: str) -> Painted:
        return self.get_child_by_id(name, Painted)

    def paint(self, now: float, clock: str) -> None:
        """Draw the board; unchanged parts cost nothing."""
        raise NotImplementedError

    def paint_head(self, now: float, clock: str) -> None:
        """Draw clock and ages, which change without a new reading."""
        self.paint(now, clock)

    def redraw(self) -> None:
        """Draw after a key press, without a new reading."""
        self.post_message(Redraw())

    def on_screen_resume(self) -> None:
        """Catch up after another screen was on top."""
        self.redraw()

    def on_resize(self) -> None:
        self.redraw()


class MainScreen(BoardScreen):
    """Pools, holds and waits, with the worst finding above them."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("main")]
    FOOTER = "main"
    PARTS = ("header", "why", "pools", "title", "holds", "waits", "pane", "footer")

    def __init__(self, board: Board, *, id: str = "main") -> None:  # noqa: A002
        super().__init__(board, id=id)
        self.pane = True
        """Whether the user wants the pane."""

    # -- drawing -------------------------------------------------------------------

    def paint(self, now: float, clock: str) -> None:
        self.paint_head(now, clock)
        width, height = self.app.size
        board = self.board
        gap = [BLANK] if height >= TALL else []
        has_data = board.last_good is not None
        dim = board.mode(now) in ("stale", "failed", "silent", "lost")
        lines = pools.pool_lines(board, width, max(height // 4, 3)) if has_data else []
        self.part("pools").paint([*gap, *lines], fixed=True)
        self._paint_holds(width, gap, dim=dim)
        waiting = waits.wait_lines(board, width, max(height // 5, 3), dim=dim)
        self.part("waits").paint([*gap, *waiting] if waiting else [], fixed=True)
        self._paint_pane(width, height)
        self.part("footer").paint([self._footer(width)], fixed=True)

    def paint_head(self, now: float, clock: str) -> None:
        width, height = self.app.size
        top = [header.header(self.board, now, clock, width)]
        self.part("header").paint(top, fixed=True)
        lines = header.why(self.board, now, width, 2 if height >= 20 else 1)
        self.part("why").paint(lines, fixed=True)

    def _paint_holds(self, width: int, gap: list[Line], *, dim: bool) -> None:
        board, body = self.board, self.part("holds")
        table = holds.layout(board, width)
        title = holds.title_lines(board, table, width)
        if board.last_good is None:
            self.part("title").paint([*gap, title[0]], fixed=True)
            body.paint(_hint(board))
            body.select(None)
            return
        self.part("title").paint([*gap, *title], fixed=True)
        body.paint(holds.row_lines(board, table, width - 1, dim=dim))
        body.select(board.selection.at if board.selection.shown else None)

    def _paint_pane(self, width: int, height: int) -> None:
        row = self.board.selection.row
        fits = width >= PANE_MIN[0] and height >= PANE_MIN[1]
        lines: list[Line] = []
        if self.pane and fits and row is not None:
            from poolwatch.tui.panels.detail import pane_lines

            lines = pane_lines(self.board, row, width, height // 3 + 1)
        self.part("pane").paint(lines, fixed=True)

    def _footer(self, width: int) -> Line:
        if self._input() is not None:
            return footer("filter", width)
        has_incidents = any(process.frozen for process in self.board.snapshot.processes)
        return footer(
            self.FOOTER, width, hidden=() if has_incidents else ("incidents",)
        )

    # -- keys ----------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        selection = self.board.selection
        self._select(max(min(selection.at + by, len(selection.shown) - 1), 0))

    def action_page(self, by: int) -> None:
        self.action_move(by * max(self.part("holds").size.height - 1, 1))

    def action_edge(self, end: int) -> None:
        """Select the first row (0) or the last one (1)."""
        self._select((len(self.board.selection.shown) - 1) * end)

    def _select(self, at: int) -> None:
        self.board.selection.move(at)
        self.redraw()

    def action_sort(self) -> None:
        self.board.cycle_sort()
        self.redraw()

    def action_pane(self) -> None:
        self.pane = not self.pane
        self.redraw()

    def action_open(self) -> None:
        """Show the selected hold on a page; while a filter is typed, accept it."""
        if self._input() is not None:
            self._close_input()
        elif self.board.selection.row is not None:
            self.app.push_screen(DetailPage(self.board, self.board.selection.row))

    def action_why(self) -> None:
        self.app.push_screen(WhyPage(self.board))

    def action_sites(self) -> None:
        self.app.push_screen(SitesPage(self.board))

    def action_help(self) -> None:
        self.app.push_screen(HelpPage(self.board))

    def on_painted_picked(self, event: Painted.Picked) -> None:
        """Select with the mouse; a double click opens."""
        if event.line < len(self.board.selection.shown):
            self._select(event.line)
            if event.twice:
                self.action_open()

    # -- the filter ----------------------------------------------------------------

    def _input(self) -> Input | None:
        found = self.query("#filter")
        return found.first() if found else None  # type: ignore[return-value]

    def action_filter(self) -> None:
        """Open the input line for the filter."""
        from textual.widgets import Input

        if self._input() is None:
            line = Input(self.board.filter.text, id="filter", compact=True)
            line.placeholder = "text, or field:value, e.g. state:idle-tx held:>30s"
            line.cursor_blink = False
            self.mount(line, before="#footer")
            line.focus()
            self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter while it is typed."""
        self.board.filter = parse(event.value[:400])
        self.redraw()

    def on_input_submitted(self) -> None:
        """Accept the filter and close its input line."""
        self._close_input()

    def action_back(self) -> None:
        """Clear the filter."""
        self.board.filter = parse("")
        self._close_input()

    def _close_input(self) -> None:
        self.query("#filter").remove()
        self.call_after_refresh(self.redraw)
        self.redraw()


def _hint(board: Board) -> list[Line]:
    """Explain on an empty screen why it is empty, and how to start."""
    if board.last is None:
        return []
    lines: list[Line] = [BLANK]
    for text in (board.error or "", board.empty_hint):
        hint = neutral(text[:4000], lines=True).splitlines()
        lines += [*((("  " + line, "text"),) for line in hint), BLANK]
    lines += [(("  This screen fills by itself as soon as there is one.", "muted"),)]
    return lines


class Page(BoardScreen):
    """A page with a title and lines that scroll; Escape goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("page")]
    FOOTER = "page"
    PARTS = ("header", "head", "body", "footer")

    def paint(self, now: float, clock: str) -> None:
        width = self.app.size.width
        top = [header.header(self.board, now, clock, width)]
        self.part("header").paint(top, fixed=True)
        titles = self.titles(width)
        self.part("head").paint([BLANK, self.head(width), *titles], fixed=True)
        body = self.body(width - 1)
        self.part("body").paint(body if titles else [BLANK, *body])
        keys = footer(self.FOOTER, width, is_incident=self.board.incident is not None)
        self.part("footer").paint([keys], fixed=True)

    def head(self, cells: int) -> Line:
        """The title line."""
        raise NotImplementedError

    def titles(self, cells: int) -> list[Line]:  # noqa: ARG002 - for pages with columns
        """Lines above the body that do not scroll, such as column titles."""
        return []

    def body(self, cells: int) -> list[Line]:
        """Lines of the body, which scroll."""
        raise NotImplementedError

    def action_back(self) -> None:
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        body = self.part("body")
        body.jump(min(body.scroll_offset.y + by, body.max_scroll_y))


class HelpPage(Page):
    """Every key, verdict and column, explained."""

    def head(self, cells: int) -> Line:
        return rule((("HELP", "title"),), (), cells)

    def body(self, cells: int) -> list[Line]:
        from poolwatch.tui.panels.help import help_lines

        return help_lines(cells)


class WhyPage(Page):
    """All findings, worst first, with proof and remedy."""

    _now = 0.0
    """Time of the last paint()."""

    def head(self, cells: int) -> Line:
        count = len(self.board.findings())
        return rule((("FINDINGS", "title"), (f" {count}", "strong")), (), cells)

    def body(self, cells: int) -> list[Line]:
        from poolwatch.tui.panels.detail import finding_lines

        outdated = self.board.mode(self._now) in ("lost", "failed")
        lines = (
            [header.why(self.board, self._now, cells, 1)[0], BLANK] if outdated else []
        )
        for process, finding in self.board.findings():
            lines += finding_lines(finding, min(cells - 4, 140))
            who = "over all hosts" if process is None else f"process {process.pid}"
            if finding.kind == "unreachable":
                who = "as last seen"
            if process is not None and process.at is not None:
                who += f" on {process.host}"
            kind = f"    {one_line(f'{finding.kind}, {who}')}"
            lines += [((kind, "faint"),), BLANK]
        summary = header.why(self.board, self._now, cells, 2)
        return lines or [line for line in summary if line]

    def paint(self, now: float, clock: str) -> None:
        self._now = now
        super().paint(now, clock)


class SitesPage(Page):
    """The call sites, ordered by connections held."""

    def head(self, cells: int) -> Line:
        count = sum(not site.below for site in sites.sites(self.board))
        title: Line = (("CALL SITES", "title"), (f" {count}", "strong"))
        return rule(title, (("by ", "muted"), ("average out", "accent")), cells)

    def titles(self, cells: int) -> list[Line]:
        return [sites.layout(sites.sites(self.board), cells).titles()]

    def body(self, cells: int) -> list[Line]:
        rows = sites.sites(self.board)
        if not rows:
            return [(("  no connection has been checked out yet", "muted"),)]
        table = sites.layout(rows, cells + 1)
        return [*map(table.line, rows), BLANK, *sites.explained(cells)]


class DetailPage(Page):
    """The details of one hold, updated until the hold ends."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("detail")]
    FOOTER = "detail"

    def __init__(self, board: Board, row: Row) -> None:
        super().__init__(board)
        self.row = row
        """The last row of the hold."""

    def head(self, cells: int) -> Line:
        """Return the title line, with the verdict or how the hold ended."""
        from poolwatch.tui.panels.detail import headline

        self.row = self.board.rows.get(self.row.key, self.row)
        gone = self.row.key not in self.board.rows
        ending = self.board.ending(self.row) if gone else None
        return rule((("HOLD", "title"), *headline(self.row, ending)), (), cells)

    def body(self, cells: int) -> list[Line]:
        from poolwatch.tui.panels.detail import detail_lines

        return detail_lines(self.board, self.row, cells)

    def action_fold(self) -> None:
        """Fold or unfold library frames."""
        self.board.unfold = not self.board.unfold
        self.redraw()
