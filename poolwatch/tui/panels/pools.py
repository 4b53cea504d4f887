"""The pools panel: a line per pool with gauge and statistics, and notes below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from poolwatch.diagnosis.holds import leaves_open
from poolwatch.model import IncidentMark, PoolStats, Process, Snapshot
from poolwatch.text.format import duration, local_time, one_line, plural
from poolwatch.text.incident_snapshots import incident_words, pool_name
from poolwatch.tui.draw.gauge import bar, spark
from poolwatch.tui.draw.line import Line, Run, crop, length, right
from poolwatch.tui.draw.table import (
    Column,
    Table,
    age_cell,
    count_cell,
    percentile_cell,
    process_cell,
    text_cell,
)
from poolwatch.tui.state.board import HISTORY, Board
from poolwatch.tui.state.rows import process_key

NEGLIGIBLE_WAITING = 0.005
"""Average number of waiting requests; lower averages are shown as 0."""


class _PoolLine(NamedTuple):
    """One line of the table."""

    process: Process
    pool: PoolStats
    history: Sequence[int]
    """Connections checked out at each of the last readings."""
    oldest_s: float | None
    """How long the longest of its holds lasts."""
    leaked: int
    """Its holds that are leaked."""


def pool_lines(board: Board, cells: int, limit: int) -> list[Line]:
    """Draw at most ``limit`` lines, titles and notes included."""
    snapshot = board.snapshot
    hidden = set() if board.several_processes else {"process"}
    if board.moment is not None:
        hidden.add("spark")
    span = f"last {duration(HISTORY * board.refresh)}"
    columns = [replace(c, title=span) if c.key == "spark" else c for c in COLUMNS]
    table = Table(columns, cells, hidden)
    pairs = [(p, pool) for p in snapshot.processes for pool in p.pools]
    pairs.sort(key=lambda pair: (pair[1].name, pair[0].host, pair[0].pid, pair[1].id))
    notes = _notes(board, cells)
    room = max(limit - 1 - len(notes), 1)
    if len(pairs) > room:
        shown = max(room - 1, 1)
        busiest = sorted(pairs, key=lambda pair: _pressure(*pair), reverse=True)[:shown]
        rest = plural(len(pairs) - shown, "pool")
        notes.insert(0, ((f"  +{rest} under less pressure", "muted"),))
        pairs = [pair for pair in pairs if pair in busiest]  # in their order
    lines = [table.titles()]
    for process, pool in pairs:
        history = board.history.get((process_key(process), pool.id), ())
        holds = [hold for hold in process.holds if hold.pool == pool.id]
        oldest = max((hold.known_s for hold in holds), default=None)
        leaked = sum(hold.verdict == "leaked" for hold in holds)
        lines.append(table.line(_PoolLine(process, pool, history, oldest, leaked)))
    return [*lines, *notes][: max(limit, 2)]


def _pressure(process: Process, pool: PoolStats) -> tuple[int, bool, bool]:
    """Sort key: waits, then leaks, then whether it is full.

    Utilization would let calm pools change places at every reading.
    """
    leaked = any(h.verdict == "leaked" for h in process.holds if h.pool == pool.id)
    return pool.waiting, leaked, _utilization(pool) >= 1


def _utilization(pool: PoolStats) -> float:
    """Return the fraction that is checked out, 0 to 1; 1 if no slot is left."""
    if pool.capacity == 0:
        return 1.0
    top = pool.capacity or pool.out + (pool.idle or 0)
    return pool.out / max(top, 1)


def _level(pool: PoolStats) -> str:
    """Return the ink of a gauge: normal, full or using the overflow, or exhausted.

    A pool that is full harms only if somebody waits. A single slot that is out is
    normal; a pool without any slot left will never lend again.
    """
    if pool.waiting or pool.capacity == 0:
        return "bad"
    full = pool.capacity is not None and pool.out >= pool.capacity and pool.slots != 1
    return "warn" if full or (pool.size and pool.out > pool.size) else "accent"


def _name(line: _PoolLine) -> Run:
    return text_cell(line.pool.name, "strong")


def _gauge(line: _PoolLine, cells: int) -> Line:
    pool = line.pool
    soft = (pool.size or 0) / pool.capacity if pool.capacity else 1.0
    return bar(_utilization(pool), cells, _level(pool), soft)


def _spark(line: _PoolLine, cells: int) -> Line:
    top = line.pool.capacity or 1
    return ((spark(line.history, top, cells), "accent"),)


def _out(line: _PoolLine) -> Run:
    pool, top = line.pool, line.pool.capacity
    of = "∞" if pool.max_overflow == -1 else "-" if top is None else str(top)
    return f"{pool.out}/{of}", _level(pool).replace("accent", "text")


def _average_waiting(line: _PoolLine) -> Run:
    average = line.pool.waiting_s_per_s
    if average <= NEGLIGIBLE_WAITING:
        return "0", "faint"
    digits = 2 if average < 0.1 else 1 if average < 99.5 else 0
    return f"{average:.{digits}f}", "warn"


def _leaked(line: _PoolLine) -> Run:
    """Return the leaks that are out now, and those that came back."""
    back = max(line.pool.counters.leaked - line.leaked, 0)
    text = f"{line.leaked}+{back}" if back else str(line.leaked)
    return text, "bad" if line.leaked else "text" if back else "faint"


def _number(
    title: str, least: int, rank: int, cell: Callable[[PoolStats], Run]
) -> Column[_PoolLine]:
    """Return a column of right-aligned numbers with a fixed width."""
    return Column(
        title, title, least, least, rank, lambda line: cell(line.pool), place=right
    )


COLUMNS: tuple[Column[_PoolLine], ...] = (
    Column("pool", "POOLS", 10, 16, 0, _name, title_ink="title"),
    Column("process", "process", 14, 22, 7, lambda line: process_cell(line.process)),
    Column("gauge", "", 8, 30, 2, draw=_gauge),
    Column("out", "out", 7, 7, 1, _out, place=right),
    _number("waiting", 7, 2, lambda pool: count_cell(pool.waiting, "bad")),
    Column("average", "1m avg", 8, 8, 6, _average_waiting, place=right),
    _number("p99 wait", 8, 4, lambda pool: percentile_cell(pool.wait_s.p99)),
    Column(
        "oldest", "oldest", 6, 6, 5, lambda line: age_cell(line.oldest_s), place=right
    ),
    _number("p99 hold", 8, 8, lambda pool: percentile_cell(pool.hold_s.p99)),
    _number("timeouts", 8, 9, lambda pool: count_cell(pool.counters.timeouts, "warn")),
    _number("cancelled", 9, 10, lambda pool: count_cell(pool.gave_up, "warn")),
    Column("leaked", "leaked", 7, 7, 3, _leaked, place=right),
    Column("spark", "", 11, HISTORY, 12, draw=_spark, place=right),
)


def _notes(board: Board, cells: int) -> list[Line]:
    """Return notes on missing data, and on incident snapshots."""
    processes = board.snapshot.processes
    notes: list[Line] = [
        (("  ■ ", "bad"), (text, "bad")) for text in _switched_off(board.snapshot)
    ]
    notes += [
        (("  ◆ ", "warn"), (one_line(text), "muted"))
        for text in [*_unread(board.snapshot), *_unreachable(board)]
    ]
    marks = [(process, mark) for process in processes for mark in process.frozen]
    if marks and board.fixed is None:
        notes.append(_incidents(marks, cells - 2))
    undecided = filter(leaves_open, processes)
    left = "; ".join(one_line(text) for each in undecided for text in each.left_out)
    if left:
        notes.append((("  · ", "faint"), (f"leak search incomplete: {left}", "muted")))
    return [crop(note, cells - 2) for note in notes]


def _switched_off(snapshot: Snapshot) -> list[str]:
    return [
        f"pool {one_line(pool.name, 24)}: nothing is recorded: a hook of "
        "poolwatch failed, see the application's log"
        for process in snapshot.processes
        for pool in process.pools
        if pool.switched_off
    ]


def _unread(snapshot: Snapshot) -> list[str]:
    """Return why pools have no server view; each reason once."""
    notes: dict[str, str] = {}
    for process in snapshot.processes:
        names = {pool.id: pool.name for pool in process.pools}
        for status in process.servers:
            known = [names[pool] for pool in status.pools if pool in names]
            if known and status.error:  # other pools were collected meanwhile
                text = f"no server view of {', '.join(known)}: {status.error}"
                notes.setdefault(status.error, text)
    return list(notes.values())


def _unreachable(board: Board) -> list[str]:
    """Return which processes are silent, except what the WHY lines say already."""
    others = board.findings[1:]
    return [finding.text for finding in others if finding.kind == "unreachable"]


def _incidents(marks: Sequence[tuple[Process, IncidentMark]], cells: int) -> Line:
    """List the incident snapshots, newest first; the key is always shown."""
    newest = sorted(marks, key=lambda pair: pair[1].at, reverse=True)
    texts = [
        f"{pool_name(process, mark.pool)} {incident_words(mark.kind)[0]} "
        f"{local_time(mark.at)}"
        for process, mark in newest
    ]
    start: Line = (("  ● ", "accent"), ("incident snapshots: ", "muted"))
    key: Line = (("  z", "accent"), (" shows them", "muted"))
    start = (*start, (", ".join(texts), "text"))
    return (*crop(start, max(cells - length(key), 12)), *key)
