"""The panel of waits: who waits for a connection, and how long until the timeout."""

from __future__ import annotations

from typing import NamedTuple

from poolwatch.model import PoolStats, Wait
from poolwatch.text.format import duration
from poolwatch.text.naming import holder_name
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, rule
from poolwatch.tui.draw.table import Column, Table, site_cell, text_cell
from poolwatch.tui.state.board import Board


class _WaitLine(NamedTuple):
    """One line of the panel."""

    wait: Wait
    pool: PoolStats | None
    """None if the pool is gone."""


def wait_lines(board: Board, cells: int, limit: int, *, dim: bool) -> list[Line]:
    """Draw the longest waits in at most ``limit`` lines; none without a wait."""
    lines = [
        _WaitLine(wait, next((p for p in process.pools if p.id == wait.pool), None))
        for process in board.snapshot.processes
        for wait in process.waits
    ]
    if not lines or limit < 2:
        return []
    lines.sort(key=lambda line: (-line.wait.waited_s, line.wait.id))
    title: Line = (("WAITERS", "title"), (f" {len(lines)}", "strong"))
    rest = len(lines) - (limit - 1)
    note: Line = ((f"{rest} more, all shorter", "muted"),) if rest > 0 else ()
    table = Table(COLUMNS, cells)
    shown = [table.line(line, dim=dim) for line in lines[: limit - 1]]
    return [rule(title, note, cells), *shown]


def _bar(line: _WaitLine, cells: int) -> Line:
    timeout = line.pool.timeout_s if line.pool else None
    share = line.wait.waited_s / timeout if timeout else 0.0
    return bar(share, cells, "bad" if share > 0.66 else "warn")


def _timeout(line: _WaitLine) -> Run:
    timeout = line.pool.timeout_s if line.pool else None
    return (f"of {duration(timeout)}" if timeout else ""), "muted"


def _site(line: _WaitLine, cells: int) -> Line:
    return site_cell(line.wait, cells, "strong")


def _pool(line: _WaitLine) -> Run:
    return text_cell(line.pool.name if line.pool else line.wait.pool)


def _waited(line: _WaitLine) -> Run:
    return duration(line.wait.waited_s), "strong"


def _holder(line: _WaitLine) -> Run:
    return text_cell(holder_name(line.wait), "text")


def _labels(line: _WaitLine) -> Run:
    return text_cell(" ".join(line.wait.labels.values()))


COLUMNS: tuple[Column[_WaitLine], ...] = (
    Column("bar", "", 10, 24, 3, draw=_bar),
    Column("waited", "", 6, 6, 0, _waited, place=right),
    Column("timeout", "", 8, 8, 4, _timeout),
    Column("holder", "", 13, 20, 2, _holder),
    Column("site", "", 20, 32, 1, draw=_site),
    Column("pool", "", 10, 18, 5, _pool),
    Column("labels", "", 12, 60, 6, _labels),
)
