"""View 5: which lines of code hold connections, at what cost; or which label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from poolwatch.model import Frame
from poolwatch.text.format import duration, neutral, one_line, place, width
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, tail
from poolwatch.tui.draw.table import (
    Column,
    Table,
    age_cell,
    count_cell,
    percentile_cell,
    process_cell,
    text_cell,
    time_cell,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import quoted
from poolwatch.tui.state.site_rows import (
    SiteRow,
    below_their_sites,
    counted,
    in_order,
    label_names,
    merged_sites,
    site_rows,
)
from poolwatch.tui.state.table_state import TableState
from poolwatch.tui.views.view import Drill, View, of_process, same_place, site_values


def _name(site: SiteRow, cells: int) -> Line:
    if site.label is not None:
        return ((tail(one_line(site.label[1], 200), cells), "strong"),)
    start, ink = ("  from ", "text") if site.below else ("", "strong")
    if site.frame is None:
        return ((tail(f"{start}a library", cells), ink),)
    text = start + place(site.frame)
    if width(text) > cells:
        text = start + place(site.frame, 1)
    return ((tail(text, cells), ink),)


def _site_text(site: SiteRow) -> str | None:
    if site.label is not None:
        return site.label[1]
    return f"{place(site.frame, 99)} {site.frame.function}" if site.frame else None


def _function(site: SiteRow) -> Run:
    return neutral(site.frame.function[:60]) if site.frame else "", "text"


def _gauge(site: SiteRow, cells: int) -> Line:
    share = site.stats.connections / site.most if site.most else 0.0
    return bar(share, cells, "accent")


def _average(site: SiteRow) -> Run:
    number = site.stats.connections
    if number <= 0:
        return "0", "faint"
    return ("<0.01" if number < 0.005 else f"{number:.2f}"), "strong"


def _count(site: SiteRow) -> Run:
    return str(site.stats.count), "text"


def _caused(site: SiteRow) -> Run:
    seconds = site.stats.wait_caused_s
    if seconds < 0.05:
        return ("0" if seconds <= 0 else "<0.1s"), "faint"
    return duration(seconds), "warn"


def _share(seconds: float | None, site: SiteRow, *, warn_from: float = 2.0) -> Run:
    """Return a share of the hold time in percent; a warning from ``warn_from`` on."""
    whole = site.stats.hold_s.sum
    if seconds is None or whole <= 0:
        return "-", "faint"
    share = min(seconds / whole, 1.0)
    ink = "warn" if share >= warn_from else "text"
    return ("<1%" if 0 < share < 0.01 else f"{share * 100:.0f}%"), ink


def _in_sql(site: SiteRow) -> Run:
    return _share(site.stats.in_sql_s, site)


def _idle(site: SiteRow) -> Run:
    return _share(site.stats.in_transaction_idle_s, site, warn_from=0.5)


def _leaked(site: SiteRow) -> Run:
    return count_cell(site.stats.leaked, "bad")


# fmt: off
COLUMNS: tuple[Column[SiteRow], ...] = (
    Column("site", "call site", 19, 34, 0, draw=_name, value=_site_text),
    Column("function", "function", 10, 20, 14, _function,
           value=lambda s: s.frame.function if s.frame else None, field="function"),
    Column("pool", "pool", 7, 12, 12, lambda site: text_cell(site.pool),
           value=lambda s: s.pool, field="pool"),
    Column("process", "process", 12, 16, 13,
           lambda s: process_cell(s.processes[0], len(s.processes)),
           value=lambda s: process_cell(s.processes[0])[0], field="process"),
    Column("gauge", "", 6, 12, 15, draw=_gauge),
    Column("held", "avg out", 7, 7, 1, _average, place=right,
           value=lambda s: s.stats.connections, field="out"),
    Column("oldest", "oldest", 6, 6, 3, lambda s: age_cell(s.oldest_s), place=right,
           value=lambda s: s.oldest_s, field="oldest"),
    Column("count", "count", 6, 8, 9, _count, place=right,
           value=lambda s: s.stats.count, field="count"),
    Column("p50", "p50", 7, 7, 11, lambda s: percentile_cell(s.stats.hold_s.p50),
           place=right, value=lambda s: s.stats.hold_s.p50, field="p50"),
    Column("p95", "p95", 7, 7, 4, lambda s: percentile_cell(s.stats.hold_s.p95),
           place=right, value=lambda s: s.stats.hold_s.p95, field="p95"),
    Column("max", "max", 7, 7, 10, lambda s: time_cell(s.stats.hold_s.max), place=right,
           value=lambda s: s.stats.hold_s.max, field="max"),
    Column("caused", "caused", 6, 6, 5, _caused, place=right,
           value=lambda s: s.stats.wait_caused_s, field="caused"),
    Column("sql", "SQL", 4, 4, 7, _in_sql, place=right),
    Column("idle", "idle-tx", 7, 7, 8, _idle, place=right),
    Column("leaked", "leaked", 6, 6, 6, _leaked, place=right,
           value=lambda s: s.stats.leaked, field="leaked"),
)
# fmt: on
EXPLAINED = (
    ("avg out", "connections checked out on average, since the pool was instrumented"),
    ("oldest", "the longest hold that is out now"),
    ("p95", "95 of 100 of its ended holds were shorter"),
    ("caused", "waits of others while it held connections, divided among holders"),
    ("SQL, idle-tx", "shares of its hold time in statements, in a transaction between"),
)
"""What the titles mean, for the help page."""


class SitesView(View[SiteRow]):
    """Which lines of code hold connections, over all processes; or which labels."""

    name = "sites"
    short = "sites"
    columns = COLUMNS
    order = "by average out"
    more_fields = "site", "caller", "pid", "host", "app"

    def rows(self, board: Board) -> list[SiteRow]:
        rows = site_rows(board, self.state(board).label)
        return rows if self.is_merged(board) else in_order(rows)

    def merges(self, board: Board) -> bool:
        return True

    def members(self, row: SiteRow) -> Sequence[Hashable]:
        return row.members

    def merge(self, rows: Sequence[SiteRow]) -> list[SiteRow]:
        return merged_sites(rows)

    def _sorted(self, rows: list[SiteRow], state: TableState) -> list[SiteRow]:
        return below_their_sites(super()._sorted(rows, state))

    def count(self, board: Board) -> Run:
        label = self.state(board).label
        found = {
            (names.get(stats.pool), *what)
            for process in board.snapshot.processes
            for names in [{pool.id: pool.name for pool in process.pools}]
            for stats, what in counted(process, label)
        }
        return str(len(found)), "strong"

    def title(self, board: Board) -> Line:
        state = self.state(board)
        if state.label is not None:
            return ((f"  by {one_line(state.label, 40)}", "accent"),)
        names = label_names(board)
        return ((f"  L: by {one_line(names[0], 40)}", "muted"),) if names else ()

    def next_label(self, board: Board) -> bool:
        """Group by the next label, or by call site again; whether there is a label."""
        state, names = self.state(board), label_names(board)
        choices = [None, *names]
        at = choices.index(state.label) if state.label in choices else 0
        state.label, state.arranged_for = choices[(at + 1) % len(choices)], None
        return bool(names)

    def layout(self, board: Board, cells: int) -> Table[SiteRow]:
        label = self.state(board).label
        title = "call site" if label is None else one_line(label, 40)
        columns = [replace(COLUMNS[0], title=title), *COLUMNS[1:]]
        return Table(columns, cells, self.hidden_columns(board))

    def hidden_columns(self, board: Board) -> set[str]:
        """Hide pool and process if there is only one; a label has no function."""
        hidden = set() if board.several_processes else {"process"}
        if self.state(board).label is not None:
            hidden.add("function")
        return hidden if board.several_pools else hidden | {"pool"}

    def labels(self, row: SiteRow) -> Mapping[str, str]:
        return dict([row.label]) if row.label else {}

    def fields(self, row: SiteRow) -> Mapping[str, Sequence[Any]]:
        process = row.processes[0]
        fields: dict[str, Sequence[Any]] = {
            "pid": [process.pid],
            "host": [process.host],
            "app": [process.name, process.program],
        }
        if row.site is not None:
            fields["site"] = site_values(row.site)
        if row.below:
            fields["caller"] = site_values(row.frame)
        return fields

    def empty(self, board: Board) -> str:
        return "no connection has been checked out yet"

    def pane(self, board: Board, row: SiteRow, cells: int, height: int) -> list[Line]:
        from poolwatch.tui.panels.site_detail import site_pane

        return site_pane(row, cells, height)

    def leads_to(self, board: Board, row: SiteRow) -> Drill:
        if row.label is not None:
            name, value = row.label
            return Drill("holds", f"{name}={quoted(value)}")
        caller = row.frame if row.below else None
        words = same_place(board, row.site, caller, row.pool)
        if not self.is_merged(board):
            words += f" {of_process(row.processes[0])}"
        return Drill("holds", words)

    def place(self, row: SiteRow) -> Frame | None:
        return row.frame
