"""The main screen: seven views, with the worst finding above and a pane below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import BindingType

from poolwatch.errors import RefusedError
from poolwatch.model.actions import Action, Outcome
from poolwatch.text.format import neutral
from poolwatch.tui.action_dialog import ActionDialog
from poolwatch.tui.board_screen import BoardScreen
from poolwatch.tui.draw.line import BLANK, Line, wrap
from poolwatch.tui.draw.painted import Painted
from poolwatch.tui.keys import bindings
from poolwatch.tui.pages import HelpPage, detail_page
from poolwatch.tui.panels import header, pools
from poolwatch.tui.panels.footer import footer
from poolwatch.tui.panels.spots import PANE_TALL
from poolwatch.tui.panels.tabs import tab_line
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.views import VIEWS, known_fields, named
from poolwatch.tui.views.sites import SitesView
from poolwatch.tui.views.view import Detail, Drill, View

if TYPE_CHECKING:
    from textual.widgets import Input

TALL = 30
"""Minimum height for blank lines between sections."""
PANE_MIN = 4
"""Minimum height of the pane about the selected row."""
PANE_LOW = 5
"""Height of a pane without source around its lines."""


class MainScreen(BoardScreen):
    """One of the seven views, with the worst finding above it and a pane below."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("main")]
    FOOTER = "main"
    PARTS = (
        "header", "why", "tabs", "pools", "title", "columns", "table", "pane", "footer"
    )  # fmt: skip

    def __init__(self, board: Board, *, id: str = "main") -> None:  # noqa: A002
        super().__init__(board, id=id)
        self.pane = True
        """Whether the user wants the pane."""
        self._now = 0.0
        self._pools: list[Line] = []
        self._pools_for: tuple[float, ...] = ()
        """What the pools were drawn for: reading, pace, width, height."""

    @property
    def view(self) -> View[Any]:
        """The view on the screen."""
        return named(self.board.view)

    @property
    def table(self) -> TableState:
        """The state of its table."""
        return self.view.state(self.board)

    # -- drawing -------------------------------------------------------------------

    def paint(self, now: float, clock: str) -> None:
        self._now = now
        self.paint_head(now, clock)
        width, height = self.app.size
        board = self.board
        gap = [BLANK] if height >= TALL else []
        self.part("tabs").paint([*gap, tab_line(board, VIEWS, width)], fixed=True)
        lines = self.panel_lines(width, height)
        self.part("pools").paint([*gap, *lines] if lines else [], fixed=True)
        self._paint_table(width, gap, dim=board.is_outdated(now))
        used = len(lines) + 2 * len(gap) + 3 + header.why_lines(width, height)
        self.part("pane").paint(self.pane_lines(width, height - used), fixed=True)
        self.part("footer").paint(self._footer(width), fixed=True)

    def panel_lines(self, width: int, height: int) -> list[Line]:
        """Draw the pools between tabs and table, once a reading."""
        board, limit = self.board, max(height // 4, 3)
        if board.last_good is None or board.view != "holds":
            return []
        wanted = id(board), board.revision, board.refresh, width, limit
        if wanted != self._pools_for:
            self._pools_for = wanted
            self._pools = pools.pool_lines(board, width, limit)
        return self._pools

    def paint_head(self, now: float, clock: str) -> None:
        width, height = self.app.size
        top = [header.header(self.board, now, clock, width)]
        self.part("header").paint(top, fixed=True)
        lines = header.why(self.board, now, width, header.why_lines(width, height))
        self.part("why").paint(lines, fixed=True)

    def _paint_table(self, width: int, gap: list[Line], *, dim: bool) -> None:
        board, view, body = self.board, self.view, self.part("table")
        state = view.arrange(board, self._now)
        table = view.layout(board, width)
        self.part("title").paint([*gap, view.title_line(board, width)], fixed=True)
        selection = state.selection
        if board.last_good is None and not selection.shown:
            self.part("columns").paint([], fixed=True)
            body.paint(_hint(board))
            return
        titles = table.titles(state.sort, reverse=state.reverse)
        self.part("columns").paint([titles], fixed=True)
        if not selection.shown:
            text = "no row matches the filter; esc clears it"
            text = text if state.hidden else view.empty(board)
            body.paint([((f"  {text}", "muted"),)])
            return

        # A page above this screen may move the selection meanwhile.
        shown, chosen = tuple(selection.shown), selection.at

        def line(at: int) -> Line:
            selected = at == chosen
            return view.line(board, table, shown[at], selected=selected, dim=dim)

        body.paint_rows(len(shown), line, chosen)

    def pane_lines(self, width: int, room: int) -> list[Line]:
        """Draw the pane; its height depends on the terminal only, not on the rows."""
        row = self.table.selection.row
        height = room * 2 // 5
        if height < PANE_TALL:
            height = min(height, PANE_LOW)
        lines: list[Line] = []
        if self.pane and height >= PANE_MIN and row is not None:
            lines = self.view.pane(self.board, row, width, height)[:height]
            lines += [BLANK] * (height - len(lines))
        return lines

    def _footer(self, width: int) -> list[Line]:
        if self.board.filter.error is not None and self.note is None:
            error = wrap(self.board.filter.error, width - 4)
            return [((f"  {part}", "warn"),) for part in error]
        if self._input() is not None:
            return [footer("filter", width)]
        fixed = self.board.fixed is not None
        return self.footer(width, is_fixed=fixed, hidden=self._idle_keys())

    def _idle_keys(self) -> set[str]:
        """Return the actions that would do nothing here."""
        board, view = self.board, type(self.view)
        hidden = {"time"} if board.fixed == "saved" else set()
        if board.fixed or not any(p.frozen for p in board.snapshot.processes):
            hidden.add("incidents")
        if view.merge is View.merge and view.merges is View.merges:
            hidden.add("merge")
        if view.place is View.place:
            hidden.add("copy")
        return hidden

    # -- keys ----------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        selection = self.table.selection
        self._select(max(min(selection.at + by, len(selection.shown) - 1), 0))

    def action_page(self, by: int) -> None:
        self.action_move(by * max(self.part("table").size.height - 1, 1))

    def action_edge(self, end: int) -> None:
        """Select the first row (0) or the last one (1)."""
        self._select((len(self.table.selection.shown) - 1) * end)

    def _select(self, at: int) -> None:
        self.table.selection.move(at)
        self.redraw()

    def action_view(self, number: int) -> None:
        """Show a view by its number, from 1 to 7."""
        self.show(VIEWS[number - 1].name)

    def action_next_view(self, by: int) -> None:
        at = VIEWS.index(self.view) + by
        self.show(VIEWS[at % len(VIEWS)].name)

    def show(self, view: str) -> None:
        """Show a view by its name."""
        self.board.view = view
        self.redraw()

    def action_sort(self, by: int) -> None:
        """Sort by the next or the previous column that can be sorted by."""
        columns = self.view.layout(self.board, self.app.size.width).columns
        keys = [None, *(column.key for column, _ in columns if column.value)]
        at = keys.index(self.table.sort) if self.table.sort in keys else 0
        self._sort(keys[(at + by) % len(keys)])

    def _sort(self, key: str | None) -> None:
        self.table.sort, self.table.reverse = key, False
        self.redraw()

    def action_reverse(self) -> None:
        self.table.reverse = not self.table.reverse
        self.redraw()

    def action_merge(self) -> None:
        """Merge equal rows, or show each."""
        self.table.merged = not self.view.is_merged(self.board)
        self.redraw()

    def action_by_label(self) -> None:
        """Show the values of the next label in place of call sites."""
        if not isinstance(self.view, SitesView):
            self.say("L groups the call sites by a label: press 5 first")
        elif self.view.next_label(self.board):
            self.redraw()
        else:
            self.say("no label yet: poolwatch.label(endpoint=...) sets one")

    def action_all(self) -> None:
        """Show every row, or leave out those that matter little."""
        self.table.show_all = not self.view.shows_all(self.board)
        self.redraw()

    def action_pane(self) -> None:
        self.pane = not self.pane
        self.redraw()

    def action_open(self) -> None:
        """Follow the selected row; while a filter is typed, accept it."""
        if self._input() is not None:
            self._close_input()
            return
        row = self.table.selection.row
        target = None if row is None else self.view.leads_to(self.board, row)
        if isinstance(target, Detail):
            self.app.push_screen(detail_page(self.board, target))
        elif isinstance(target, Drill):
            self._drill(target)
        elif row is not None:
            self.say("enter leads nowhere from this row: it has no holds now")

    def _drill(self, target: Drill) -> None:
        board = self.board
        board.drills.append((board.view, board.filter))
        board.view = target.view
        board.filter = parse(target.filter, known_fields(board))
        self.table.merged = False if target.each else None
        self.redraw()

    def action_copy(self) -> None:
        """Copy the place of the selected row in the source."""
        row = self.table.selection.row
        frame = None if row is None else self.view.place(row)
        self.copy_place(frame)

    def action_copy_issue(self) -> None:
        """Copy what is known of the selected row, in Markdown."""
        row = self.table.selection.row
        text = None if row is None else self.view.issue(self.board, row)
        if text is None:
            self.say("nothing to copy for this row")
        else:
            self.copy_text(text)

    def action_act(self, action: Action) -> None:
        """Ask whether to cancel the statement of the selected session, or to end it."""
        row, actions = self.table.selection.row, self.app.actions  # type: ignore[attr-defined]
        if actions is None:
            self.say("C and K need: poolwatch tui --allow-actions --dsn DSN")
            return
        found = None if row is None else self.view.session(self.board, row)
        if found is None:
            self.say("select one session: this row has none, or several (m shows each)")
            return
        try:
            asked = self.board.chosen(*found)
        except RefusedError as refused:
            self.say(str(refused))
        else:
            self.app.push_screen(ActionDialog(action, asked, actions), self._acted)

    def _acted(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self.say(outcome.text)

    def action_help(self) -> None:
        self.app.push_screen(HelpPage(self.board))

    def on_painted_picked(self, event: Painted.Picked) -> None:
        """Select with the mouse; a double click opens; a column title sorts."""
        if event.part == "table" and event.line < len(self.table.selection.shown):
            self._select(event.line)
            if event.twice:
                self.action_open()
        elif event.part == "columns":
            column = self.view.layout(self.board, self.app.size.width).column_at(
                event.x
            )
            if column is not None and column.value is not None:
                if column.key == self.table.sort:
                    self.action_reverse()
                else:
                    self._sort(column.key)

    # -- the filter ----------------------------------------------------------------

    def _input(self) -> Input | None:
        found = self.query("#filter")
        return found.first() if found else None  # type: ignore[return-value]

    def action_filter(self) -> None:
        """Open the input line for the filter."""
        from textual.widgets import Input

        if self._input() is None:
            line = Input(self.board.filter.text, id="filter", compact=True)
            line.placeholder = (
                "text, field:part, field=exact, held>30s, label:part; esc leaves"
            )
            line.cursor_blink = False
            self.mount(line, before="#footer")
            line.focus()
            self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter while it is typed."""
        self.board.filter = parse(event.value[:400], known_fields(self.board))
        self.redraw()

    def on_input_submitted(self) -> None:
        """Accept the filter and close its input line."""
        self._close_input()

    def action_back(self) -> None:
        """Go one step back: to where Enter led away from, else clear the filter."""
        board = self.board
        if self._input() is None and board.drills:
            board.view, board.filter = board.drills.pop()
        else:
            board.drills.clear()
            board.filter = parse("")
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
    if board.fixed is not None:
        return [BLANK, (("  no process was known at this moment", "muted"),)]
    for text in (board.error or "", board.empty_hint):
        hint = neutral(text[:4000], lines=True).splitlines()
        lines += [*((("  " + line, "text"),) for line in hint), BLANK]
    lines += [(("  This screen fills by itself as soon as there is one.", "muted"),)]
    return lines
