"""The call sites table: which lines of code keep the connections, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poolwatch.model import Frame, Process, SiteStats
from poolwatch.text.format import (
    duration,
    fit,
    neutral,
    one_line,
    place,
    short_time,
    width,
)
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, tail
from poolwatch.tui.draw.table import GAP, Column, Layout, arrange, heads
from poolwatch.tui.state.board import Board

COLUMNS = (
    Column("site", "call site", 19, 34, 0),
    Column("function", "function", 10, 20, 12),
    Column("pool", "pool", 7, 12, 10),
    Column("process", "process", 8, 16, 11),
    Column("gauge", "", 6, 12, 13),
    Column("held", "avg out", 7, 7, 1, right=True),
    Column("count", "count", 6, 8, 2, right=True),
    Column("p50", "p50", 7, 7, 9, right=True),
    Column("p95", "p95", 7, 7, 3, right=True),
    Column("max", "max", 7, 7, 8, right=True),
    Column("caused", "caused", 6, 6, 4, right=True),
    Column("sql", "SQL", 4, 4, 6, right=True),
    Column("idle", "idle-tx", 7, 7, 7, right=True),
    Column("leaked", "leaked", 6, 6, 5, right=True),
)
"""Titles are explained below the table: the columns are narrow."""


@dataclass(frozen=True, slots=True)
class Site:
    """What one call site did to one pool, and whose both are."""

    process: Process
    pool: str
    stats: SiteStats
    below: bool = False
    """One caller of the call site above."""

    @property
    def frame(self) -> Frame | None:
        """What the row is named by; None where no caller is known."""
        return self.stats.caller if self.below else self.stats.site


def sites(board: Board) -> list[Site]:
    """List the call sites of all processes, by the connections they keep.

    The callers of one that is shared follow it.
    """
    found: list[Site] = []
    for process in board.snapshot.processes:
        names = {pool.id: pool.name for pool in process.pools}
        found += [
            Site(process, names.get(stats.pool, stats.pool), stats)
            for stats in process.sites
        ]
    found.sort(key=_order)
    return [each for site in found for each in (site, *_callers_of(site))]


def _callers_of(site: Site) -> list[Site]:
    where = site.stats.pool, site.stats.site
    callers = [
        Site(site.process, site.pool, stats, below=True)
        for stats in site.process.callers
        if (stats.pool, stats.site) == where
    ]
    return sorted(callers, key=_order)


def _order(site: Site) -> tuple[float, str, int, str]:
    """Break ties the same way at every refresh, so that equal rows never swap."""
    stats = site.stats
    where = place(stats.caller or stats.site, 9)
    return -stats.connections, where, site.process.pid, stats.pool


def layout(found: list[Site], cells: int) -> Layout:
    """Choose the columns; one pool or one process needs no column to tell it apart."""
    hidden = set()
    if len({site.process.pid for site in found}) < 2:
        hidden.add("process")
    if len({site.pool for site in found}) < 2:
        hidden.add("pool")
    return arrange(COLUMNS, cells - 4, hidden)


def title_line(found: list[Site], cells: int) -> Line:
    """Give the column titles."""
    return heads(layout(found, cells))


def site_lines(found: list[Site], cells: int) -> list[Line]:
    """Draw every call site."""
    columns = layout(found, cells)
    most = max((site.stats.connections for site in found), default=0.0)
    return [_line(site, columns, most) for site in found]


def _line(site: Site, columns: Layout, most: float) -> Line:
    runs: list[Run] = [("  ", "text")]
    for column, cells in columns:
        if column.key == "gauge":
            share = site.stats.connections / most if most else 0.0
            runs += [*bar(share, cells, "accent"), (GAP, "text")]
            continue
        text, ink = _CELLS[column.key](site)
        if column.key == "site" and width(text) > cells:
            text = text.replace(place(site.frame), place(site.frame, 1))
        set_ = right if column.right else tail if column.key == "site" else fit
        runs.append((set_(text, cells) + GAP, ink))
    return tuple(runs)


def _name(site: Site) -> Run:
    if not site.below:
        return place(site.stats.site), "strong"
    return (
        "  from a library" if site.frame is None else f"  from {place(site.frame)}"
    ), "text"


def _average(site: Site) -> Run:
    number = site.stats.connections
    if number <= 0:
        return "0", "faint"
    return ("<0.01" if number < 0.005 else f"{number:.2f}"), "strong"


def _time(seconds: float | None) -> Run:
    if seconds is None:
        return "-", "faint"
    return (short_time(seconds) if seconds < 9.95 else duration(seconds)), "text"


def _caused(site: Site) -> Run:
    seconds = site.stats.wait_caused_s
    if seconds < 0.05:
        return ("0" if seconds <= 0 else "<0.1s"), "faint"
    return duration(seconds), "warn"


def _share(part: float | None, site: Site, loud: float) -> Run:
    """Give a part of the held time; ``loud`` is from where on it deserves a look."""
    whole = site.stats.hold_s.sum
    if part is None or whole <= 0:
        return "-", "faint"
    share = min(part / whole, 1.0)
    ink = "warn" if share >= loud else "text"
    return ("<1%" if 0 < share < 0.01 else f"{share * 100:.0f}%"), ink


def _leaked(site: Site) -> Run:
    leaked = site.stats.leaked
    return str(leaked), "bad" if leaked else "faint"


_NEVER = 2.0
_CELLS: dict[str, Callable[[Site], Run]] = {
    "site": _name,
    "function": lambda site: (
        neutral(site.frame.function[:60]) if site.frame else "",
        "text",
    ),
    "pool": lambda site: (one_line(site.pool, 40), "muted"),
    "process": lambda site: (
        one_line(f"{site.process.pid} {process_name(site.process)}", 40),
        "muted",
    ),
    "held": _average,
    "count": lambda site: (str(site.stats.count), "text"),
    "p50": lambda site: _time(site.stats.hold_s.p50),
    "p95": lambda site: _time(site.stats.hold_s.p95),
    "max": lambda site: _time(site.stats.hold_s.max),
    "caused": _caused,
    "sql": lambda site: _share(site.stats.in_sql_s, site, _NEVER),
    "idle": lambda site: _share(site.stats.in_transaction_idle_s, site, 0.5),
    "leaked": _leaked,
}

EXPLAINED = (
    ("avg out", "connections it keeps on average, over all the time watched"),
    ("p95", "95 of 100 of its holds were shorter; max is the longest"),
    ("caused", "what others waited while it held connections, shared out fairly"),
    ("SQL", "of the time its ended holds lasted, the part in statements"),
    ("idle-tx", "and the part in an open transaction that ran no statement"),
)


def explained(cells: int) -> list[Line]:
    """Say what the titles mean, below the table."""
    shown = EXPLAINED if cells >= 76 else ()
    return [((f"  {name:<9}", "muted"), (text, "muted")) for name, text in shown]
