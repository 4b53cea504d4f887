"""View 5: which lines of code hold connections, at what cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from poolwatch.model import Frame, Process, SiteStats
from poolwatch.text.format import duration, neutral, place, width
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, tail
from poolwatch.tui.draw.table import (
    Column,
    count_cell,
    percentile_cell,
    process_cell,
    text_cell,
    time_cell,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import process_key
from poolwatch.tui.views.view import Drill, View, site_values

EXPLAINED = (
    ("avg out", "connections checked out on average, since the pool was instrumented"),
    ("p95", "95 of 100 of its holds were shorter; max is the longest"),
    ("caused", "waits of others while it held connections, divided among holders"),
    ("SQL", "share of its hold time spent in statements"),
    ("idle-tx", "share spent in a transaction between statements"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One line of the table: a call site of one pool, or a caller of it."""

    process: Process
    pool: str
    """Name of the pool."""
    stats: SiteStats
    most: float
    """Connections of the call site with the most: the full width of the gauge."""
    below: bool = False
    """Whether this is a caller of the call site above."""

    @property
    def key(self) -> Any:
        stats = self.stats
        return process_key(self.process), stats.pool, stats.site, stats.caller

    @property
    def frame(self) -> Frame | None:
        """The call site or caller of this line; None if a library is the caller."""
        return self.stats.caller if self.below else self.stats.site


def sites(board: Board) -> list[Site]:
    """Return the call sites of all processes, ordered by connections held.

    A call site is followed by its callers, if it has several.
    """
    processes = board.snapshot.processes
    most = max((s.connections for each in processes for s in each.sites), default=0.0)
    rows = []
    for process in processes:
        names = {pool.id: pool.name for pool in process.pools}
        rows += [
            Site(process, names.get(stats.pool, stats.pool), stats, most)
            for stats in process.sites
        ]
    rows.sort(key=_order)
    return [each for site in rows for each in (site, *_callers(site))]


def _callers(site: Site) -> list[Site]:
    where = site.stats.pool, site.stats.site
    callers = [
        replace(site, stats=stats, below=True)
        for stats in site.process.callers
        if (stats.pool, stats.site) == where
    ]
    return sorted(callers, key=_order)


def _order(site: Site) -> tuple[float, str, str, int, str]:
    """Order equal rows the same way at every refresh."""
    stats = site.stats
    where = place(stats.caller or stats.site, 9)
    return -stats.connections, where, site.process.host, site.process.pid, stats.pool


def explained(cells: int) -> list[Line]:
    """Return the explanation of the column titles."""
    shown = EXPLAINED if cells >= 76 else ()
    return [((f"  {name:<9}", "muted"), (text, "muted")) for name, text in shown]


def _name(site: Site, cells: int) -> Line:
    start, ink = ("  from ", "text") if site.below else ("", "strong")
    if site.frame is None:
        return ((tail(f"{start}a library", cells), ink),)
    text = start + place(site.frame)
    if width(text) > cells:
        text = start + place(site.frame, 1)
    return ((tail(text, cells), ink),)


def _site_text(site: Site) -> str | None:
    return f"{place(site.frame, 99)} {site.frame.function}" if site.frame else None


def _function(site: Site) -> Run:
    return neutral(site.frame.function[:60]) if site.frame else "", "text"


def _gauge(site: Site, cells: int) -> Line:
    share = site.stats.connections / site.most if site.most else 0.0
    return bar(share, cells, "accent")


def _average(site: Site) -> Run:
    number = site.stats.connections
    if number <= 0:
        return "0", "faint"
    return ("<0.01" if number < 0.005 else f"{number:.2f}"), "strong"


def _count(site: Site) -> Run:
    return str(site.stats.count), "text"


def _caused(site: Site) -> Run:
    seconds = site.stats.wait_caused_s
    if seconds < 0.05:
        return ("0" if seconds <= 0 else "<0.1s"), "faint"
    return duration(seconds), "warn"


