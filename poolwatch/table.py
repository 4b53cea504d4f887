"""``poolwatch ps`` for people: who holds what, in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poolwatch.model import Hold, PoolStats, Process, Snapshot
from poolwatch.text import duration, fit, one_line, place, plural, width

_HEAD = ("VERDICT", "HELD", "HOLDER", "CALL SITE", "PID", "SERVER", "STATEMENT")
_NARROWEST = (7, 6, 8, 16, 6, 8, 8)
"""Cells that each column keeps at least: together they fit into 80."""
_SITE = _HEAD.index("CALL SITE")


def render(snapshot: Snapshot, columns: int) -> str:
    """Return the table, as wide as the terminal."""
    lines: list[str] = []
    for process in snapshot.processes:
        lines += [*_process(process, columns), ""]
    for lost in snapshot.unreachable:
        lines += [f"pid {lost.pid or '?'} could not be read: {one_line(lost.why)}", ""]
    return "\n".join(lines).rstrip()


def _process(process: Process, columns: int) -> Iterable[str]:
    name = process.name or process.program
    yield one_line(f"{name}  pid {process.pid} on {process.host}")
    errors = {pool: s.error for s in process.servers if s.error for pool in s.pools}
    for pool in process.pools:
        yield f"  {_pool(pool)}"
        if pool.id in errors:
            yield f"    server view: {one_line(errors[pool.id] or '')}"
    explained: set[str] = set()
    for finding in process.findings:
        kind = one_line(finding.kind)
        yield f"  {finding.severity.upper()} {kind}: {one_line(finding.text)}"
        if finding.remedy not in explained:
            yield f"    {one_line(finding.remedy)}"
        explained.add(finding.remedy)
    if process.holds:
        yield from _table([_HEAD, *map(_row, process.holds)], columns)
    else:
        yield "  no connection is held"
    for wait in process.waits:
        who = one_line(wait.task or wait.thread or "?")
        yield f"  waiting {duration(wait.waited_s)}: {who} at {place(wait.site)}"


def _pool(pool: PoolStats) -> str:
    most = "" if pool.size is None else f" of {pool.size}"
    if pool.max_overflow:
        most += "+∞" if pool.max_overflow < 0 else f"+{pool.max_overflow}"
    figures = [
        f"{pool.checked_out}{most} out",
        f"{pool.waiting} waiting",
        f"{pool.counters.checkouts} checkouts",
        f"p95 hold {duration(pool.hold_s.p95)}",
    ]
    if pool.counters.timeouts:
        figures.append(plural(pool.counters.timeouts, "timeout"))
    if pool.counters.leaked:
        figures.append(f"{pool.counters.leaked} leaked")
    return f"{one_line(pool.name)} ({one_line(pool.kind)}): " + ", ".join(figures)


def _row(hold: Hold) -> tuple[str, ...]:
    row = hold.server
    statement = (row and row.query) or hold.statement or ""
    state = "" if row is None else (row.state or "?")
    if row is not None and row.blocked_by:
        state += f", blocked by {', '.join(map(str, row.blocked_by))}"
    return (
        hold.verdict,
        duration(hold.held_s),
        one_line(hold.task or hold.thread or "?", 24),
        place(hold.site),
        str(hold.backend_pid or "-"),
        one_line(state, 60) or "-",
        one_line(statement, 200),
    )


def _table(rows: Sequence[Sequence[str]], columns: int) -> Iterable[str]:
    sizes = [max(map(width, column)) for column in zip(*rows, strict=True)]
    _shrink(sizes, columns - 2 * len(sizes))
    for row in rows:
        cells = [fit(cell, size) for cell, size in zip(row, sizes, strict=True)]
        cells[_SITE] = _fit_end(row[_SITE], sizes[_SITE])
        yield ("  " + "  ".join(cells)).rstrip()


def _shrink(sizes: list[int], cells: int) -> None:
    """Take from the columns that have most to give, the last one first."""
    order = [len(sizes) - 1, *range(len(sizes) - 1)]
    while sum(sizes) > cells:
        spare = [sizes[at] - _NARROWEST[at] for at in order]
        if max(spare) <= 0:
            return
        sizes[order[spare.index(max(spare))]] -= 1


def _fit_end(text: str, cells: int) -> str:
    """Like fit, but what is cut is the beginning: a line number stands at the end."""
    if width(text) <= cells:
        return fit(text, cells)
    while width(text) > cells - 1:
        text = text[1:]
    return fit("…" + text, cells)
