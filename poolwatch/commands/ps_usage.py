"""The tables of ``poolwatch ps --sites`` and ``--by``: who uses the connections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from poolwatch.model import Frame, LabelStats, Process, SiteStats
from poolwatch.text.format import (
    call_site_short,
    duration,
    fit,
    fit_end,
    one_line,
    place,
    short_time,
    width,
)

_MAX_ROWS = 20

Usage = SiteStats | LabelStats
_Row = tuple[Usage, bool]
"""One row; True marks a caller of the call site above it."""


def usage_tables(
    process: Process, by: str, columns: int
) -> Iterator[tuple[str, list[str]]]:
    """The title and the lines of each pool's table.

    ``by`` is ``site``, ``caller`` or the name of a label.
    """
    shown = False
    for pool in process.pools:
        name = one_line(pool.name)
        if by in {"site", "caller"}:
            rows, count = _sites(process, pool.id, by)
            what = "callers" if by == "caller" else "call sites"
        else:
            rows, count = _values(process, pool.id, by)
            what = f"values of label {one_line(by)!r}"
        if rows:
            shown = True
            label = one_line(by) if isinstance(rows[0][0], LabelStats) else ""
            lines = list(_table(rows, columns, label))
            if count > _MAX_ROWS:
                lines.append(f"  and {count - _MAX_ROWS} more (poolwatch ps --json)")
            yield f"{what} of {name}, costliest first:", lines
    if not shown and by not in {"site", "caller"}:
        yield _no_values(process, by), []


def _sites(process: Process, pool: str, by: str) -> tuple[list[_Row], int]:
    """The call sites of a pool and their callers, and how many there are."""
    callers: dict[Frame, list[SiteStats]] = defaultdict(list)
    for each in process.callers:
        if each.pool == pool:
            callers[each.site].append(each)
    sites = [site for site in process.sites if site.pool == pool]
    if by == "caller":
        sites = [each for site in sites for each in callers[site.site] or [site]]
        callers.clear()
    sites.sort(key=_cost)
    rows: list[_Row] = []
    for site in sites[:_MAX_ROWS]:
        rows.append((site, False))
        rows += [(each, True) for each in sorted(callers[site.site], key=_cost)]
    return rows, len(sites)


def _values(process: Process, pool: str, label: str) -> tuple[list[_Row], int]:
    """The values of a label on a pool, and how many there are."""
    values = [
        each for each in process.labels if each.pool == pool and each.label == label
    ]
    values.sort(key=_cost)
    return [(each, False) for each in values[:_MAX_ROWS]], len(values)


def _no_values(process: Process, label: str) -> str:
    known = sorted({each.label for each in process.labels})
    has = (
        f"labels of its holds: {', '.join(map(one_line, known))}"
        if known
        else ("its holds carry no labels: see poolwatch.label()")
    )
    return f"no hold carried the label {one_line(label)!r}; {has}"


def _cost(site: Usage) -> tuple[float, float]:
    return -site.wait_caused_s, -site.hold_s.sum


def _average(site: Usage) -> str:
    digits = 2 if site.connections < 99.995 else 0
    return f"{site.connections:.{digits}f}"


def _count(count: int) -> str:
    """Return a count in at most five cells."""
    if count < 100_000:
        return str(count)
    return f"{count // 1000}k" if count < 10_000_000 else f"{count // 1_000_000}M"


def _time(seconds: float | None) -> str:
    """Return a duration, from milliseconds to days, in at most six cells."""
    if seconds is not None and 0 < seconds < 9.95:
        return short_time(seconds).replace(" ", "")
    return duration(seconds)


def _share(seconds: float | None, whole: float) -> str:
    if seconds is None or whole <= 0:
        return "-"
    return f"{min(100.0, 100 * seconds / whole):.0f}"


_COLUMNS: tuple[tuple[str, str, Callable[[Usage], str]], ...] = (
    ("", "COUNT", lambda site: _count(site.count)),
    ("AVG", "HELD", _average),
    ("", "P50", lambda site: _time(site.hold_s.p50)),
    ("", "P95", lambda site: _time(site.hold_s.p95)),
    ("", "MAX", lambda site: _time(site.hold_s.max)),
    ("WAIT", "CAUSED", lambda site: _time(site.wait_caused_s)),
    ("", "SQL %", lambda site: _share(site.in_sql_s, site.hold_s.sum)),
    (
        "IDLE",
        "IN TX %",
        lambda site: _share(site.in_transaction_idle_s, site.hold_s.sum),
    ),
    ("", "LEAKED", lambda site: _count(site.leaked)),
)
"""The two lines of the title, and the cell function. The name comes before these."""
_NARROW, _WIDE, _WIDEST = 16, 24, 1000
"""Widths of a row's name: the minimum; the minimum with two spaces between
columns, below which one space is used; unlimited."""


def _table(rows: Sequence[_Row], columns: int, label: str) -> Iterable[str]:
    """Draw the rows, whose first column is a call site or a value of ``label``."""
    title = label or "CALL SITE"
    upper, lower, _ = zip(*_COLUMNS, strict=True)
    texts = [upper, lower]
    texts += [tuple(cell(each) for _, _, cell in _COLUMNS) for each, _ in rows]
    sizes = [max(map(width, column)) for column in zip(*texts, strict=True)]
    names = [width(_name(*each, _WIDEST)) for each in rows]
    room = columns - 2 - sum(sizes)
    first = max(width(title), *names)
    gap = 2 if room - 2 * len(sizes) >= min(first, _WIDE) else 1
    first = min(first, max(_NARROW, room - gap * len(sizes)))
    titles = ["", fit(title, first), *(_name(*each, first) for each in rows)]
    for name, row in zip(titles, texts, strict=True):
        cells = [fit_end(name, first)]
        cells += [cell.rjust(size) for cell, size in zip(row, sizes, strict=True)]
        yield ("  " + (" " * gap).join(cells)).rstrip()


def _name(site: Usage, below: bool, cells: int) -> str:
    if isinstance(site, LabelStats):
        return fit(one_line(site.value), cells)
    if not below:
        return call_site_short(site, cells)
    if site.caller is None:
        return "  from a library"
    name = f"  from {place(site.caller)}"
    return name if width(name) <= cells else f"  from {place(site.caller, 1)}"
