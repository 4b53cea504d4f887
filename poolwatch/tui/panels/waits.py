"""The waiters panel: who asks for a connection, and how near the timeout is."""

from __future__ import annotations

from poolwatch.model import PoolStats, Process, Wait
from poolwatch.text.format import duration, fit, one_line, taken_at, taken_in
from poolwatch.text.naming import holder_name
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, rule, tail
from poolwatch.tui.draw.table import GAP, Column, Layout, arrange
from poolwatch.tui.state.board import Board

COLUMNS = (
    Column("bar", "", 10, 24, 3),
    Column("waited", "", 6, 6, 0, right=True),
    Column("of", "", 8, 8, 4),
    Column("holder", "", 13, 20, 2),
    Column("site", "", 20, 32, 1),
    Column("pool", "", 10, 18, 5),
    Column("labels", "", 12, 60, 6),
)

_Asking = tuple[Process, PoolStats | None, Wait]


def waiting(board: Board) -> list[_Asking]:
    """List every wait of every process, the longest first."""
    found: list[_Asking] = []
    for process in board.snapshot.processes:
        pools = {pool.id: pool for pool in process.pools}
        found += [(process, pools.get(wait.pool), wait) for wait in process.waits]
    return sorted(found, key=lambda asking: (-asking[2].waited_s, asking[2].id))


def waiter_lines(board: Board, cells: int, limit: int, *, dim: bool) -> list[Line]:
    """Draw at most ``limit`` lines; none at all when nobody waits."""
    asking = waiting(board)
    if not asking or limit < 2:
        return []
    title: Line = (("WAITERS", "title"), (f" {len(asking)}", "strong"))
    shown = asking[: limit - 1]
    rest = len(asking) - len(shown)
    note: Line = ()
    if rest:
        note = ((f"{rest} more, all shorter", "muted"),)
    columns = arrange(COLUMNS, cells - 4, ())
    lines = [_line(columns, pool, wait, dim=dim) for _, pool, wait in shown]
    return [rule(title, note, cells), *lines]


def _line(columns: Layout, pool: PoolStats | None, wait: Wait, *, dim: bool) -> Line:
    timeout = pool.timeout_s if pool else None
    share = wait.waited_s / timeout if timeout else 0.0
    ink = "muted" if dim else "bad" if share > 0.66 else "warn"
    runs: list[Run] = [("  ", "text")]
    for column, cells in columns:
        if column.key == "bar":
            runs += [*bar(share, cells, ink), (GAP, "text")]
            continue
        text, own = _cell(column.key, pool, wait, timeout)
        if column.key == "site":
            text = taken_in(wait, cells)
        place_ = right if column.right else tail if column.key == "site" else fit
        runs.append((place_(text, cells) + GAP, "muted" if dim else own))
    return tuple(runs)


def _cell(key: str, pool: PoolStats | None, wait: Wait, timeout: float | None) -> Run:
    if key == "waited":
        return duration(wait.waited_s), "strong"
    if key == "of":
        return (f"of {duration(timeout)}", "muted") if timeout else ("", "muted")
    if key == "holder":
        return one_line(holder_name(wait), 60), "text"
    if key == "site":
        return taken_at(wait), "strong"
    if key == "pool":
        return one_line(pool.name if pool else wait.pool, 40), "muted"
    return one_line(" ".join(wait.labels.values()), 80), "muted"