def _share(seconds: float | None, site: Site, *, warn_from: float = 2.0) -> Run:
    """Return a share of the hold time in percent; a warning from ``warn_from`` on."""
    whole = site.stats.hold_s.sum
    if seconds is None or whole <= 0:
        return "-", "faint"
    share = min(seconds / whole, 1.0)
    ink = "warn" if share >= warn_from else "text"
    return ("<1%" if 0 < share < 0.01 else f"{share * 100:.0f}%"), ink


def _in_sql(site: Site) -> Run:
    return _share(site.stats.in_sql_s, site)


def _idle(site: Site) -> Run:
    return _share(site.stats.in_transaction_idle_s, site, warn_from=0.5)


def _leaked(site: Site) -> Run:
    return count_cell(site.stats.leaked, "bad")


# fmt: off
COLUMNS: tuple[Column[Site], ...] = (
    Column("site", "call site", 19, 34, 0, draw=_name, value=_site_text, field="site"),
    Column("function", "function", 10, 20, 12, _function,
           value=lambda s: s.frame.function if s.frame else None, field="function"),
    Column("pool", "pool", 7, 12, 10, lambda site: text_cell(site.pool),
           value=lambda s: s.pool, field="pool"),
    Column("process", "process", 8, 16, 11, lambda site: process_cell(site.process),
           value=lambda s: process_cell(s.process)[0], field="process"),
    Column("gauge", "", 6, 12, 13, draw=_gauge),
    Column("held", "avg out", 7, 7, 1, _average, place=right,
           value=lambda s: s.stats.connections, field="out"),
    Column("count", "count", 6, 8, 2, _count, place=right,
           value=lambda s: s.stats.count, field="count"),
    Column("p50", "p50", 7, 7, 9, lambda s: percentile_cell(s.stats.hold_s.p50),
           place=right, value=lambda s: s.stats.hold_s.p50, field="p50"),
    Column("p95", "p95", 7, 7, 3, lambda s: percentile_cell(s.stats.hold_s.p95),
           place=right, value=lambda s: s.stats.hold_s.p95, field="p95"),
    Column("max", "max", 7, 7, 8, lambda s: time_cell(s.stats.hold_s.max), place=right,
           value=lambda s: s.stats.hold_s.max, field="max"),
    Column("caused", "caused", 6, 6, 4, _caused, place=right,
           value=lambda s: s.stats.wait_caused_s, field="caused"),
    Column("sql", "SQL", 4, 4, 6, _in_sql, place=right),
    Column("idle", "idle-tx", 7, 7, 7, _idle, place=right),
    Column("leaked", "leaked", 6, 6, 5, _leaked, place=right,
           value=lambda s: s.stats.leaked, field="leaked"),
)
# fmt: on
"""Their titles are explained by EXPLAINED."""


class SitesView(View[Site]):
    """Which lines of code hold connections."""

    name = "sites"
    short = "sites"
    columns = COLUMNS
    order = "by average out"
    more_fields = ("site",)

    def rows(self, board: Board) -> list[Site]:
        return sites(board)

    def count(self, board: Board) -> Run:
        count = sum(len(process.sites) for process in board.snapshot.processes)
        return str(count), "strong"

    def hidden_columns(self, board: Board) -> set[str]:
        """Hide pool and process if there is only one."""
        hidden = set() if board.several_processes else {"process"}
        return hidden if board.several_pools else hidden | {"pool"}

    def fields(self, row: Site) -> dict[str, list[Any]]:
        return {"site": site_values(row.stats.site)}

    def empty(self, board: Board) -> str:
        return "no connection has been checked out yet"

    def pane(self, board: Board, row: Site, cells: int, height: int) -> list[Line]:
        return explained(cells)[:height]

    def leads_to(self, board: Board, row: Site) -> Drill:
        return Drill("holds", f'site="{place(row.frame, 99)}"')

    def place(self, row: Site) -> Frame | None:
        return row.frame
