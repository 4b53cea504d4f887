"""The first screen: pools, holders, waiters, and the reason why."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from poolwatch.text.format import neutral
from poolwatch.tui.board_screen import BoardScreen
from poolwatch.tui.draw.line import BLANK, Line
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.panels import footer, header, pools, waits
from poolwatch.tui.panels import holds as holders
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import parse

if TYPE_CHECKING:
    from textual.widgets import Input

TALL = 30
"""From this height on, sections are set apart by a blank line."""
PANE_FROM = (100, 36)
"""Width and height from which the pane with the selected hold is shown."""


class OpenDetail(Message):
    """The selected hold is to be shown in full."""


class MainScreen(BoardScreen):
    """Draws the board, and turns keys into wishes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("pagedown,ctrl+f", "page(1)", show=False),
        Binding("pageup,ctrl+b", "page(-1)", show=False),
        Binding("g,home", "edge(0)", show=False),
        Binding("G,end", "edge(1)", show=False),
        Binding("s", "sort", show=False),
        Binding("v", "pane", show=False),
        Binding("slash", "filter", show=False),
        Binding("escape", "back", show=False),
        Binding("enter", "open", show=False),
    ]

    def __init__(self, board: Board, *, id: str = "main") -> None:  # noqa: A002
        super().__init__(board, id=id)
        self.pane = True
        """Whether the user wants the pane."""

    def compose(self) -> ComposeResult:
        """Stack the panels; only the holders grow and scroll."""
        for part in ("header", "why", "pools", "title", "holders"):
            yield Painted(id=part)
        for part in ("waiters", "pane", "footer"):
            yield Painted(id=part)

    # -- drawing -------------------------------------------------------------------

    def paint(self, now: float, clock: str) -> None:
        """Draw the board; panels that say the same as before cost nothing."""
        self.paint_head(now, clock)
        width, height = self.app.size
        board = self.board
        air = [BLANK] if height >= TALL else []
        known = board.kept is not None
        dim = board.mode(now) in ("stale", "failed", "silent", "lost")
        lines = pools.pool_lines(board, width, max(height // 4, 3)) if known else []
        self.part("pools").paint([*air, *lines], fixed=True)
        self._paint_holders(width, air, dim=dim)
        asking = waits.waiter_lines(board, width, max(height // 5, 3), dim=dim)
        self.part("waiters").paint([*air, *asking] if asking else [], fixed=True)
        self._paint_pane(width, height)
        typing = self._input() is not None
        keys = footer.FILTERING if typing else self.keys()
        self.part("footer").paint([footer.footer(keys, width)], fixed=True)

    def keys(self) -> footer.Keys:
        """Name the keys that work now: there may be pictures to look at."""
        kept = any(process.frozen for process in self.board.snapshot.processes)
        first, *others = footer.MAIN
        return (first, *footer.ALBUM, *others) if kept else footer.MAIN

    def paint_head(self, now: float, clock: str) -> None:
        """Draw what changes although nothing was read: clock and ages."""
        width, height = self.app.size
        top = [header.header(self.board, now, clock, width)]
        self.part("header").paint(top, fixed=True)
        lines = header.why(self.board, now, width, 2 if height >= 20 else 1)
        self.part("why").paint(lines, fixed=True)

    def _paint_holders(self, width: int, air: list[Line], *, dim: bool) -> None:
        board, body = self.board, self.part("holders")
        columns = holders.layout(board, width)
        title = holders.title_lines(board, columns, width)
        if board.kept is None:
            self.part("title").paint([*air, title[0]], fixed=True)
            body.paint(_hint(board))
            body.select(None)
            return
        self.part("title").paint([*air, *title], fixed=True)
        body.paint(holders.row_lines(board, columns, width - 1, dim=dim))
        body.select(board.selection.at if board.selection.shown else None)

    def _paint_pane(self, width: int, height: int) -> None:
        row = self.board.selection.row
        fits = width >= PANE_FROM[0] and height >= PANE_FROM[1]
        lines: list[Line] = []
        if self.pane and fits and row is not None:
            from poolwatch.tui.panels import pane

            lines = pane.pane_lines(self.board, row, width, height // 3 + 1)
        self.part("pane").paint(lines, fixed=True)

    # -- keys ----------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        """Select another row."""
        selection = self.board.selection
        self._select(max(min(selection.at + by, len(selection.shown) - 1), 0))

    def action_page(self, by: int) -> None:
        """Select the row one page away."""
        self.action_move(by * max(self.part("holders").size.height - 1, 1))

    def action_edge(self, end: int) -> None:
        """Select the first or the last row."""
        self._select((len(self.board.selection.shown) - 1) * end)

    def _select(self, at: int) -> None:
        self.board.selection.move(at)
        self.redraw()

    def action_sort(self) -> None:
        """Sort by the next key."""
        self.board.cycle_sort()
        self.redraw()

    def action_pane(self) -> None:
        """Show or hide the pane."""
        self.pane = not self.pane
        self.redraw()

    def action_open(self) -> None:
        """Show the selected hold in full; while a filter is typed, keep the filter."""
        if self._input() is not None:
            self._close_input()
        elif self.board.selection.key is not None:
            self.post_message(OpenDetail())

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
        """Open the line in which a filter is typed."""
        from textual.widgets import Input

        if self._input() is None:
            line = Input(self.board.filter.text, id="filter", compact=True)
            line.placeholder = "text, or field:value, e.g. state:idle-tx held:>30s"
            line.cursor_blink = False
            self.mount(line, before="#footer")
            line.focus()
            self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        self.board.filter = parse(event.value[:400])
        self.redraw()

    def on_input_submitted(self) -> None:
        """Keep the filter and give the keys back."""
        self._close_input()

    def action_back(self) -> None:
        """Go one step back: out of the filter, and then without it."""
        self.board.filter = parse("")
        self._close_input()

    def _close_input(self) -> None:
        self.query("#filter").remove()
        self.call_after_refresh(self.redraw)
        self.redraw()


def _hint(board: Board) -> list[Line]:
    """Fill the empty screen with what helps: where was looked, and how to begin."""
    if board.last is None:
        return []
    lines: list[Line] = [BLANK]
    for text in (board.error or "", board.empty_hint):
        told = neutral(text[:4000], lines=True).splitlines()
        lines += [*((("  " + line, "text"),) for line in told), BLANK]
    lines += [(("  This screen fills by itself as soon as there is one.", "muted"),)]
    return lines
