"""The table of call sites: which lines of code hold connections, at what cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from poolwatch.model import Frame, Process, SiteStats
from poolwatch.text.format import duration, neutral, place, width
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, tail
from poolwatch.tui.draw.table import (
    Column,
    Table,
    count_cell,
    process_cell,
    text_cell,
    time_cell,
)
from poolwatch.tui.state.board import Board

EXPLAINED = (
    ("avg out", "connections checked out on average, since the pool was instrumented"),
    ("p95", "95 of 100 of its holds were shorter; max is the longest"),
    ("caused", "waits of others while it held connections, divided among holders"),
    ("SQL", "share of its hold time spent in statements"),
    ("idle-tx", "share spent in a transaction between statements"),
)


@dataclass(frozen=True, slots=True)
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


def layout(rows: list[Site], cells: int) -> Table[Site]:
    """Return the table; pool and process columns only if there are several."""
    hidden = set()
    if len({(site.process.host, site.process.pid) for site in rows}) < 2:
        hidden.add("process")
    if len({site.pool for site in rows}) < 2:
        hidden.add("pool")
    return Table(COLUMNS, cells, hidden)


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


COLUMNS: tuple[Column[Site], ...] = (
    Column("site", "call site", 19, 34, 0, draw=_name),
    Column("function", "function", 10, 20, 12, _function),
    Column("pool", "pool", 7, 12, 10, lambda site: text_cell(site.pool)),
    Column("process", "process", 8, 16, 11, lambda site: process_cell(site.process)),
    Column("gauge", "", 6, 12, 13, draw=_gauge),
    Column("held", "avg out", 7, 7, 1, _average, place=right),
    Column("count", "count", 6, 8, 2, _count, place=right),
    Column("p50", "p50", 7, 7, 9, lambda s: time_cell(s.stats.hold_s.p50), place=right),
    Column("p95", "p95", 7, 7, 3, lambda s: time_cell(s.stats.hold_s.p95), place=right),
    Column("max", "max", 7, 7, 8, lambda s: time_cell(s.stats.hold_s.max), place=right),
    Column("caused", "caused", 6, 6, 4, _caused, place=right),
    Column("sql", "SQL", 4, 4, 6, _in_sql, place=right),
    Column("idle", "idle-tx", 7, 7, 7, _idle, place=right),
    Column("leaked", "leaked", 6, 6, 5, _leaked, place=right),
)
"""Their titles are explained by EXPLAINED."""
